"""Everything that runs on Ray: extraction on Ray Data, fits on Ray Train, clusters and their jobs.

Imports `heads` and what is below it, never `inspect`. Ray is imported here and in `doctor/cluster` only.
"""
