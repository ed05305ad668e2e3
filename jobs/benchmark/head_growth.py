"""`--what head-growth`: `bottleneck fit` on few and on many synthetic features.

The features are a real output, with plan, data files and `_SUCCESS.json`, whose images do not exist: overlapping
Gaussians, one a class, written shard by shard.

Legend: N rows of a shard, D features, K classes.
"""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bottleneck.dataset.make_plan import commit_plan
from bottleneck.dataset.plan_parts import freeze
from bottleneck.dataset.schema import IMAGE_FIELDS, data_schema
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.sources.image import Image
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import FeatureSpec
from bottleneck.storage.store import open_store
from jobs.benchmark import Config
from jobs.benchmark.head import measure_fit
from jobs.benchmark.process import Figures, apart, describe_hardware, medians, tell, watched
from jobs.results import answer

NUM_IMAGES = 200_000
FEW_IMAGES = 10_000
"""What more images are compared with."""
SHARD_SIZE = 8192
"""32 of them make a part of the plan, which is held in memory while it is written."""
DISTANCE = 5.0
"""Between the means of two classes, in standard deviations: many images lie nearer to another class than their own."""
LAYER = "block5_pool:avg"


def main(config: Config) -> int:
    hardware = describe_hardware()
    num_images = config.num_images or NUM_IMAGES
    rounds = []
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as folder:
        few, many = os.path.join(folder, "few"), os.path.join(folder, "many")
        apart(write_features, few, FEW_IMAGES, config.dim, config.classes)
        apart(write_features, many, num_images, config.dim, config.classes)
        for _ in range(config.rounds):
            rounds.append(
                {
                    "few": watched(f"{FEW_IMAGES:,} images", measure_fit, few, LAYER, config.num_workers, (1.0,)),
                    "many": watched(f"{num_images:,} images", measure_fit, many, LAYER, config.num_workers, (1.0,)),
                }
            )
    result = {
        "what": config.what,
        "images": num_images,
        "few_images": FEW_IMAGES,
        "dim": config.dim,
        "classes": config.classes,
        "num_workers": config.num_workers,
        **summarize(rounds),
    }
    tell(result, rounds, hardware, table)
    answer(result)
    return 0


def write_features(
    output: str, num_images: int, dim: int, num_classes: int, shard_size: int | None = None, rectified: bool = False
) -> None:
    """Make an output of made-up features; memory does not grow with the images but for a part of the plan.

    Args:
        shard_size: images of a data file; SHARD_SIZE unless given.
        rectified: no value is below 0, as in averages of what a ReLU gave, which is what most features are.
    """
    shard_size = shard_size or SHARD_SIZE
    spec = FeatureSpec(
        base="vgg16",
        weights="random:0",
        weights_sha256="0" * 64,
        layers=(LAYER,),
        dims=(dim,),
        image_size_px=224,
        resize="squash",
        interpolation="bilinear",
        exif="apply",
        decode="exact",
        precision="float32",
        dtype="float16",
    )
    store = open_store(output)
    images = _images(num_images, num_classes)
    listing = freeze(store, spec, images, Counter(), first_shard=0, shard_size=shard_size)
    source = os.path.join(output, "no-images")
    plan = commit_plan(source, output, spec, Limits(), Reading(), shard_size, listing)
    receipts = {}
    for shard in range(plan.num_shards):
        numbers_N = np.arange(shard * shard_size, min((shard + 1) * shard_size, num_images))
        rows = made_up_rows(spec, numbers_N, num_images, num_classes, rectified=rectified)
        name = plan.data_name(shard)
        receipts[shard] = write_shard(store, name, spec, shard, rows, run_id="made up", device="none")
    finish(plan, receipts, run_id="made up")


def made_up_rows(
    spec: FeatureSpec, numbers_N: np.ndarray, num_images: int, num_classes: int, *, rectified: bool = False
) -> pa.Table:
    """Rows of a data file, the same ones for the same numbers."""
    [dim] = spec.dims
    class_indices_N = numbers_N * num_classes // num_images
    # As far from one another as said, on average: the difference of two means has D values of twice the variance.
    means_KD = np.random.default_rng(0).standard_normal((num_classes, dim)) * DISTANCE / np.sqrt(2 * dim)
    rng = np.random.default_rng([1, int(numbers_N[0])])
    features_ND = (means_KD[class_indices_N] + rng.standard_normal((len(numbers_N), dim))).astype(np.float16)
    features_ND = np.abs(features_ND) if rectified else features_ND
    images = [_image(number, code) for number, code in zip(numbers_N.tolist(), class_indices_N.tolist(), strict=True)]
    values = {
        "key": [image.key for image in images],
        "etag": [image.etag for image in images],
        "label": [image.label for image in images],
        "status": ["ok"] * len(images),
        "reason": [None] * len(images),
        "width": [1] * len(images),
        "height": [1] * len(images),
        "mode": ["RGB"] * len(images),
        "sha256": [hashlib.sha256(image.key.encode()).digest() for image in images],
    }
    arrays = [pa.array(values[field.name], field.type) for field in IMAGE_FIELDS]
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(features_ND.reshape(-1)), dim))
    return pa.table(arrays, schema=data_schema(spec))


def _images(num_images: int, num_classes: int) -> Iterator[Image]:
    return (image_of(number, num_images, num_classes) for number in range(num_images))


def image_of(number: int, num_images: int, num_classes: int) -> Image:
    """One image of the plan, by its number."""
    return _image(number, number * num_classes // num_images)


def _image(number: int, code: int) -> Image:
    label = f"class-{code:05d}"
    return Image(f"{label}/{number:09d}.jpg", 1, "made up", label)


def summarize(rounds: list[Figures]) -> Figures:
    """The median of every figure over the rounds, and what growth costs."""
    figures = medians(rounds)
    few, many = figures["few"], figures["many"]
    more = many["images"] - few["images"]
    memory = many["peak_pss_bytes"] - few["peak_pss_bytes"]
    return {
        **figures,
        "images_ratio": many["images"] / few["images"],
        **{f"{name}_ratio": many[name] / few[name] for name in ("seconds", "fit_seconds", "peak_pss_bytes")},
        "bytes_per_further_image": memory / more if more else None,
    }


def table(result: Figures) -> list[str]:
    """The result for a person to read."""
    few, many, hardware = result["few"], result["many"], result["hardware"]
    lines = [
        ("images", few["images"], many["images"], result["images_ratio"], ",.0f"),
        ("whole command, seconds", few["seconds"], many["seconds"], result["seconds_ratio"], ",.1f"),
        ("the fit itself, seconds", few["fit_seconds"], many["fit_seconds"], result["fit_seconds_ratio"], ",.1f"),
        (
            "memory, all processes, MB",
            few["peak_pss_bytes"] / 1e6,
            many["peak_pss_bytes"] / 1e6,
            result["peak_pss_bytes_ratio"],
            ",.0f",
        ),
    ]
    grown = result["bytes_per_further_image"]
    further = (
        [] if grown is None else [f"a further image took {grown:,.0f} bytes; as float32 it is {4 * result['dim']:,}"]
    )
    return [
        f"made-up features of {result['dim']:,} dimensions, {result['classes']} classes, C = 1, "
        f"{result['num_workers']} workers; {hardware['cpu']}, {hardware['cores']} cores",
        "",
        f"{'':28}{'few':>14}{'many':>14}{'ratio':>10}",
        *(
            f"{name:28}{format(before, form):>14}{format(after, form):>14}{ratio:9.2f}x"
            for name, before, after, ratio, form in lines
        ),
        "",
        f"way: {few['way']}, then {many['way']}; accuracy {few['accuracy']:.4f}, then {many['accuracy']:.4f}",
        *further,
    ]
