"""The frozen list of images, cut into shards; made once, resumed for ever, extended when the source grows.

A plan is `plan.json` and its parts, Parquet files of 32 shards each with one row group a shard. Parts are named by
their content and written first; creating `plan.json` is the commit. An extension is `plan/extension-00001.json` and its
parts.
"""

import heapq
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from bottleneck.errors import CorruptError, FingerprintError, StoreError, UsageError
from bottleneck.images import Image
from bottleneck.listing import Comparison, Listing, Part, Shard, find, freeze, images_of, in_order
from bottleneck.objects import ObjectGoneError, Store, Wanted
from bottleneck.sources import open_source, resolve_reading
from bottleneck.spec import FeatureSpec, Limits, OutputSpec, PredictionSpec, Reading, sha256_json
from bottleneck.store import normal_uri, open_store

log = logging.getLogger(__name__)

FORMAT = 2
SHARD_SIZE = 512
"""Images of a shard: about 77 MB of pixels, some seconds of work, one Parquet file."""
_KNOWN_OBJECT = re.compile(r"plan\.json|_SUCCESS\.json|plan/.*|data/s\d{8}-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True)
class Plan:
    """The images of an output and how their features are made; `listings` are the plan's own and its extensions'."""

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
    def num_images(self) -> int:
        return sum(listing.images for listing in self.listings)

    @property
    def num_bytes(self) -> int:
        return sum(listing.bytes for listing in self.listings)

    @property
    def num_shards(self) -> int:
        return sum(listing.shards for listing in self.listings)

    @property
    def parts(self) -> list[Part]:
        return [part for listing in self.listings for part in listing.parts]

    @property
    def label_counts(self) -> dict[str, int]:
        return dict(sorted(sum((Counter(listing.label_counts) for listing in self.listings), Counter()).items()))

    @property
    def sha256(self) -> str:
        """The plan's digest, which `_SUCCESS.json` repeats: it changes with every extension."""
        return sha256_json({"fingerprint": self.holds.fingerprint, "parts": [part.sha256 for part in self.parts]})

    def shards(self) -> Iterator[Shard]:
        for part in self.parts:
            for row_group in range(part.shards):
                yield Shard(part.first_shard + row_group, part.name, row_group)

    def images_in(self, shard: int) -> int:
        """Images of one shard; all but the last of a listing are full."""
        for listing in self.listings:
            if shard < listing.shards:
                is_last = shard == listing.shards - 1
                return listing.images - shard * self.shard_size if is_last else self.shard_size
            shard -= listing.shards
        raise IndexError(shard)

    def data_name(self, shard: int) -> str:
        return data_name(self.holds, shard)

    def committed(self) -> dict[int, int]:
        """The shards whose data files are there, by number, with their sizes in bytes: the truth about progress."""
        names = re.compile(rf"data/s(\d{{8}})-{self.holds.fp8}\.parquet")
        found = ((names.fullmatch(entry.key), entry.size) for entry in open_store(self.output).list("data/"))
        return {int(match[1]): size for match, size in found if match}

    def images(self) -> Iterator[Image]:
        """Every image in key order, with flat memory."""
        store = open_store(self.output)
        runs = [images_of(store, listing.parts) for listing in self.listings]
        return heapq.merge(*runs, key=lambda image: image.key.encode())

    def find(self, keys: Iterable[str]) -> dict[str, tuple[int, Image]]:
        """Shard and image of those of these keys that are planned, without reading the whole plan's images."""
        return find(open_store(self.output), self.parts, keys)


def data_name(spec: OutputSpec, shard: int) -> str:
    """The data file of a shard: its number and its fingerprint, so that nothing else can be taken for it."""
    return f"data/s{shard:08d}-{spec.fp8}.parquet"


@dataclass(frozen=True)
class Extended:
    """What looking at the source again found."""

    added: int
    changed: int
    gone: int
    changed_keys: list[str] = field(default_factory=list)
    """The first of them."""
    gone_keys: list[str] = field(default_factory=list)


def load_plan(output: str) -> Plan | None:
    """Read an output's plan with all its extensions; None where there is none.

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
    while (extension := _read_json(store, _extension_name(len(listings)))) is not None:
        listings.append(_listing(extension))
    try:
        spec = FeatureSpec.from_json(document["spec"])
        predictions = document.get("predictions")
        return Plan(
            source=document["source"],
            output=store.uri,
            spec=spec,
            limits=Limits(**document["limits"]),
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
) -> Plan:
    """List the source and freeze it as the plan of a new output. If another run was first, its plan is returned.

    Raises:
        UsageError: for an empty or missing source, or an output that holds something else.
        FingerprintError: if the output has a plan with other settings.
        StoreError: if source or output cannot be used.
    """
    shard_size = SHARD_SIZE if shard_size is None else shard_size
    if shard_size < 1:
        raise UsageError(f"--shard-size takes a number of images from 1 up. Received: {shard_size}.")
    reading = resolve_reading(source, reading or Reading())
    preflight(source, output, reading)
    skipped: Counter[str] = Counter()
    images = open_source(source, reading).images(skipped)
    listing = freeze(open_store(output), spec, in_order(images), skipped, first_shard=0, shard_size=shard_size)
    return commit_plan(normal_uri(source), output, spec, limits or Limits(), reading, shard_size, listing)


def commit_plan(
    source: str, output: str, spec: OutputSpec, limits: Limits, reading: Reading, shard_size: int, listing: Listing
) -> Plan:
    """Create `plan.json` for a listing whose parts are written; or return the plan of a run that was first."""
    document = {
        **_header(spec),
        **spec.described(),
        "limits": asdict(limits),
        "reading": reading.to_json(),
        "shard_size": shard_size,
        "source": source,
        **asdict(listing),
    }
    open_store(output).create("plan.json", json_bytes(document))
    plan = load_plan(output)
    if plan is None:
        raise StoreError(f"{output}/plan.json was written and is gone again.")
    asked = {name: document.get(name) for name in ("spec", "predictions", "limits", "reading", "source")}
    if message := differences(plan, asked):
        raise FingerprintError(f"Another run planned this output first. {message}")
    return plan


def extend_plan(plan: Plan) -> tuple[Plan, Extended]:
    """Look at the source again and append shards for the images the plan does not have; both lists are streamed."""
    source, output_store = open_source(plan.source, plan.reading), open_store(plan.output)
    while True:
        skipped: Counter[str] = Counter()
        seen = Comparison(plan.images(), in_order(source.images(skipped)))
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
        plan, created = commit_extension(plan, listing)
        if created:
            return plan, extended
        # Another run extended first: compare again, with its images planned.


def commit_extension(plan: Plan, listing: Listing) -> tuple[Plan, bool]:
    """Append a listing whose parts are written, and return the plan as it is now; False if another run was first."""
    number = len(plan.listings)
    document = {**_header(plan.holds), "extension": number, **asdict(listing)}
    created = open_store(plan.output).create(_extension_name(number), json_bytes(document))
    newer = load_plan(plan.output)
    if newer is None:
        raise StoreError(f"{plan.output}/plan.json is gone.")
    return newer, created


def differences(plan: Plan, requested: dict[str, Any]) -> str | None:
    """The message of a refused run, with the planned and the requested value of each field that differs; or None."""
    planned: dict[str, Any] = {
        "spec": plan.spec.to_json(),
        "predictions": plan.predictions.to_json() if plan.predictions else None,
        "limits": asdict(plan.limits),
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
                lines.append(f"{key}: planned {_shown(old)}, requested {_shown(new)}")
    if not lines:
        return None
    return (
        f"{plan.output} was planned with other settings, so this run would mix two kinds of results. Differing: "
        + "; ".join(lines)
        + ". Give the planned values, or another output."
    )


def preflight(source: str, output: str, reading: Reading | None = None) -> None:
    """Refuse a source without images and an output that holds anything but a plan and its data. Raises UsageError."""
    check_output(output)
    uri = normal_uri(source)
    skipped: Counter[str] = Counter()
    if open_source(source, resolve_reading(source, reading or Reading())).first(skipped) is None:
        if skipped:
            kinds = ", ".join(f"{count} x {suffix}" for suffix, count in sorted(skipped.items()))
            raise UsageError(f"No images in {uri}, only other files: {kinds}. Expected .jpg, .png and the like.")
        raise UsageError(f"The source {uri} is empty or does not exist. Expected a folder or prefix with images.")


def check_output(output: str) -> None:
    """Refuse an output that holds anything but a plan and its data. Raises UsageError."""
    for entry in itertools.islice(open_store(output).list(), 100):
        if not _KNOWN_OBJECT.fullmatch(entry.key):
            raise UsageError(f"The output {output} holds something else: {entry.key}. Give an empty or new place.")


def json_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _header(spec: OutputSpec) -> dict[str, Any]:
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
        names = ("images", "bytes", "shards", "label_counts", "skipped", "listing_sha256")
        return Listing(**{name: document[name] for name in names}, parts=parts)
    except (KeyError, TypeError) as error:
        raise CorruptError(
            f"The plan is damaged: {error!r}. Restore plan.json and plan/, or plan a new output."
        ) from error


def _extension_name(number: int) -> str:
    return f"plan/extension-{number:05d}.json"


def _read_json(store: Store, name: str) -> dict[str, Any] | None:
    try:
        document = json.loads(store.get(Wanted(name, 0, "")))
    except ObjectGoneError:
        return None
    except ValueError as error:
        raise CorruptError(f"{store.uri}/{name} is no JSON: {error}.") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{store.uri}/{name} is no JSON object.")
    return document


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
