"""The rows of a data file: outcome fields and their Parquet schema."""

from collections.abc import Collection
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.spec import OutputSpec, PredictionSpec

Reason = Literal[
    "empty",
    "not_an_image",
    "unsupported_format",
    "truncated",
    "too_many_pixels",
    "too_many_bytes",
    "decoder_crash",
    "decode_timeout",
    "missing",
    "changed",
    "archived",
]

IMAGE_FIELDS = [
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
"""The fields of every data file besides features. `width`, `height` (pixels, as stored) and `mode` (Pillow's name) are
null where no header could be read, `sha256` (of the image's bytes) where no bytes were read."""

PREDICTION_FIELDS = [
    pa.field("predicted", pa.string()),
    pa.field("probability", pa.float32()),
    pa.field("top_labels", pa.list_(pa.string())),
    pa.field("top_probabilities", pa.list_(pa.float32())),
]
"""A head's prediction: the most probable class, its probability, and the top classes, best first."""

ALL_PROBABILITIES = "probabilities"
"""The column with the probability of every class, in the order of the head's classes, if it was asked for."""


def prediction_fields(num_classes: int = 0) -> list[pa.Field]:
    """PREDICTION_FIELDS, and for a number of classes above 0 the column with the probability of each of them."""
    whole = pa.field(ALL_PROBABILITIES, pa.list_(pa.float32(), num_classes or 1))
    return [*PREDICTION_FIELDS, whole] if num_classes else PREDICTION_FIELDS


def check_schema(schema: pa.Schema, wanted: Collection[str] = ()) -> None:
    """Raise pyarrow.ArrowInvalid for columns that no data file has, or if a wanted one is missing.

    This refuses extension types above all: Ray has one whose values are unpickled when read.
    """
    known = {field.name: field.type for field in IMAGE_FIELDS + PREDICTION_FIELDS}
    for field in schema:
        is_layer = pa.types.is_fixed_size_list(field.type) and field.type.value_type in (pa.float16(), pa.float32())
        expected = known.get(field.name)
        if field.type != expected and (expected is not None or not is_layer):
            kind = expected or "a list of as many float16 or float32 in each row"
            raise pa.ArrowInvalid(f"its column {field.name} is {field.type}, expected {kind}")
    if missing := [name for name in wanted if name not in schema.names]:
        raise pa.ArrowInvalid(f"it has no column {missing[0]}")


def ok_mask(table: pa.Table) -> np.ndarray:
    """Return which rows have the status ok, as bool [N]; the table needs the column `status`."""
    return np.asarray(pc.equal(table.column("status").cast(pa.string()), "ok"))


def ok_rows(table: pa.Table) -> pa.Table:
    """Keep the rows whose images are ok; the table needs the column `status`."""
    return table.filter(pa.array(ok_mask(table)))


def data_schema(spec: OutputSpec) -> pa.Schema:
    """The schema of a data file: `IMAGE_FIELDS`, then one column of D values for each layer, or a head's predictions.

    Columns after `IMAGE_FIELDS` are null unless the row is ok.
    """
    if isinstance(spec, PredictionSpec):
        return pa.schema(IMAGE_FIELDS + prediction_fields(len(spec.classes)))
    values = pa.float16() if spec.dtype == "float16" else pa.float32()
    columns = [pa.field(layer, pa.list_(values, dim)) for layer, dim in zip(spec.layers, spec.dims, strict=True)]
    return pa.schema(IMAGE_FIELDS + columns)
