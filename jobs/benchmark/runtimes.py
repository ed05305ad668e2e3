"""`--what runtimes`: a network on every runtime, side by side: rate, features, start-up and memory.

Each row is a process of its own that starts a runtime and runs it on the same pixels. Features are compared with those
of Keras in float32.
"""

import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bottleneck.catalog import ONNX_BASE
from bottleneck.cores import count_cores
from bottleneck.networks.base import CPU_BATCH_SIZE
from bottleneck.networks.device import CORES_PER_ACTOR, has_bfloat16, has_vnni
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import Forward
from bottleneck.networks.runtimes import keras_runtime
from bottleneck.networks.runtimes.choose import candidates
from bottleneck.networks.runtimes.probe import cpu_name, measure, starter
from bottleneck.spec import FeatureRequest, Precision
from jobs.benchmark import Config
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, tell, watched
from jobs.results import answer

SECONDS = 4.0
"""Timed per runtime."""
MAX_BATCHES = 1_000_000
"""Of a runtime: the time decides."""


def main(config: Config) -> int:
    hardware = describe_hardware()
    requests = [
        replace(config.features, base=base, precision="auto") for base in config.bases or (config.features.base,)
    ]
    rounds = [
        {
            f"{request.base}, {name}, {precision}": watched(
                f"{request.base} with {name} in {precision}", apart, measure_runtime, request, name, precision
            )
            for request in requests
            for name, precision in combinations(request)
        }
        for _ in range(config.rounds)
    ]
    result = {
        "what": config.what,
        "weights": config.features.weights,
        "processor": cpu_name(),
        "runtimes": medians(rounds),
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def combinations(request: FeatureRequest) -> list[tuple[str, Precision]]:
    """The runtimes and precisions that are compared; bfloat16 and int8 where this machine has them in hardware."""
    network = prepare_network(request)
    found: list[tuple[str, Precision]] = []
    for precision in precisions(request.base):
        names = candidates(network, precision)
        if request.base != ONNX_BASE and precision != "int8":
            names = ["keras", *names]
        found += [(name, precision) for name in names]
    return found


def precisions(base: str) -> list[Precision]:
    """Those in which a network can run here, and may be fast."""
    found: list[Precision] = ["float32"]
    if has_bfloat16():
        found.append("bfloat16")
    if has_vnni() and base not in ("stub", ONNX_BASE):
        found.append("int8")
    return found


def measure_runtime(request: FeatureRequest, name: str, precision: Precision) -> Figures:
    """One runtime, in a process of its own."""
    cores = count_cores()
    threads = cores // max(1, cores // CORES_PER_ACTOR)
    network = prepare_network(request, precision)
    if name == "keras":
        start: Callable[[], Forward] = partial(keras_forward, request, precision, threads)
    else:
        start = starter(network, name, precision, threads, CPU_BATCH_SIZE)
    found = measure(network, name, start, CPU_BATCH_SIZE, max_batches=MAX_BATCHES, seconds=SECONDS)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "images_per_second": found.images_per_second,
        "difference": found.difference,
        "cosine": found.cosine,
        "start_seconds": found.start_seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def keras_forward(request: FeatureRequest, precision: Precision, threads: int) -> Forward:
    return keras_runtime.start(request, precision, CPU_BATCH_SIZE, threads)[0]


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    rows = result["runtimes"]
    width = max(map(len, rows))
    keras = {name.split(", ")[0]: one["images_per_second"] for name, one in rows.items() if ", keras, float32" in name}
    lines = [
        f"weights {result['weights']}, batches of {CPU_BATCH_SIZE}; {result['processor']}, {count_cores()} cores",
        "",
        f"{'':{width}}{'images/s':>10}{'to Keras':>10}{'difference':>12}{'cosine':>10}{'start, s':>10}{'MB':>8}",
    ]
    for name, one in rows.items():
        ratio = one["images_per_second"] / keras[name.split(", ")[0]] if name.split(", ")[0] in keras else None
        lines.append(
            f"{name:{width}}{one['images_per_second']:10,.1f}{f'{ratio:.2f}x' if ratio else '-':>10}"
            f"{one['difference']:12.0e}{one['cosine']:10.6f}{one['start_seconds']:10.1f}"
            f"{one['peak_rss_bytes'] / 1e6:8,.0f}"
        )
    return [
        *lines,
        "",
        "difference: largest of a feature from Keras' in float32, relative to the largest value",
        "start: until the first batch is done, without preparing the graph, which is done once",
    ]
