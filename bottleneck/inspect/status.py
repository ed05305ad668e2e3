"""Tell how far an output is, from one listing of its store.

The times are the store's own, of the data files to each other and to its clock, so that a clock that is wrong here does
not matter.
"""

import heapq
import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from bottleneck.dataset.footer import read_footer
from bottleneck.dataset.plan import NUM_FOOTERS_READ, load_plan
from bottleneck.dataset.success import finished
from bottleneck.errors import UsageError
from bottleneck.storage.store import Entry, Store, open_store

RECENT_SECONDS = 600.0
"""The ETA uses the rate of these last minutes before the newest data file."""
STILL_SECONDS = 300.0
"""A run without a commit for this long counts as stalled; a shard takes some seconds."""
NUM_GAPS = 5
"""Or for this many times the recent interval between data files, if that is longer."""
NUM_SAMPLED = 64
"""Data files whose footers are read to count rejected images, one request each."""

RunState = Literal["finished", "running", "standing still", "planned"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of an output; a job prints it as JSON."""

    output: str
    holds: str
    """`features` or `predictions`."""
    state: RunState
    """`planned`: nothing is done yet, or nothing since the plan was extended or images requeued. `standing still`:
    nothing was done lately."""
    images: int
    """Planned."""
    images_done: int
    shards: int
    """Planned."""
    shards_done: int
    shards_again: int
    """Pending shards that have a file but were replanned by `requeue`."""
    idle_seconds: float
    """Seconds since the newest data file, or since the last planning if that is newer."""
    images_per_second: float | None
    """Rate of the last ten minutes before the newest data file; None if unknown."""
    images_per_second_overall: float | None
    """Overall rate, without pauses."""
    eta_seconds: float | None
    """Remaining seconds at the recent rate; None if nothing runs."""
    rejected: dict[str, int]
    """Rejected images by reason; an estimate if `sampled_shards` is less than `shards_with_file`."""
    sampled_shards: int
    shards_with_file: int

    @property
    def rejected_are_estimated(self) -> bool:
        return self.sampled_shards < self.shards_with_file


def look(output: str) -> Status:
    """Determine the state of an output of `extract` or `predict`.

    Costs a listing, a few small requests, and a footer per requeued shard.

    Raises:
        UsageError: if there is no plan.
        StoreError: if the output cannot be read.
    """
    plan = load_plan(output)
    if plan is None:
        raise UsageError(
            f"{output} has no plan.json, so there is nothing to tell of. Expected an output of `bottleneck extract` or "
            "`bottleneck predict`; look at its name."
        )
    store = open_store(output)
    dated = [(plan.shard_of(entry.key), entry, when) for entry, when in store.list_dated("data/")]
    files = {shard: entry for shard, entry, _ in dated if shard is not None}
    committed = plan.committed(files)
    done = {shard: plan.images_in(shard) for shard in committed}
    times = sorted((when, done.get(shard, 0)) for shard, _, when in dated if shard is not None)
    document = finished(plan, committed)
    if document is not None:
        rejected, sampled = dict(document["rejected"]), len(files)
    else:
        rejected, sampled = _rejected(store, files)

    newest = times[-1][0] if times else 0.0
    planned = 0.0 if times and len(plan.listings) == 1 else _planned_at(store, is_new=not times)
    is_waiting = planned > newest  # what was done before says nothing of whether anybody is at it now
    newest = max(newest, planned)
    idle = max(0.0, store.clock() - newest)  # below 0 where gateway and storage have clocks of their own
    patience = _patience([when for when, _ in times])
    recent = _rate(times, newest - RECENT_SECONDS, patience) or _rate(times, 0.0, patience)
    left = plan.num_images - sum(done.values())
    is_running = document is None and not is_waiting and idle <= patience
    return Status(
        output=plan.output,
        holds="predictions" if plan.predictions else "features",
        state="finished" if document else "running" if is_running else "planned" if is_waiting else "standing still",
        images=plan.num_images,
        images_done=sum(done.values()),
        shards=plan.num_shards,
        shards_done=len(done),
        shards_again=len(files) - len(done),
        idle_seconds=round(idle, 1),
        images_per_second=_rounded(recent),
        images_per_second_overall=_rounded(_rate(times, 0.0, patience)),
        eta_seconds=round(left / recent, 1) if is_running and recent else None,
        rejected=rejected,
        sampled_shards=sampled,
        shards_with_file=len(files),
    )


def _patience(times: Sequence[float]) -> float:
    """Seconds without a commit after which a run counts as stalled."""
    gaps = [after - before for before, after in pairwise(times[-50:])]
    return max(STILL_SECONDS, NUM_GAPS * statistics.median(gaps)) if gaps else STILL_SECONDS


def _rate(times: Sequence[tuple[float, int]], since: float, patience: float) -> float | None:
    """Images per second; a data file's images took the time since the previous file. Pauses do not count.

    Args:
        times: when each data file was written and how many images it has, in order.
    """
    images, seconds = 0, 0.0
    for (before, _), (after, count) in pairwise(times):
        if before >= since and after - before <= patience:
            images, seconds = images + count, seconds + after - before
    # Some stores date objects to the second, which tells nothing of less.
    return images / seconds if seconds >= 1.0 and images else None


def _rejected(store: Store, files: dict[int, Entry]) -> tuple[dict[str, int], int]:
    """Estimate the rejected images by reason from the footers of some data files, and return how many were read."""
    # An order as good as random (Knuth's multiplicative hash), but the same at every look: watching reads few anew.
    sampled = heapq.nsmallest(NUM_SAMPLED, files, key=lambda shard: shard * 2654435761 % 2**32)
    with ThreadPoolExecutor(NUM_FOOTERS_READ) as pool:
        counts = pool.map(lambda shard: _statuses(store, files[shard]), sampled)
    total = sum((Counter(dict(one)) for one in counts), Counter[str]())
    scale = len(files) / max(1, len(sampled))
    return {reason: round(count * scale) for reason, count in sorted(total.items()) if reason != "ok"}, len(sampled)


@lru_cache(maxsize=1_000)
def _statuses(store: Store, entry: Entry) -> tuple[tuple[str, int], ...]:
    """Rows of a data file by outcome; read once for each content the file has had."""
    statuses: dict[str, Any] = read_footer(store, entry)[1]["statuses"]
    return tuple(statuses.items())


def _planned_at(store: Store, *, is_new: bool) -> float:
    """When the plan, or its latest extension or revision, was made; 0 if unknown."""
    if is_new:
        dates = [when for entry, when in store.list_dated("plan.json") if entry.key == "plan.json"]
    else:
        dates = [when for _, when in store.list_dated("plan/extension-")]
    return max(dates, default=store.clock() if is_new else 0.0)


def _rounded(rate: float | None) -> float | None:
    return rate and round(rate, 2)
