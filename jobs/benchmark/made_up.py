"""Made-up features: a real output, with plan, data files and `_SUCCESS.json`, whose images do not exist.

Like averages of what a ReLU gave, values are never negative, many are 0, and all are correlated: a few hidden
directions, some strong and most weak, which classes overlap in. A head is right about 80 to 95 of 100 times.

Legend: N rows of a shard, D features, L hidden directions, K classes.
"""

import hashlib
import math
import os
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

SHARD_SIZE = 8192
"""32 of them make a part of the plan, which is held in memory while it is written."""
HIDDEN = 64
"""Directions that classes differ in."""
DISTANCE = 7.0
"""Between the means of two classes in these, in standard deviations: some images lie nearer to another class."""
NOISE = 0.7
"""Of each feature by itself, in standard deviations of what it has from the hidden directions."""
LAYER = "block5_pool:avg"


def write_features(output: str, num_images: int, dim: int, num_classes: int, shard_size: int | None = None) -> None:
    """Make an output of made-up features; memory does not grow with the images but for a part of the plan.

    Args:
        shard_size: images of a data file; SHARD_SIZE unless given.
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
        rows = made_up_rows(spec, numbers_N, num_images, num_classes)
        name = plan.data_name(shard)
        receipts[shard] = write_shard(store, name, spec, shard, rows, run_id="made up", device="none")
    finish(plan, receipts, run_id="made up")


def made_up_rows(spec: FeatureSpec, numbers_N: np.ndarray, num_images: int, num_classes: int) -> pa.Table:
    """Rows of a data file, the same ones for the same numbers."""
    [dim] = spec.dims
    class_indices_N = numbers_N * num_classes // num_images
    features_ND = made_up_features(class_indices_N, num_classes, dim, seed=int(numbers_N[0])).astype(np.float16)
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


def made_up_features(class_indices_N: np.ndarray, num_classes: int, dim: int, *, seed: int) -> np.ndarray:
    """Features of images of these classes, float32 [N, D]; other images of the same classes with another seed."""
    of_all = np.random.default_rng(0)
    # As far from one another as said, on average: the difference of two means has L values of twice the variance.
    means_KL = of_all.standard_normal((num_classes, HIDDEN), dtype=np.float32) * DISTANCE / math.sqrt(2 * HIDDEN)
    strengths_L = np.arange(1, HIDDEN + 1, dtype=np.float32) ** -0.5
    mixed_LD = of_all.standard_normal((HIDDEN, dim), dtype=np.float32) * strengths_L[:, None]
    mixed_LD /= np.linalg.norm(mixed_LD, axis=0)
    rng = np.random.default_rng([1, seed])
    hidden_NL = means_KL[class_indices_N] + rng.standard_normal((len(class_indices_N), HIDDEN), dtype=np.float32)
    features_ND = hidden_NL @ mixed_LD
    features_ND += NOISE * rng.standard_normal(features_ND.shape, dtype=np.float32)
    features_ND += 1
    features_ND /= 2
    result_ND: np.ndarray = np.maximum(features_ND, 0, out=features_ND)
    return result_ND


def _images(num_images: int, num_classes: int) -> Iterator[Image]:
    return (image_of(number, num_images, num_classes) for number in range(num_images))


def image_of(number: int, num_images: int, num_classes: int) -> Image:
    """One image of the plan, by its number."""
    return _image(number, number * num_classes // num_images)


def _image(number: int, code: int) -> Image:
    label = f"class-{code:05d}"
    return Image(f"{label}/{number:09d}.jpg", 1, "made up", label)
