"""Ray itself: started on this machine or joined, and asked what its workers can do."""

import contextlib
import fcntl
import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from typing import Any

from bottleneck.console import quiet_start
from bottleneck.cores import count_cores
from bottleneck.errors import StoreError

log = logging.getLogger(__name__)

LEAST_STORE_BYTES = 1_000_000_000
"""Ray's shared memory on one machine, of which Ray Data takes half: room for about six prepared shards."""
STORE_BYTES_PER_CORE = 250_000_000
"""As each core may prepare a shard of its own."""
STORE_SHARE = 0.3
"""Of the memory, at most; as Ray has it too."""
RUN = "bottleneck"
"""Set in the context of a run's datasets, which tells them from those of whoever called the library."""
RESULTS_THREAD = "results"
"""Name of a thread that iterates over a dataset."""
THREAD_SECONDS = 10.0
"""To wait for a thread that still speaks with Ray; two are the most that Ray Data itself waits for."""
NUM_STARTS = 3
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # looked at, Ray writes there
WAITING_SECONDS = 60.0
"""Between two lines that say what a run waits for."""
FOLDER_PREFIX = "bn-ray-"
"""Of a local Ray's folder. Short, as the sockets in it have names of at most 107 bytes."""
MAX_FOLDER = 41
"""Characters that the rest of these names leave for the folder's own."""
LOCK = "lock"
UNLOCKED_SECONDS = 3600.0
"""Such a folder without a lock is of a process that was killed, unless it is younger."""

_ours: str | None = None
"""The worker id, new for every `ray.init`, under which `start_ray` last started or joined a Ray."""


def cluster_address() -> str:
    """The cluster RAY_ADDRESS names; empty for a Ray of this machine alone, which Ray calls `local`."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def check_reachable(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself tries for minutes to reach a cluster that is not there."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


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


def start_ray() -> None:
    """Join the cluster RAY_ADDRESS names, or start Ray on this machine, reachable from nowhere else.

    A Ray that runs in this process already is used as it is; `stop_ray` then leaves it running.
    """
    global _ours, _alone
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    # A thread that still iterates while the run is being stopped must not start Ray a second time.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if sys.platform == "linux":  # where it ends with this process, whatever ends this one
        # Ray's process for usage statistics, all that is left of its dashboard, is not waited for: that takes 1 to 2 s.
        os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "0")
    if not cluster_address():
        # Given 127.0.0.1, Ray takes this machine's address in the network and listens on all it has, unless it is told,
        # before it is imported, that there is no cluster. Its name is of the systems where that is so by itself.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # What every task did goes to Ray's dashboard, which is not there; its server would hold 100,000 of them.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    address = cluster_address()
    on_sigterm, on_sigint = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    asked_to_stop: list[int] = []

    def stop(number: int, frame: Any) -> None:
        asked_to_stop.append(number)
        signal.default_int_handler(number, frame)

    if in_main_thread and on_sigint is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of this process: Ray's C++ part writes to stderr
    try:
        if address:
            log.info("joining the Ray cluster at %s", address)
            check_reachable(address)
            with quiet_start():
                ray.init(address=address, **options)
        else:
            log.info("starting Ray on this machine")
            _alone = _Alone()
            with quiet_start():
                _start_here(_temp_dir=_alone.temporary, **options)
    except SystemExit as stopped:  # how Ray, which takes SIGTERM over, answers it
        _end_alone()
        raise KeyboardInterrupt from stopped
    except KeyboardInterrupt:
        _end_alone()
        raise
    except Exception as error:  # also of no other class, see _start_here
        if address and _is_about_token(error):
            message = (
                f"The Ray cluster at RAY_ADDRESS={address} does not let us in: the token is missing or not its own. "
                "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token."
            )
        elif address:
            message = (
                f"No Ray cluster answers at RAY_ADDRESS={address}: {str(error).rstrip('.')}. Unset it to run on this "
                "machine."
            )
        else:
            message = (
                f"Ray did not start on this machine: {str(error).rstrip('.')}. Run the same command again if the "
                f"machine was busy; else look at the disk and the rights of {_temporary_root()}, or set TMPDIR."
            )
        _end_alone()
        raise StoreError(message) from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, on_sigterm)
            signal.signal(signal.SIGINT, on_sigint)
    _ours = ray.get_runtime_context().get_worker_id()
    if asked_to_stop:  # an exception that is raised in the wrong place of Ray's start is lost
        stop_ray()
        raise KeyboardInterrupt
    logging.getLogger("ray").setLevel(logging.ERROR)


class _Alone:
    """What keeps other users of this machine out of a local Ray, until `end`: a token, and a folder of mode 0700.

    The token is in the environment of this process and of those it starts, and nowhere else. Left to itself Ray would
    write one to ~/.ray/auth_token, which the user's next `ray start` would then ask for.
    """

    def __init__(self) -> None:
        root = _temporary_root()
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


_alone: _Alone | None = None
"""Of the Ray that `start_ray` last started on this machine."""


def _end_alone() -> None:
    global _alone
    if _alone is not None:
        _alone.end()
        _alone = None


def _read_token_again() -> None:
    """Have Ray's C++ part, which remembers what it has read, look into the environment once more."""
    _raylet: Any = importlib.import_module("ray._raylet")
    _raylet.Config.initialize("")
    _raylet.AuthenticationTokenLoader.instance().reset_cache()


def _temporary_root() -> str:
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


def _start_here(**options: Any) -> None:
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


def _is_about_token(error: BaseException | None) -> bool:
    # Of a wrong token Ray keeps the text alone, in an error of another kind.
    named = type(error).__name__ == "AuthenticationError" or "InvalidAuthToken" in str(error)
    return error is not None and (named or _is_about_token(error.__cause__))


def is_ours() -> bool:
    """Whether `start_ray` started, or joined, the Ray of this process, rather than whoever called the library."""
    import ray

    return bool(ray.is_initialized() and ray.get_runtime_context().get_worker_id() == _ours)


def stop_ray() -> None:
    """Leave the cluster, or end the Ray that was started on this machine, if `start_ray` did so.

    Of a Ray that was running before, only the datasets of a run are ended.
    """
    import psutil
    import ray

    if ray.is_initialized() and not is_ours():
        _end_datasets(only=RUN)
        return
    # Where a run is stopped, threads of Ray's libraries complain that it has gone from under them.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    _end_datasets()
    ray.shutdown()
    for child in psutil.Process().children():  # among them the process that was not waited for, unknown to Ray
        with contextlib.suppress(psutil.Error):
            if any(word.endswith("ray/dashboard/dashboard.py") for word in child.cmdline()):
                child.kill()
                child.wait()
    _end_alone()


def _end_datasets(only: str = "") -> None:
    """End what still iterates: a thread that calls Ray while it shuts down makes Ray end the process, with exit code 1.

    It does so without a word (`QuickExit` of Ray's core worker), which hid one error of a run in some thousand.

    Args:
        only: datasets whose context has this set.
    """
    if (executors := sys.modules.get("ray.data._internal.execution.streaming_executor")) is None:
        return
    for thread in threading.enumerate():
        if isinstance(thread, executors.StreamingExecutor) and (not only or thread._data_context.get_config(only)):
            thread.shutdown(force=True)
            thread.join(THREAD_SECONDS)
    for thread in threading.enumerate():
        if thread.name == RESULTS_THREAD:
            thread.join(THREAD_SECONDS)
    if only:  # whose prefetchers are whose is not known, and nothing is shut down that they speak with
        return
    for thread in threading.enumerate():
        if thread.name == "Prefetcher":
            # Ray Data's. It ends with the iteration, but not where an error ended that.
            if stop := getattr(getattr(getattr(thread, "_target", None), "__self__", None), "stop", None):
                stop()
            thread.join(THREAD_SECONDS)


def check_use_gpu(use_gpu: bool) -> None:
    """Refuse GPUs that are asked for and cannot be had, before anything is started. Raises UsageError."""
    from bottleneck.distributed.placement import check_gpus, check_runtime

    check_runtime(use_gpu)
    if use_gpu and not cluster_address() and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        check_gpus(use_gpu, _count_gpus())


def _count_gpus() -> int:
    """Of this machine, as a Ray that starts here would count them."""
    accelerators: Any = importlib.import_module("ray._private.accelerators")
    manager = accelerators.get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    gpus = int(manager.get_current_node_num_accelerators())
    return gpus if visible is None else min(gpus, len(visible))


def workers_have_bfloat16(use_gpu: bool = False) -> bool:
    """Ask a worker like those that will run: on a cluster one with a GPU if it has any, or is to get one."""
    # Not with this module, which also `doctor` needs, where packages may be broken.
    from bottleneck.networks.base import has_bfloat16

    check_use_gpu(use_gpu)
    if not cluster_address():
        return has_bfloat16()
    start_ray()
    import ray

    on_gpu = use_gpu or ray.cluster_resources().get("GPU", 0) > 0
    # Without a GPU it takes a CPU, as a head that runs no networks has none.
    asked = ray.remote(num_cpus=0 if on_gpu else 1, num_gpus=1 if on_gpu else 0)(has_bfloat16)
    answer = asked.remote()
    tell_waiting("GPU" if on_gpu else "CPU", 1)
    while not ray.wait([answer], timeout=WAITING_SECONDS)[0]:
        tell_waiting("GPU" if on_gpu else "CPU", 1)
    return bool(ray.get(answer))


def tell_waiting(kind: str, wanted: int) -> None:
    """Say so where a cluster does not have yet what is wanted of it: it may never come."""
    import ray

    there = int(ray.cluster_resources().get(kind, 0))
    if there < wanted:
        log.info("waiting for %ss: the cluster has %d, %d wanted; Ctrl-C ends it", kind, there, wanted)
