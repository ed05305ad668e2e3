"""List a source again and plan its new images as an extension."""

import itertools
from collections import Counter
from dataclasses import asdict, dataclass, field

from bottleneck.dataset.make_plan import MAX_REJECTED, NUM_SHARDS, SHARD_SIZE, default_shard_size, warn_of_labels
from bottleneck.dataset.plan import Plan, extension_name, header, json_bytes, load_plan
from bottleneck.dataset.plan_parts import Listing, SourceComparison, freeze, in_order
from bottleneck.errors import StoreError
from bottleneck.sources.open import images_to_plan
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


def extend_plan(plan: Plan, max_rejected: float = MAX_REJECTED) -> tuple[Plan, Extended]:
    """List the source again and append shards for the images that the plan does not have, in flat memory.

    Args:
        max_rejected: share of the images that a list names that may be missing.

    Raises:
        UsageError: if more of them are.
    """
    output_store = open_store(plan.output)
    while True:
        skipped: Counter[str] = Counter()
        found = images_to_plan(plan.source, plan.reading, skipped, max_rejected)
        seen = SourceComparison(plan.images(), in_order(found))
        new = seen.new_images()
        first = list(itertools.islice(new, NUM_SHARDS * SHARD_SIZE))
        listing = freeze(
            output_store,
            plan.holds,
            itertools.chain(first, new),
            skipped,
            first_shard=plan.num_shards,
            shard_size=_shard_size(plan, len(first)),
        )
        extended = Extended(listing.images, seen.changed, seen.gone, seen.changed_keys, seen.gone_keys)
        if not listing.images:
            return plan, extended
        plan, created = append(plan, listing)
        if created:
            warn_of_labels(plan)
            return plan, extended
        # Another run extended first: compare again, with its images planned.


def _shard_size(plan: Plan, num_new: int) -> int:
    """Images per new shard: the plan's number, or the default for all images if nobody chose one."""
    if plan.shard_size != default_shard_size(plan.listings[0].images):
        return plan.shard_size
    return max(plan.shard_size, default_shard_size(plan.num_images + num_new))


def append(plan: Plan, listing: Listing) -> tuple[Plan, bool]:
    """Commit an extension or revision whose parts are written, under the next number.

    Returns:
        The plan as it is now, and whether this call did it: not where another run took the number first.
    """
    number = len(plan.listings)
    document = {**header(plan.holds), "extension": number, **asdict(listing)}
    created = open_store(plan.output).create(extension_name(number), json_bytes(document))
    newer = load_plan(plan.output)
    if newer is None:
        raise StoreError(f"{plan.output}/plan.json is gone.")
    return newer, created
