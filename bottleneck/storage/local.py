"""A folder as a store; objects appear under their names only when they are complete."""

import contextlib
import errno
import os
import random
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bottleneck.errors import UsageError
from bottleneck.storage.local_files import is_folder, is_gone, local_errors, local_etag, locked, read_file
from bottleneck.storage.store import Entry, ObjectError, ObjectGoneError, Wanted, outcome, windowed

LEFTOVER = re.compile(r"(.*/)?\.[^/]+\.[0-9]+-[0-9a-f]{8}", re.DOTALL)
"""Keys of temporary files that a killed writer may leave. They are not listed."""


LEFTOVER_SECONDS = 3600.0
"""Temporary files older than this have no writer any more: the largest objects take seconds to write."""


_TEMPORARY_NAME_BYTES = 200
"""Part of an object's name that its temporary name repeats; file systems allow 255 bytes in all."""


LINK_OUT = "(link out of the source)"


LINK_UP = "(link to a folder above)"


LINK_TO_NOTHING = "(link to nothing)"


SPECIAL_FILE = "(special file)"


MOST_LINKS = 1000
"""Links followed to one folder in one walk: folders full of links to each other have too many paths to list."""


class FolderStore:
    """A folder on a disk that all workers see. Objects appear under their names only when they are complete."""

    lists_reasons = False
    """Whether `list` also yields entries that are not objects, with the reason."""

    def __init__(self, root: str, *, unnamed_files: bool = True) -> None:
        """Args: unnamed_files: whether to write by unnamed files (O_TMPFILE), where the file system has them."""
        self.uri = root
        self._unnamed_files = unnamed_files and hasattr(os, "O_TMPFILE")

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]
        top = os.path.join(self.uri, folder) if folder else self.uri
        with local_errors(f"listing {top}"):
            if not os.path.exists(top):
                return
            if not os.path.isdir(top):
                raise UsageError(f"Expected a folder. Received a file: {top}.")
            walk = self._walk(top, folder + "/" if folder else "", (os.path.realpath(top),), Counter())
            for entry in walk:
                is_object = not entry.reason and not LEFTOVER.fullmatch(entry.key)
                if entry.key.startswith(prefix) and (is_object or self.lists_reasons):
                    yield entry

    def list_dated(self, prefix: str = "") -> Iterator[tuple[Entry, float]]:
        for entry in self.list(prefix):
            yield entry, int(entry.etag.partition("-")[0], 16) / 1e9

    def clock(self) -> float:
        return time.time()  # a disk of another machine may have another; only writing to it would tell

    def _walk(self, folder: str, prefix: str, above: tuple[str, ...], followed: Counter[str]) -> Iterator[Entry]:
        """Yield the entries below a folder.

        Args:
            above: the real paths of the folders the walk is in, this one last.
            followed: how often links have led to each folder.
        """
        with os.scandir(folder) as found:
            # A folder sorts as if its name ended in "/", so that keys come in the order a bucket lists them.
            entries = sorted(found, key=lambda e: os.fsencode(e.name + "/" if is_folder(e) else e.name))
        for entry in entries:
            key = prefix + entry.name
            is_link = entry.is_symlink()
            if is_link and not self._may_read(entry.path):
                yield Entry(key, 0, "", LINK_OUT)
            elif is_folder(entry):
                real = os.path.realpath(entry.path) if is_link else os.path.join(above[-1], entry.name)
                if real in above:  # also met as itself, where a link led above it
                    yield Entry(key, 0, "", LINK_UP)
                    continue
                if is_link:
                    followed[real] += 1
                if followed[real] > MOST_LINKS:
                    raise UsageError(
                        f"Links below {self.uri} lead to {real} more than {MOST_LINKS:,} times, {key!r} once more. "
                        "Expected few links to one folder: remove those that lead from folder to folder."
                    )
                yield from self._walk(entry.path, key + "/", (*above, real), followed)
            else:
                try:
                    status = entry.stat()
                except OSError as error:
                    if not is_gone(error):
                        raise
                    if is_link:  # else it is gone since the folder was read
                        yield Entry(key, 0, "", LINK_TO_NOTHING)
                    continue
                is_file = stat.S_ISREG(status.st_mode)  # reading a pipe would wait for ever
                yield Entry(key, status.st_size, local_etag(status)) if is_file else Entry(key, 0, "", SPECIAL_FILE)

    def _may_read(self, path: str) -> bool:
        """Whether the target of a path may be read."""
        return True

    def get(self, wanted: Wanted) -> bytes:
        with local_errors(f"reading {self._path(wanted.key)}"):
            try:
                # Without waiting for who may write to a pipe of that name.
                handle = os.open(self._path(wanted.key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                with open(handle, "rb") as file:
                    return read_file(file, wanted)
            except (OSError, ValueError) as error:
                if not is_gone(error):
                    raise
                raise ObjectGoneError(wanted.key) from None

    def read(self, key: str) -> bytes:
        return self.get(Wanted(key, 0, ""))

    def get_many(self, wanted: Sequence[Wanted]) -> Iterator[bytes | ObjectError]:
        # A few threads: on a local disk one is enough, a network file system answers in milliseconds.
        with ThreadPoolExecutor(4) as pool:
            yield from windowed(wanted, lambda one: pool.submit(outcome, self.get, one))

    def stat(self, key: str) -> Entry | None:
        with local_errors(f"looking at {self._path(key)}"):
            try:
                status = os.stat(self._path(key))
            except (OSError, ValueError) as error:
                if not is_gone(error):
                    raise
                return None
        return Entry(key, status.st_size, local_etag(status)) if stat.S_ISREG(status.st_mode) else None

    def exists(self, key: str) -> bool:
        return os.path.exists(self._path(key))

    def try_writing(self, *, create_only: bool = False) -> None:
        folder = self.uri
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        # Whoever may make a file in a folder may also make the folders below it.
        with local_errors(f"writing to {self.uri}"):
            handle = self._unnamed_file(folder)
            if handle is not None:
                os.close(handle)
                return
            temporary = self._temporary_name(os.path.join(folder, "try"))
            try:
                self._write(temporary, b"")
            finally:
                _unlink(temporary)

    def create(self, key: str, data: bytes) -> bool:
        with local_errors(f"writing {self._path(key)}"):
            folder = os.path.dirname(self._path(key))
            os.makedirs(folder, exist_ok=True)
            try:
                self._create_linked(folder, self._path(key), data)
            except FileExistsError:
                return False
            return True

    def _create_linked(self, folder: str, path: str, data: bytes) -> None:
        """Write an unnamed file, then link it: it is complete when it appears, and a kill leaves nothing."""
        handle = self._unnamed_file(folder)
        if handle is None:
            temporary = self._temporary_name(path)
            try:
                self._write(temporary, data)
                os.link(temporary, path)
            finally:
                _unlink(temporary)
            return
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            # Naming a folder handle makes Python call linkat, which follows the link to the unnamed file.
            os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle, follow_symlinks=True)

    def _unnamed_file(self, folder: str) -> int | None:
        """Open a new unnamed file; None where the file system has none, as NFS and some overlays."""
        if not self._unnamed_files:
            return None
        try:
            return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            return None

    def creates_once(self, key: str, data: bytes) -> bool:
        return not self.create(key, data)

    def create_from_file(self, key: str, path: str) -> bool:
        with local_errors(f"writing {self._path(key)}"):
            os.makedirs(os.path.dirname(self._path(key)), exist_ok=True)
            if os.path.isdir(path):
                if not os.path.exists(self._path(key)):
                    os.rename(path, self._path(key))  # refused where another is by now, unless that is empty
                    return True
                return False
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            try:
                os.link(path, self._path(key))
            except FileExistsError:
                return False
            return True

    def replace(self, key: str, data: bytes, etag: str = "") -> bool:
        with local_errors(f"writing {self._path(key)}"):
            os.makedirs(os.path.dirname(self._path(key)), exist_ok=True)
            temporary = self._temporary_name(self._path(key))
            try:
                self._write(temporary, data)
                with locked(self._path(key)) if etag else contextlib.nullcontext():
                    there = self.stat(key) if etag else None
                    if etag and (there is None or there.etag != etag):
                        return False
                    os.replace(temporary, self._path(key))
            finally:
                _unlink(temporary)
            return True

    def remove(self, key: str) -> None:
        with local_errors(f"removing {self._path(key)}"), contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(key))

    def sweep(self) -> None:
        for folder, _, names in os.walk(self.uri):
            for name in filter(LEFTOVER.fullmatch, names):
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):  # another run sweeps as well
                    if time.time() - os.lstat(path).st_mtime > LEFTOVER_SECONDS:
                        os.unlink(path)

    def _temporary_name(self, path: str) -> str:
        """A name beside a path, which LEFTOVER matches."""
        folder, name = os.path.split(path)
        short = os.fsdecode(os.fsencode(name)[:_TEMPORARY_NAME_BYTES])
        return os.path.join(folder, f".{short}.{os.getpid()}-{random.getrandbits(32):08x}")

    def _write(self, path: str, data: bytes) -> None:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _path(self, key: str) -> str:
        return f"{self.uri}/{key}"


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
