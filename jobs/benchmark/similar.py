"""`--what similar`: `bottleneck similar` on many synthetic features.

The features are those of `made_up`, in data files of the default size. They have just been written, so that they are
read from memory; the image asked about is one of them, so no network is started.
"""

import os
import tempfile

from bottleneck.dataset.make_plan import SHARD_SIZE
from jobs.benchmark import Config
from jobs.benchmark.made_up import image_of, write_features
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, run_job, tell, watched
from jobs.results import answer

NUM_IMAGES = 1_000_000


def main(config: Config) -> int:
    hardware = describe_hardware()
    num_images = config.num_images or NUM_IMAGES
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        features = os.path.join(folder, "features")
        apart(write_features, features, num_images, config.dim, config.classes, SHARD_SIZE)
        key = image_of(num_images // 2, num_images, config.classes).key
        data = os.path.join(features, "data")
        num_bytes = sum(entry.stat().st_size for entry in os.scandir(data))
        rounds = [{"similar": watched("bottleneck similar", measure, key, features)} for _ in range(config.rounds)]
    result = {
        "what": config.what,
        "images": num_images,
        "dim": config.dim,
        "classes": config.classes,
        "data_bytes": num_bytes,
        **medians(rounds),
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def measure(key: str, features: str) -> Figures:
    """The command as a user runs it, Python's start and all; and its own clock, from the first row to the last."""
    summary, figures = run_job(["similar", key, features])
    assert key not in [one["key"] for one in summary["queries"][0]["similar"]]
    return {**figures, "search_seconds": summary["seconds"], "images": summary["images"]}


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    similar, hardware = result["similar"], result["hardware"]
    rate = similar["images"] / similar["search_seconds"]
    return [
        f"{result['images']:,} made-up images of {result['dim']:,} float16 dimensions, "
        f"{result['data_bytes'] / 1e6:,.0f} MB; {hardware['cpu']}, {hardware['cores']} cores",
        "",
        f"whole command {similar['seconds']:.2f} s; the search {similar['search_seconds']:.2f} s, {rate:,.0f} images/s",
        f"memory: {similar['peak_pss_bytes'] / 1e6:,.0f} MB at most",
    ]
