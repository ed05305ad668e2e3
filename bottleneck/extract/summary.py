"""Count receipts, stop a run with too many rejected images, and summarise it."""

import random
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from bottleneck.dataset.extend import Extended
from bottleneck.dataset.make_plan import check_max_rejected
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import Shard
from bottleneck.dataset.success import finish, finished
from bottleneck.dataset.write import Receipt
from bottleneck.errors import TooManyRejectedError
from bottleneck.storage.store import open_store
from bottleneck.text import counted


@dataclass(frozen=True)
class Summary:
    """What a run did, and the state of the output; a job prints it as JSON."""

    output: str
    images: int
    ok: int
    rejected: dict[str, int]
    shards: int
    done_before: int
    """Shards that were committed before this run."""
    done_now: int
    seconds: float
    fingerprint: str
    skipped: dict[str, int] = field(default_factory=dict)
    """What the source holds beside images, by suffix; `(cut)` are tars that were cut off."""
    extended: Extended | None = None
    details: dict[str, Any] = field(default_factory=dict)


def pending_shards(plan: Plan, done: Collection[int]) -> list[Shard]:
    """The shards that are not done, in random order, so that concurrent runs share the work."""
    pending = [shard for shard in plan.shards() if shard.number not in done]
    random.shuffle(pending)
    return pending


class Tally:
    """Count the outcomes of a run as receipts arrive, and stop it if too many images are rejected."""

    def __init__(self, plan: Plan, max_rejected: float) -> None:
        check_max_rejected(max_rejected)
        self.allowed = max_rejected * plan.num_images
        self.max_rejected = max_rejected
        self.run_id = uuid.uuid4().hex[:12]
        self.receipts: dict[int, Receipt] = {}
        self.images = 0
        self.reasons: dict[str, int] = {}

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())

    def add(self, receipt: Receipt) -> None:
        self.receipts[receipt.shard] = receipt
        self.images += receipt.images
        for reason, count in receipt.rejected.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.check(self.reasons, self.images)

    def check(self, reasons: dict[str, int], num_images: int) -> None:
        """Raise TooManyRejectedError if more images are rejected than allowed."""
        if (rejected := sum(reasons.values())) > self.allowed:
            named = ", ".join(f"{count:,} x {reason}" for reason, count in sorted(reasons.items()))
            advice = "run again with a higher `max_rejected` to go on from here"
            if rejected == num_images:
                advice = "not one image could be used, so the source, or how it is read, is probably not what was meant"
            raise TooManyRejectedError(
                f"{counted(rejected, 'image')} rejected ({named}), more than the {self.max_rejected:.0%} "
                f"of the plan that `max_rejected` allows. Look at the rows' `reason`; {advice}."
            )


def summarize(
    plan: Plan,
    tally: Tally,
    done_before: dict[int, int],
    started: float,
    extended: Extended | None = None,
    details: dict[str, Any] | None = None,
) -> Summary:
    """Finish the output, unless it is finished, and return what was done.

    Args:
        done_before: `plan.committed()` at the run's start. With the receipts it accounts for every shard, so that
            `data/` is not listed again.
        started: by time.monotonic().
        details: measurements of the run.
    """
    now = done_before | {one.shard: one.bytes for one in tally.receipts.values() if one.created}
    document = finished(plan, now) or finish(plan, tally.receipts, tally.run_id, done_before)
    open_store(plan.output).sweep()
    tally.check(document["rejected"], document["images"])
    return Summary(
        output=plan.output,
        images=document["images"],
        ok=document["ok"],
        rejected=document["rejected"],
        shards=plan.num_shards,
        done_before=len(done_before),
        done_now=sum(receipt.created for receipt in tally.receipts.values()),
        seconds=round(time.monotonic() - started, 2),
        fingerprint=plan.holds.fingerprint,
        skipped=plan.skipped,
        extended=extended,
        details=details or {},
    )
