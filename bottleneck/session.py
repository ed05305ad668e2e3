"""Ray itself: started on this machine or joined, and asked what its workers can do."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from typing import Any

from bottleneck.errors import StoreError
from bottleneck.progress import quiet_start

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
    import joblib
    import psutil

    memory_bytes = psutil.virtual_memory().total
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else memory_bytes
    return store_bytes(joblib.cpu_count(), memory_bytes, free_bytes)


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
    global _ours
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
            check_reachable(address)
            with quiet_start():
                ray.init(address=address, **options)
        else:
            with quiet_start():
                _start_here(**options)
    except SystemExit as stopped:  # how Ray, which takes SIGTERM over, answers it
        raise KeyboardInterrupt from stopped
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
                "machine was busy; else look at the disk and the rights of /tmp/ray."
            )
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


def workers_have_bfloat16(use_gpu: bool = False) -> bool:
    """Ask a worker like those that will run: on a cluster one with a GPU if it has any, or is to get one."""
    # Not with this module, which also `doctor` needs, where packages may be broken.
    from bottleneck.base import has_bfloat16
    from bottleneck.placement import check_runtime

    check_runtime(use_gpu)
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
