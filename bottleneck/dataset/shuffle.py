"""Order any number of rows by the sha256 of their keys, in bounded memory.

The order depends on the keys alone: not on shards, versions of libraries or a generator's state, and anyone can have it
again with `ORDER BY sha256(key)`. Rows that do not fit are distributed over temporary files by the first bits of the
digest, and each file is sorted in turn.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

BUCKET_BYTES = 1 << 24
"""Bytes sorted in memory at a time, which takes about three times as much. A single table may be larger."""
BITS = 7
"""Bits of the digest per level: 128 files are open at once, so two levels hold 250 GB."""
MAX_DEPTH = 64 // BITS
BATCH_ROWS = 1024
DIGEST = "sha256 of the key"
"""A temporary column: the first eight bytes of the digest, as a number."""


def shuffled(tables: Iterable[pa.Table], folder: str) -> Iterator[pa.Table]:
    """Yield all rows in the order of the sha256 of their `key`.

    Args:
        tables: all of one schema, with a text column `key`.
        folder: for temporary files, which take about the size of the rows and are gone as the rows are yielded.

    Yields:
        Tables of BATCH_ROWS rows, or fewer.

    Raises:
        OSError: if the temporary files cannot be written.
    """
    keyed = (table.append_column(DIGEST, _digests(table)) for table in tables)
    for table in _sorted(keyed, folder, 0):
        yield table.drop_columns([DIGEST])


def _digests(table: pa.Table) -> pa.Array:
    keys = table.column("key").to_pylist()
    first_bytes = b"".join(hashlib.sha256(key.encode()).digest()[:8] for key in keys)
    return pa.array(np.frombuffer(first_bytes, ">u8").astype(np.uint64))


def _sorted(tables: Iterator[pa.Table], folder: str, depth: int) -> Iterator[pa.Table]:
    held = _gathered(tables, BUCKET_BYTES if depth < MAX_DEPTH else None)
    following = next(tables, None)
    if following is None:
        if held is not None:
            yield from _batches(held.take(np.argsort(held.column(DIGEST).to_numpy(), kind="stable")))
        return
    for path in _distributed(held, following, tables, folder, depth):
        with pa.ipc.open_stream(path) as reader:
            yield from _sorted((pa.Table.from_batches([batch]) for batch in reader), folder, depth + 1)
        os.unlink(path)


def _distributed(held: pa.Table, following: pa.Table, tables: Iterator[pa.Table], folder: str, depth: int) -> list[str]:
    """Write rows to one file per value of the digest's next bits; return the files in order."""
    paths = [os.path.join(folder, f"rows-{depth}-{number}.arrow") for number in range(1 << BITS)]
    waiting = itertools.chain([following], tables)
    with contextlib.ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        part: pa.Table | None = held
        while part is not None:
            numbers = part.column(DIGEST).to_numpy() >> np.uint64(64 - BITS * (depth + 1)) & np.uint64((1 << BITS) - 1)
            part = part.take(np.argsort(numbers, kind="stable"))
            ends = np.cumsum(np.bincount(numbers.astype(np.int64), minlength=1 << BITS)).tolist()
            for number, (start, end) in enumerate(itertools.pairwise([0, *ends])):
                if end > start:
                    if number not in writers:
                        writers[number] = stack.enter_context(pa.ipc.new_stream(paths[number], part.schema))
                    writers[number].write_table(part.slice(start, end - start))
            part = _gathered(waiting, BUCKET_BYTES)
    return [paths[number] for number in sorted(writers)]


def _gathered(tables: Iterator[pa.Table], limit_bytes: int | None) -> pa.Table | None:
    """The next tables as one of about this many bytes; None at the end."""
    gathered: list[pa.Table] = []
    num_bytes = 0
    while limit_bytes is None or num_bytes < limit_bytes:
        table = next(tables, None)
        if table is None:
            break
        gathered.append(table)
        num_bytes += table.nbytes
    return pa.concat_tables(gathered).combine_chunks() if gathered else None


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, BATCH_ROWS):
        yield table.slice(start, BATCH_ROWS)
