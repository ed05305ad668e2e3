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
"""Ray's shared memory on one machine, of which Ray Data takes half: room for about six prepared shards."""
STORE_BYTES_PER_CORE = 250_000_000
"""As each core may prepare a shard of its own."""
STORE_SHARE = 0.3
"""Of the memory, at most; as Ray has it too."""
NUM_STARTS = 3
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # looked at, Ray writes there
FOLDER_PREFIX = "bn-ray-"
"""Of a local Ray's folder. Short, as the sockets in it have names of at most 107 bytes."""
MAX_FOLDER = 41
"""Characters that the rest of these names leave for the folder's own."""
LOCK = "lock"
UNLOCKED_SECONDS = 3600.0
"""Such a folder without a lock is of a process that was killed, unless it is younger."""


def local_store_bytes() -> int:
    """What Ray's object store may take of this machine. It touches all of it before it uses a page again."""
    import psutil

    memory_bytes = psutil.virtual_memory().total
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else memory_bytes
    return store_bytes(count_cores(), memory_bytes, free_bytes)


def store_bytes(cores: int, memory_bytes: int, shared_bytes: int) -> int:
    """The same of a machine like this.

    Args:
        shared_bytes: free where shared memory is kept; a store that is larger would lie on a disk.
    """
    most = min(STORE_SHARE * memory_bytes, 0.9 * shared_bytes)
    return max(LEAST_STORE_BYTES, int(min(cores * STORE_BYTES_PER_CORE, most)))


class PrivateRay:
    """What keeps other users of this machine out of a local Ray, until `end`: a token, and a folder of mode 0700.

    The token is in the environment of this process and of those it starts, and nowhere else. Left to itself Ray would
    write one to ~/.ray/auth_token, which the user's next `ray start` would then ask for.
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
        """Leave nothing; what this process does with Ray afterwards is its own matter again."""
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_token_again()
        _remove(self.folder)
        os.close(self._lock)


def _read_token_again() -> None:
    """Have Ray's C++ part, which remembers what it has read, look into the environment once more."""
    _raylet: Any = importlib.import_module("ray._raylet")
    _raylet.Config.initialize("")
    _raylet.AuthenticationTokenLoader.instance().reset_cache()


def temporary_root() -> str:
    """The folder for temporary files, as Ray finds it; /tmp where that one's name is too long for sockets in it."""
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
    """The lock last, so that what is left half done is found again."""
    shutil.rmtree(os.path.join(folder, "r"), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def start_here(**options: Any) -> None:
    """Start Ray on this machine; again where it takes its processes more than the 30 s it waits for them."""
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
