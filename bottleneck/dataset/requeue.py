"""Reprocess images: plan their shards again as a revision, which replaces the data files whole.

Planned and found images stream past each other in key order, which within a listing is the order of its shards too. So
memory holds one shard of every listing, the shards of one part, and the keys of the rejected images that were named.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import chain
from typing import NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.dataset.extend import append
from bottleneck.dataset.footer import read_footer
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import (
    NUM_NAMED,
    SHARDS_PER_PART,
    Part,
    Revision,
    Shard,
    Totals,
    images_of,
    in_order,
    read_images,
    shard_table,
    write_part,
)
from bottleneck.dataset.schema import Reason, check_schema
from bottleneck.dataset.success import finished
from bottleneck.errors import CorruptError, UsageError
from bottleneck.sources.containers import ContainerFile
from bottleneck.sources.image import Image
from bottleneck.sources.open import open_source
from bottleneck.sources.reading import Limits
from bottleneck.storage.parquet import open_parquet
from bottleneck.storage.store import Entry, ObjectChangedError, ObjectGoneError, Store, open_store
from bottleneck.text import shown

REASON_OF_LIMIT = {"max_bytes": "too_many_bytes", "max_pixels": "too_many_pixels", "formats": "unsupported_format"}
NUM_READ = 8
"""Data files read concurrently."""

Named = dict[int, dict[str, str]]
"""Rejected images to reprocess: reason by key, by shard."""


@dataclass(frozen=True)
class Requeued:
    """What will be reprocessed, and what the comparison of plan and source found."""

    shards: int = 0
    images: int = 0
    """Images rejected for one of the reasons, or changed."""
    rejected: dict[str, int] = field(default_factory=dict)
    """The rejected ones by reason."""
    changed: int = 0
    """Images whose size or etag in the source is not the planned one."""
    changed_keys: list[str] = field(default_factory=list)
    """The first of them."""
    gone: int = 0
    """Planned images that are gone from the source. Named ones are read again; the rows of all others stay."""
    gone_keys: list[str] = field(default_factory=list)


def requeue_plan(
    plan: Plan, reasons: Collection[str] = (), *, changed: bool = False, limits: Limits | None = None
) -> tuple[Plan, Requeued]:
    """Replan the shards that hold images rejected for these reasons, or changed since they were planned.

    Args:
        limits: of the plan from then on; higher ones than it has, each with its reason.

    Returns:
        The plan with its new revision; the same plan where there is nothing to requeue.

    Raises:
        UsageError: for reasons there are not, nothing to look for, limits that are lower, or predictions of features.
    """
    limits = limits or plan.limits
    check(plan, reasons, changed, limits)
    store = open_store(plan.output)
    while True:
        rejected = _rejected(plan, store, frozenset(reasons))
        revision, requeued = _Revising(plan, store, rejected, changed, limits).revision()
        if not revision.revised:
            return plan, requeued
        plan, created = append(plan, revision)
        if created:
            return plan, requeued
        # Another run extended or revised first: look again, at its shards.


def check(plan: Plan, reasons: Collection[str], changed: bool, limits: Limits) -> None:
    """Raise UsageError for a plan that cannot be requeued."""
    known = get_args(Reason)
    if odd := sorted(set(reasons) - set(known)):
        raise UsageError(f"--reason takes reasons of rejected images: {', '.join(known)}. Received: {', '.join(odd)}.")
    if not reasons and not changed:
        raise UsageError(
            "Expected which images to do again: --reason REASON ... for rejected ones, --changed for those that are "
            "other ones in the source than when they were planned, or both."
        )
    if plan.predictions and plan.predictions.made_of == "features":
        raise UsageError(
            f"{plan.output} holds predictions of the features in {plan.source}. Requeue those and extract them; then "
            f"`bottleneck predict {plan.source} {plan.predictions.head} {plan.output} --extend` predicts them again."
        )
    limits.check_installed()
    for name, reason in REASON_OF_LIMIT.items():
        old, new, option = getattr(plan.limits, name), getattr(limits, name), f"--{name.replace('_', '-')}"
        if not _includes(new, old):
            raise UsageError(
                f"{option} can only be raised, as what the plan accepted stays. Planned: {shown(old)}. Received: "
                f"{shown(new)}."
            )
        if new != old and reason not in reasons:
            raise UsageError(
                f"{option} decides about images that are rejected as {reason}, and all of them are judged alike. "
                f"Expected --reason {reason} beside it. Received: {' '.join(reasons) or 'no --reason'}."
            )


def _includes(new: int | tuple[str, ...], old: int | tuple[str, ...]) -> bool:
    """Whether a limit accepts everything that another accepts."""
    if isinstance(new, tuple) and isinstance(old, tuple):
        return set(new) >= set(old)
    return new >= old  # type: ignore[operator]  # of one kind


def _rejected(plan: Plan, store: Store, reasons: frozenset[str]) -> Named:
    """The images rejected for these reasons, read from the files that have some."""
    if not reasons:
        return {}
    files = plan.data_files()
    with ThreadPoolExecutor(NUM_READ) as pool:
        if document := finished(plan):
            statuses = {line["shard"]: line["rejected"] for line in document["shards"]}
        else:
            footers = pool.map(lambda entry: read_footer(store, entry)[1], files.values())
            statuses = {shard: footer["statuses"] for shard, footer in zip(files, footers, strict=True)}
        asked = [shard for shard in files if reasons & statuses[shard].keys()]
        rows = pool.map(lambda shard: _rejected_rows(store, files[shard], reasons), asked)
        return dict(zip(asked, rows, strict=True))


def _rejected_rows(store: Store, entry: Entry, reasons: frozenset[str]) -> dict[str, str]:
    """The keys and reasons of a data file; only these columns are read."""
    while True:
        try:
            with open_parquet(ContainerFile(store, entry), page_checksum_verification=True) as file:
                check_schema(file.schema_arrow, ["key", "reason"])
                table = file.read(["key", "reason"], use_threads=False)
            break
        except (ObjectGoneError, ObjectChangedError):
            now = store.stat(entry.key)  # another run may replace it meanwhile
            if now is None or now == entry:
                raise CorruptError(f"{store.uri}/{entry.key} is gone since it was listed.") from None
            entry = now
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptError(
                f"{store.uri}/{entry.key} is damaged: {error}. Look at it with `bottleneck verify`; delete it to have "
                "it extracted again."
            ) from error
    table = table.filter(pc.is_in(table.column("reason"), pa.array(sorted(reasons))))
    return dict(zip(table.column("key").to_pylist(), table.column("reason").to_pylist(), strict=True))


class _Placed(NamedTuple):
    """A planned image with its shard and run of shards."""

    image: Image
    shard: Shard
    run: int


class _Revising:
    """One comparison of a plan with its source, and the parts it produces."""

    def __init__(self, plan: Plan, store: Store, rejected: Named, changed: bool, limits: Limits) -> None:
        self.plan, self.store, self.limits = plan, store, limits
        self.rejected, self.changed = rejected, changed
        self.done = plan.committed()
        self.replaced = Totals()
        self.reasons: Counter[str] = Counter()
        self.num_images = self.num_changed = self.num_gone = 0
        self.changed_keys: list[str] = []
        self.gone_keys: list[str] = []

    def revision(self) -> tuple[Revision, Requeued]:
        """Write the parts of the replanned shards, run by run, so that all are in order."""
        tables: list[list[pa.Table]] = [[] for _ in self.plan.runs()]
        parts: list[list[Part]] = [[] for _ in tables]
        revised: list[list[int]] = [[] for _ in tables]

        def write(run: int) -> None:
            if tables[run]:
                parts[run].append(write_part(self.store, self.plan.holds, tables[run]))
                tables[run] = []

        for run, shard, images in self._shards_to_do_again():
            tables[run].append(shard_table(shard, images))
            revised[run].append(shard)
            if len(tables[run]) == SHARDS_PER_PART:
                write(run)
        for run in range(len(tables)):
            write(run)
        revision = Revision(
            **Totals().counted(),
            shards=sum(map(len, revised)),
            skipped={},
            shard_size=self.plan.shard_size,
            parts=list(chain.from_iterable(parts)),
            revised=list(chain.from_iterable(revised)),
            limits=self.limits,
            replaced_bytes=self.replaced.bytes,
            replaced_label_counts=self.replaced.counted()["label_counts"],
        )
        totals = Totals()
        totals.add(images_of(self.store, revision.located()))
        requeued = Requeued(
            revision.shards,
            self.num_images,
            dict(sorted(self.reasons.items())),
            self.num_changed,
            self.changed_keys,
            self.num_gone,
            self.gone_keys,
        )
        return replace(revision, **totals.counted()), requeued

    def _shards_to_do_again(self) -> Iterator[tuple[int, int, list[Image]]]:
        """Yield run, number and images of each shard with a named image, in the order of its last key."""
        images: dict[int, list[Image]] = {}
        asked: dict[int, bool] = {}
        for placed, found in self._beside_each_other():
            number = placed.shard.number
            refreshed = self._look(placed, found)
            images.setdefault(number, []).append(refreshed or placed.image)
            asked[number] = asked.get(number, False) or refreshed is not None
            if len(images[number]) == self.plan.images_in(number):
                now = images.pop(number)
                if asked.pop(number):
                    self.replaced.add(read_images(self.store, placed.shard))
                    yield placed.run, number, now

    def _look(self, placed: _Placed, found: Image | None) -> Image | None:
        """The image to plan for a reprocessed one; None for one that stays as it is."""
        old = placed.image
        if found is None:
            self.num_gone += 1
            self.gone_keys += [old.key] if len(self.gone_keys) < NUM_NAMED else []
        is_other = found is not None and (found.size, found.etag) != (old.size, old.etag)
        reason = self.rejected.get(placed.shard.number, {}).get(old.key)
        # What an earlier revision has in its queue is planned again only where that changes something.
        in_queue = placed.shard.revision and placed.shard.number not in self.done and self.limits == self.plan.limits
        if not (is_other and self.changed) and (reason is None or (in_queue and not is_other)):
            return None
        self.num_images += 1
        if reason is not None:
            self.reasons[reason] += 1
        if is_other:
            self.num_changed += 1
            self.changed_keys += [old.key] if len(self.changed_keys) < NUM_NAMED else []
        return found or old

    def _beside_each_other(self) -> Iterator[tuple[_Placed, Image | None]]:
        """Yield each planned image in key order, with the source's current image of that key."""
        source = open_source(self.plan.source, self.plan.reading)
        found = in_order(source.images(Counter()))
        new = next(found, None)
        for placed in merge(*self._runs(), key=lambda one: one.image.key.encode()):
            key = placed.image.key
            while new is not None and new.key.encode() < key.encode():
                new = next(found, None)
            # A list may name an object that is not there, which has no etag.
            yield placed, new if new is not None and new.key == key and new.etag else None

    def _runs(self) -> list[Iterator[_Placed]]:
        def placed(run: int, shards: Iterator[Shard]) -> Iterator[_Placed]:
            for shard in shards:
                for image in read_images(self.store, shard):
                    yield _Placed(image, shard, run)

        return [placed(run, shards) for run, shards in enumerate(self.plan.runs())]
