"""Open Parquet files safely: without pyarrow's threads, and without foreign types."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
"""The first and the last bytes of a Parquet file."""


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file without pyarrow's threads, which can abort a process that exits soon after.

    Args:
        source: a file or buffer.
        options: of pyarrow.parquet.ParquetFile.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: if it cannot be read; also where its metadata asks for a type that
            was registered with pyarrow, whose own code then fails in its own way.
    """
    try:
        return pq.ParquetFile(source, pre_buffer=False, **options)
    except (AttributeError, LookupError, TypeError) as error:
        raise pa.ArrowInvalid(f"a type it asks for cannot be made: {error!r}") from error
    except pa.ArrowInvalid:
        if _is_cut(source):
            raise pa.ArrowInvalid(
                "it begins as Parquet and has no footer at its end, so it was cut off or is still being written"
            ) from None
        raise


def _is_cut(source: Any) -> bool:
    """Whether a file begins like Parquet but does not end like it."""
    source.seek(0)
    if bytes(source.read(len(MAGIC))) != MAGIC:
        return False
    source.seek(-len(MAGIC), io.SEEK_END)
    return bytes(source.read(len(MAGIC))) != MAGIC


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_plain(kind: pa.DataType) -> bool:
    """Whether a type is a number or text, and not an extension type: Ray's unpickles its values."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    is_number = pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    return bool(is_number or is_bytes or is_text(kind))
