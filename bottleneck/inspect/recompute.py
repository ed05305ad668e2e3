"""Extract random images again and compare them with the data files.

Legend: N images, D features of a layer.
"""

import random
from dataclasses import dataclass, field

import numpy as np

from bottleneck.dataset.features import open_features
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.plan_parts import Shard, read_images
from bottleneck.errors import UsageError
from bottleneck.extract.decode import Decoded, decode
from bottleneck.networks.base import Base
from bottleneck.sources.open import open_source
from bottleneck.spec import Precision
from bottleneck.storage.store import open_store

MIN_COSINE = 0.999
"""Features with a smaller cosine differ: bfloat16 on other hardware stays above 0.9999."""
MIN_COSINE_INT8 = 0.99
"""The same for int8, where ONNX Runtime and OpenVINO round at different places."""


def least_cosine_of(precision: Precision) -> float:
    """The smallest cosine of features that count as the same, in this precision."""
    return MIN_COSINE_INT8 if precision == "int8" else MIN_COSINE


@dataclass
class Recomputed:
    """The result of recomputing."""

    num_images: int = 0
    min_cosine: float = 1.0
    different: list[tuple[str, float]] = field(default_factory=list)
    """Keys whose features are not those of their images, with the cosine."""
    unreadable: list[str] = field(default_factory=list)
    """Keys whose images have changed or gone."""


def check_recomputable(output: str) -> None:
    """Raise UsageError for an output of predictions."""
    plan = load_plan(output)
    if plan is not None and plan.predictions:
        raise UsageError(
            f"`recompute` compares features, and {output} holds predictions. Verify the features they can be made of, "
            "or predict again to another output and compare."
        )


def recompute(output: str, num_images: int, seed: int | None = None, batch_size: int = 8) -> Recomputed:
    """Extract up to `num_images` random ok images of an output again, in this process.

    Raises:
        BottleneckError: any kind, see `errors`; UsageError without a plan.
    """
    features = open_features(output, allow_incomplete=True)
    plan = features.plan
    rng = random.Random(seed)  # noqa: S311  # a sample, no secret
    # One image a shard at a time, so that a sample of a large output reads few files.
    done = plan.committed(features.entries)
    files = [(shard, plan.data_name(shard.number)) for shard in plan.shards() if shard.number in done]
    rng.shuffle(files)
    shares = _shares([plan.images_in(shard.number) for shard, _ in files], num_images)
    result = Recomputed()
    base = Base(plan.spec, batch_size)
    for (shard, name), wanted in zip(files, shares, strict=True):
        if wanted:
            _compare_file(plan, shard, features.table(name), wanted, rng, base, result)
    return result


def _shares(sizes: list[int], num_images: int) -> list[int]:
    """The number of images to take from each file, as even as their sizes allow."""
    shares = [0] * len(sizes)
    left = min(num_images, sum(sizes))
    while left:
        larger = [number for number, size in enumerate(sizes) if shares[number] < size]
        each = max(1, left // len(larger))
        for number in larger:
            taken = min(each, sizes[number] - shares[number], left)
            shares[number] += taken
            left -= taken
    return shares


def _compare_file(
    plan: Plan, shard: Shard, table: object, wanted: int, rng: random.Random, base: Base, result: Recomputed
) -> None:
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]  # type: ignore[attr-defined]
    chosen = sorted(rng.sample(rows, min(wanted, len(rows))), key=lambda row: row["key"].encode())
    keys = {row["key"] for row in chosen}
    images = [image for image in read_images(open_store(plan.output), shard) if image.key in keys]
    pixels, kept = [], []
    for row, data in zip(chosen, open_source(plan.source, plan.reading).read(images), strict=True):
        if not isinstance(data, bytes):
            result.unreadable.append(row["key"])
            continue
        decoded = decode(data, plan.spec, plan.limits)
        if isinstance(decoded, Decoded):
            pixels.append(decoded.pixels_HWC)
            kept.append(row)
        else:
            result.different.append((row["key"], 0.0))
    if not kept:
        return
    for layer, features_ND in zip(plan.spec.layers, base(np.stack(pixels)), strict=True):
        stored_ND = np.array([row[layer] for row in kept], np.float64)
        for row, cosine in zip(kept, _cosines(stored_ND, features_ND.astype(np.float64)), strict=True):
            result.min_cosine = min(result.min_cosine, cosine)
            if cosine < least_cosine_of(plan.spec.precision):
                result.different.append((row["key"], cosine))
    result.num_images += len(kept)


def _cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> list[float]:
    norms = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    same = (a_ND == b_ND).all(axis=1)
    cosines = np.where(same, 1.0, (a_ND * b_ND).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return [float(value) for value in cosines]
