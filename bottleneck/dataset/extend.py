"""List a source again and plan its new images as an extension."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from bottleneck.dataset.make_plan import MAX_REJECTED, NUM_SHARDS, SHARD_SIZE, default_shard_size, warn_of_labels
from bottleneck.dataset.plan import Plan, extension_name, header, json_bytes, load_plan
from bottleneck.dataset.plan_parts import NUM_NAMED, Listing, freeze, in_order
from bottleneck.errors import StoreError
from bottleneck.sources.image import Image
from bottleneck.sources.open import images_to_plan
from bottleneck.sources.selection import Selected, Selection
from bottleneck.storage.store import open_store


@dataclass(frozen=True)
class Extended:
    """What listing the source again found."""

    added: int
    changed: int
    gone: int
    changed_keys: list[str] = field(default_factory=list)
    """The first of them."""
    gone_keys: list[str] = field(default_factory=list)


class SourceComparison:
    """Compare two sorted streams: planned and existing images."""

    def __init__(self, planned: Iterator[Image], found: Iterator[Image]) -> None:
        self.planned, self.found = planned, found
        self.changed = self.gone = 0
        self.changed_keys: list[str] = []
        self.gone_keys: list[str] = []
        self.has_met_all = False
        """Whether all planned images were compared, so that the counts are complete."""

    def new_images(self) -> Iterator[Image]:
        old = self._next_planned()
        for image in self.found:
            while old is not None and old.key.encode() < image.key.encode():
                self._gone(old)
                old = self._next_planned()
            if old is None or old.key != image.key:
                yield image
                continue
            if (old.size, old.etag) != (image.size, image.etag):
                self.changed += 1
                self.changed_keys += [image.key] if len(self.changed_keys) < NUM_NAMED else []
            old = self._next_planned()
        while old is not None:
            self._gone(old)
            old = self._next_planned()

    def _next_planned(self) -> Image | None:
        image = next(self.planned, None)
        self.has_met_all = image is None
        return image

    def _gone(self, image: Image) -> None:
        self.gone += 1
        self.gone_keys += [image.key] if len(self.gone_keys) < NUM_NAMED else []


def extend_plan(
    plan: Plan, max_rejected: float = MAX_REJECTED, selection: Selection | None = None
) -> tuple[Plan, Extended]:
    """List the source again and append shards for the images that the plan does not have, in flat memory.

    Args:
        max_rejected: share of the images that a list names that may be missing.
        selection: up to which limit or sample a plan that has one grows, counting the images it has; default all.

    Raises:
        UsageError: if more of them are, or for a selection that would not only add images.
    """
    output_store = open_store(plan.output)
    while True:
        selected = Selected(plan.selection.grown(selection or Selection()))
        skipped: Counter[str] = Counter()
        found = images_to_plan(plan.source, plan.reading, skipped, max_rejected)
        seen = SourceComparison(plan.images(), in_order(found))
        unplanned = seen.new_images()
        new = selected.of(unplanned, plan.num_images)
        first = list(itertools.islice(new, NUM_SHARDS * SHARD_SIZE))
        listing = freeze(
            output_store,
            plan.holds,
            itertools.chain(first, new),
            skipped,
            first_shard=plan.num_shards,
            shard_size=_shard_size(plan, len(first)),
        )
        while not seen.has_met_all and next(unplanned, None) is not None:
            pass  # a limit may be reached before all planned images were compared
        extended = Extended(listing.images, seen.changed, seen.gone, seen.changed_keys, seen.gone_keys)
        if not listing.images:
            return plan, extended
        plan, created = append(plan, listing, selected.selection)
        if created:
            warn_of_labels(plan)
            return plan, extended
        # Another run extended first: compare again, with its images planned.


def _shard_size(plan: Plan, num_new: int) -> int:
    """Images per new shard: the plan's number, or the default for all images if nobody chose one."""
    if plan.shard_size != default_shard_size(plan.listings[0].images):
        return plan.shard_size
    return max(plan.shard_size, default_shard_size(plan.num_images + num_new))


def append(plan: Plan, listing: Listing, selection: Selection | None = None) -> tuple[Plan, bool]:
    """Commit an extension or revision whose parts are written, under the next number.

    Args:
        selection: of the whole plan from then on, if it is another.

    Returns:
        The plan as it is now, and whether this call did it: not where another run took the number first.
    """
    number = len(plan.listings)
    document = {**header(plan.holds), "extension": number, **asdict(listing)}
    if selection is not None and selection != plan.selection:
        document["selection"] = selection.to_json()
    created = open_store(plan.output).create(extension_name(number), json_bytes(document))
    newer = load_plan(plan.output)
    if newer is None:
        raise StoreError(f"{plan.output}/plan.json is gone.")
    return newer, created
