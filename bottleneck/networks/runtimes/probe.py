"""Time a network's runtimes on this machine, compare their features, and remember the result.

Each runtime runs in a process of its own, so that one that crashes on a network is not offered for it. Results are kept
in the user's cache by network, precision, processor, threads and versions.
"""

import contextlib
import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bottleneck.child import ChildDiedError, answer, ask
from bottleneck.cores import count_cores
from bottleneck.errors import BottleneckError
from bottleneck.networks.cache import cache_folder, load_network, load_probe, store_network, store_probe
from bottleneck.networks.prepared import (
    MAX_DIFFERENCE,
    MIN_COSINES,
    Forward,
    PreparedNetwork,
    differences,
    least_cosine,
    reference_pixels,
)
from bottleneck.networks.runtimes.table import RUNTIMES, version_of
from bottleneck.spec import Precision, sha256_json

BATCH_SIZE = 8
NUM_BATCHES, MAX_SECONDS = 2, 1.5
"""Timed after a first batch; a batch that takes longer than this is timed alone."""


@dataclass(frozen=True)
class Probed:
    """What a runtime did with a network."""

    runtime: str
    images_per_second: float = 0.0
    difference: float = float("inf")
    """Largest difference from the reference features, relative to the largest value of a layer."""
    cosine: float = -1.0
    """Smallest cosine to the reference features."""
    start_seconds: float = 0.0
    error: str = ""

    def agrees(self, precision: Precision) -> bool:
        """Whether the features are right for this precision."""
        if self.error:
            return False
        return self.difference <= MAX_DIFFERENCE if precision == "float32" else self.cosine >= MIN_COSINES[precision]


def is_probed(network: PreparedNetwork, precision: Precision, num_threads: int | None) -> bool:
    """Whether any runtime was measured with a network."""
    return load_probe(_key(network, precision, num_threads)) is not None


def known(
    network: PreparedNetwork, precision: Precision, runtimes: Sequence[str], num_threads: int | None
) -> list[Probed] | None:
    """What was measured earlier; None unless that is known of every runtime."""
    value = load_probe(_key(network, precision, num_threads)) or {}
    with contextlib.suppress(KeyError, TypeError):
        return [Probed(**value["runtimes"][f"{name} {version_of(name)}"]) for name in runtimes]
    return None


def probe(
    network: PreparedNetwork, precision: Precision, runtimes: Sequence[str], num_threads: int | None
) -> list[Probed]:
    """Measure runtimes, or take what was measured earlier. Takes a few seconds a runtime, once per machine.

    Args:
        network: with a graph.
        runtimes: installed ones that take this network.
    """
    key = _key(network, precision, num_threads)
    with _alone(key):  # of several networks that start on a machine, one measures
        if (found := known(network, precision, runtimes, num_threads)) is not None:
            return found
        with _stored(network) as folder:
            found = [_ask(name, network.key, folder, precision, num_threads) for name in runtimes]
        before = (load_probe(key) or {}).get("runtimes", {})
        rows = {f"{one.runtime} {version_of(one.runtime)}": asdict(one) for one in found}
        about = {
            "base": network.base,
            "layers": list(network.layers),
            "precision": precision,
            "threads": num_threads or count_cores(),
            "cpu": cpu_name(),
        }
        store_probe(key, {**about, "runtimes": {**before, **rows}})
    return found


def cpu_name() -> str:
    """The processor's model and the vector instructions that decide a runtime's speed."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            title, _, value = line.partition(":")
            if title.strip() == "model name":
                name = value.strip()
            elif title.strip() == "flags":
                has = set(value.split())
                wanted = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
                flags = " ".join(flag for flag in wanted if flag in has)
                break
    return f"{name} {flags}".strip()


def _key(network: PreparedNetwork, precision: Precision, num_threads: int | None) -> str:
    return sha256_json(
        {"network": network.key, "precision": precision, "threads": num_threads or count_cores(), "cpu": cpu_name()}
    )


def _ask(name: str, key: str, folder: str, precision: Precision, num_threads: int | None) -> Probed:
    request = {"runtime": name, "key": key, "folder": folder, "precision": precision, "threads": num_threads}
    try:
        return Probed(**ask(_answer, request))
    except ChildDiedError:
        return Probed(name, error="its process died")
    except BottleneckError as error:
        return Probed(name, error=str(error))


def _answer(pipe: Connection) -> None:
    def measured(asked: dict[str, Any]) -> dict[str, Any]:
        network = load_network(asked["key"], asked["folder"])
        if network is None:
            raise BottleneckError("The prepared network is gone.")
        try:
            name = asked["runtime"]
            start = starter(network, name, asked["precision"], asked["threads"], BATCH_SIZE)
            return asdict(measure(network, name, start, BATCH_SIZE))
        except Exception as error:  # a runtime raises what it likes
            return asdict(Probed(asked["runtime"], error=f"{type(error).__name__}: {error}"))

    answer(pipe, measured)


def measure(
    network: PreparedNetwork,
    name: str,
    start: Callable[[], Forward],
    batch_size: int,
    *,
    max_batches: int = NUM_BATCHES,
    seconds: float = MAX_SECONDS,
) -> Probed:
    """Start a runtime in this process, time it, and compare its features with the reference.

    Args:
        max_batches: timed after a first one; at least one is.
        seconds: no batch starts later.
    """
    started = time.perf_counter()
    forward = start()
    references_NHWC = reference_pixels(network.image_size_px)
    pixels_NHWC = references_NHWC[np.arange(batch_size) % len(references_NHWC)]
    found = [one_ND[: len(references_NHWC)] for one_ND in forward(pixels_NHWC)]
    start_seconds, done, began = time.perf_counter() - started, 0, time.perf_counter()
    while done == 0 or (done < max_batches and time.perf_counter() - began < seconds):
        forward(pixels_NHWC)
        done += 1
    rate = done * batch_size / (time.perf_counter() - began)
    return Probed(
        name, rate, differences(found, network.references), least_cosine(found, network.references), start_seconds
    )


def starter(
    network: PreparedNetwork, name: str, precision: Precision, num_threads: int | None, batch_size: int
) -> Callable[[], Forward]:
    """What starts a runtime on a network that has a graph."""
    assert network.graph is not None
    shape = (batch_size, network.image_size_px, network.image_size_px, 3)
    return partial(RUNTIMES[name].start, network.graph, shape, precision, num_threads)


@contextlib.contextmanager
def _alone(key: str) -> Iterator[None]:
    """Hold the lock of a probe; without one where the cache cannot be written."""
    folder = os.path.join(cache_folder(), "probes")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        lock = os.open(os.path.join(folder, f"{key}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _stored(network: PreparedNetwork) -> Iterator[str]:
    """The folder where another process finds the network: the cache, or a temporary one."""
    if load_network(network.key) is not None or store_network(network):
        yield cache_folder()
        return
    with tempfile.TemporaryDirectory(prefix="bottleneck-network-") as folder:
        store_network(network, folder)
        yield folder
