"""Checks of everything a run needs.

    checks   Run checks, each within a time limit; one that hangs or fails becomes a finding.
    cluster  Check a Ray cluster: join it and run a small task on a node of each kind.
    machine  Check this machine: packages, processor, memory, disks, weights.
    storage  Try a source and an output: decode an image, create an object, refuse its second write.

Imports everything below the jobs.
"""
