"""Images that a CSV or Parquet file names, by URIs of objects in places the user named, with labels or without.

The list is sorted on disk, as it may be longer than the memory is large; then each object is looked at, as a plan
knows size and etag of its images.
"""

import csv
import heapq
import io
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from bottleneck.containers import ContainerFile, while_planning
from bottleneck.errors import UsageError
from bottleneck.images import Image, folder_label
from bottleneck.objects import ObjectError, Store
from bottleneck.parquet import open_parquet
from bottleneck.spec import Reading
from bottleneck.store import normal_uri, open_store

SUFFIXES = (".csv", ".parquet", ".pq")
NAMES = ("uri", "url", "image", "path", "file", "file_name", "filename", "key", "image_path", "image_url")
"""Of the column of images, in lower case, where the user names none."""
MAX_FIELD = 10_000_000
"""Characters of a field of CSV; captions may be long."""
CSV_BUFFER_BYTES = 1_000_000
MAX_NAME = 10_000
"""Characters of a name or label; of long ones too few would fit the memory."""
ROWS_READ_AT_ONCE = 256
"""Of Parquet, where a small file can have one long text in a million rows."""
ROWS_SORTED_AT_ONCE = 250_000
"""About 100 MB while they are."""
NUM_LOOKED_AT = 1024
"""Objects asked for ahead of what is planned, 32 at a time."""

Line = tuple[bytes, str | None]
"""The key in UTF-8, by which lines are sorted, and the label."""


class UriList:
    """The images a list names; a key is the URI as the list has it. Relative ones are below the list's own place."""

    def __init__(self, store: Store, only: str, reading: Reading) -> None:
        self.store, self.only, self.reading = store, only, reading
        self.roots = [store.uri, *map(normal_uri, reading.roots)]

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        with (
            tempfile.TemporaryDirectory(prefix="bottleneck-list-") as folder,
            ThreadPoolExecutor(32) as pool,
        ):
            lines = self._once(heapq.merge(*_runs(self._lines(skipped), folder), key=_order), skipped)
            while batch := list(itertools.islice(lines, NUM_LOOKED_AT)):
                yield from pool.map(self._look, batch)

    def first(self, skipped: Counter[str]) -> Image | None:
        return next(map(self._look, self._lines(skipped)), None)

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        places = [self._place(image.key) for image in images]
        wanted: dict[str, list[Any]] = {}
        for image, (root, key) in zip(images, places, strict=True):
            wanted.setdefault(root, []).append(image.wanted()._replace(key=key))
        fetched = {root: open_store(root).get_many(some) for root, some in wanted.items()}
        for root, _ in places:
            yield next(fetched[root])

    def _place(self, uri: str) -> tuple[str, str]:
        """The root and the key in it of an object a list names. Raises UsageError for one outside the roots."""
        if "://" not in uri and not uri.startswith("/"):
            if not _leaves(self.store.uri, uri):
                return self.store.uri, uri
        else:
            is_local = "://" not in uri or uri.startswith("file://")
            full = os.path.normpath(uri.removeprefix("file://")) if is_local else uri
            for root in self.roots:
                inside = full.removeprefix(root.rstrip("/") + "/")
                if inside != full and not _leaves(root, inside):
                    return root, inside
        raise UsageError(
            f"The list {self.only} names {uri!r}, outside the places it may name: {', '.join(self.roots)}. Where that "
            "is meant, give --roots with the folder or prefix that holds it; nothing was planned."
        )

    def _look(self, line: Line) -> Image:
        key, label = line[0].decode(), line[1]
        root, name = self._place(key)
        entry = open_store(root).stat(name)
        if label is None and self.reading.labels == "folder":
            label = folder_label(key)
        # One that is not there is planned all the same, so that it ends in a row: rejected as missing.
        return Image(key, entry.size if entry else 0, entry.etag if entry else "", label)

    def _lines(self, skipped: Counter[str]) -> Iterator[Line]:
        """The lines of the list as it has them."""
        entry = self.store.stat(self.only)
        if entry is None:
            raise UsageError(f"There is no list {self.store.uri}/{self.only}. Expected a CSV or Parquet file.")
        name = f"{self.store.uri}/{self.only}"
        file = ContainerFile(self.store, entry)
        rows = _csv_rows if self.only.lower().endswith(".csv") else _parquet_rows
        try:
            for key, label in rows(file, self.reading, name):
                if not key:
                    skipped["(no name)"] += 1
                    continue
                if max(len(key), len(label or "")) > MAX_NAME:
                    raise ValueError(f"a name or label is longer than {MAX_NAME:,} characters")
                self._place(key)
                yield key.encode(), (label or None) if self.reading.labels == "folder" else None
        except ObjectError as error:
            raise while_planning(self.store, entry, error) from None
        except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
            raise UsageError(
                f"{name} cannot be read: {error}. Expected CSV in UTF-8 with a header, or Parquet."
            ) from error

    def _once(self, lines: Iterator[Line], skipped: Counter[str]) -> Iterator[Line]:
        """Each key once. Raises UsageError where a key is listed with two labels."""
        last: Line | None = None
        for line in lines:
            if last is None or line[0] != last[0]:
                yield line
                last = line
            elif line[1] == last[1]:
                skipped["(listed again)"] += 1
            else:
                raise UsageError(
                    f"The list {self.only} gives {line[0].decode()!r} two labels: {last[1]!r} and {line[1]!r}. "
                    "Expected one; mend the list."
                )


def _leaves(root: str, path: str) -> bool:
    """Whether a path below a root leads out of it, read as the root's kind of place reads paths."""
    if root.startswith("s3://"):
        return False  # keys are names, sent as they are
    if "://" in root:  # a server may decode, more than once, before it walks
        while (decoded := unquote(path)) != path:
            path = decoded
        return not {".", ".."}.isdisjoint(path.replace("\\", "/").split("/"))
    path = os.path.normpath(path)
    return path == ".." or path.startswith("../")


def find_columns(names: Sequence[str], reading: Reading, name: str) -> tuple[str, str | None]:
    """The columns of images and labels of a list. Raises UsageError where they cannot be told."""
    if double := sorted({one for one in names if names.count(one) > 1}):
        raise UsageError(f"{name} has several columns called {', '.join(double)}. Expected each name once.")
    by_lower = {one.lower(): one for one in reversed(names)}
    image = reading.image_column or next((by_lower[one] for one in NAMES if one in by_lower), None)
    if image is None or image not in names:
        raise UsageError(
            f"{name} has no column of that name. Expected --image-column to name the one with the images' URIs among: "
            f"{', '.join(names)}. Received: {reading.image_column or 'no --image-column'}."
        )
    label = reading.label_column or by_lower.get("label")
    if label is not None and label not in names:
        raise UsageError(f"{name} has no column {label} of labels. Expected one of: {', '.join(names)}.")
    return image, label


def _csv_rows(file: ContainerFile, reading: Reading, name: str) -> Iterator[tuple[str, str | None]]:
    """Image and label of each line; all as texts: a class called 007 is not the number 7."""
    csv.field_size_limit(MAX_FIELD)
    with io.TextIOWrapper(io.BufferedReader(file, CSV_BUFFER_BYTES), "utf-8-sig", newline="") as text:
        lines = csv.reader(text, strict=True)
        header = [one.strip() for one in next(lines, [])]
        if not header:
            raise UsageError(f"{name} cannot be read: it is empty. Expected CSV with a header.")
        image_column, label_column = find_columns(header, reading, name)
        image, label = header.index(image_column), header.index(label_column) if label_column else None
        for row in lines:
            if not row:
                continue
            if len(row) != len(header):
                raise UsageError(
                    f"{name} cannot be read: line {lines.line_num} has {len(row)} fields, its header {len(header)}. "
                    "Expected as many in each; quote fields with commas in them."
                )
            yield row[image], None if label is None else row[label]


def _parquet_rows(file: ContainerFile, reading: Reading, name: str) -> Iterator[tuple[str | None, str | None]]:
    with open_parquet(file) as table:
        image, label = find_columns(table.schema_arrow.names, reading, name)
        wanted = [image] if label is None else [image, label]
        for batch in table.iter_batches(ROWS_READ_AT_ONCE, columns=wanted, use_threads=False):
            keys = batch.column(image).cast(pa.string()).to_pylist()
            labels = [None] * len(keys) if label is None else batch.column(label).cast(pa.string()).to_pylist()
            yield from zip(keys, labels, strict=True)


def _order(line: Line) -> tuple[bytes, str]:
    return line[0], line[1] or ""


def _runs(lines: Iterator[Line], folder: str) -> list[Iterator[Line]]:
    """Lines as sorted runs: one in memory if they are few, else each in a file of its own."""
    runs: list[Iterator[Line]] = []
    while batch := sorted(itertools.islice(lines, ROWS_SORTED_AT_ONCE), key=_order):
        if not runs and len(batch) < ROWS_SORTED_AT_ONCE:
            return [iter(batch)]
        path = os.path.join(folder, f"{len(runs):06d}.arrow")
        keys, labels = zip(*batch, strict=True)
        table = pa.table({"key": pa.array(keys, pa.binary()), "label": pa.array(labels, pa.string())})
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4096)
        runs.append(_run(path))
    return runs


def _run(path: str) -> Iterator[Line]:
    with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
