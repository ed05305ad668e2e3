"""Write CSV, Parquet, Lance and MATLAB files.

Legend: N images, D features.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.dataset.contents import Batch, Contents
from bottleneck.errors import UsageError
from bottleneck.text import size

MAX_COLUMNS = 4096
"""Features of a CSV: more columns than most programs read."""
CSV_ROWS = 64
"""Written at once: arrow holds their text in memory."""
MAX_MATLAB_BYTES = 2**31 - 2**20
"""Of one variable in the format of MATLAB 5, which `scipy.io.savemat` writes."""


def write_csv(path: str, contents: Contents) -> None:
    """`key`, `label` and a column for each feature, written so that the same float32 is read back."""
    import pyarrow.csv

    dim = math.prod(contents.feature_shape)
    if dim > MAX_COLUMNS:
        raise UsageError(
            f"A CSV holds up to {MAX_COLUMNS:,} features. Received: {dim:,}. Export a pooled layer, or to .parquet or "
            ".h5."
        )
    columns = [pa.field(f"f{number}", pa.float32()) for number in range(dim)]
    schema = pa.schema([pa.field("key", pa.string()), pa.field("label", pa.string()), *columns])
    options = pyarrow.csv.WriteOptions(batch_size=CSV_ROWS)
    with pyarrow.csv.CSVWriter(path, schema, write_options=options) as writer:
        for batch in contents.batches():
            for start in range(0, len(batch.keys), CSV_ROWS):
                writer.write_batch(_csv_rows(batch, slice(start, start + CSV_ROWS), schema))


def _csv_rows(batch: Batch, rows: slice, schema: pa.Schema) -> pa.RecordBatch:
    features_DN = np.ascontiguousarray(batch.features[rows].reshape(len(batch.keys[rows]), -1).T, np.float32)
    texts = [pa.array(values[rows], pa.string()) for values in (batch.keys, batch.labels)]
    return pa.record_batch([*texts, *map(pa.array, features_DN)], schema=schema)


def write_parquet(path: str, contents: Contents) -> None:
    """One Parquet file with `key`, `label` and `features`, a list of their stored dtype."""
    schema = _vector_schema(contents)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _vectors(contents, schema):
            writer.write_batch(batch)


def write_matlab(path: str, contents: Contents) -> None:
    """`features` (single), `labels` (from 1; 0 without one), `label_names` and `keys` (cells), `attributes` (JSON).

    All of it is in memory at once.
    """
    from scipy.io import savemat

    num_bytes = 4 * contents.num_images * math.prod(contents.feature_shape)
    if num_bytes > MAX_MATLAB_BYTES:
        raise UsageError(
            f"A variable of a .mat file holds up to {size(MAX_MATLAB_BYTES)}, the features have {size(num_bytes)}. "
            "Export to .h5, which MATLAB reads with h5read."
        )
    batches: list[Batch] = list(contents.batches())
    savemat(
        path,
        {
            "features": np.concatenate([batch.features for batch in batches]).astype(np.float32),
            "labels": np.concatenate([batch.codes_N for batch in batches])[:, None] + 1,  # MATLAB counts from 1
            "label_names": _cells(contents.label_names),
            "keys": _cells([key for batch in batches for key in batch.keys]),
            "attributes": json.dumps(contents.attributes),
        },
    )


def write_lance(path: str, contents: Contents) -> None:
    """A Lance dataset, which is a folder, with `key`, `label` and `features`."""
    try:
        import lance
    except ImportError as error:
        raise UsageError(
            f"Writing Lance needs its package: `pip install pylance` ({error}). Or read the output itself: it is "
            "Parquet."
        ) from error
    schema = _vector_schema(contents)
    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, _vectors(contents, schema)), path)


def _vector_schema(contents: Contents) -> pa.Schema:
    vector = pa.list_(pa.from_numpy_dtype(contents.dtype), math.prod(contents.feature_shape))
    columns = [pa.field("key", pa.string()), pa.field("label", pa.string()), pa.field("features", vector)]
    return pa.schema(columns, metadata={"bottleneck": json.dumps(contents.attributes)})


def _vectors(contents: Contents, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    dim = math.prod(contents.feature_shape)
    for batch in contents.batches():
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch.features.reshape(-1)), dim)
        columns = [pa.array(batch.keys, pa.string()), pa.array(batch.labels, pa.string()), vectors]
        yield pa.record_batch(columns, schema=schema)


def _cells(texts: list[str]) -> Any:
    """A column of cells, each with a text; scipy makes a character matrix of a list."""
    cells = np.empty((len(texts), 1), object)
    cells[:, 0] = texts
    return cells
