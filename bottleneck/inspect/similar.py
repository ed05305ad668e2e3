"""Find the images most similar to some: the exact cosine of every row, in flat memory.

Legend: N rows of a data file, B rows of a block, D features of the layer, Q vectors asked about, T images asked for.
"""

import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

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
    """Find the ok images whose features have the largest cosine to a vector, best first. As `nearest_of_each`."""
    return nearest_of_each(features, query_D[None], top, layer, on_images, without=[without])[0]


def nearest_of_each(
    features: Features,
    queries_QD: np.ndarray,
    top: int,
    layer: str | None = None,
    on_images: Callable[[int], None] = lambda images: None,
    *,
    without: Sequence[str | None] = (),
    copies_of: Sequence[bytes | None] = (),
) -> list[list[Neighbour]]:
    """Find for each of some vectors the ok images whose features have the largest cosine to it, best first.

    Every row is read, once for all vectors; memory holds a data file for each thread. Cosines are computed in float32
    (of stored float32 in float64), and those of the images found once more in float64.

    Args:
        queries_QD: any float dtype.
        top: how many, from 1 up; fewer come back where the dataset has fewer.
        layer: as in the spec; may be left out where there is only one.
        on_images: told how many images have been compared so far.
        without: for each vector the key of an image that is left out: the one asked about, which is most like itself.
        copies_of: for each vector the sha256 of an image whose copies are left out, whatever their keys.

    Raises:
        UsageError: for vectors of another length, or a layer that is not there.
        CorruptError: if a data file is damaged.
    """
    from threadpoolctl import threadpool_limits

    column = features.column(layer)
    dim = features.spec.dim_of(column)
    if queries_QD.shape[1:] != (dim,):
        raise UsageError(f"Expected a vector of the {dim:,} values of {column}. Received: {queries_QD.shape[1:]}.")
    wanted = top + 1 if any(without) else top
    in_bucket = features.plan.output.startswith("s3://")
    num_threads = max(count_cores(), BUCKET_THREADS if in_bucket else 1)
    best: list[list[_Place]] = [[] for _ in queries_QD]
    num_images = 0

    def search(number: int) -> tuple[int, list[list[_Place]]]:
        return _search(features, number, column, queries_QD, wanted, copies_of)

    # A product of one block is too small to be shared out by BLAS, whose threads would be in the way of these.
    with threadpool_limits(1), ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(features.files), FILES_AHEAD):
            for images, places in pool.map(search, range(start, min(start + FILES_AHEAD, len(features.files)))):
                best = [heapq.nsmallest(wanted, [*old, *new]) for old, new in zip(best, places, strict=True)]
                num_images += images
                on_images(num_images)
        found = _named(features, column, queries_QD, best, pool)
    own = without or [None] * len(found)
    return [[one for one in some if one.key != key][:top] for some, key in zip(found, own, strict=True)]


def features_of(features: Features, key: str, layer: str | None = None) -> np.ndarray | None:
    """The stored features_D of an image of the dataset; None if the key is not planned. Raises as `stored_image`."""
    found = stored_image(features, key, layer)
    return found and found[0]


def stored_image(features: Features, key: str, layer: str | None = None) -> tuple[np.ndarray, bytes] | None:
    """The stored features_D of an image of the dataset, and its sha256; None if the key is not planned.

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
    table = features.table(name, ["key", "reason", "sha256", column])
    keys = table.column("key").to_pylist()
    if key not in keys:
        raise CorruptError(f"{name} does not hold {key}, which the plan has there. Look with `bottleneck verify`.")
    row = table.slice(keys.index(key), 1)
    if reason := row.column("reason")[0].as_py():
        raise UsageError(f"{key} has no features: it was rejected as {reason}. Expected an image that is ok.")
    return vectors(row.column(column))[0], row.column("sha256")[0].as_py()


def cosines(features_ND: np.ndarray, query_D: np.ndarray) -> np.ndarray:
    """The cosine of every row to a vector; 0 if either is all zeros.

    A row's is the same wherever the row stands, so equal rows have equal cosines.
    """
    found_N: np.ndarray = _cosines(features_ND, query_D[None])[0]
    return found_N


def _cosines(features_ND: np.ndarray, queries_QD: np.ndarray) -> np.ndarray:
    # In either the square of the largest stored value is finite: 65,504 squared, and 3.4e38 squared.
    kind = np.float32 if features_ND.dtype == np.float16 else np.float64
    queries_QD = queries_QD.astype(np.float64)
    lengths_Q = np.sqrt(np.vecdot(queries_QD, queries_QD))
    units_QD = (queries_QD / np.where(lengths_Q > 0, lengths_Q, 1)[:, None]).astype(kind)
    cosines_QN = np.empty((len(queries_QD), len(features_ND)), kind)
    step = max(1, BLOCK_VALUES // max(1, features_ND.shape[1]))
    for start in range(0, len(features_ND), step):
        block_BD = features_ND[start : start + step].astype(kind)
        squares_B = np.vecdot(block_BD, block_BD)
        lengths_B = np.sqrt(np.where(squares_B > 0, squares_B, np.inf))
        for cosines_N, unit_D in zip(cosines_QN, units_QD, strict=True):
            cosines_N[start : start + step] = np.vecdot(block_BD, unit_D) / lengths_B
    np.clip(cosines_QN, -1, 1, out=cosines_QN)
    return cosines_QN


def _search(
    features: Features,
    number: int,
    column: str,
    queries_QD: np.ndarray,
    top: int,
    copies_of: Sequence[bytes | None],
) -> tuple[int, list[list[_Place]]]:
    """Count the images of one data file, and find the best for each vector."""
    table = features.table(features.files[number], [column, *(["sha256"] if any(copies_of) else [])])
    values = table.column(column)
    rows_N = np.flatnonzero(values.is_valid().to_numpy()) if values.null_count else np.arange(len(values))
    cosines_QN = _cosines(vectors(values), queries_QD)
    for cosines_N, digest in zip(cosines_QN, copies_of, strict=False):  # none where no copies are asked about
        if digest is not None:
            cosines_N[pc.equal(table.column("sha256"), digest).to_numpy()[rows_N]] = -np.inf
    places = []
    for cosines_N in cosines_QN:
        best_T = np.flatnonzero(cosines_N > -np.inf)
        if top < len(best_T):
            # All that are as good as the last one, so that of equals the first is chosen, wherever they stand.
            best_T = np.flatnonzero(cosines_N >= np.partition(cosines_N, -top)[-top])
        found = zip(cosines_N[best_T].tolist(), rows_N[best_T].tolist(), strict=True)
        places.append(heapq.nsmallest(top, [_Place(-cosine, number, row) for cosine, row in found]))
    return len(rows_N), places


def _named(
    features: Features, column: str, queries_QD: np.ndarray, best: list[list[_Place]], pool: ThreadPoolExecutor
) -> list[list[Neighbour]]:
    """Read keys and labels of the best only, each file once, and compute their cosines in float64."""
    of_file: dict[int, list[tuple[int, _Place]]] = {}
    for query, places in enumerate(best):
        for place in places:
            of_file.setdefault(place.file, []).append((query, place))

    def read(number: int) -> list[Neighbour]:
        rows = features.table(features.files[number], ["key", "label", column]).take(
            [place.row for _, place in of_file[number]]
        )
        found_ND = vectors(rows.column(column)).astype(np.float64)
        names = zip(rows.column("key").to_pylist(), rows.column("label").to_pylist(), strict=True)
        # Nine digits say all that float16 can tell apart, and make an image's cosine to itself 1.
        return [
            Neighbour(round(float(cosines(found_ND[row : row + 1], queries_QD[query])[0]), 9), *name)
            for row, ((query, _), name) in enumerate(zip(of_file[number], names, strict=True))
        ]

    named: list[list[tuple[float, _Place, Neighbour]]] = [[] for _ in best]
    numbers = sorted(of_file)
    for number, neighbours in zip(numbers, pool.map(read, numbers), strict=True):
        for (query, place), one in zip(of_file[number], neighbours, strict=True):
            named[query].append((-one.cosine, place, one))
    return [[one for *_, one in sorted(some, key=lambda found: (found[0], found[1][1:]))] for some in named]
