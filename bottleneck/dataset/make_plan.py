"""Make a plan: list a source, freeze it, and commit the plan of a new output."""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from bottleneck.dataset.differences import differences
from bottleneck.dataset.plan import Plan, header, json_bytes, load_plan
from bottleneck.dataset.plan_parts import Listing, freeze, in_order
from bottleneck.errors import FingerprintError, StoreError, UsageError
from bottleneck.sources.image import Image
from bottleneck.sources.labels import look_alike_warning
from bottleneck.sources.open import (
    ARCHIVE_KINDS,
    NO_ARCHIVES,
    check_one_kind,
    images_to_plan,
    resolve_reading,
    with_class_names,
)
from bottleneck.sources.reading import Limits, Reading
from bottleneck.sources.selection import Selected, Selection
from bottleneck.spec import OutputSpec
from bottleneck.storage.local import LINK_OUT
from bottleneck.storage.store import check_creates_once, normal_uri, open_store
from bottleneck.text import counted

log = logging.getLogger(__name__)


SHARD_SIZE = 512
"""Largest default shard: about 77 MB of pixels, some seconds of work."""
LEAST_SHARD_SIZE = 16
"""Smallest default shard; networks on CPUs are as fast in batches of 16 as in larger ones."""
NUM_SHARDS = 20
"""Shards of a small source, so that a killed run loses little and other runs find work."""
MAX_REJECTED = 0.05
"""Default share of the planned images that may be rejected."""
LINKS_HINT = "where they are meant, give `roots` with the folder they lead to, or `follow_links`"
_KNOWN_OBJECT = re.compile(r"plan\.json|_SUCCESS\.json|plan/.*|data/s\d{8}-[0-9a-f]{8}\.parquet")


def make_plan(
    source: str,
    output: str,
    spec: OutputSpec,
    *,
    limits: Limits | None = None,
    reading: Reading | None = None,
    selection: Selection | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
) -> Plan:
    """List the source and freeze it as the plan of a new output. Returns the plan of another run if that was first.

    Args:
        selection: which of the images are planned; default all.
        max_rejected: share of the images that a list names that may be missing.

    Raises:
        UsageError: for an empty or missing source, a list of which too much is missing, a selection that leaves
            nothing, or an output that holds something else.
        FingerprintError: if the output has a plan with other settings.
        StoreError: if source or output cannot be used.
    """
    found = survey(
        source, output, reading=reading, selection=selection, shard_size=shard_size, max_rejected=max_rejected
    )
    return found.make_plan(spec, limits or Limits())


@dataclass(frozen=True)
class Survey:
    """A source that was surveyed but not planned yet, with its first images in memory."""

    source: str
    output: str
    reading: Reading
    shard_size: int
    images: Iterator[Image]
    """All selected images; can be read once."""
    selected: Selected
    """How they were selected, as far as they were read."""
    skipped: Counter[str]
    """What is not planned, counted as far as the images were read."""
    is_asked: bool
    """Whether the source format was requested rather than detected."""

    def make_plan(self, spec: OutputSpec, limits: Limits) -> Plan:
        """Do the rest of `make_plan`. Raises the same."""
        limits.check_installed()
        store = open_store(self.output)
        listing = freeze(store, spec, self.images, self.skipped, first_shard=0, shard_size=self.shard_size)
        self.check(listing.images)
        if links := self.skipped[LINK_OUT]:
            log.warning(
                "not followed: %s out of %s; --roots with the folder they lead to, or --follow-links, follows them",
                counted(links, "link"),
                self.source,
            )
        plan = commit_plan(
            self.source, self.output, spec, limits, self.reading, self.shard_size, listing, self.selected.selection
        )
        warn_of_labels(plan)
        return plan

    def check(self, num_images: int) -> None:
        """Raise UsageError for a source that must not be planned, once all images are listed."""
        self.selected.check(self.source)
        if num_images == 0:
            if self.skipped:
                kinds = ", ".join(f"{count} x {suffix}" for suffix, count in sorted(self.skipped.items()))
                expected = NO_ARCHIVES if ARCHIVE_KINDS & self.skipped.keys() else "Expected .jpg, .png and the like."
                hint = f" Of the links: {LINKS_HINT}." if self.skipped[LINK_OUT] else ""
                raise UsageError(f"No images in {self.source}, only other files: {kinds}. {expected}{hint}")
            raise UsageError(
                f"The source {self.source} is empty or does not exist. Expected a folder or prefix with images."
            )
        if not self.is_asked:
            check_one_kind(self.source, self.reading, self.selected.num_seen, self.skipped)


def survey(
    source: str,
    output: str,
    *,
    reading: Reading | None = None,
    selection: Selection | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
) -> Survey:
    """Survey a source, as far as its images fit in memory, and the output, without writing anything.

    Finds the problems of a list or folder of usual size before a network or Ray is started. Arguments and exceptions
    are those of `make_plan`.
    """
    if shard_size is not None and shard_size < 1:
        raise UsageError(f"`shard_size` takes a number of images from 1 up. Received: {shard_size}.")
    check_max_rejected(max_rejected)
    check_output(output)
    asked = reading or Reading()
    for root in asked.roots:
        if next(iter(open_store(root).list()), None) is None:
            raise UsageError(f"`roots` takes folders or prefixes that hold images. There is nothing in {root}.")
    reading = resolve_reading(source, asked)
    reading = with_class_names(source, reading)
    skipped: Counter[str] = Counter()
    selected = Selected((selection or Selection()).resolved())
    images = selected.of(in_order(images_to_plan(source, reading, skipped, max_rejected)))
    first = list(itertools.islice(images, NUM_SHARDS * SHARD_SIZE))
    found = Survey(
        source=normal_uri(source),
        output=output,
        reading=reading,
        shard_size=shard_size or default_shard_size(len(first)),
        images=itertools.chain(first, images),
        selected=selected,
        skipped=skipped,
        is_asked=asked.source_format != "auto",
    )
    if len(first) < NUM_SHARDS * SHARD_SIZE or selected.is_at_end:
        found.check(len(first))
    return found


def check_max_rejected(share: float) -> None:
    """Raise UsageError unless the value is a share, 0 to 1."""
    if not 0 <= share <= 1:
        raise UsageError(f"`max_rejected` takes a share from 0 to 1. Received: {share}.")


def default_shard_size(num_images: int) -> int:
    """The default number of images per shard, which gives `NUM_SHARDS` shards, within limits.

    Args:
        num_images: of the plan; counted no further than to `NUM_SHARDS * SHARD_SIZE`, from where on it is `SHARD_SIZE`.
    """
    fitting = num_images // NUM_SHARDS
    least = LEAST_SHARD_SIZE if fitting < 2 * LEAST_SHARD_SIZE else 2 * LEAST_SHARD_SIZE  # a batch on CPUs is 32
    return min(SHARD_SIZE, max(least, fitting // least * least))


def warn_of_labels(plan: Plan) -> None:
    """Warn of labels that look alike."""
    if warning := look_alike_warning(plan.label_counts):
        log.warning("%s", warning)


def commit_plan(
    source: str,
    output: str,
    spec: OutputSpec,
    limits: Limits,
    reading: Reading,
    shard_size: int,
    listing: Listing,
    selection: Selection | None = None,
) -> Plan:
    """Create `plan.json` for a listing whose parts are written, or return the plan of a run that was first."""
    document = {
        **header(spec),
        **spec.described(),
        "limits": limits.to_json(),
        "reading": reading.to_json(),
        "selection": (selection or Selection()).to_json(),
        "shard_size": shard_size,
        "source": source,
        **asdict(listing),
    }
    store = open_store(output)
    for part in listing.parts[:1]:  # an object that is there anyway
        check_creates_once(store, part.name, store.read(part.name))
    store.create("plan.json", json_bytes(document))
    plan = load_plan(output)
    if plan is None:
        raise StoreError(f"{output}/plan.json was written and is gone again.")
    names = ("spec", "predictions", "limits", "reading", "selection", "source")
    asked = {name: document.get(name) for name in names}
    if message := differences(plan, asked):
        raise FingerprintError(f"Another run planned this output first. {message}")
    return plan


def check_output(output: str) -> None:
    """Raise UsageError for an output that holds anything but a plan and its data."""
    for entry in itertools.islice(open_store(output).list(), 100):
        if not _KNOWN_OBJECT.fullmatch(entry.key):
            raise UsageError(f"The output {output} holds something else: {entry.key}. Give an empty or new place.")
