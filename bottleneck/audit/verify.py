"""Prove that an output is what its plan says: nothing lost, duplicated or foreign.

What one object must be is in `audit` and `audit_rows`; here they are listed, compared with each other, and the faulty
ones named.
"""

from bottleneck.audit.report import Report
from bottleneck.audit.verification import OnShard, Verification, list_objects


def verify(output: str, full: bool = False, on_shard: OnShard | None = None) -> Report:
    """Compare an output with its plan.

    Args:
        output: a folder or the URI of one, as it was given to the jobs that filled it.
        full: read every value (page checksums verified) and compare it with the plan, not only footers and totals.
        on_shard: called after each shard of the plan with the number of shards done and their total.

    Returns:
        The report; whatever was fetched and is not as it should be is named there.

    Raises:
        UsageError: there is no plan here, or one of another version.
        StoreError: something that is there cannot be fetched, so nothing can be said of it.
    """
    return Verification(list_objects(output), full, on_shard or (lambda done, total: None)).run()
