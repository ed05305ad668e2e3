"""Read the footer of a data file from its last bytes."""

import io
import json
from functools import lru_cache
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.errors import CorruptError
from bottleneck.storage.store import Entry, ObjectChangedError, ObjectGoneError, Store, Wanted


class Footer(TypedDict, total=False):
    """What a data file records about itself. Old files and foreign ones may lack fields."""

    format: int
    fingerprint: str
    shard: int
    revision: int
    images: int
    statuses: dict[str, int]
    run_id: str
    written: str
    versions: dict[str, str]
    device: str
    spec: dict[str, Any]
    predictions: dict[str, Any]
    sha256: str


TAIL_BYTES = 65_536
"""Bytes read from the end of a data file; a footer has a few thousand."""


def read_footer(store: Store, entry: Entry) -> tuple[Entry, Footer]:
    """Read the footer of a data file.

    Args:
        entry: the file as it was listed; one that was replaced since is read as it is now.

    Returns:
        The file as it was read, and what its footer says.

    Raises:
        CorruptError: if it is gone, or no data file.
    """
    while True:
        try:
            return entry, _parse(store, entry, _tail(store, entry))
        except (ObjectGoneError, ObjectChangedError, CorruptError) as error:
            now = store.stat(entry.key)
            if isinstance(error, CorruptError) and (now is None or now.size == entry.size):
                raise  # else it was read by the size of a smaller one, which needs an entry without an etag
            if now is None or now == entry:
                raise CorruptError(f"{store.uri}/{entry.key} is gone, or shorter, since it was listed.") from None
            entry = now


@lru_cache(maxsize=100_000)
def revision_in(store: Store, entry: Entry) -> int:
    """The revision of its shard that a data file holds; cached by content."""
    revision: int = read_footer(store, entry)[1].get("revision", 0)
    return revision


def _tail(store: Store, entry: Entry) -> bytes:
    """The whole footer and what ends a Parquet file: the footer's length and PAR1."""
    size, num_bytes = entry.size, min(entry.size, TAIL_BYTES)
    while True:
        tail = store.get(Wanted(entry.key, size, entry.etag, size - num_bytes, num_bytes)) if size else b""
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if num_bytes >= min(needed, size):
            return tail[-needed:]
        num_bytes = min(needed, size)


def _parse(store: Store, entry: Entry, tail: bytes) -> Footer:
    try:
        # Metadata alone needs no more of the file than its closing part behind the opening magic.
        metadata = pq.read_metadata(io.BytesIO(b"PAR1" + tail)).metadata or {}
        footer: Footer = json.loads(metadata[b"bottleneck"])
        return footer
    except (pa.ArrowException, OSError, LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise CorruptError(
            f"{store.uri}/{entry.key} is no data file of bottleneck: {error}. Look at it with `bottleneck verify`; "
            "delete it to have it extracted again."
        ) from error
