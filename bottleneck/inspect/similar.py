"""Find the images most similar to one: the exact cosine of every row, in flat memory.

Legend: N rows of a data file, B rows of a block, D features of the layer, T images asked for.
"""

import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bottleneck.cores import count_cores
from bottleneck.dataset.features import Features, vectors
from bottleneck.errors import CorruptError, UsageError

BLOCK_VALUES = 1 << 18
"""Converted at once: 1 MB of float32, which stays in a core's cache while it is used three times."""
FILES_AHEAD = 512
"""Files handed to the threads at a time, so that a large dataset is never a list of tasks."""
BUCKET_THREADS = 8
"""Concurrent reads of a bucket; a disk needs no more threads than cores."""


@dataclass(frozen=True)
class Neighbour:
    """A similar image."""

    cosine: float
    """From -1 to 1; 0 if either is all zeros."""
    key: str
    label: str | None


class _Place(NamedTuple):
    """The position of a candidate; of equals the first in the dataset wins."""

    distance: float
    file: int
    row: int


def nearest(
    features: Features,
    query_D: np.ndarray,
    top: int,
    layer: str | None = None,
    on_images: Callable[[int], None] = lambda images: None,
    *,
    without: str | None = None,
) -> list[Neighbour]:
    """Find the ok images whose features have the largest cosine to a vector, best first.

    Every row is read; memory holds a data file for each thread. Cosines are computed in float32 (of stored float32 in
    float64), and those of the images found once more in float64.

    Args:
        query_D: any float dtype.
        top: how many, from 1 up; fewer come back where the dataset has fewer.
        layer: as in the spec; may be left out where there is only one.
        on_images: told how many images have been compared so far.
        without: the key of an image that is left out: the one asked about, which is most like itself.

    Raises:
        UsageError: for a vector of another length, or a layer that is not there.
        CorruptError: if a data file is damaged.
    """
    from threadpoolctl import threadpool_limits

    column = features.column(layer)
    dim = features.spec.dim_of(column)
    if query_D.shape != (dim,):
        raise UsageError(f"Expected a vector of the {dim:,} values of {column}. Received: {query_D.shape}.")
    wanted = top if without is None else top + 1
    in_bucket = features.plan.output.startswith("s3://")
    num_threads = max(count_cores(), BUCKET_THREADS if in_bucket else 1)
    best: list[_Place] = []
    num_images = 0

    def search(number: int) -> tuple[int, list[_Place]]:
        return _search(features, number, column, query_D, wanted)

    # A product of one block is too small to be shared out by BLAS, whose threads would be in the way of these.
    with threadpool_limits(1), ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(features.files), FILES_AHEAD):
            for images, places in pool.map(search, range(start, min(start + FILES_AHEAD, len(features.files)))):
                best = heapq.nsmallest(wanted, itertools.chain(best, places))
                num_images += images
                on_images(num_images)
        found = _named(features, column, query_D, best)
    return [one for one in found if one.key != without][:top]


def features_of(features: Features, key: str, layer: str | None = None) -> np.ndarray | None:
    """The stored features_D of an image of the dataset; None if the key is not planned.

    Raises:
        UsageError: if the image was rejected, or its shard is not extracted yet.
    """
    column = features.column(layer)
    found = features.plan.find([key])
    if key not in found:
        return None
    shard, _ = found[key]
    name = features.plan.data_name(shard)
    if name not in features.files:
        raise UsageError(f"{key} has no features yet: its shard {shard} is not done. Run `bottleneck extract` again.")
    table = features.table(name, ["key", "reason", column])
    keys = table.column("key").to_pylist()
    if key not in keys:
        raise CorruptError(f"{name} does not hold {key}, which the plan has there. Look with `bottleneck verify`.")
    row = table.slice(keys.index(key), 1)
    if reason := row.column("reason")[0].as_py():
        raise UsageError(f"{key} has no features: it was rejected as {reason}. Expected an image that is ok.")
    found_D: np.ndarray = vectors(row.column(column))[0]
    return found_D


def cosines(features_ND: np.ndarray, query_D: np.ndarray) -> np.ndarray:
    """The cosine of every row to a vector; 0 if either is all zeros.

    A row's is the same wherever the row stands, so equal rows have equal cosines.
    """
    # In either the square of the largest stored value is finite: 65,504 squared, and 3.4e38 squared.
    kind = np.float32 if features_ND.dtype == np.float16 else np.float64
    query_D = query_D.astype(np.float64)
    length = np.sqrt(np.vecdot(query_D, query_D))
    unit_D = (query_D / length if length > 0 else query_D).astype(kind)
    cosines_N = np.empty(len(features_ND), kind)
    step = max(1, BLOCK_VALUES // max(1, features_ND.shape[1]))
    for start in range(0, len(features_ND), step):
        block_BD = features_ND[start : start + step].astype(kind)
        squares_B = np.vecdot(block_BD, block_BD)
        lengths_B = np.sqrt(np.where(squares_B > 0, squares_B, np.inf))
        cosines_N[start : start + step] = np.vecdot(block_BD, unit_D) / lengths_B
    np.clip(cosines_N, -1, 1, out=cosines_N)
    return cosines_N


def _search(features: Features, number: int, column: str, query_D: np.ndarray, top: int) -> tuple[int, list[_Place]]:
    """Count the images of one data file, and find the best."""
    values = features.table(features.files[number], [column]).column(column)
    cosines_N = cosines(vectors(values), query_D)
    best_T = np.arange(len(cosines_N))
    if top < len(cosines_N):
        # All that are as good as the last one, so that of equals the first is chosen, wherever they stand.
        best_T = np.flatnonzero(cosines_N >= np.partition(cosines_N, -top)[-top])
    rows_N = np.flatnonzero(values.is_valid().to_numpy()) if values.null_count else None
    places = [
        _Place(-float(cosines_N[one]), number, int(one if rows_N is None else rows_N[one])) for one in best_T.tolist()
    ]
    return len(cosines_N), heapq.nsmallest(top, places)


def _named(features: Features, column: str, query_D: np.ndarray, places: list[_Place]) -> list[Neighbour]:
    """Read keys and labels of the best only, and compute their cosines in float64."""
    found: dict[_Place, Neighbour] = {}
    for number in sorted({place.file for place in places}):
        table = features.table(features.files[number], ["key", "label", column])
        own = [place for place in places if place.file == number]
        rows = table.take([place.row for place in own])
        # Nine digits say all that float16 can tell apart, and make an image's cosine to itself 1.
        exact = np.round(cosines(vectors(rows.column(column)).astype(np.float64), query_D), 9)
        names = zip(exact.tolist(), rows.column("key").to_pylist(), rows.column("label").to_pylist(), strict=True)
        found |= {place: Neighbour(*name) for place, name in zip(own, names, strict=True)}
    return [found[place] for place in sorted(places, key=lambda place: (-found[place].cosine, place[1:]))]
