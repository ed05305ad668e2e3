"""`--what extract`: the command beside the tutorials' loop and under its ceiling."""

import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

from bottleneck.errors import UsageError
from bottleneck.extract.decode import Decoded, decode
from bottleneck.networks.base import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from bottleneck.networks.build import preprocess
from bottleneck.networks.device import CORES_PER_ACTOR, has_bfloat16
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.prepare import resolve_apart
from bottleneck.networks.resolve import choose_precision
from bottleneck.networks.weights import load_network
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import FeatureRequest, FeatureSpec, split_layer
from jobs.benchmark import Config
from jobs.benchmark.network import is_gpu, measure_network, network_line
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, run_job, tell, watched
from jobs.results import answer

log = logging.getLogger(__name__)

LOOP_BATCH_SIZE = 32
"""What model.predict takes by default."""
NUM_IMAGES = 256
DECODE_SECONDS = 3.0
STEADY_SECONDS = 10.0
"""A job that ran for less after its start-up says little about long ones."""


def main(config: Config) -> int:
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
    answer(result)
    return 0


def measure(
    images: str, output: str, num_images: int, request: FeatureRequest, spec: FeatureSpec, hardware: Figures
) -> Figures:
    """One round: everything once, nothing at the same time."""
    cores = hardware["cores"]
    batch_size = GPU_BATCH_SIZE if hardware["gpus"] else CPU_BATCH_SIZE
    shard_size = choose_shard_size(num_images, batch_size)
    threads = cores // max(1, cores // CORES_PER_ACTOR)
    request = replace(request, precision=spec.precision)
    return {
        "job": watched("bottleneck extract", measure_job, images, output, request, shard_size),
        "keras_loop": watched("the tutorials' loop", apart, measure_keras_loop, images, f"{output}.h5", spec),
        "network": watched("the network alone", apart, measure_network, spec, batch_size, threads, num_images),
        "decode": watched("decoding alone", measure_decode, images, spec, cores),
    }


def choose_shard_size(num_images: int, batch_size: int) -> int:
    """Whole batches, and eight shards where images suffice, so that decoding overlaps the network as in long jobs."""
    return min(max(num_images // 8 // batch_size, 1) * batch_size, 512)


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
    arguments = ["extract", images, output, "--shard-size", str(shard_size), *options_of(request)]
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


def options_of(request: Any) -> list[str]:
    """A request, or a part of one, as options of the command line."""
    options: list[str] = []
    for one in fields(request):
        value = getattr(request, one.name)
        if is_dataclass(value):
            options += options_of(value)
        elif value not in (None, (), ""):
            values = value if isinstance(value, tuple) else (value,)
            options += [f"--{one.name.replace('_', '-')}", *map(str, values)]
    return options


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
    if is_gpu(network["device"]):
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
        network_line(result["network"]),
        f"an image decodes in {result['decode']['milliseconds_per_image_on_one_core']:.2f} ms on one core",
        f"memory: driver {job['driver_peak_rss_bytes'] / 1e6:,.0f} MB, all processes together "
        f"{job['peak_pss_bytes'] / 1e6:,.0f} MB at most",
    ]
