"""Read and decode the images of a shard: the half of the work that needs no network.

Legend: N images, H x W pixels, C channels.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck.dataset.features import read_table
from bottleneck.dataset.plan import data_name
from bottleneck.dataset.plan_parts import Shard, read_images
from bottleneck.dataset.schema import IMAGE_FIELDS
from bottleneck.errors import CorruptError, OutOfMemoryError
from bottleneck.extract.decode import Decoded, Rejected, decode
from bottleneck.extract.work import Work
from bottleneck.sources.image import Image
from bottleneck.sources.open import open_source
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureSpec
from bottleneck.storage.store import ObjectError, open_store


@dataclass(frozen=True)
class KeptRows:
    """The features (or predictions) of rows that are kept when the file of a shard is replaced."""

    columns: pa.Table
    """The columns that follow `IMAGE_FIELDS`, a row for each kept one."""
    index_of_row: np.ndarray
    """int32 [N]: for each row of the shard its index in `columns`, or -1."""


@dataclass(frozen=True)
class Prepared:
    """A prepared shard: every image has a row, accepted ones have pixels or, if kept, features."""

    shard: Shard
    rows: pa.Table
    """`IMAGE_FIELDS`, in the plan's order."""
    pixels_NHWC: np.ndarray
    """uint8 RGB; images with the same bytes share their pixels."""
    pixels_of_row: np.ndarray
    """For each row the index of its pixels; -1 if it is rejected or kept."""
    kept_rows: KeptRows | None = None
    """For a reprocessed shard."""
    read_bytes: int = 0
    """Bytes of the images in the source."""
    read_seconds: float = 0.0
    """Seconds spent waiting for the source."""
    decode_seconds: float = 0.0
    decode_core_seconds: float = 0.0
    """Core seconds of decoding: less than `decode_seconds` if other processes use the core."""


Decoder = Callable[[bytes, FeatureSpec, Limits], Decoded | Rejected]


def prepare_shard(work: Work, shard: Shard, decoder: Decoder = decode) -> Prepared:
    """Read and decode a shard's images: the half of the work that needs no network.

    Of a reprocessed shard, only rejected and replanned images are read.

    Args:
        decoder: `decode`, or a guarded form of it where a hostile image must not take this process along.
    """
    images = read_images(open_store(work.output), shard)
    before = _rows_before(work, shard, images) if shard.revision else None
    stays = _stays(before, images)
    fresh = prepare_images(
        work, shard, [one for one, as_it_is in zip(images, stays, strict=True) if not as_it_is], decoder
    )
    if before is None:
        return fresh
    pixels_of_row = np.full(len(images), -1, np.int32)
    pixels_of_row[~stays] = fresh.pixels_of_row
    kept = before.filter(pa.array(stays))
    of_row = np.where(stays, np.cumsum(stays) - 1, -1).astype(np.int32)
    index = np.where(stays, len(fresh.rows) + of_row, np.cumsum(~stays) - 1)
    names = [one.name for one in IMAGE_FIELDS]
    table = _concatenated(fresh.rows, kept.select(names)).take(index)
    return replace(fresh, rows=table, pixels_of_row=pixels_of_row, kept_rows=KeptRows(kept.drop_columns(names), of_row))


def prepare_images(work: Work, shard: Shard, images: list[Image], decoder: Decoder = decode) -> Prepared:
    """Read and decode these images of a shard."""
    size = work.spec.image_size_px
    pixels_NHWC = np.empty((len(images), size, size, 3), np.uint8)
    pixels_of_row = np.full(len(images), -1, np.int32)
    known: dict[bytes, tuple[Decoded | Rejected, int]] = {}
    rows: list[tuple[Any, ...]] = []
    num_pixels = read_bytes = 0
    read_seconds = decode_seconds = decode_core_seconds = 0.0
    outcomes = _read(work, images)
    for number in range(len(images)):
        started = time.perf_counter()
        image, data = next(outcomes)
        read, read_core = time.perf_counter(), time.thread_time()
        if isinstance(data, Rejected):
            rows.append(_row(image, data, None))
        else:
            read_bytes += len(data)
            sha256 = hashlib.sha256(data).digest()
            if sha256 not in known:
                decoded = _decoded(decoder, image, data, work)
                known[sha256] = decoded, -1
                if isinstance(decoded, Decoded):
                    pixels_NHWC[num_pixels] = decoded.pixels_HWC
                    known[sha256] = decoded, num_pixels
                    num_pixels += 1
            decoded, pixels_of_row[number] = known[sha256]
            rows.append(_row(image, decoded, sha256))
        read_seconds += read - started
        decode_seconds += time.perf_counter() - read
        decode_core_seconds += time.thread_time() - read_core
    columns = zip(*rows, strict=True) if rows else [[]] * len(IMAGE_FIELDS)
    arrays = [pa.array(column, one.type) for column, one in zip(columns, IMAGE_FIELDS, strict=True)]
    table = pa.table(arrays, schema=pa.schema(IMAGE_FIELDS))
    return Prepared(
        shard,
        table,
        pixels_NHWC[:num_pixels],
        pixels_of_row,
        read_bytes=read_bytes,
        read_seconds=read_seconds,
        decode_seconds=decode_seconds,
        decode_core_seconds=decode_core_seconds,
    )


def _rows_before(work: Work, shard: Shard, images: list[Image]) -> pa.Table | None:
    """The rows of the file that a revision replaces; None if there is no file."""
    store, name = open_store(work.output), data_name(work.holds, shard.number)
    if not store.exists(name):
        return None
    before = read_table(store, name)
    if before.column("key").to_pylist() != [image.key for image in images]:
        raise CorruptError(
            f"{store.uri}/{name} does not have the images of the plan. Look at it with `bottleneck verify`; delete it "
            "to have it extracted again."
        )
    return before


def _stays(before: pa.Table | None, images: list[Image]) -> np.ndarray:
    """The mask [N] of rows to keep: ok, and of the image as planned now."""
    if before is None:
        return np.zeros(len(images), bool)
    held = zip(*(before.column(name).to_pylist() for name in ("reason", "etag", "label")), strict=True)
    return np.array([one == (None, image.etag, image.label) for one, image in zip(held, images, strict=True)], bool)


def _concatenated(first: pa.Table, second: pa.Table) -> pa.Table:
    return pa.concat_tables([first, second.cast(first.schema)]).unify_dictionaries().combine_chunks()


def _read(work: Work, images: list[Image]) -> Iterator[tuple[Image, bytes | Rejected]]:
    """Yield each image with its bytes, in order, with many requests in flight; unreadable ones are rejected."""
    fetched = open_source(work.source, work.reading).read([image for image in images if _fits(image, work)])
    for image in images:
        if not _fits(image, work):
            yield image, Rejected("too_many_bytes")
            continue
        data = next(fetched)
        yield image, Rejected(data.reason) if isinstance(data, ObjectError) else data


def _decoded(decoder: Decoder, image: Image, data: bytes, work: Work) -> Decoded | Rejected:
    try:
        return decoder(data, work.spec, work.limits)
    except MemoryError as error:
        raise OutOfMemoryError(
            f"The memory is too small to decode {image.key!r} ({len(data):,} bytes): {error or 'none is left'}. It "
            f"takes up to 16 bytes a pixel, of at most {work.limits.max_pixels:,} pixels. Nothing is lost: run again "
            "with fewer workers or more memory, or plan with a lower --max-pixels."
        ) from error


def _fits(image: Image, work: Work) -> bool:
    # What a table says of its images is their mean.
    return work.reading.source_format == "parquet" or image.size <= work.limits.max_bytes


def _row(image: Image, outcome: Decoded | Rejected, sha256: bytes | None) -> tuple[Any, ...]:
    rejected = isinstance(outcome, Rejected)
    return (
        image.key,
        image.etag,
        image.label,
        "rejected" if rejected else "ok",
        outcome.reason if isinstance(outcome, Rejected) else None,
        outcome.width,
        outcome.height,
        outcome.mode,
        sha256,
    )
