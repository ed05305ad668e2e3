"""Read local files, lock them, and tell what their errors mean."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from bottleneck.errors import StoreError
from bottleneck.storage.store import ObjectChangedError, ObjectGoneError, Wanted


def read_file(file: BinaryIO, wanted: Wanted) -> bytes:
    """Read the wanted bytes of a regular file; refuse devices and pipes, which may have no end."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ObjectGoneError(wanted.key)
    start = wanted.offset or 0
    length = status.st_size if wanted.length is None else wanted.length
    if (wanted.etag and local_etag(status) != wanted.etag) or start + length > status.st_size:
        raise ObjectChangedError(wanted.key)
    file.seek(start)
    data = file.read(length)
    if len(data) != length:  # it was cut while it was read
        raise ObjectChangedError(wanted.key)
    return data


def is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_gone(error: Exception) -> bool:
    """Whether an error means that there is no such file, including impossible names (a NUL, too long, a loop)."""
    if isinstance(error, OSError):
        nothing = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
        return error.errno in nothing
    return "null" in str(error)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Wait until nobody else has locked the file of this name, and lock it; without a file there is nothing to lock.

    The lock is on the file that is there, so a kill leaves nothing behind, and whoever waited while the file was
    replaced finds another one by that name. On a file system without locks nobody waits.
    """
    handle = _opened(path)
    try:
        if handle is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _opened(path: str) -> int | None:
    # NFS locks only what is open for writing; to replace a file of another user, reading is enough.
    for access in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if not is_gone(error) and error.errno not in (errno.EACCES, errno.EPERM):
                raise
    return None


def local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


@contextlib.contextmanager
def local_errors(doing: str) -> Iterator[None]:
    """Turn errors that a person must fix into StoreError, with the file system's own words."""
    try:
        yield
    except OSError as error:
        hint = {
            errno.ENOSPC: "The disk is full: free some space and run the same command again.",
            errno.EDQUOT: "The quota is used up: free some space and run the same command again.",
            errno.EROFS: "The file system is read-only: give another output.",
            errno.EACCES: "This user has no right to: give the rights, or another folder.",
            errno.EPERM: "This user has no right to: give the rights, or another folder.",
            errno.ENOTDIR: "A part of the path is a file: give another folder.",
            errno.EEXIST: "A part of the path is a file: give another folder.",
        }.get(error.errno or 0, "Nothing is lost: mend the cause and run the same command again.")
        where = f" ({error.filename})" if error.filename and str(error.filename) not in doing else ""
        raise StoreError(f"{error.strerror or error} while {doing}{where}. {hint}") from error
