"""The frozen list of images, cut into shards; made once, resumed for ever, extended when the source grows.

A plan is `plan.json` and its parts, Parquet files of 32 shards each with one row group a shard. Parts are named by
their content and written first; creating `plan.json` is the commit. An extension is `plan/extension-00001.json` and its
parts; so is a revision, which has some shards done again.
"""

import heapq
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any

from bottleneck.dataset.footer import revision_in
from bottleneck.dataset.plan_parts import Listing, Part, Revision, Shard, find, freeze, images_of, in_order
from bottleneck.errors import CorruptError, FingerprintError, StoreError, UsageError
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
from bottleneck.spec import FeatureSpec, OutputSpec, PredictionSpec, sha256_json
from bottleneck.storage.local import LINK_OUT
from bottleneck.storage.store import Entry, ObjectGoneError, Store, check_creates_once, normal_uri, open_store
from bottleneck.text import counted

log = logging.getLogger(__name__)

FORMAT = 3
SHARD_SIZE = 512
"""Images of a shard, at most by default: about 77 MB of pixels, some seconds of work, one Parquet file."""
LEAST_SHARD_SIZE = 16
"""... and at least; networks on CPUs are as fast in batches of 16 as in larger ones."""
NUM_SHARDS = 20
"""Of small sources, so that a run that is killed has lost little, and others find work beside it."""
MAX_REJECTED = 0.05
"""Share of the planned images that may be rejected, unless another is asked for."""
LINKS_HINT = "where they are meant, give `roots` with the folder they lead to, or `follow_links`"
NUM_SHOWN = 10
"""Names of classes that a refusal shows."""
NUM_FOOTERS_READ = 16
"""At once; a footer is one small request."""
_KNOWN_OBJECT = re.compile(r"plan\.json|_SUCCESS\.json|plan/.*|data/s\d{8}-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True)
class Plan:
    """The images of an output and how their features are made.

    `listings` are the plan's own, then its extensions' and revisions' by their numbers.
    """

    source: str
    output: str
    spec: FeatureSpec
    limits: Limits
    reading: Reading
    shard_size: int
    listings: list[Listing]
    predictions: PredictionSpec | None = None
    """Of a plan of predictions: the head that is asked for its answer to the features."""

    @property
    def holds(self) -> OutputSpec:
        """What the rows of the output hold."""
        return self.predictions or self.spec

    @property
    def grown(self) -> list[Listing]:
        """The plan's own listing and its extensions': each image is in one of them."""
        return [listing for listing in self.listings if not isinstance(listing, Revision)]

    @property
    def revisions(self) -> dict[int, Revision]:
        """By number."""
        return {number: one for number, one in enumerate(self.listings) if isinstance(one, Revision)}

    @property
    def num_images(self) -> int:
        return sum(listing.images for listing in self.grown)

    @property
    def num_bytes(self) -> int:
        replaced = sum(revision.replaced_bytes for revision in self.revisions.values())
        return sum(listing.bytes for listing in self.listings) - replaced

    @property
    def num_shards(self) -> int:
        return sum(listing.shards for listing in self.grown)

    @property
    def largest_shard(self) -> int:
        """Images of a shard, in the listing whose shards are the largest."""
        return max(listing.shard_size for listing in self.grown)

    @property
    def parts(self) -> list[Part]:
        return [part for listing in self.listings for part in listing.parts]

    @property
    def label_counts(self) -> dict[str, int]:
        counts = sum((Counter(listing.label_counts) for listing in self.listings), Counter())
        for revision in self.revisions.values():
            counts.subtract(revision.replaced_label_counts)
        return dict(sorted((+counts).items()))

    @property
    def skipped(self) -> dict[str, int]:
        """What the source holds beside images, by suffix, at the last look that found new images."""
        return self.grown[-1].skipped

    @property
    def sha256(self) -> str:
        """The plan's digest, which `_SUCCESS.json` repeats: it changes with every extension and revision."""
        return sha256_json({"fingerprint": self.holds.fingerprint, "parts": [part.sha256 for part in self.parts]})

    @cached_property
    def revised(self) -> dict[int, Shard]:
        """The latest revision of each shard that has one, by the shard's number."""
        return {shard.number: shard for number, one in self.revisions.items() for shard in one.located(number)}

    def runs(self) -> list[Iterator[Shard]]:
        """The shards of each listing that has images of its own, as last revised; their keys are in order."""
        return [self._latest(listing) for listing in self.grown]

    def _latest(self, listing: Listing) -> Iterator[Shard]:
        return (self.revised.get(shard.number, shard) for shard in listing.located())

    def shards(self) -> Iterator[Shard]:
        """Every shard once, as last revised."""
        return itertools.chain.from_iterable(self.runs())

    def images_in(self, shard: int) -> int:
        """Images of one shard; all but the last of a listing are full."""
        for listing in self.grown:
            if shard < listing.shards:
                is_last = shard == listing.shards - 1
                return listing.images - shard * listing.shard_size if is_last else listing.shard_size
            shard -= listing.shards
        raise IndexError(shard)

    def data_name(self, shard: int) -> str:
        return data_name(self.holds, shard)

    def data_files(self) -> dict[int, Entry]:
        """The data files that are there, by shard, whichever revision of it they hold."""
        found = ((self.shard_of(entry.key), entry) for entry in open_store(self.output).list("data/"))
        return {shard: entry for shard, entry in found if shard is not None}

    def shard_of(self, name: str) -> int | None:
        """The shard whose data file has this name; None if it is no data file of this plan."""
        match = self._data_names.fullmatch(name)
        return int(match[1]) if match else None

    @cached_property
    def _data_names(self) -> re.Pattern[str]:
        return re.compile(rf"data/s(\d{{8}})-{self.holds.short_fingerprint}\.parquet")

    def committed(self, files: dict[int, Entry] | None = None) -> dict[int, int]:
        """The shards that are done, by number, with their files' sizes in bytes: the truth about progress.

        A file of an earlier revision is whole and readable, but its shard is not done.

        Args:
            files: `data_files()`, where they are listed already.
        """
        store = open_store(self.output)
        files = self.data_files() if files is None else files
        again = [shard for number, shard in self.revised.items() if number in files]
        with ThreadPoolExecutor(NUM_FOOTERS_READ) as pool:
            held = pool.map(lambda shard: revision_in(store, files[shard.number]), again)
        stale = {shard.number for shard, revision in zip(again, held, strict=True) if revision < shard.revision}
        return {number: entry.size for number, entry in files.items() if number not in stale}

    def images(self) -> Iterator[Image]:
        """Every image in key order, with flat memory."""
        store = open_store(self.output)
        return heapq.merge(*(images_of(store, run) for run in self.runs()), key=lambda image: image.key.encode())

    def find(self, keys: Iterable[str]) -> dict[str, tuple[int, Image]]:
        """Shard and image of those of these keys that are planned, without reading the whole plan's images."""
        return find(open_store(self.output), self.shards(), keys)


def data_name(spec: OutputSpec, shard: int) -> str:
    """The data file of a shard: its number and its fingerprint, so that nothing else can be taken for it."""
    return f"data/s{shard:08d}-{spec.short_fingerprint}.parquet"


def load_plan(output: str) -> Plan | None:
    """Read an output's plan with all its extensions and revisions; None where there is none.

    Raises:
        UsageError: if the plan was written by a version whose format this one does not know.
        CorruptError: if it is no readable plan.
    """
    store = open_store(output)
    document = _read_json(store, "plan.json")
    if document is None:
        return None
    if document.get("format") != FORMAT:
        raise UsageError(f"{output} has format {document.get('format')}; this version reads format {FORMAT}.")
    listings = [_listing(document)]
    while (extension := _read_json(store, extension_name(len(listings)))) is not None:
        listings.append(_listing({"shard_size": listings[0].shard_size, **extension}))
    try:
        spec = FeatureSpec.from_json(document["spec"])
        predictions = document.get("predictions")
        limits = [one.limits for one in listings if isinstance(one, Revision)] or [Limits.from_json(document["limits"])]
        return Plan(
            source=document["source"],
            output=store.uri,
            spec=spec,
            limits=limits[-1],
            reading=Reading.from_json(document["reading"]),
            shard_size=document["shard_size"],
            listings=listings,
            predictions=PredictionSpec(features=spec, **predictions) if predictions else None,
        )
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{output}/plan.json is damaged: {error!r}.") from error


def make_plan(
    source: str,
    output: str,
    spec: OutputSpec,
    *,
    limits: Limits | None = None,
    reading: Reading | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
) -> Plan:
    """List the source and freeze it as the plan of a new output. If another run was first, its plan is returned.

    Args:
        max_rejected: share of the images that a list names that may be missing.

    Raises:
        UsageError: for an empty or missing source, a list of which too much is missing, or an output that holds
            something else.
        FingerprintError: if the output has a plan with other settings.
        StoreError: if source or output cannot be used.
    """
    found = survey(source, output, reading=reading, shard_size=shard_size, max_rejected=max_rejected)
    return found.make_plan(spec, limits or Limits())


@dataclass(frozen=True)
class Survey:
    """A source that was looked at, the first of its images in memory, and not yet planned."""

    source: str
    output: str
    reading: Reading
    shard_size: int
    images: Iterator[Image]
    """All of them, to be read once."""
    skipped: Counter[str]
    """What is not planned, counted as far as the images have been read."""
    is_asked: bool
    """Whether the form of the source was asked for, not found."""

    def make_plan(self, spec: OutputSpec, limits: Limits) -> Plan:
        """What `make_plan` does after the source was looked at. Raises the same."""
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
        plan = commit_plan(self.source, self.output, spec, limits, self.reading, self.shard_size, listing)
        warn_of_labels(plan)
        return plan

    def check(self, num_images: int) -> None:
        """Refuse what is not to be planned, once all images are listed. Raises UsageError."""
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
            check_one_kind(self.source, self.reading, num_images, self.skipped)


def survey(
    source: str,
    output: str,
    *,
    reading: Reading | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
) -> Survey:
    """Look at a source as far as its images fit the memory, and at the output; nothing is written.

    What is wrong with a list or folder of usual size is found here, in the time it takes to read it, before a network
    or Ray is started. Arguments and exceptions are those of `make_plan`.
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
    images = in_order(images_to_plan(source, reading, skipped, max_rejected))
    first = list(itertools.islice(images, NUM_SHARDS * SHARD_SIZE))
    found = Survey(
        source=normal_uri(source),
        output=output,
        reading=reading,
        shard_size=shard_size or default_shard_size(len(first)),
        images=itertools.chain(first, images),
        skipped=skipped,
        is_asked=asked.source_format != "auto",
    )
    if len(first) < NUM_SHARDS * SHARD_SIZE:
        found.check(len(first))
    return found


def check_max_rejected(share: float) -> None:
    """Raise UsageError for what is no share of the planned images."""
    if not 0 <= share <= 1:
        raise UsageError(f"`max_rejected` takes a share from 0 to 1. Received: {share}.")


def default_shard_size(num_images: int) -> int:
    """Images of a shard, unless another number is asked for: so many that there are `NUM_SHARDS`, within limits.

    Args:
        num_images: of the plan; counted no further than to `NUM_SHARDS * SHARD_SIZE`, from where on it is `SHARD_SIZE`.
    """
    fitting = num_images // NUM_SHARDS
    least = LEAST_SHARD_SIZE if fitting < 2 * LEAST_SHARD_SIZE else 2 * LEAST_SHARD_SIZE  # a batch on CPUs is 32
    return min(SHARD_SIZE, max(least, fitting // least * least))


def warn_of_labels(plan: Plan) -> None:
    """Tell of labels that a person would take for one."""
    if warning := look_alike_warning(plan.label_counts):
        log.warning("%s", warning)


def commit_plan(
    source: str, output: str, spec: OutputSpec, limits: Limits, reading: Reading, shard_size: int, listing: Listing
) -> Plan:
    """Create `plan.json` for a listing whose parts are written; or return the plan of a run that was first."""
    document = {
        **header(spec),
        **spec.described(),
        "limits": limits.to_json(),
        "reading": reading.to_json(),
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
    asked = {name: document.get(name) for name in ("spec", "predictions", "limits", "reading", "source")}
    if message := differences(plan, asked):
        raise FingerprintError(f"Another run planned this output first. {message}")
    return plan


def differences(plan: Plan, requested: dict[str, Any]) -> str | None:
    """The message of a refused run, with the planned and the requested value of each field that differs; or None."""
    planned: dict[str, Any] = {
        "spec": plan.spec.to_json(),
        "predictions": plan.predictions.to_json() if plan.predictions else None,
        "limits": plan.limits.to_json(),
        "reading": plan.reading.to_json(),
        "source": plan.source,
        "shard_size": plan.shard_size,
    }
    lines = []
    for name, value in requested.items():
        whole = planned[name]
        by_key = isinstance(value, dict) and isinstance(whole, dict)
        for key, old, new in [(key, whole[key], value[key]) for key in value] if by_key else [(name, whole, value)]:
            if old != new and key not in ("weights", "head"):  # where they are; their sha256 tells whether they differ
                lines.append(_differing(key, old, new))
    if not lines:
        return None
    if "shard_size" in requested and lines == [_differing("shard_size", plan.shard_size, requested["shard_size"])]:
        return (
            f"{plan.output} was planned in shards of {counted(plan.shard_size, 'image')}, which stay as they were cut. "
            f"Differing: {lines[0]}. Leave `shard_size` out to go on with this output, or give another output."
        )
    return (
        f"{plan.output} was planned with other settings, so this run would mix two kinds of results. Differing: "
        + "; ".join(lines)
        + ". Give the planned values, or another output."
    )


def _differing(name: str, planned: Any, requested: Any) -> str:
    return f"{name}: planned {shown(planned)}, requested {shown(requested)}"


def check_output(output: str) -> None:
    """Refuse an output that holds anything but a plan and its data. Raises UsageError."""
    for entry in itertools.islice(open_store(output).list(), 100):
        if not _KNOWN_OBJECT.fullmatch(entry.key):
            raise UsageError(f"The output {output} holds something else: {entry.key}. Give an empty or new place.")


def json_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def header(spec: OutputSpec) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "fingerprint": spec.fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


@lru_cache
def versions() -> dict[str, str]:
    """Versions of what can change a feature, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    from bottleneck import __version__

    found = {"bottleneck": __version__}
    for name in ("keras", "tensorflow-cpu", "tensorflow", "torch", "jax", "pillow", "pyarrow", "ray"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _listing(document: dict[str, Any]) -> Listing:
    try:
        parts = [Part(**part) for part in document["parts"]]
        fields = {name: document[name] for name in Listing.__dataclass_fields__ if name != "parts"}
        if "revised" not in document:
            return Listing(**fields, parts=parts)
        fields |= {name: document[name] for name in ("revised", "replaced_bytes", "replaced_label_counts")}
        return Revision(**fields, parts=parts, limits=Limits.from_json(document["limits"]))
    except (KeyError, TypeError) as error:
        raise CorruptError(
            f"The plan is damaged: {error!r}. Restore plan.json and plan/, or plan a new output."
        ) from error


def extension_name(number: int) -> str:
    return f"plan/extension-{number:05d}.json"


def _read_json(store: Store, name: str) -> dict[str, Any] | None:
    try:
        document = json.loads(store.read(name))
    except ObjectGoneError:
        return None
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{store.uri}/{name} is no JSON: {error}.") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{store.uri}/{name} is no JSON object.")
    return document


def shown(value: Any) -> str:
    """A setting for a message; of a long list the first."""
    if not isinstance(value, list | tuple):
        return str(value)
    more = [f"... ({len(value):,} in all)"] if len(value) > NUM_SHOWN else []
    return " ".join([*map(str, value[:NUM_SHOWN]), *more])
