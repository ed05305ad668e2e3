"""One shard on one machine, without Ray: read, decode, run the network, commit.

Imports `dataset` and what is below it.
"""
