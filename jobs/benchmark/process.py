"""Run a measurement in a fresh process and record what it used, on which machine."""

import contextlib
import json
import logging
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from bottleneck.cores import count_cores
from bottleneck.errors import BottleneckError
from jobs.__main__ import JSON
from jobs.results import show

log = logging.getLogger(__name__)
T = TypeVar("T")
Figures = dict[str, Any]

SAMPLE_SECONDS = 0.5
"""Between looks at CPU times and at the driver's memory, at most."""
MEMORY_SECONDS = 5.0
"""Between looks at the memory of all processes, which take a tenth of a second of a core from what is looked at: every
half second they made a job on two cores slower by a sixth."""


def watched(title: str, function: Callable[..., Figures], *arguments: Any) -> Figures:
    """Measure something, and how much of the CPUs other programs (or other guests of the host) had meanwhile."""
    import psutil

    def busy_seconds() -> float:
        times = psutil.cpu_times()
        return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))

    def own_seconds() -> float:
        return sum(os.times()[:4])  # of this process and of the children that have ended

    log.info("%s ...", title)
    started, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
    figures = function(*arguments)
    seconds, busy, own = time.perf_counter() - started, busy_seconds() - busy, own_seconds() - own
    others = busy - max(own, figures.pop("cpu_seconds", 0.0))
    return {**figures, "others_cpu_share": max(0.0, others / (seconds * (os.cpu_count() or 1)))}


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own, whose stdout is stderr, as Keras writes to it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.dup2, (2, 1)) as pool:
        return pool.submit(function, *arguments).result()


def run_job(arguments: list[str]) -> tuple[Figures, Figures]:
    """Run a job in a process of its own: its JSON line, and what it took."""
    return run_program(f"bottleneck {arguments[0]}", ["jobs", *arguments, JSON])


def run_program(title: str, module: list[str]) -> tuple[Figures, Figures]:
    """Run a module and its arguments in a process of its own: its JSON line, and what it took (see `_Watch`)."""
    import psutil

    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # this machine
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started = time.perf_counter()
        command = [sys.executable, "-m", *module]
        process = psutil.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        watch = _Watch(process)
        try:
            while process.poll() is None:
                sampled = time.perf_counter()
                watch.look()
                # More often at first, or of a command of half a second only its first instant would be seen.
                until_next = min(SAMPLE_SECONDS, max(0.02, (sampled - started) / 5))
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(max(0.0, sampled + until_next - time.perf_counter()))
            seconds = time.perf_counter() - started
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        stdout.seek(0)
        stderr.seek(0)
        last_line, complaints = stdout.read().strip().rpartition("\n")[2], stderr.read()
    if process.returncode:
        raise BottleneckError(f"{title} ended with exit code {process.returncode}:\n{complaints}")
    return json.loads(last_line), {"seconds": seconds, **watch.figures()}


class _Watch:
    """What a process, the driver, and all its descendants take, as seen by looking at them again and again."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.driver_bytes = self.all_bytes = self.store_bytes = self.worker_bytes = 0
        self.cpu_seconds: dict[int, float] = {}
        """By process number, so far."""
        self._memory_looked_at = -math.inf

    def look(self) -> None:
        import psutil

        looks_at_memory = time.monotonic() - self._memory_looked_at >= MEMORY_SECONDS
        if looks_at_memory:
            self._memory_looked_at = time.monotonic()
        with contextlib.suppress(psutil.Error):  # it has ended
            self.driver_bytes = max(self.driver_bytes, self.process.memory_info().rss)
            total = 0
            for one in [self.process, *self.process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    self.cpu_seconds[one.pid] = sum(one.cpu_times()[:2])
                    if "RayTrainWorker" in one.name():
                        self.worker_bytes = max(self.worker_bytes, _peak_rss_bytes(one))
                    if one.name() == "raylet":
                        self.store_bytes = max(self.store_bytes, _store_bytes(one.pid))
                    if looks_at_memory:
                        memory = one.memory_full_info()
                        total += getattr(memory, "pss", memory.uss)  # macOS has no PSS
            self.all_bytes = max(self.all_bytes, total)

    def figures(self) -> Figures:
        """Peaks in bytes: of the driver what it holds (RSS), of all processes the sum of PSS, in which memory that
        several of them share counts once, of the largest worker of a fit what it ever held (RSS), and of Ray's object
        store the pages it has ever touched."""
        return {
            "driver_peak_rss_bytes": self.driver_bytes,
            "peak_pss_bytes": self.all_bytes,
            "worker_peak_rss_bytes": self.worker_bytes or None,
            "store_touched_bytes": self.store_bytes or None,
            "driver_cpu_seconds": self.cpu_seconds.get(self.process.pid, 0.0),
            "cpu_seconds": sum(self.cpu_seconds.values()),
        }


def _peak_rss_bytes(process: Any) -> int:
    """What a process ever held, where the system keeps count of that, else what it holds now."""
    with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def _store_bytes(raylet: int) -> int:
    """What is allocated of the file in shared memory that a raylet keeps objects in; 0 where that cannot be seen.

    The file has no name any more, so that it is found among the raylet's open ones. Ray gives no page of it back before
    its end, and goes through all it may have before it uses one again: objects held at once are far fewer.
    """
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{raylet}/fd"):
            with contextlib.suppress(OSError):
                if os.path.basename(os.readlink(entry.path)).startswith("plasma"):
                    total = max(total, os.stat(entry.path).st_blocks * 512)
    return total


def medians(rounds: list[Figures]) -> Figures:
    """The median of every number over the rounds; of all else what the first round says."""
    return {part: {name: _median(rounds, part, name) for name in rounds[0][part]} for part in rounds[0]}


def _median(rounds: list[Figures], part: str, name: str) -> Any:
    values = [one[part][name] for one in rounds if one[part][name] is not None]
    return statistics.median(values) if values and isinstance(values[0], int | float) else next(iter(values), None)


def tell(result: Figures, rounds: list[Figures], hardware: Figures, table: Callable[[Figures], list[str]]) -> None:
    """Add to a result how it was obtained, show it, and warn if other programs used the machine."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    result.update(rounds=rounds, hardware=hardware, versions=versions(), date=date)
    for line in table(result):
        show(line)
    others = max(part["others_cpu_share"] for figures in rounds for part in figures.values())
    if others > 0.1:
        log.warning(
            "Other programs took up to %.0f %% of this machine, so the figures cannot be compared: run it again alone.",
            100 * others,
        )


def describe_hardware() -> Figures:
    import psutil

    cpuinfo: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            cpuinfo.setdefault(name.strip(), value.strip())
    flags = cpuinfo.get("flags", "").split()
    gpus: list[str] = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603  # constant
        gpus = found.stdout.splitlines()
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cores": count_cores(),
        "bfloat16": [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")) if flag in flags],
        "gpus": gpus,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (
        "bottleneck-features",
        "ray",
        "scikit-learn",
        "keras",
        "tensorflow",
        "tensorflow-cpu",
        "torch",
        "jax",
        "numpy",
        "pillow",
    ):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
