"""Checks of what a run needs: this machine, a cluster, a source and an output.

Imports everything below the jobs.
"""
