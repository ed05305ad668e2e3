"""Where bytes live: folders and buckets behind the few verbs of `store.Store`.

Imports nothing of ours but `errors` and its neighbours at the top.
"""
