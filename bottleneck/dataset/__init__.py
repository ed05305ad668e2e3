"""The table on the store: the frozen plan, its parts and revisions, the data files, reading them, and exporting them.

Imports `sources`, `networks` and `storage`.
"""
