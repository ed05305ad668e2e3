"""Start or join Ray, and stop it if it was started here."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from typing import Any

from bottleneck.console import quiet_start
from bottleneck.distributed.local_ray import PrivateRay, start_here, temporary_root
from bottleneck.errors import StoreError

log = logging.getLogger(__name__)


RUN = "bottleneck"
"""Marks the context of a run's datasets, to tell them from the caller's."""
RESULTS_THREAD = "results"
"""Name of the thread that iterates over a dataset."""
THREAD_SECONDS = 10.0
"""How long to wait for a thread that still uses Ray; Ray Data itself waits at most 2 s."""
_ours: str | None = None
"""The worker id, new for every `ray.init`, under which `start_ray` last started or joined a Ray."""


def cluster_address() -> str:
    """The cluster in RAY_ADDRESS; empty for a local Ray."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def check_reachable(address: str) -> None:
    """Raise OSError if nothing listens, as Ray itself tries for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def start_ray() -> None:
    """Join the cluster in RAY_ADDRESS, or start a Ray on this machine that no other machine can reach.

    A Ray that this process already uses is left as it is, also by `stop_ray`.
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
            _alone = PrivateRay()
            with quiet_start():
                start_here(_temp_dir=_alone.temporary, **options)
    except SystemExit as stopped:  # how Ray, which takes SIGTERM over, answers it
        _end_alone()
        raise KeyboardInterrupt from stopped
    except KeyboardInterrupt:
        _end_alone()
        raise
    except Exception as error:  # also of no other class, see start_here
        if address and _is_about_token(error):
            message = (
                f"The Ray cluster at RAY_ADDRESS={address} rejected the token: it is missing or not the cluster's. "
                "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token."
            )
        elif address and (versions := _other_versions(str(error))):
            message = (
                f"The Ray cluster at RAY_ADDRESS={address} has other versions than this process: {versions}. Both must "
                "be the same: install the cluster's versions here, or run the job there with `bottleneck submit`."
            )
        elif address:
            message = (
                f"No Ray cluster answers at RAY_ADDRESS={address}: {str(error).rstrip('.')}. Unset it to run on this "
                "machine."
            )
        else:
            message = (
                f"Ray did not start on this machine: {str(error).rstrip('.')}. Run the same command again if the "
                f"machine was busy; else look at the disk and the rights of {temporary_root()}, or set TMPDIR."
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


_alone: PrivateRay | None = None
"""Of the Ray that `start_ray` last started on this machine."""


def _end_alone() -> None:
    global _alone
    if _alone is not None:
        _alone.end()
        _alone = None


def _is_about_token(error: BaseException | None) -> bool:
    # Of a wrong token Ray keeps the text alone, in an error of another kind.
    named = type(error).__name__ == "AuthenticationError" or "InvalidAuthToken" in str(error)
    return error is not None and (named or _is_about_token(error.__cause__))


def _other_versions(message: str) -> str:
    """The versions of cluster and process in Ray's message about a mismatch, which has several lines; else empty."""
    found = re.findall(r"^ *(Ray|Python): (\S+)$", message, re.MULTILINE)
    if "Version mismatch" not in message or len(found) != 4:
        return ""
    cluster, process = (" and ".join(f"{name} {version}" for name, version in half) for half in (found[:2], found[2:]))
    return f"{cluster} there, {process} here"


def is_ours() -> bool:
    """Whether `start_ray`, not the caller of the library, started or joined the Ray of this process."""
    import ray

    return bool(ray.is_initialized() and ray.get_runtime_context().get_worker_id() == _ours)


def stop_ray() -> None:
    """Leave the cluster or stop the local Ray, if `start_ray` joined or started it.

    In a Ray of the caller, only the datasets of the run are stopped.
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
    """Stop threads that still iterate: one that calls Ray during its shutdown makes Ray exit the process with code 1.

    It does so silently (`QuickExit` of Ray's core worker), which hid the error of about one run in a thousand.

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
