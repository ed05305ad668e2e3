"""Measure reading, decoding, extracting and encoding on a few images of a plan.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck.child import ChildDiedError, answer, ask
from bottleneck.cores import count_cores
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.plan_parts import Shard, read_images
from bottleneck.dataset.schema import data_schema
from bottleneck.dataset.write import encode, outcomes
from bottleneck.errors import BottleneckError, FeaturesError
from bottleneck.extract.estimate import Costs, Estimate
from bottleneck.extract.prepare import prepare_images
from bottleneck.extract.sandbox import decode_or_exit
from bottleneck.extract.shard import feature_columns
from bottleneck.extract.work import Work
from bottleneck.networks.base import GPU_BATCH_SIZE, Base
from bottleneck.networks.device import CORES_PER_ACTOR, count_gpus, keras_has_gpu
from bottleneck.networks.keras_import import import_keras
from bottleneck.sources.image import Image
from bottleneck.spec import FeatureSpec
from bottleneck.storage.store import open_store
from bottleneck.text import counted

NUM_SAMPLED = 32
"""VGG16 takes 3 s for them on two cores without AMX; they predict the output's size to 2 %."""
NUM_SHARDS_SAMPLED = 4
SAMPLE_BATCH_SIZE = 16
"""On a CPU, where VGG16 takes 0.142 core-seconds an image in batches of 16 and of 32; so two are timed, not one."""
MEASURE_SECONDS = 8.0
"""No batch starts after this; the largest networks take seconds per image."""


def measure_sample(plan: Plan, num_images: int = NUM_SAMPLED) -> Estimate | None:
    """Read, decode and extract a few images of a plan in a child process; nothing is stored.

    Takes 10 to 20 s, most of it for Keras and the network to start.

    Returns:
        None where every shard is done.

    Raises:
        FeaturesError: if no sampled image can be decoded, one kills the process, or the network does not run here.
        BottleneckError: what a run would stop with: StoreError, WeightsError, ...
    """
    done = plan.committed()
    if len(done) == plan.num_shards:
        return None
    if not done.keys() >= plan.revised.keys():
        raise FeaturesError("Only some images of requeued shards are reprocessed, which is not estimated.")
    try:
        return Estimate.from_json(ask(_answer, {"output": plan.output, "images": num_images}))
    except ChildDiedError:
        raise FeaturesError(
            "The process that measured died: an image killed its decoder (a run survives that), or the memory is "
            "too small for this network."
        ) from None


def _answer(pipe: Connection) -> None:
    def measured(asked: dict[str, Any]) -> dict[str, Any]:
        plan = load_plan(asked["output"])
        if plan is None:
            raise FeaturesError(f"The plan of {asked['output']} has gone while it was measured.")
        try:
            return asdict(_measure(plan, plan.committed(), asked["images"]))
        except BottleneckError:
            raise
        except Exception as error:  # of a backend: a GPU that others have filled, ...
            raise FeaturesError(f"Measuring failed with {type(error).__name__}: {error}.") from error

    answer(pipe, measured)


def _measure(plan: Plan, done: dict[int, int], num_images: int) -> Estimate:
    work = Work.of(plan)
    shards = [shard for shard in plan.shards() if shard.number not in done]
    chosen = shards[:: max(1, len(shards) // NUM_SHARDS_SAMPLED)][:NUM_SHARDS_SAMPLED]
    prepared = [
        prepare_images(work, shard, _spread(work, shard, -(-num_images // len(chosen))), decode_or_exit)
        for shard in chosen
    ]
    rows = pa.concat_tables([one.rows for one in prepared]).unify_dictionaries().combine_chunks()
    pixels_NHWC = np.concatenate([one.pixels_NHWC for one in prepared])
    if not len(pixels_NHWC):
        named = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes(rows).items())
        raise FeaturesError(f"None of the {counted(len(rows), 'image')} sampled can be decoded: {named}.")
    firsts = np.cumsum([0, *(len(one.pixels_NHWC) for one in prepared[:-1])])
    pixels_of_row = np.concatenate(
        [
            np.where(one.pixels_of_row < 0, -1, one.pixels_of_row + first)
            for one, first in zip(prepared, firsts, strict=True)
        ]
    )

    cores = count_cores()
    networks = max(1, cores // CORES_PER_ACTOR)
    threads = cores // networks
    gpus = 0
    if keras_has_gpu():
        import_keras(threads)  # before the devices are counted, which starts TensorFlow with the threads it has
        gpus = count_gpus()
    batch_size = GPU_BATCH_SIZE if gpus else SAMPLE_BATCH_SIZE
    base = Base(plan.spec, batch_size, num_threads=threads, num_images=plan.num_images)
    features, seconds, core_seconds = _time_network(base, pixels_NHWC)
    known = pixels_of_row < len(features[0])  # not all, where the network is slow
    rows, pixels_of_row = rows.filter(pa.array(known)), pixels_of_row[known]
    has_pixels = pixels_of_row >= 0
    columns = [*rows.columns, *feature_columns([one_ND[pixels_of_row[has_pixels]] for one_ND in features], has_pixels)]
    table = pa.table(columns, schema=data_schema(plan.spec))
    footer_bytes = _encoded_bytes(plan.spec, table.slice(0, 0), base.device)
    started = time.perf_counter()
    data_bytes = _encoded_bytes(plan.spec, table, base.device) - footer_bytes
    encode_seconds = (time.perf_counter() - started) / len(rows)

    sampled = sum(len(one.rows) for one in prepared)
    accepted = len(pixels_NHWC) / sampled
    images = plan.num_images - sum(plan.images_in(shard) for shard in done)
    bytes_per_image = data_bytes / len(rows) + footer_bytes / plan.shard_size
    return Estimate(
        costs=Costs(
            network_seconds=accepted * seconds + encode_seconds,
            network_core_seconds=accepted * core_seconds + encode_seconds,
            decode_core_seconds=sum(one.decode_core_seconds for one in prepared) / sampled,
            read_seconds=sum(one.read_seconds for one in prepared) / sampled,
            cores=cores,
            networks=min(gpus or networks, len(shards)),
        ),
        sampled=sampled,
        images=images,
        bytes_per_image=bytes_per_image,
        output_bytes=sum(done.values()) + round(bytes_per_image * images),
    )


def _spread(work: Work, shard: Shard, num_images: int) -> list[Image]:
    """Take some images of a shard evenly; of a container, neighbours, which are read together as in a run."""
    images = read_images(open_store(work.output), shard)
    if work.reading.source_format in ("webdataset", "parquet"):
        return images[:num_images]
    return [images[index] for index in np.unique(np.linspace(0, len(images) - 1, num_images).astype(int))]


def _time_network(base: Base, pixels_NHWC: np.ndarray) -> tuple[list[np.ndarray], float, float]:
    """Features of the pixels (of the first ones if it takes too long), seconds and core seconds per image."""

    def batch(number: int) -> list[np.ndarray]:
        at = range(number * base.batch_size, (number + 1) * base.batch_size)
        return base(pixels_NHWC.take(at, axis=0, mode="wrap"))  # always a full one

    batch(0)  # the first call is slower
    num_batches = max(2, -(-len(pixels_NHWC) // base.batch_size))
    parts: list[list[np.ndarray]] = []
    started, core_started = time.perf_counter(), time.process_time()
    while len(parts) < num_batches and (not parts or time.perf_counter() - started < MEASURE_SECONDS):
        parts.append(batch(len(parts)))
    seconds, core_seconds = time.perf_counter() - started, time.process_time() - core_started
    timed = len(parts) * base.batch_size
    features = [np.concatenate(layer)[: len(pixels_NHWC)] for layer in zip(*parts, strict=True)]
    return features, seconds / timed, core_seconds / timed


def _encoded_bytes(spec: FeatureSpec, table: pa.Table, device: str) -> int:
    return len(encode(table, spec, 0, outcomes(table), run_id="", device=device))
