"""Find the objects of a source that hold many images: tars and Parquet files."""

import io
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from bottleneck.errors import StoreError
from bottleneck.sources.image import NEVER, names_image, no_image
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import Entry, ObjectError, ObjectGoneError, Store, Wanted

T = TypeVar("T")

NUM_OPENED = 8
"""Containers opened concurrently while a source is planned."""
STORE_BLOCK_BYTES = 4_000_000
"""Block size for stores, where a request costs as much as some megabytes."""
FOLDER_BLOCK_BYTES = 16_384
SUFFIXES = (".tar", ".parquet", ".pq")
"""Suffixes of all containers, in lower case."""
IMAGES_BESIDE = "(images beside the containers)"
OTHERS_BESIDE = "(containers of another kind)"
NO_SUFFIX = "(no suffix)"


def containers(store: Store, only: str | None, suffixes: tuple[str, ...], skipped: Counter[str]) -> list[Entry]:
    """The containers of a source, ordered so that the keys of their images, NAME/..., are sorted.

    Args:
        only: the one object that is the source, where it is not all below the store's root.
        suffixes: of containers, in lower case; other objects are counted as skipped by their suffix.
    """
    found = []
    one = store.stat(only) if only else None
    for entry in [one] if one else store.list():
        reason = entry.reason or no_image(entry.key)
        name = entry.key.lower()
        if entry.reason or reason in NEVER:
            skipped[reason] += 1
        elif name.endswith(suffixes):
            found.append(entry)
        elif name.endswith(SUFFIXES):
            skipped[OTHERS_BESIDE] += 1
        else:
            skipped[reason or (IMAGES_BESIDE if names_image(name) else NO_SUFFIX)] += 1
    return sorted(found, key=lambda entry: f"{entry.key}/".encode())


def look_into(store: Store, found: list[Entry], look: Callable[["ContainerFile"], T]) -> Iterator[T]:
    """Yield what `look` returns for each container, in order, a few ahead."""
    stop = threading.Event()
    ahead: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(NUM_OPENED)
    try:
        for entry in found:
            ahead.append(pool.submit(look, ContainerFile(store, entry, stop)))
            if len(ahead) >= NUM_OPENED:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        stop.set()  # a plan that ends early need not read its tars to their ends
        pool.shutdown(wait=False, cancel_futures=True)


class ContainerFile(io.RawIOBase):
    """An object as a file that can be read and sought in, a block at a time.

    Raises:
        ObjectError: on reading, if it is not (any more) what was listed, or is archived.
        StoreError: on reading, once `stop` is set.
    """

    def __init__(self, store: Store, entry: Entry, stop: threading.Event | None = None) -> None:
        self.store, self.entry, self.stop = store, entry, stop
        self.block_bytes = FOLDER_BLOCK_BYTES if isinstance(store, FolderStore) else STORE_BLOCK_BYTES
        self.position = 0
        self.longest_bytes: int | None = None
        """More is not read at once, where it is set: what a file says of its parts may be a lie."""
        self.ran_out = False
        """Whether more was asked for than there is: how a reader of something that was cut off notices."""
        self.block_start, self.block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.entry.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def read(self, size: int = -1) -> bytes:
        end = self.entry.size if size < 0 else min(self.entry.size, self.position + size)
        start = self.position
        self.ran_out = self.ran_out or start + max(0, size) > self.entry.size
        if start >= end:
            return b""
        if self.longest_bytes and end - start > self.longest_bytes:
            raise ValueError(f"byte {start:,} says that {end - start:,} bytes belong together")
        if not self.block_start <= start <= end <= self.block_start + len(self.block):
            if self.stop and self.stop.is_set():
                raise StoreError(f"{self.entry.key} is no longer wanted.")
            length = min(max(end - start, self.block_bytes), self.entry.size - start)
            self.block_start = start
            self.block = self.store.get(Wanted(self.entry.key, self.entry.size, self.entry.etag, start, length))
        self.position = end
        return self.block[start - self.block_start : end - self.block_start]

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def while_planning(store: Store, entry: Entry, error: ObjectError) -> StoreError:
    """The error for a container that has changed since it was listed."""
    if isinstance(error, StoreError):  # archived
        return error
    what = "is gone" if isinstance(error, ObjectGoneError) else "has changed"
    return StoreError(
        f"{store.uri}/{entry.key} {what} since it was listed, a moment ago. Plan when nothing writes there any more."
    )
