"""Find the columns of a Parquet file that hold images and labels."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.errors import UsageError
from bottleneck.sources.labels import find_label_column, label_names
from bottleneck.sources.reading import Reading
from bottleneck.storage.parquet import is_plain, is_text

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""Exceptions of pyarrow for damaged files; text that is not UTF-8 is a ValueError."""
ROWS_AT_ONCE = 32
LEAST_IMAGE_BYTES = 16
"""Smallest bytes of a file per row: the smallest GIF has 26. A file can declare more rows than fit in memory."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table to read."""

    image: str
    is_struct: bool
    """Whether the bytes are a field of a struct column."""
    has_path: bool
    label: str | None
    """None if there is none or none is wanted."""
    names: tuple[str, ...]
    """Class names if labels are numbers; else empty."""


def _can_label(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_plain(kind.value_type if is_list else kind)


def find_columns(schema: pa.Schema, reading: Reading, name: str) -> Columns:
    """Find the image and label columns: the named ones, else the only image column and `label`.

    Raises:
        UsageError: if there are none, or several.
    """
    if double := sorted({one for one in schema.names if schema.names.count(one) > 1}):
        raise UsageError(f"{name} has several columns called {', '.join(double)}. Expected each name once.")
    image = _image_column(schema, reading.image_column, name)
    label = find_label_column(schema.names, reading.label_column, name) if reading.labels == "folder" else None
    if label is not None and not _can_label(schema.field(label).type):
        raise UsageError(
            f"{name} has labels of type {schema.field(label).type} in its column {label!r}. Expected numbers or texts, "
            "or lists of them: give another `label_column`, or `labels` none."
        )
    kind = schema.field(image).type
    is_struct = pa.types.is_struct(kind)
    has_path = is_struct and kind.get_field_index("path") >= 0 and is_text(kind.field("path").type)
    return Columns(image, is_struct, has_path, label, reading.label_names or label_names(schema, label, name))


def _image_column(schema: pa.Schema, asked: str | None, name: str) -> str:
    can_hold: list[str] = [field.name for field in schema if bytes_type(field.type) is not None]
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
        if what := other_images(field.type):
            raise UsageError(f"{name} has {what} Received: column {field.name!r} of type {field.type}.")
    received = f"column {asked!r} of type {schema.field(asked).type}" if asked else f"the columns {listed}"
    raise UsageError(
        f"{name} has no column of image bytes. Expected one of type binary or struct<bytes, path>, of the files' own "
        f"bytes. Received: {received}. If it names images, give this one file as the source, with `source_format` list."
    )


def other_images(kind: pa.DataType) -> str:
    """The explanation for a column that holds images in an unsupported form; empty for others."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if is_list and (bytes_type(kind.value_type) is not None or other_images(kind.value_type)):
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


def check_bytes(file: pq.ParquetFile, columns: Columns, name: str) -> None:
    """Raise UsageError if a file has only paths, as datasets without embedded images do."""
    if not columns.has_path or _has_bytes(file, columns.image):
        return
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[f"{columns.image}.path"], use_threads=False):
        for value in batch.column(0).to_pylist():
            if value and value["path"]:
                path = value["path"][:200]
                raise UsageError(f"{name} has the paths of its images ({path!r}, ...) and no bytes. {_PATHS_ONLY}")


def _has_bytes(file: pq.ParquetFile, image: str) -> bool:
    """Whether any row has bytes, by statistics, else by reading row groups that are too small for images."""
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


def bytes_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of the bytes in an image column; None for any other column."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return kind if is_binary else None
