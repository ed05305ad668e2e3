"""Images in a column of Parquet files, as Hugging Face datasets have them.

A row is an image. Planning reads footers and labels, never the images. A shard reads the row groups its rows lie in, a
few megabytes at a time.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from bottleneck.errors import StoreError, UsageError
from bottleneck.sources.containers import ContainerFile, containers, look_into, while_planning
from bottleneck.sources.image import Image
from bottleneck.sources.labels import LabelError, as_label, find_label_column, likely_columns, unusable
from bottleneck.sources.parquet_columns import (
    LEAST_IMAGE_BYTES,
    ROWS_AT_ONCE,
    UNREADABLE,
    Columns,
    bytes_type,
    check_bytes,
    find_columns,
    other_images,
)
from bottleneck.sources.reading import Reading
from bottleneck.storage.parquet import open_parquet
from bottleneck.storage.store import Entry, ObjectChangedError, ObjectError, ObjectGoneError, Store

log = logging.getLogger(__name__)


SUFFIXES = (".parquet", ".pq")
BUFFER_BYTES = 8_000_000
"""Bytes of a column read at a time; a row group of images may be larger than the memory."""
MAX_TEXT = 10_000
"""Characters of a label or path: a dictionary of one long text and a million places where it stands is a small file."""


class Table:
    """The images of the Parquet files of a source; keys are FILE/ROW, or FILE/ROW/PATH if the row has a path."""

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
        """Yield each image's bytes, in order; a null image has none."""
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
        check_bytes(file, columns, f"{self.store.uri}/{entry.key}")
        labels = _ColumnLabels(columns.names, f"{self.store.uri}/{entry.key}")
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


class _ColumnLabels:
    """Convert the values of a label column; each distinct label is stored once."""

    def __init__(self, names: tuple[str, ...], where: str) -> None:
        self.names, self.where = names, where
        self.known: dict[str, str] = {}

    def of(self, value: Any, row: int) -> str | None:
        """The label of a row. Raises UsageError if it cannot be used."""
        try:
            label = as_label(value, self.names)
        except LabelError as error:
            raise unusable(f"{self.where}, row {row}", error) from None
        return None if label is None else self.known.setdefault(label, label)


def _paths_and_labels(file: pq.ParquetFile, group: int, columns: Columns) -> Iterator[tuple[str | None, Any]]:
    """The path and label value of each row of a row group."""
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


def _values(file: pq.ParquetFile, columns: Columns, rows: Sequence[int]) -> Iterator[bytes]:
    """Yield the image bytes of these rows, which are sorted."""
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
    """Whether a Parquet file, or the named column, holds images in any form, accepted or not."""
    entry = store.stat(name)
    if entry is None:
        return False
    with Table(store, name, reading)._open(ContainerFile(store, entry)) as file:
        kinds = [field.type for field in file.schema_arrow if reading.image_column in (None, field.name)]
    return any(bytes_type(kind) is not None or other_images(kind) for kind in kinds)
