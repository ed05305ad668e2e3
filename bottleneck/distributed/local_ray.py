"""Start a private Ray on this machine: its folder, token and object store."""

import contextlib
import fcntl
import importlib
import os
import secrets
import shutil
import tempfile
import time
from typing import Any

from bottleneck.cores import count_cores

LEAST_STORE_BYTES = 1_000_000_000
"""Smallest object store, half of it for Ray Data: room for about six prepared shards."""
STORE_BYTES_PER_CORE = 250_000_000
"""Object store per core, as each core may prepare a shard."""
STORE_SHARE = 0.3
"""Largest share of the memory, as in Ray."""
NUM_STARTS = 3
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # looked at, Ray writes there
FOLDER_PREFIX = "bn-ray-"
"""Prefix of a local Ray's folder, short because socket names have at most 107 bytes."""
MAX_FOLDER = 41
"""Characters that socket names leave for the folder."""
LOCK = "lock"
UNLOCKED_SECONDS = 3600.0
"""Age from which a folder without a lock is considered left by a killed process."""


def local_store_bytes() -> int:
    """The size of Ray's object store on this machine. Ray touches all of it before it reuses a page."""
    import psutil

    memory_bytes = psutil.virtual_memory().total
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else memory_bytes
    return store_bytes(count_cores(), memory_bytes, free_bytes)


def store_bytes(cores: int, memory_bytes: int, shared_bytes: int) -> int:
    """The size of the object store for these resources.

    Args:
        shared_bytes: free where shared memory is kept; a store that is larger would lie on a disk.
    """
    most = min(STORE_SHARE * memory_bytes, 0.9 * shared_bytes)
    return max(LEAST_STORE_BYTES, int(min(cores * STORE_BYTES_PER_CORE, most)))


class PrivateRay:
    """The token and the folder of mode 0700 that keep other users out of a local Ray, until `end`.

    The token exists only in the environment of this process and its children. By default Ray would write one to
    ~/.ray/auth_token, which the user's next `ray start` would then require.
    """

    def __init__(self) -> None:
        root = temporary_root()
        os.makedirs(root, exist_ok=True)
        _sweep(root)
        self.folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=root)
        self.temporary = os.path.join(self.folder, "r")  # one below, as Ray opens its own to everybody
        self._lock = os.open(os.path.join(self.folder, LOCK), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # until this process ends, whatever ends it
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        self._before = {name: os.environ.pop(name, None) for name in names}
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        _read_token_again()

    def end(self) -> None:
        """Remove the folder and restore the environment."""
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_token_again()
        _remove(self.folder)
        os.close(self._lock)


def _read_token_again() -> None:
    """Make Ray's C++ part, which caches it, read the environment again."""
    _raylet: Any = importlib.import_module("ray._raylet")
    _raylet.Config.initialize("")
    _raylet.AuthenticationTokenLoader.instance().reset_cache()


def temporary_root() -> str:
    """Ray's folder for temporary files, or /tmp if its name is too long for sockets."""
    root = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  # mkdtemp makes what is used
    is_short = len(os.path.join(root, FOLDER_PREFIX)) + len("12345678/r") <= MAX_FOLDER
    return root if is_short else "/tmp"  # noqa: S108  # as above


def _sweep(root: str) -> None:
    """Remove the folders of local Rays whose process was killed."""
    entries: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError):
        entries += os.scandir(root)
    for entry in entries:
        with contextlib.suppress(OSError):
            if entry.name.startswith(FOLDER_PREFIX) and entry.is_dir(follow_symlinks=False):
                if entry.stat(follow_symlinks=False).st_uid != os.getuid():
                    continue
                try:
                    lock = os.open(os.path.join(entry.path, LOCK), os.O_RDWR | os.O_NOFOLLOW)
                except FileNotFoundError:  # being made, or half removed
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > UNLOCKED_SECONDS:
                        _remove(entry.path)
                    continue
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError where its process runs
                    _remove(entry.path)
                finally:
                    os.close(lock)


def _remove(folder: str) -> None:
    """Remove a folder, its lock last, so that a partly removed one is found again."""
    shutil.rmtree(os.path.join(folder, "r"), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def start_here(**options: Any) -> None:
    """Start Ray on this machine; retry if its processes take longer than the 30 s it waits."""
    import psutil
    import ray

    ours = set(psutil.Process().children(recursive=True))
    for attempt in range(1, NUM_STARTS + 1):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=local_store_bytes(),
                _node_ip_address="127.0.0.1",
                **options,
            )
            return
        except Exception as error:  # Ray has no other class for it
            if attempt == NUM_STARTS or "timed out during startup" not in str(error):
                raise
        # Those it gave up waiting for.
        for process in set(psutil.Process().children(recursive=True)) - ours:
            with contextlib.suppress(psutil.Error):
                process.kill()
