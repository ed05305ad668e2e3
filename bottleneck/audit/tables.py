"""Read Parquet tables of an output and check their schemas."""

from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.audit.objects import Objects, Wrong

_IMAGE_FIELDS = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("etag", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("mode", pa.string()),
    pa.field("sha256", pa.binary(32)),
]
_PREDICTION_FIELDS = [
    pa.field("predicted", pa.string()),
    pa.field("probability", pa.float32()),
    pa.field("top_labels", pa.list_(pa.string())),
    pa.field("top_probabilities", pa.list_(pa.float32())),
]
_TAIL_BYTES = 65_536
"""Fetched of every data file for its footer; a footer of ours takes some 5 KB, so one request is enough."""


def read_metadata(objects: Objects, name: str) -> pq.FileMetaData:
    """Parse a Parquet footer from the last bytes of the object alone: PAR1 and the footer's length end the file."""
    size = objects.sizes_bytes[name]
    tail = objects.read(name, max(0, size - _TAIL_BYTES), size)
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise Wrong(f"ends ({size} bytes) without a Parquet footer: cut short or overwritten")
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed > size - 4:
        raise Wrong(f"has {size} bytes, but its footer alone says it needs {needed + 4}")
    if needed > len(tail):
        tail = objects.read(name, size - needed, size)
    return pq.read_metadata(pa.BufferReader(tail[-needed:]))


def read_tables(data: bytes, schema: pa.Schema) -> list[pa.Table]:
    """The row groups of a Parquet file with exactly this schema."""
    # Without pyarrow's threads, with which a process that ends soon after a read aborts now and then.
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False)
    for number, (received, expected) in enumerate(zip_longest(file.schema_arrow, schema)):
        if received is None or expected is None or received != expected:
            difference = f"its column {number} is {field_of(received)}, expected {field_of(expected)}"
            raise Wrong(f"has the columns of something else: {difference}")
    tables = [file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups)]
    for table in tables:
        table.validate(full=True)  # or a status that its dictionary lacks would be read from beyond its end
    return tables


def data_schema(document: dict[str, Any]) -> pa.Schema:
    """The schema of the data files of a plan.json."""
    spec = document["spec"]
    if "predictions" in document:
        classes = document["predictions"].get("classes")
        whole = [pa.field("probabilities", pa.list_(pa.float32(), len(classes)))] if classes else []
        return pa.schema(_IMAGE_FIELDS + _PREDICTION_FIELDS + whole)
    value = {"float16": pa.float16(), "float32": pa.float32()}[spec["dtype"]]
    layers = zip(spec["layers"], spec["dims"], strict=True)
    return pa.schema(_IMAGE_FIELDS + [pa.field(layer, pa.list_(value, dim)) for layer, dim in layers])


def field_of(field: pa.Field | None) -> str:
    return "not there" if field is None else f"{field.name} {field.type}" + (" not null" if not field.nullable else "")
