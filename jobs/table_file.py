"""Write what a job shows to a CSV or Parquet file."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bottleneck.dataset.export import scratch_beside
from bottleneck.errors import UsageError
from bottleneck.storage.store import place_of
from jobs.results import show

SUFFIXES = (".csv", ".parquet")


def check_table_file(file: str | None) -> None:
    """Raise UsageError, before the work, for a table that could not be written after it; None is no table."""
    if file is None:
        return
    if not file.endswith(SUFFIXES):
        raise UsageError(f"--table takes a file ending in {' or '.join(SUFFIXES)}. Received: {file}.")
    store, name = place_of(file)
    if store.exists(name):
        raise UsageError(f"--table {file} is there already. Give another name, or remove it.")
    store.try_writing(create_only=True)


def write_table_file(file: str | None, schema: pa.Schema, tables: Iterable[pa.Table | list[dict[str, Any]]]) -> None:
    """Write tables, or rows, to one file, which appears when it is complete; None writes nothing.

    Raises:
        UsageError: if another job wrote the file meanwhile.
    """
    if file is None:
        return
    store, name = place_of(file)
    with scratch_beside(store) as scratch:
        path = Path(scratch) / f"table{Path(file).suffix}"
        num_rows = 0
        with _writer(path, schema) as writer:
            for table in tables:
                rows = table if isinstance(table, pa.Table) else pa.Table.from_pylist(table, schema)
                writer.write_table(rows)
                num_rows += len(rows)
        if not store.create_from_file(name, str(path)):
            raise UsageError(f"Another job wrote {file} at the same time. Give another name.")
    show(f"table: {file}, {num_rows:,} rows")


@contextlib.contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    import pyarrow.csv
    import pyarrow.parquet as pq

    make = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter
    with make(path, schema) as writer:
        yield writer
