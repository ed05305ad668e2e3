"""The store protocol, its errors, and `open_store`.

Keys are opaque names below the store's root. A store tells three kinds of trouble apart: what the object itself is
(gone, changed, archived: the caller makes it a row), what passes (5xx, timeouts, resets, cut bodies: tried again in the
store, see `retry`), and what only a person can mend (rights, credentials, disk: `StoreError`, which stops the run).
"""

import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from bottleneck.errors import StoreError, UsageError

T = TypeVar("T")

UNNAMED_FILES = "BOTTLENECK_UNNAMED_FILES"
"""Environment variable: set to `off`, folders are written as on file systems without unnamed files."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
IN_FLIGHT = 32
"""Concurrent reads per process. One S3 connection reads about 30 to 60 small objects a second."""
IN_FLIGHT_BYTES = 64_000_000
"""Bytes of concurrent reads, so that a shard of huge images does not fill the memory."""

NOT_ONCE = (
    "the store wrote over an object that it was asked to create only, so two runs could overwrite each other's work. "
    "Expected one that honours If-None-Match: * on PUT, as S3 does: take another, or a newer version"
)


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int
    etag: str
    reason: str = ""
    """Why a source skips it, such as a link that leads out; empty for an object."""


class Wanted(NamedTuple):
    """An object to read, as planned; `offset` and `length` for a slice of a container."""

    key: str
    size: int
    etag: str
    offset: int | None = None
    length: int | None = None


class ObjectError(Exception):
    """An object cannot be read, and a retry would not help."""

    reason: ClassVar[Literal["missing", "changed", "archived"]]
    """Why its image is rejected."""


class ObjectGoneError(ObjectError):
    """The object does not exist (any more)."""

    reason = "missing"


class ObjectChangedError(ObjectError):
    """The object is not the one that was listed."""

    reason = "changed"


class ObjectArchivedError(ObjectError, StoreError):
    """The object is in an archive tier and must be restored before it can be read.

    Rejects an image. For an object that a run needs it is a StoreError.
    """

    reason = "archived"


class Store(Protocol):
    """A folder or a bucket. All verbs may raise StoreError."""

    uri: str

    def __hash__(self) -> int: ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose keys start with `prefix` in the order of their UTF-8 bytes, a page at a time."""

    def list_dated(self, prefix: str = "") -> Iterator[tuple[Entry, float]]:
        """Like `list`, with the time each object was written, in seconds since the epoch by the store's clock."""

    def clock(self) -> float:
        """The store's current time, in seconds since the epoch."""

    def get(self, wanted: Wanted) -> bytes:
        """Read an object or slice.

        Raises:
            ObjectGoneError: if there is none.
            ObjectChangedError: if `wanted.etag` is neither empty nor the object's, or the slice is not all there.
            ObjectArchivedError: if it has to be restored from an archive first.
        """

    def read(self, key: str) -> bytes:
        """Read a whole object, whichever version it is. Raises as `get`."""

    def stat(self, key: str) -> Entry | None:
        """The listing entry of one object; None if there is none."""

    def exists(self, key: str) -> bool: ...

    def try_writing(self, *, create_only: bool = False) -> None:
        """Raise StoreError if no object can be written. Writes nothing and makes no folder.

        Args:
            create_only: a right to create objects, and to replace none, is enough; where a user of a bucket has no
                other, an empty object stays.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Create an object atomically; False if the key exists. Never leaves a partial object."""

    def creates_once(self, key: str, data: bytes) -> bool:
        """Try on an existing object whether `create` leaves it alone.

        Args:
            key, data: an object and what it holds, so that a store that writes over it changes nothing.
        """

    def create_from_file(self, key: str, path: str) -> bool:
        """Like `create`, from a local file, which need not fit in memory.

        Args:
            path: a file; for a folder one on the same disk, which it becomes part of, or a folder there.
        """

    def replace(self, key: str, data: bytes, etag: str = "") -> bool:
        """Write an object atomically, replacing an existing one.

        Args:
            etag: of the object that is meant, as `stat` told it; empty for any.

        Returns:
            False where another object was found, which stays.
        """

    def remove(self, key: str) -> None:
        """Remove an object; nothing where there is none. Only for what is nobody's result."""

    def sweep(self) -> None:
        """Remove temporary files of writers that were killed long ago."""

    def get_many(self, wanted: Sequence[Wanted]) -> Iterator[bytes | ObjectError]:
        """Read many objects in order, with several requests in flight."""


def whole(wanted: Wanted, data: bytes) -> bytes:
    if wanted.length is not None and len(data) != wanted.length:
        raise ObjectChangedError(wanted.key)
    return data


def outcome(get: Callable[[Wanted], bytes], one: Wanted) -> bytes | ObjectError:
    try:
        return get(one)
    except ObjectError as outcome:
        return outcome


def windowed(wanted: Sequence[Wanted], submit: Callable[[Wanted], "Future[T]"]) -> Iterator[T]:
    """Yield results in order, with at most IN_FLIGHT requests and IN_FLIGHT_BYTES in flight."""
    under_way: deque[tuple[int, Future[T]]] = deque()
    num_bytes = 0
    try:
        for one in wanted:
            size = one.size if one.length is None else one.length
            while under_way and (len(under_way) >= IN_FLIGHT or num_bytes + size > IN_FLIGHT_BYTES):
                done_size, future = under_way.popleft()
                num_bytes -= done_size
                yield future.result()
            under_way.append((size, submit(one)))
            num_bytes += size
        while under_way:
            yield under_way.popleft()[1].result()
    finally:
        for _, future in under_way:
            future.cancel()


def check_creates_once(store: Store, key: str, data: bytes) -> None:
    """Refuse a store in which two runs could overwrite each other's work. Raises StoreError."""
    if not store.creates_once(key, data):
        raise StoreError(f"{store.uri} cannot be an output: {NOT_ONCE}.")


def open_store(uri: str) -> Store:
    """Open a folder (a path or file://), a bucket (s3://bucket/prefix), or, read only, any fsspec URI.

    Raises:
        UsageError: for a URI of another kind, or one that needs a package that is not installed.
    """
    return cached_store(normal_uri(uri))  # a relative name means another folder after os.chdir


@functools.lru_cache(maxsize=16)
def cached_store(uri: str) -> Store:
    """Open a store by its normal URI, once per process."""
    # These import this module for what a store is.
    from bottleneck.storage.local import FolderStore
    from bottleneck.storage.readonly import RemoteStore
    from bottleneck.storage.s3 import BucketStore

    if uri.startswith("s3://"):
        return BucketStore(uri)
    if "://" in uri:
        return RemoteStore(uri)
    return FolderStore(uri, unnamed_files=os.environ.get(UNNAMED_FILES) != "off")


def place_of(file: str) -> tuple[Store, str]:
    """The store that holds a file or s3:// URI, and its key there."""
    folder, slash, name = file.rstrip("/").rpartition("/")
    return open_store(folder or slash or "."), name


def check_output_uri(uri: str) -> None:
    """Raise UsageError for an output that can only be read."""
    uri = normal_uri(uri)
    if "://" in uri and not uri.startswith("s3://"):
        raise UsageError(
            f"Expected a folder or s3://bucket/prefix as the output. Received: {uri.partition('://')[0]}://..., "
            "which is only read, as a source."
        )


def normal_uri(uri: str) -> str:
    """The normal form of a store's URI: an absolute path, or scheme://place/prefix without a trailing slash."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise UsageError("A source or output needs a name. Received an empty one.")
        return os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return os.path.abspath(rest)
    if not _SCHEME.fullmatch(scheme) or scheme == "s3a":
        # Not the whole URI, which may hold credentials.
        raise UsageError(f"Expected a folder, file:///... or s3://bucket/prefix. Received: {scheme[:20]}://...")
    bucket = rest.split("/", 1)[0]
    if "@" in bucket or (":" in bucket and scheme == "s3") or urlsplit(uri).query:
        raise UsageError(
            "A store's URI holds no credentials or options, as it is written into plans and logs. Give credentials by "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role, an endpoint by AWS_ENDPOINT_URL."
        )
    if not bucket:
        raise UsageError(f"Expected s3://bucket/prefix. Received: {uri}, which names no bucket.")
    return uri.rstrip("/")
