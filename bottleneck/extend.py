"""Look at a source again: what it has beyond the plan becomes an extension."""

from collections import Counter
from dataclasses import asdict, dataclass, field

from bottleneck.errors import StoreError
from bottleneck.listing import Comparison, Listing, freeze, in_order
from bottleneck.plan import MAX_REJECTED, Plan, extension_name, header, json_bytes, load_plan, warn_of_labels
from bottleneck.sources import images_to_plan
from bottleneck.store import open_store


@dataclass(frozen=True)
class Extended:
    """What looking at the source again found."""

    added: int
    changed: int
    gone: int
    changed_keys: list[str] = field(default_factory=list)
    """The first of them."""
    gone_keys: list[str] = field(default_factory=list)


def extend_plan(plan: Plan, max_rejected: float = MAX_REJECTED) -> tuple[Plan, Extended]:
    """Look at the source again and append shards for the images the plan does not have; both lists are streamed.

    Args:
        max_rejected: share of the images that a list names that may be missing.

    Raises:
        UsageError: if more of them are.
    """
    output_store = open_store(plan.output)
    while True:
        skipped: Counter[str] = Counter()
        found = images_to_plan(plan.source, plan.reading, skipped, max_rejected)
        seen = Comparison(plan.images(), in_order(found))
        listing = freeze(
            output_store,
            plan.holds,
            seen.new_images(),
            skipped,
            first_shard=plan.num_shards,
            shard_size=plan.shard_size,
        )
        extended = Extended(listing.images, seen.changed, seen.gone, seen.changed_keys, seen.gone_keys)
        if not listing.images:
            return plan, extended
        plan, created = append(plan, listing)
        if created:
            warn_of_labels(plan)
            return plan, extended
        # Another run extended first: compare again, with its images planned.


def append(plan: Plan, listing: Listing) -> tuple[Plan, bool]:
    """Append an extension or revision whose parts are written; the number of its document orders all of them.

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
