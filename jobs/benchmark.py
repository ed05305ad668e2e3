"""Compare `extract` with the tutorials' loop, and with the most this machine can do, on your own images.

    bottleneck benchmark photos/
    bottleneck benchmark photos/ --num-images 2048 --rounds 3
    bottleneck benchmark features/ --what head
    bottleneck benchmark --what head-growth --num-images 200000 --dim 512 --classes 100 --num-workers 2
    bottleneck benchmark --what similar --num-images 1000000 --dim 512

Four measurements on the same images, one after the other, each in fresh processes: the command `bottleneck extract`;
the loop of the tutorials (load_img, preprocess_input, model.predict in float32 on batches of 32, HDF5); the network
alone on random pixels; decoding alone. The last two give the ceiling: cores / (core-seconds an image of network +
decode). Rates leave out start-up, and so the shards the job decodes before its first batch: give fast machines more
images. 256 images and VGG16 take 2 minutes on two idle cores with AVX512-BF16. The JSON line holds all figures.

`--what head` compares fitting with scikit-learn's instead, on the features of an output of `extract`. `--what
head-growth` takes no source: it fits on made-up features, few and many, and says what more of them cost. `--what
similar` takes none either: it searches made-up features for those most like one.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, TypeVar

import tyro

from bottleneck.base import (
    CORES_PER_ACTOR,
    CPU_BATCH_SIZE,
    GPU_BATCH_SIZE,
    Base,
    choose_precision,
    has_bfloat16,
    resolve_apart,
)
from bottleneck.decode import Decoded, decode
from bottleneck.errors import BottleneckError, UsageError
from bottleneck.networks import import_keras, preprocess
from bottleneck.sources import open_source, resolve_reading
from bottleneck.spec import FeatureRequest, FeatureSpec, Limits, Reading, split_layer
from bottleneck.weights import load_network

log = logging.getLogger(__name__)
T = TypeVar("T")
Figures = dict[str, Any]

LOOP_BATCH_SIZE = 32
"""What model.predict takes by default."""
SAMPLE_SECONDS = 0.5
"""Between looks at the memory, each of which costs about 10 ms a GB."""
NUM_IMAGES = 256
DECODE_SECONDS = 3.0
NETWORK_SECONDS = 5.0
"""At least, for the network alone."""
STEADY_SECONDS = 10.0
"""A job that ran for less after its start-up says little about long ones."""


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = ""
    """A folder or s3://bucket/prefix with images; copied to a temporary folder before anything is measured. For `head`
    an output of `bottleneck extract`."""
    what: Literal["extract", "head", "head-growth", "similar"] = "extract"
    """What is measured: extraction, fitting beside scikit-learn, fitting as images grow in number, or searching."""
    num_images: int | None = None
    """Taken evenly from the whole source; one with fewer is gone through again. 256 unless given; the made-up images of
    `head-growth` are 200,000 unless given, those of `similar` 1,000,000. `head` takes all."""
    rounds: int = 1
    """Times everything is measured; the figures are medians."""
    features: FeatureRequest = field(default_factory=lambda: FeatureRequest(weights="random:0"))
    layer: str | None = None
    """Column to fit on; may be left out where there is only one. Of `head`."""
    limit_seconds: float = 30.0
    """For scikit-learn at this project's precision, each value of C. Of `head`."""
    dim: int = 512
    """Dimensions of made-up features."""
    classes: int = 100
    """Classes of made-up features."""
    num_workers: int = 1
    """Of `bottleneck fit`."""

    def __post_init__(self) -> None:
        for name in ("num_images", "rounds", "dim", "num_workers"):
            _check_from(1, name, getattr(self, name))
        _check_from(2, "classes", self.classes)
        if not self.limit_seconds > 0:
            raise UsageError(f"--limit-seconds takes a number above 0. Received: {self.limit_seconds}.")
        if (self.what in ("head-growth", "similar")) == bool(self.source):
            raise UsageError(
                f"--what {self.what} takes {'no source' if self.source else 'a source'}. Received: {self.source!r}."
            )


def _check_from(lowest: int, name: str, value: int | None) -> None:
    if value is not None and value < lowest:
        raise UsageError(f"--{name.replace('_', '-')} takes a number from {lowest} up. Received: {value}.")


def main(config: Config) -> int:
    if config.what == "head":
        from jobs import benchmark_head

        return benchmark_head.main(config)
    if config.what == "head-growth":
        from jobs import benchmark_growth

        return benchmark_growth.main(config)
    if config.what == "similar":
        from jobs import benchmark_similar

        return benchmark_similar.main(config)
    num_images = config.num_images or NUM_IMAGES
    hardware = describe_hardware()
    spec = resolve_apart(config.features, choose_precision(config.features, has_bfloat16))
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        images = os.path.join(folder, "images")
        left_out = apart(copy_images, config.source, images, num_images, spec)
        rounds = []
        for number in range(config.rounds):
            output = os.path.join(folder, f"output{number}")
            rounds.append(measure(images, output, num_images, config.features, spec, hardware))
            shutil.rmtree(output)
    result = {
        "source": config.source,
        "images": num_images,
        "rejected_and_left_out": left_out,
        "spec": spec.to_json(),
        **summarize(rounds, hardware),
    }
    tell(result, rounds, hardware, table)
    steady_seconds = num_images / result["job"]["images_per_second"]
    if steady_seconds < STEADY_SECONDS:
        log.warning("The job ran for %.1f s after its start-up, too short: give more --num-images.", steady_seconds)
    print(json.dumps(result))
    return 0


def tell(result: Figures, rounds: list[Figures], hardware: Figures, table: Callable[[Figures], list[str]]) -> None:
    """Add to a result how it was come by, show it, and warn where other programs had a part in it."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    result.update(rounds=rounds, hardware=hardware, versions=versions(), date=date)
    for line in table(result):
        log.info("%s", line)
    others = max(part["others_cpu_share"] for figures in rounds for part in figures.values())
    if others > 0.1:
        log.warning(
            "Other programs took up to %.0f %% of this machine, so the figures cannot be compared: run it again alone.",
            100 * others,
        )


def measure(
    images: str, output: str, num_images: int, request: FeatureRequest, spec: FeatureSpec, hardware: Figures
) -> Figures:
    """One round: everything once, nothing at the same time."""
    cores = hardware["cores"]
    batch_size = GPU_BATCH_SIZE if hardware["gpus"] else CPU_BATCH_SIZE
    # Whole batches, and eight shards where the images suffice, so that decoding overlaps the network as in long jobs.
    shard_size = min(max(num_images // 8 // batch_size, 1) * batch_size, 512)
    threads = cores // max(1, cores // CORES_PER_ACTOR)
    request = replace(request, precision=spec.precision)
    return {
        "job": watched("bottleneck extract", measure_job, images, output, request, shard_size),
        "keras_loop": watched("the tutorials' loop", apart, measure_keras_loop, images, f"{output}.h5", spec),
        "network": watched("the network alone", apart, measure_network, spec, batch_size, threads, num_images),
        "decode": watched("decoding alone", measure_decode, images, spec, cores),
    }


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
    return {**figures, "others_cpu_share": max(0.0, others / (seconds * psutil.cpu_count()))}


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own, whose stdout is stderr, as Keras writes to it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.dup2, (2, 1)) as pool:
        return pool.submit(function, *arguments).result()


def copy_images(source: str, folder: str, num_images: int, spec: FeatureSpec) -> int:
    """Copy images that decode, spread evenly over the source, into a folder; again from the first if they are too few.

    Returns:
        How many were left out because they do not decode: the tutorials' loop would stop at them.
    """
    images = open_source(source, resolve_reading(source, Reading()))
    found = list(images.images(Counter()))
    chosen = [found[i * len(found) // num_images] for i in range(num_images)] if len(found) > num_images else found
    os.mkdir(folder)
    good: list[str] = []
    for image, data in zip(chosen, images.read(chosen), strict=True):
        if isinstance(data, bytes) and isinstance(decode(data, spec, Limits()), Decoded):
            good.append(os.path.join(folder, f"{len(good):06d}{os.path.splitext(image.key)[1]}"))
            with open(good[-1], "wb") as file:
                file.write(data)
    if not good:
        raise UsageError(f"Expected images in {source}. Received {len(chosen)} that say so, none of which decodes.")
    for number in range(len(good), num_images):
        path = good[number % len(good)]
        shutil.copyfile(path, os.path.join(folder, f"{number:06d}{os.path.splitext(path)[1]}"))
    return len(chosen) - len(good)


def measure_job(images: str, output: str, request: FeatureRequest, shard_size: int) -> Figures:
    """The command as a user runs it. Its own clock tells start-up from work; memory is looked at from here."""
    arguments = ["extract", images, output, "--shard-size", str(shard_size)]
    for option in fields(request):
        value = getattr(request, option.name)
        if value:
            arguments += [f"--{option.name}", *(value if isinstance(value, tuple) else [value])]
    summary, figures = run_job(arguments)
    details = summary["details"]
    if not details:
        log.warning("The job lost count of its first batch: its rate is that of the whole command, start-up included.")
    return {
        "images_per_second": details.get("images_per_second", summary["images"] / figures["seconds"]),
        "first_batch_seconds": details.get("first_batch_seconds"),
        "shard_size": shard_size,
        **figures,
    }


def run_job(arguments: list[str]) -> tuple[Figures, Figures]:
    """Run a job in a process of its own: its JSON line, and what it took.

    Peaks are in bytes: of the driver what it holds (RSS), of all processes together the sum of PSS, in which memory
    that several of them share counts once.
    """
    import psutil

    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # this machine
    driver_peak = all_peak = 0
    cpu_seconds: dict[int, float] = {}
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started = time.perf_counter()
        command = [sys.executable, "-m", "jobs", *arguments]
        process = psutil.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        try:
            while process.poll() is None:
                sampled = time.perf_counter()
                driver, total = _look_at(process, cpu_seconds)
                driver_peak, all_peak = max(driver_peak, driver), max(all_peak, total)
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(max(0.0, sampled + SAMPLE_SECONDS - time.perf_counter()))
            seconds = time.perf_counter() - started
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        stdout.seek(0)
        stderr.seek(0)
        last_line, complaints = stdout.read().strip().rpartition("\n")[2], stderr.read()
    if process.returncode:
        raise BottleneckError(f"bottleneck {arguments[0]} ended with exit code {process.returncode}:\n{complaints}")
    return json.loads(last_line), {
        "seconds": seconds,
        "driver_peak_rss_bytes": driver_peak,
        "peak_pss_bytes": all_peak,
        "cpu_seconds": sum(cpu_seconds.values()),
    }


def _look_at(process: Any, cpu_seconds: dict[int, float]) -> tuple[int, int]:
    """RSS of a process, and PSS of it and all its descendants, whose CPU times so far are noted by process number."""
    import psutil

    driver = total = 0
    with contextlib.suppress(psutil.Error):
        driver = process.memory_info().rss
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it has ended
                cpu_seconds[one.pid] = sum(one.cpu_times()[:2])
                memory = one.memory_full_info()
                total += getattr(memory, "pss", memory.uss)  # macOS has no PSS
    return driver, total


def measure_keras_loop(images: str, output: str, spec: FeatureSpec) -> Figures:
    """Extraction as tutorials write it, without their imports and building of the model."""
    keras = import_keras()
    import h5py
    import numpy as np

    network = load_network(spec.base, spec.weights, spec.layers)
    target_size = (spec.image_size_px, spec.image_size_px)
    pools = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "none": keras.layers.Flatten,
    }
    layers = [split_layer(layer) for layer in spec.layers]
    outputs = [pools[pooling]()(network.get_layer(name).output) for name, pooling in layers]
    model = keras.Model(network.input, outputs)
    paths = sorted(entry.path for entry in os.scandir(images))
    model.predict(np.zeros((LOOP_BATCH_SIZE, *target_size, 3), np.float32), verbose=0)
    started = time.perf_counter()
    with h5py.File(output, "w") as file:
        for layer, dim in zip(spec.layers, spec.dims, strict=True):
            file.create_dataset(layer, (len(paths), dim), "float32")
        for start in range(0, len(paths), LOOP_BATCH_SIZE):
            batch = []
            for path in paths[start : start + LOOP_BATCH_SIZE]:
                image = keras.utils.load_img(path, target_size=target_size)
                batch.append(keras.utils.img_to_array(image))
            features = model.predict(preprocess(np.stack(batch), spec.base), batch_size=LOOP_BATCH_SIZE, verbose=0)
            one_a_layer = features if isinstance(features, list) else [features]
            for layer, features_ND in zip(spec.layers, one_a_layer, strict=True):
                file[layer][start : start + len(batch)] = features_ND
    rate = len(paths) / (time.perf_counter() - started)
    return {"images_per_second": rate, "batch_size": LOOP_BATCH_SIZE, "precision": "float32"}


def measure_network(spec: FeatureSpec, batch_size: int, num_threads: int, num_images: int) -> Figures:
    """One network as a job's actor holds it, fed with the same random pixels again and again."""
    import numpy as np

    base = Base(spec, batch_size, num_threads)
    shape = (batch_size, spec.image_size_px, spec.image_size_px, 3)
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    base(pixels_NHWC)
    done, started, seconds = 0, time.perf_counter(), 0.0
    while done < num_images or seconds < NETWORK_SECONDS:
        base(pixels_NHWC)
        done += batch_size
        seconds = time.perf_counter() - started
    return {
        "images_per_second": done / seconds,
        "batch_size": batch_size,
        "threads": num_threads,
        "device": base.device,
    }


def measure_decode(images: str, spec: FeatureSpec, cores: int) -> Figures:
    """Decoding by one process, then by one a core; reading the files is not counted."""
    context = multiprocessing.get_context("spawn")
    rates = []
    for num_processes in (1, cores):
        together = context.Barrier(num_processes).wait  # none begins before all have started
        with ProcessPoolExecutor(num_processes, context, together) as pool:
            running = [pool.submit(_decode_rate, images, spec) for _ in range(num_processes)]
            rates.append(sum(rate.result() for rate in running))
    return {"images_per_second": rates[1], "milliseconds_per_image_on_one_core": 1000 / rates[0]}


def _decode_rate(images: str, spec: FeatureSpec) -> float:
    paths = sorted(entry.path for entry in os.scandir(images))
    done, seconds, ends = 0, 0.0, time.perf_counter() + DECODE_SECONDS
    while time.perf_counter() < ends:
        with open(paths[done % len(paths)], "rb") as file:
            data = file.read()
        started = time.perf_counter()
        decode(data, spec, Limits())
        seconds += time.perf_counter() - started
        done += 1
    return done / seconds


def summarize(rounds: list[Figures], hardware: Figures) -> Figures:
    """The median of every figure over the rounds, and what follows from them."""
    figures = medians(rounds)
    job, network, decoding = figures["job"], figures["network"], figures["decode"]
    cores = hardware["cores"]
    decoding["core_seconds_per_image"] = cores / decoding["images_per_second"]
    if "gpu" in network["device"].lower() or "cuda" in network["device"].lower():
        ceiling = min(network["images_per_second"] * len(hardware["gpus"]), decoding["images_per_second"])
    else:
        network["core_seconds_per_image"] = network["threads"] / network["images_per_second"]
        ceiling = cores / (network["core_seconds_per_image"] + decoding["core_seconds_per_image"])
    return {
        **figures,
        "ceiling_images_per_second": ceiling,
        "job_to_ceiling": job["images_per_second"] / ceiling,
        "job_to_keras_loop": job["images_per_second"] / figures["keras_loop"]["images_per_second"],
    }


def medians(rounds: list[Figures]) -> Figures:
    """The median of every number over the rounds; of all else what the first round says."""
    return {part: {name: _median(rounds, part, name) for name in rounds[0][part]} for part in rounds[0]}


def _median(rounds: list[Figures], part: str, name: str) -> Any:
    values = [one[part][name] for one in rounds if one[part][name] is not None]
    return statistics.median(values) if values and isinstance(values[0], int | float) else next(iter(values), None)


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    spec, job, hardware = result["spec"], result["job"], result["hardware"]
    loop_rate = result["keras_loop"]["images_per_second"]
    rows = [
        (f"bottleneck extract, {spec['precision']}", job["images_per_second"]),
        ("Keras loop, float32", loop_rate),
        (f"network alone, {spec['precision']}", result["network"]["images_per_second"]),
        (f"decoding alone, {hardware['cores']} cores", result["decode"]["images_per_second"]),
        ("ceiling: network and decoding", result["ceiling_images_per_second"]),
    ]
    first_batch_seconds = job["first_batch_seconds"]
    first_batch = f"first batch after {first_batch_seconds:.1f} s, " if first_batch_seconds is not None else ""
    return [
        f"{result['images']:,} images of {result['source']}: {spec['base']}, weights {spec['weights']}, "
        f"{' '.join(spec['layers'])}",
        ", ".join([hardware["cpu"], f"{hardware['cores']} cores", *hardware["bfloat16"], *hardware["gpus"]]),
        "",
        f"{'':34}{'images/s':>10}{'to Keras loop':>16}",
        *(f"{name:34}{rate:10,.1f}{rate / loop_rate:15.2f}x" for name, rate in rows),
        "",
        f"extract reaches {result['job_to_ceiling']:.2f} of the ceiling; {first_batch}"
        f"whole command {job['seconds']:.1f} s",
        f"an image decodes in {result['decode']['milliseconds_per_image_on_one_core']:.2f} ms on one core",
        f"memory: driver {job['driver_peak_rss_bytes'] / 1e6:,.0f} MB, all processes together "
        f"{job['peak_pss_bytes'] / 1e6:,.0f} MB at most",
    ]


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
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        gpus = found.stdout.splitlines()
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
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
