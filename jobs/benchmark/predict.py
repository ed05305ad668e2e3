"""`--what predict`: `bottleneck predict` on many synthetic features, with a synthetic head.

The features are those of `benchmark_head_growth`, without values below 0, in data files of the default size. They have
just been written, so that they are read from memory; neither a network nor Ray is started.

Legend: D features, K classes.
"""

import os
import tempfile

import numpy as np

from bottleneck.dataset.features import open_features
from bottleneck.dataset.make_plan import SHARD_SIZE
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.grid import Grid
from jobs.benchmark import Config
from jobs.benchmark.made_up import LAYER, write_features
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, run_job, tell, watched
from jobs.results import answer

NUM_IMAGES = 1_000_000


def main(config: Config) -> int:
    hardware = describe_hardware()
    num_images = config.num_images or NUM_IMAGES
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        features, head = os.path.join(folder, "features"), os.path.join(folder, "head")
        apart(write, features, head, num_images, config.dim, config.classes)
        rounds = []
        for number in range(config.rounds):
            output = os.path.join(folder, f"predictions-{number}")
            rounds.append({"predict": watched("bottleneck predict", measure, features, head, output)})
    result = {
        "what": config.what,
        "images": num_images,
        "dim": config.dim,
        "classes": config.classes,
        **medians(rounds),
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def write(features: str, head: str, num_images: int, dim: int, num_classes: int) -> None:
    """Write features, and a logistic head with random coefficients as if it were fitted on them."""
    from bottleneck.heads.head import Head, Origin

    write_features(features, num_images, dim, num_classes, SHARD_SIZE)
    plan, rng = open_features(features).plan, np.random.default_rng(0)
    num_rows = num_classes if num_classes > 2 else 1
    arrays = {"coef": rng.standard_normal((num_rows, dim)) / np.sqrt(dim), "intercept": np.zeros(num_rows)}
    names = [f"class-{number:05d}" for number in range(num_classes)]
    origin = Origin(LAYER, plan.spec, plan.output, plan.sha256)
    Head.of(HeadRequest(), Grid(), names, arrays).save(head, origin)


def measure(features: str, head: str, output: str) -> Figures:
    """The command as a user runs it, Python's start and all; and its own clock, from the plan to the last commit."""
    summary, figures = run_job(["predict", features, head, output])
    data = os.path.join(output, "data")
    num_bytes = sum(entry.stat().st_size for entry in os.scandir(data))
    return {**figures, "predict_seconds": summary["seconds"], "images": summary["ok"], "data_bytes": num_bytes}


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    predict, hardware = result["predict"], result["hardware"]
    rate = predict["images"] / predict["predict_seconds"]
    return [
        f"{result['images']:,} made-up images of {result['dim']:,} float16 dimensions, {result['classes']:,} classes; "
        f"{hardware['cpu']}, {hardware['cores']} cores",
        "",
        f"whole command {predict['seconds']:.2f} s; from plan to end {predict['predict_seconds']:.2f} s, "
        f"{rate:,.0f} images/s",
        f"memory: {predict['peak_pss_bytes'] / 1e6:,.0f} MB at most; predictions {predict['data_bytes'] / 1e6:,.0f} MB",
    ]
