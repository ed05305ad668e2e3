"""Images in a column of Parquet files, as Hugging Face datasets export them: `binary`, or `struct<bytes, path>`.

A row is an image. Planning reads footers and labels, never the images. A shard reads the row groups its rows lie in, a
few megabytes at a time.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.errors import StoreError, UsageError
from bottleneck.sources.containers import ContainerFile, containers, look_into, while_planning
from bottleneck.sources.image import Image
from bottleneck.sources.labels import LabelError, as_label, find_label_column, label_names, likely_columns, unusable
from bottleneck.sources.reading import Reading
from bottleneck.storage.parquet import is_plain, is_text, open_parquet
from bottleneck.storage.store import Entry, ObjectChangedError, ObjectError, ObjectGoneError, Store

log = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".pq")
UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What damaged files make pyarrow raise; texts that are not UTF-8 are a ValueError."""
BUFFER_BYTES = 8_000_000
"""Read at once of a column; a row group of images may be larger than the memory."""
ROWS_AT_ONCE = 32
LEAST_IMAGE_BYTES = 16
"""Of a file for each of its rows: the smallest GIF has 26. A file can say that it has more rows than memory holds."""
MAX_TEXT = 10_000
"""Characters of a label or path: a dictionary of one long text and a million places where it stands is a small file."""


@dataclass(frozen=True)
class Columns:
    """Where a table has what is needed of it."""

    image: str
    is_struct: bool
    """Whether the bytes are a field of the column."""
    has_path: bool
    label: str | None
    """None where there is none, or none is wanted."""
    names: tuple[str, ...]
    """Of the classes, where labels are their numbers; else empty."""


class Table:
    """The images of the Parquet files of a source; a key is FILE/ROW, or FILE/ROW/PATH where the row has one."""

    def __init__(self, store: Store, only: str | None, reading: Reading) -> None:
        self.store, self.only, self.reading = store, only, reading

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        found = containers(self.store, self.only, SUFFIXES, skipped)
        if found and self.reading.labels == "folder" and self.reading.label_column is None:
            self._suggest_label_column(found[0])
        for images in look_into(self.store, found, self._index):
            yield from images

    def _suggest_label_column(self, entry: Entry) -> None:
        try:
            with self._open(ContainerFile(self.store, entry)) as file:
                columns = file.schema_arrow.names
        except ObjectError as error:
            raise while_planning(self.store, entry, error) from None
        likely = likely_columns(columns)
        if likely and find_label_column(columns, None, entry.key) is None:
            log.info(
                "%s/%s has no column called label, so its images have none. Give `label_column` for labels from "
                "another: %s.",
                self.store.uri,
                entry.key,
                ", ".join(likely),
            )

    def first(self, skipped: Counter[str]) -> Image | None:
        for entry in containers(self.store, self.only, SUFFIXES, skipped):
            if images := self._index(ContainerFile(self.store, entry)):
                return images[0]
        return None

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        """Each image's bytes, in order; an image that is null has none."""
        for (name, etag), group in itertools.groupby(images, key=lambda image: (image.object or "", image.etag)):
            rows = [image.offset or 0 for image in group]
            yield from self._read_rows(name, etag, rows)

    def _read_rows(self, name: str, etag: str, rows: Sequence[int]) -> Iterator[bytes | ObjectError]:
        done = 0
        try:
            entry = self.store.stat(name)
            if entry is None:
                raise ObjectGoneError(name)
            if entry.etag != etag:
                raise ObjectChangedError(name)
            with self._open(ContainerFile(self.store, entry)) as file:
                columns = find_columns(file.schema_arrow, self.reading, f"{self.store.uri}/{name}")
                for data in _values(file, columns, rows):
                    yield data
                    done += 1
        except UNREADABLE as error:
            raise StoreError(
                f"{self.store.uri}/{name} is damaged from row {rows[done]} on: {error}. Mend it and run the same "
                "command again, or plan without it."
            ) from error
        except ObjectError as error:
            for _ in range(len(rows) - done):
                yield error

    def _open(self, file: ContainerFile) -> pq.ParquetFile:
        try:
            return open_parquet(file, buffer_size=BUFFER_BYTES)
        except UNREADABLE as error:
            raise self._unreadable(file.entry, error) from error

    def _unreadable(self, entry: Entry, error: Exception) -> UsageError:
        return UsageError(
            f"{self.store.uri}/{entry.key} is no Parquet file that can be read: {error}. Mend or remove it."
        )

    def _index(self, file: ContainerFile) -> list[Image]:
        try:
            with self._open(file) as table:
                return list(self._rows(table, file.entry))
        except ObjectError as error:
            raise while_planning(self.store, file.entry, error) from None
        except UNREADABLE as error:
            raise self._unreadable(file.entry, error) from error

    def _rows(self, file: pq.ParquetFile, entry: Entry) -> Iterator[Image]:
        columns = find_columns(file.schema_arrow, self.reading, f"{self.store.uri}/{entry.key}")
        self._check_rows(file, entry)
        _check_bytes(file, columns, f"{self.store.uri}/{entry.key}")
        labels = _Labels(columns.names, f"{self.store.uri}/{entry.key}")
        row = 0
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            num_bytes = sum(
                chunk.total_uncompressed_size
                for chunk in (metadata.column(number) for number in range(metadata.num_columns))
                if f"{chunk.path_in_schema}.".startswith(f"{columns.image}.")
            )
            size = num_bytes // max(1, metadata.num_rows)
            end = row + metadata.num_rows
            for path, value in _paths_and_labels(file, group, columns):
                label = labels.of(value, row)
                key = f"{entry.key}/{row:09d}" + (f"/{path}" if path else "")
                yield Image(key, size, entry.etag, label, row, None, entry.key)
                row += 1
            if row != end:
                raise ValueError(f"row group {group} has another number of rows than it says")

    def _check_rows(self, file: pq.ParquetFile, entry: Entry) -> None:
        num_rows = sum(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        if num_rows > entry.size // LEAST_IMAGE_BYTES:
            raise UsageError(
                f"{self.store.uri}/{entry.key} says that it has {num_rows:,} rows, in {entry.size:,} bytes. Expected "
                f"{LEAST_IMAGE_BYTES} bytes at least for each image. Mend or remove it."
            )


class _Labels:
    """What the values of a table's label column mean; each label is held once."""

    def __init__(self, names: tuple[str, ...], where: str) -> None:
        self.names, self.where = names, where
        self.known: dict[str, str] = {}

    def of(self, value: Any, row: int) -> str | None:
        """The label of a row. Raises UsageError where it cannot be used."""
        try:
            label = as_label(value, self.names)
        except LabelError as error:
            raise unusable(f"{self.where}, row {row}", error) from None
        return None if label is None else self.known.setdefault(label, label)


def _paths_and_labels(file: pq.ParquetFile, group: int, columns: Columns) -> Iterator[tuple[str | None, Any]]:
    """The path and the value of the label of each row of a row group."""
    wanted = ([f"{columns.image}.path"] if columns.has_path else []) + ([columns.label] if columns.label else [])
    if not wanted:
        yield from itertools.repeat((None, None), file.metadata.row_group(group).num_rows)
        return
    for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=wanted, use_threads=False):
        paths: list[Any] = [None] * len(batch)
        labels: list[Any] = list(paths)
        if columns.has_path:
            paths = [value and value["path"] for value in batch.column(columns.image).to_pylist()]
        if columns.label:
            labels = batch.column(columns.label).to_pylist()
        for path, label in zip(paths, labels, strict=True):
            if any(isinstance(one, str | bytes) and len(one) > MAX_TEXT for one in (path, label)):
                raise ValueError(f"a path or label is longer than {MAX_TEXT:,} characters")
            yield path, label


def find_columns(schema: pa.Schema, reading: Reading, name: str) -> Columns:
    """Find the columns of images and labels: those that are named, else the only one of its kind and `label`.

    Raises:
        UsageError: if there are none, or several.
    """
    if double := sorted({one for one in schema.names if schema.names.count(one) > 1}):
        raise UsageError(f"{name} has several columns called {', '.join(double)}. Expected each name once.")
    image = _image_column(schema, reading.image_column, name)
    label = find_label_column(schema.names, reading.label_column, name) if reading.labels == "folder" else None
    if label is not None and not is_plain(schema.field(label).type):
        raise UsageError(
            f"{name} has labels of type {schema.field(label).type} in its column {label!r}. Expected numbers or texts, "
            "one label an image: give another `label_column`, or `labels` none."
        )
    kind = schema.field(image).type
    is_struct = pa.types.is_struct(kind)
    has_path = is_struct and kind.get_field_index("path") >= 0 and is_text(kind.field("path").type)
    return Columns(image, is_struct, has_path, label, reading.label_names or label_names(schema, label, name))


def _image_column(schema: pa.Schema, asked: str | None, name: str) -> str:
    can_hold: list[str] = [field.name for field in schema if _bytes_type(field.type) is not None]
    listed = ", ".join(schema.names)
    if asked is None and len(can_hold) == 1:
        return can_hold[0]
    if asked is None and can_hold:
        raise UsageError(
            f"{name} has several columns that can hold images. Expected `image_column` to name one of: "
            f"{', '.join(can_hold)}."
        )
    if asked is not None and asked not in schema.names:
        raise UsageError(f"{name} has no column {asked!r}. Expected `image_column` to name one of: {listed}.")
    if asked is not None and asked in can_hold:
        return asked
    for field in schema if asked is None else [schema.field(asked)]:
        if what := _other_images(field.type):
            raise UsageError(f"{name} has {what} Received: column {field.name!r} of type {field.type}.")
    received = f"column {asked!r} of type {schema.field(asked).type}" if asked else f"the columns {listed}"
    raise UsageError(
        f"{name} has no column of image bytes. Expected one of type binary or struct<bytes, path>, of the files' own "
        f"bytes. Received: {received}. If it names images, give this one file as the source, with `source_format` list."
    )


def _other_images(kind: pa.DataType) -> str:
    """What to say of a column that holds images otherwise than as bytes of their files; empty for all others."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if is_list and (_bytes_type(kind.value_type) is not None or _other_images(kind.value_type)):
        return "several images in a row. Expected one image a row: write a row for each, as DataFrame.explode does."
    if not pa.types.is_struct(kind):
        return ""
    if {"height", "width", "data"} <= {field.name for field in kind}:
        return (
            "decoded pixels, as Spark's image source makes them. Expected the bytes of the image files: write what "
            "spark.read.format('binaryFile') reads."
        )
    if kind.get_field_index("path") >= 0 and is_text(kind.field("path").type):
        return f"paths of images without their bytes. {_PATHS_ONLY}"
    return ""


_PATHS_ONLY = (
    "Embed the images when the table is written (push_to_hub does, and datasets.table.embed_table_storage), or give "
    "this one file as the source with `source_format` list, and `roots` with the folder that holds the images."
)


def _check_bytes(file: pq.ParquetFile, columns: Columns, name: str) -> None:
    """Raise UsageError where all images of a file are elsewhere: datasets that are not embedded have paths alone."""
    if not columns.has_path or _has_bytes(file, columns.image):
        return
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[f"{columns.image}.path"], use_threads=False):
        for value in batch.column(0).to_pylist():
            if value and value["path"]:
                path = value["path"][:200]
                raise UsageError(f"{name} has the paths of its images ({path!r}, ...) and no bytes. {_PATHS_ONLY}")


def _has_bytes(file: pq.ParquetFile, image: str) -> bool:
    """Whether any row has bytes: by the statistics, or where a file has none by reading groups too small for images."""
    column = f"{image}.bytes"
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        chunks = map(metadata.column, range(metadata.num_columns))
        chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
        if chunk.statistics is not None and chunk.statistics.has_null_count:
            if chunk.statistics.null_count < metadata.num_rows:
                return True
        elif chunk.total_uncompressed_size >= LEAST_IMAGE_BYTES * metadata.num_rows:
            return True
        else:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
                if any(value and value["bytes"] is not None for value in batch.column(0).to_pylist()):
                    return True
    return False


def _bytes_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of the bytes in a column that can hold images; None for any other."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return kind if is_binary else None


def _values(file: pq.ParquetFile, columns: Columns, rows: Sequence[int]) -> Iterator[bytes]:
    """The image bytes of these rows, which are in order."""
    column = f"{columns.image}.bytes" if columns.is_struct else columns.image
    wanted = iter(rows)
    row = next(wanted, None)
    first = 0
    for group in range(file.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if row is not None and row < end:
            start = first
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
                while row is not None and row < start + len(batch):
                    value = batch.column(0)[row - start].as_py()
                    data = value["bytes"] if value and columns.is_struct else value
                    yield data or b""
                    row = next(wanted, None)
                if row is None or row >= end:
                    break
                start += len(batch)
        first = end


def holds_images(store: Store, name: str, reading: Reading) -> bool:
    """Whether a Parquet file, or its column that is named, holds images, if only in a way that is refused."""
    entry = store.stat(name)
    if entry is None:
        return False
    with Table(store, name, reading)._open(ContainerFile(store, entry)) as file:
        kinds = [field.type for field in file.schema_arrow if reading.image_column in (None, field.name)]
    return any(_bytes_type(kind) is not None or _other_images(kind) for kind in kinds)
