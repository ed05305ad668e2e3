"""Join the rows of two outputs by key, in flat memory."""

import bisect
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from bottleneck.dataset.features import Features
from bottleneck.errors import CorruptError


class MadeWith(defaultdict[str, set[str]]):
    """Versions and devices from the footers of data files: name -> values."""

    def __init__(self) -> None:
        super().__init__(set)

    def add(self, table: pa.Table) -> None:
        footer = json.loads((table.schema.metadata or {}).get(b"bottleneck", b"{}"))
        for name, version in {**footer.get("versions", {}), "device": footer.get("device", "")}.items():
            self[name].add(str(version))


class JoinedRow(NamedTuple):
    """A run of keys, complete on both sides."""

    only_a: list[str]
    only_b: list[str]
    keys: list[str]
    """In both; the rows of the two tables are theirs, in this order."""
    a: pa.Table
    b: pa.Table


class _Listing:
    """The rows of one listing in key order, one data file at a time."""

    def __init__(self, features: Features, names: list[str], columns: list[str], made: MadeWith) -> None:
        self._tables = (features.table(name, columns) for name in names)
        self._output, self._made = features.plan.output, made
        self.keys: list[bytes] = []
        """Of the rows that are not yet taken; empty when there are no more."""
        self._read()

    def _read(self) -> None:
        while not self.keys:
            table = next(self._tables, None)
            if table is None:
                return
            self._made.add(table)
            self._table = table
            self.keys = table.column("key").cast(pa.binary()).to_pylist()
            if self.keys != sorted(self.keys):
                raise CorruptError(f"{self._output} holds rows out of order. Look at it with `bottleneck verify`.")

    def take(self, last: bytes) -> pa.Table:
        """Take the rows up to a key."""
        end = bisect.bisect_right(self.keys, last)
        taken, self._table, self.keys = self._table.slice(0, end), self._table.slice(end), self.keys[end:]
        self._read()
        return taken


def join_rows(a: Features, b: Features, columns: list[str], made: tuple[MadeWith, MadeWith]) -> Iterator[JoinedRow]:
    """Join the rows of both outputs by key, up to the key that every listing has reached."""
    sides = [_listings(one, columns, own) for one, own in zip((a, b), made, strict=True)]
    while waiting := [listing for side in sides for listing in side if listing.keys]:
        last = min(listing.keys[-1] for listing in waiting)
        taken_a, taken_b = (_in_order([one.take(last) for one in side if one.keys]) for side in sides)
        keys_a, keys_b = (taken.column("key").to_pylist() if taken else [] for taken in (taken_a, taken_b))
        rows_a, rows_b = ({key: row for row, key in enumerate(keys)} for keys in (keys_a, keys_b))
        keys = [key for key in keys_a if key in rows_b]
        yield JoinedRow(
            [key for key in keys_a if key not in rows_b],
            [key for key in keys_b if key not in rows_a],
            keys,
            _rows(taken_a, [rows_a[key] for key in keys]),
            _rows(taken_b, [rows_b[key] for key in keys]),
        )


def _rows(table: pa.Table | None, rows: list[int]) -> pa.Table:
    """Take rows of a table; usually all, without a copy."""
    return table if table is None or len(rows) == table.num_rows else table.take(pa.array(rows, pa.int64()))


def _listings(features: Features, columns: list[str], made: MadeWith) -> list[_Listing]:
    there, first, found = set(features.files), 0, []
    for listing in features.plan.grown:
        names = [features.plan.data_name(shard) for shard in range(first, first + listing.shards)]
        found.append(_Listing(features, [name for name in names if name in there], columns, made))
        first += listing.shards
    return found


def _in_order(tables: list[pa.Table]) -> pa.Table | None:
    tables = [table for table in tables if table.num_rows]
    if len(tables) < 2:
        return tables[0] if tables else None
    together = pa.concat_tables(tables)
    keys = together.column("key").cast(pa.binary()).to_pylist()
    return together.take(sorted(range(len(keys)), key=keys.__getitem__))
