"""The frozen listing: Parquet parts of 32 shards each, one row group per shard, streamed."""

import bisect
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.errors import CorruptError, StoreError
from bottleneck.sources.image import Image
from bottleneck.sources.reading import Limits
from bottleneck.spec import OutputSpec
from bottleneck.storage.parquet import open_parquet
from bottleneck.storage.store import ObjectGoneError, Store

SHARDS_PER_PART = 32
"""A part is read whole for each of its shards: 16,000 images take about 1 MB."""
NUM_NAMED = 10
"""Changed and gone images that an extension names; all are counted."""

PART_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("object", pa.string()),
    ]
)


@dataclass(frozen=True)
class Part:
    """One Parquet file of a plan."""

    name: str
    first_shard: int
    shards: int
    images: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """A slice of the plan, the unit of work; it becomes one data file."""

    number: int
    part: str
    row_group: int
    revision: int = 0
    """The number of the revision that replans it; 0 for a shard as first planned."""


@dataclass(frozen=True)
class Listing:
    """One frozen listing of the source: the plan itself, or an extension."""

    images: int
    bytes: int
    shards: int
    label_counts: dict[str, int]
    skipped: dict[str, int]
    """Objects that are not images by name, counted by suffix."""
    listing_sha256: str
    shard_size: int
    """Images per shard; the last may have fewer."""
    parts: list[Part]

    @property
    def numbers(self) -> Sequence[int]:
        """The shard numbers, in the order of their row groups."""
        first = self.parts[0].first_shard if self.parts else 0
        return range(first, first + self.shards)

    def located(self, revision: int = 0) -> Iterator[Shard]:
        """The shards, each with the location of its images."""
        numbers = iter(self.numbers)
        for part in self.parts:
            for row_group in range(part.shards):
                yield Shard(next(numbers), part.name, row_group, revision)


@dataclass(frozen=True)
class Revision(Listing):
    """Shards that are planned again: the same images, some as the source has them now."""

    revised: list[int]
    """The shards' numbers, in order."""
    limits: Limits
    """The limits of the whole plan from then on."""
    replaced_bytes: int
    """Bytes of the same images as planned before."""
    replaced_label_counts: dict[str, int]

    @property
    def numbers(self) -> Sequence[int]:
        return self.revised


def read_images(store: Store, shard: Shard) -> list[Image]:
    """Read the images of one shard, in order."""
    # A reader of its own, as two threads cannot share one of pyarrow's; and none of pyarrow's own threads, with which a
    # process that ends soon after aborts now and then (pyarrow 26: 1 of 50 to 300, "terminate called without ...").
    with open_parquet(pa.BufferReader(_part(store, shard.part))) as part:
        if not part.schema_arrow.equals(PART_SCHEMA):
            raise CorruptError(
                f"{store.uri}/{shard.part} has other columns than a part of a plan: "
                f"{', '.join(part.schema_arrow.names)}. Restore it, or plan a new output."
            )
        table = part.read_row_group(shard.row_group, use_threads=False)
    columns = [table.column(name).to_pylist() for name in Image._fields]
    return list(itertools.starmap(Image, zip(*columns, strict=True)))


def freeze(
    store: Store,
    spec: OutputSpec,
    images: Iterable[Image],
    skipped: Counter[str],
    *,
    first_shard: int,
    shard_size: int,
) -> Listing:
    """Write images as parts, with one part in memory."""
    parts: list[Part] = []
    totals = Totals()
    shard = first_shard
    images = iter(images)
    while batch := list(itertools.islice(images, shard_size * SHARDS_PER_PART)):
        shards = [batch[start : start + shard_size] for start in range(0, len(batch), shard_size)]
        tables = [shard_table(number, of_shard) for number, of_shard in enumerate(shards, shard)]
        parts.append(write_part(store, spec, tables))
        shard += len(tables)
        totals.add(batch)
    return Listing(
        **totals.counted(),
        shards=shard - first_shard,
        skipped=dict(sorted(skipped.items())),
        shard_size=shard_size,
        parts=parts,
    )


class Totals:
    """Count the images of a listing as they pass."""

    def __init__(self) -> None:
        self.images = self.bytes = 0
        self.label_counts: Counter[str] = Counter()
        self.digest = hashlib.sha256()

    def add(self, images: Iterable[Image]) -> None:
        for image in images:
            self.images += 1
            self.bytes += image.size
            self.digest.update(f"{image.key}\0{image.size}\0{image.etag}\n".encode())
            if image.label is not None:
                self.label_counts[image.label] += 1

    def counted(self) -> dict[str, Any]:
        """The fields of a `Listing` of that name."""
        return {
            "images": self.images,
            "bytes": self.bytes,
            "label_counts": dict(sorted(self.label_counts.items())),
            "listing_sha256": self.digest.hexdigest(),
        }


def shard_table(number: int, images: list[Image]) -> pa.Table:
    """A shard as a table of a part."""
    columns = [[number] * len(images), list(range(len(images))), *map(list, zip(*images, strict=True))]
    arrays = [pa.array(column, one.type) for column, one in zip(columns, PART_SCHEMA, strict=True)]
    return pa.table(arrays, schema=PART_SCHEMA)


def write_part(store: Store, spec: OutputSpec, shards: list[pa.Table]) -> Part:
    """Write shards, made by `shard_table`, as one part."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PART_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for table in shards:
            writer.write_table(table)
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    first_shard: int = shards[0].column("shard")[0].as_py()
    name = _part_name(spec, first_shard, sha256)
    store.create(name, data)
    return Part(name, first_shard, len(shards), sum(table.num_rows for table in shards), sha256)


def _part_name(spec: OutputSpec, first_shard: int, sha256: str) -> str:
    # By content: a planning that was killed leaves at most equal or unused parts, never wrong ones.
    return f"plan/{spec.short_fingerprint}-{first_shard:08d}-{sha256[:8]}.parquet"


def copy(listing: Listing, source: Store, store: Store, spec: OutputSpec) -> Listing:
    """Copy the shards of another output, as parts of this one."""
    parts = []
    for part in listing.parts:
        name = _part_name(spec, part.first_shard, part.sha256)
        store.create(name, _part(source, part.name))
        parts.append(replace(part, name=name))
    return replace(listing, parts=parts)


def images_of(store: Store, shards: Iterable[Shard]) -> Iterator[Image]:
    for shard in shards:
        yield from read_images(store, shard)


def find(store: Store, shards: Iterable[Shard], keys: Iterable[str]) -> dict[str, tuple[int, Image]]:
    """The shard and image of each of these keys that is listed; one of a million takes half a second."""
    wanted = sorted({key.encode() for key in keys})
    found: dict[str, tuple[int, Image]] = {}
    for name, together in itertools.groupby(shards, key=lambda shard: shard.part):
        with open_parquet(pa.BufferReader(_part(store, name))) as file:
            column = file.schema_arrow.get_field_index("key")
            for shard in together:
                statistics = file.metadata.row_group(shard.row_group).column(column).statistics
                if statistics is not None and statistics.has_min_max:
                    # Keys are in order, so first and last say what cannot be between them.
                    at = bisect.bisect_left(wanted, statistics.min.encode())
                    if at == len(wanted) or wanted[at] > statistics.max.encode():
                        continue
                images = {image.key.encode(): image for image in read_images(store, shard)}
                found |= {images[key].key: (shard.number, images[key]) for key in wanted if key in images}
    return found


@lru_cache(maxsize=4)
def _part(store: Store, name: str) -> bytes:
    try:
        data = store.read(name)
    except ObjectGoneError:
        raise CorruptError(
            f"{store.uri}/{name}, a part of the plan, is gone. Restore it, or plan a new output."
        ) from None
    if not name.endswith(f"-{hashlib.sha256(data).hexdigest()[:8]}.parquet"):
        raise CorruptError(
            f"{store.uri}/{name}, a part of the plan, is damaged: its sha256 does not begin as its name says. Restore "
            "it, or plan a new output."
        )
    return data


def in_order(images: Iterator[Image]) -> Iterator[Image]:
    """Pass images on, and raise if the store lists them out of order, which merging relies on."""
    last = b""
    for image in images:
        key = image.key.encode()
        if key <= last and last:
            raise StoreError(
                f"The source lists its objects out of order ({image.key!r} after {last.decode()!r}). Expected the "
                "order of their UTF-8 bytes, as S3 has it; directory buckets (S3 Express) do not."
            )
        last = key
        yield image
