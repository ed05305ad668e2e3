"""Sort the lines of a long list by key, in runs on disk."""

import itertools
import os
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

ROWS_SORTED_AT_ONCE = 150_000
"""Lines sorted in memory: about 100 MB."""


class Line(NamedTuple):
    """What is kept of a row: enough to plan an image."""

    key: bytes
    """In UTF-8, the sort key."""
    label: str | None
    size: int
    etag: str


class Found(NamedTuple):
    """The result of looking up the image of a row."""

    line: Line
    how: tuple[str, ...]
    """How the name was changed to find it; empty if it was found as written."""
    listed: str
    looked_for: str
    """Where a missing image was searched."""
    is_missing: bool


def line_order(line: Line) -> tuple[bytes, str]:
    return line.key, line.label or ""


def sorted_runs(lines: Iterator[Line], folder: str) -> list[Iterator[Line]]:
    """Sort lines into runs: one in memory if there are few, else each in a file."""
    runs: list[Iterator[Line]] = []
    while batch := sorted(itertools.islice(lines, ROWS_SORTED_AT_ONCE), key=line_order):
        if not runs and len(batch) < ROWS_SORTED_AT_ONCE:
            return [iter(batch)]
        path = os.path.join(folder, f"{len(runs):06d}.arrow")
        kinds = (pa.binary(), pa.string(), pa.int64(), pa.string())
        columns = [pa.array(column, kind) for column, kind in zip(zip(*batch, strict=True), kinds, strict=True)]
        table = pa.table(columns, names=list(Line._fields))
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4096)
        runs.append(_run(path))
    return runs


def _run(path: str) -> Iterator[Line]:
    with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            columns = [column.to_pylist() for column in reader.get_batch(number).columns]
            yield from itertools.starmap(Line, zip(*columns, strict=True))
