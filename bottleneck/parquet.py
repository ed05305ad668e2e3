"""Parquet files as they are opened here: by one thread, and whatever types they claim to hold."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file without pyarrow's threads, with which a process that ends soon after aborts now and then.

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
