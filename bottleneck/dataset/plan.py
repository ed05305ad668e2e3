"""The plan of an output, with its extensions and revisions, and which shards are committed."""

import heapq
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any

from bottleneck.dataset.footer import revision_in
from bottleneck.dataset.plan_parts import Listing, Part, Revision, Shard, find, images_of
from bottleneck.errors import CorruptError, UsageError
from bottleneck.sources.image import Image
from bottleneck.sources.reading import Limits, Reading
from bottleneck.sources.selection import Selection
from bottleneck.spec import FeatureSpec, OutputSpec, PredictionSpec, sha256_json
from bottleneck.storage.store import Entry, ObjectGoneError, Store, open_store

FORMAT = 3
NUM_FOOTERS_READ = 16
"""Footers read concurrently; each is one small request."""


@dataclass(frozen=True)
class Plan:
    """The images of an output and how their features are made.

    `listings` are the original one, then extensions and revisions by their numbers.
    """

    source: str
    output: str
    spec: FeatureSpec
    limits: Limits
    reading: Reading
    shard_size: int
    listings: list[Listing]
    predictions: PredictionSpec | None = None
    """For a plan of predictions: the head and its options."""
    selection: Selection = field(default_factory=Selection)
    """Which images of the source are planned, as last extended."""

    @property
    def holds(self) -> OutputSpec:
        """What the rows of the output contain."""
        return self.predictions or self.spec

    @property
    def grown(self) -> list[Listing]:
        """The original listing and the extensions; each image is in one of them."""
        return [listing for listing in self.listings if not isinstance(listing, Revision)]

    @property
    def revisions(self) -> dict[int, Revision]:
        """Revisions by number."""
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
        """The largest number of images per shard."""
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
        """What the source holds besides images, by suffix, at the last listing that found new images."""
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
        """The shards of each listing with images of its own, as last revised; their keys are sorted."""
        return [self._latest(listing) for listing in self.grown]

    def _latest(self, listing: Listing) -> Iterator[Shard]:
        return (self.revised.get(shard.number, shard) for shard in listing.located())

    def shards(self) -> Iterator[Shard]:
        """Every shard once, as last revised."""
        return itertools.chain.from_iterable(self.runs())

    def images_in(self, shard: int) -> int:
        """The number of images in a shard; all but the last of a listing are full."""
        for listing in self.grown:
            if shard < listing.shards:
                is_last = shard == listing.shards - 1
                return listing.images - shard * listing.shard_size if is_last else listing.shard_size
            shard -= listing.shards
        raise IndexError(shard)

    def data_name(self, shard: int) -> str:
        return data_name(self.holds, shard)

    def data_files(self) -> dict[int, Entry]:
        """List the existing data files by shard, of any revision."""
        found = ((self.shard_of(entry.key), entry) for entry in open_store(self.output).list("data/"))
        return {shard: entry for shard, entry in found if shard is not None}

    def shard_of(self, name: str) -> int | None:
        """The shard whose data file has this name; None if it is none, or one of an extension made since."""
        match = self._data_names.fullmatch(name)
        return int(match[1]) if match and int(match[1]) < self.num_shards else None

    @cached_property
    def _data_names(self) -> re.Pattern[str]:
        return re.compile(rf"data/s(\d{{8}})-{self.holds.short_fingerprint}\.parquet")

    def committed(self, files: dict[int, Entry] | None = None) -> dict[int, int]:
        """The committed shards by number, with the sizes of their files in bytes.

        A file of an earlier revision is complete and readable, but its shard is not committed.

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
        """Every image in key order, in flat memory."""
        store = open_store(self.output)
        return heapq.merge(*(images_of(store, run) for run in self.runs()), key=lambda image: image.key.encode())

    def find(self, keys: Iterable[str]) -> dict[str, tuple[int, Image]]:
        """The shard and image of each of these keys that is planned, without reading all parts."""
        return find(open_store(self.output), self.shards(), keys)


def data_name(spec: OutputSpec, shard: int) -> str:
    """The name of a shard's data file: number and fingerprint, so that it cannot be mistaken."""
    return f"data/s{shard:08d}-{spec.short_fingerprint}.parquet"


def load_plan(output: str) -> Plan | None:
    """Read the plan of an output with its extensions and revisions; None if there is none.

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
    selection = document.get("selection", {})
    while (extension := _read_json(store, extension_name(len(listings)))) is not None:
        listings.append(_listing({"shard_size": listings[0].shard_size, **extension}))
        selection = extension.get("selection", selection)
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
            selection=Selection.from_json(selection),
            shard_size=document["shard_size"],
            listings=listings,
            predictions=PredictionSpec.from_json(spec, predictions) if predictions else None,
        )
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{output}/plan.json is damaged: {error!r}.") from error


def json_bytes(document: Mapping[str, Any]) -> bytes:
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
    """The versions of the packages that can change a feature, without importing them."""
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
