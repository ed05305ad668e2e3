"""Find held-out images that have a near copy among the fitted ones.

Such as a resized or recompressed image, or the next frame of a film. Byte-identical images are kept together by the
split; these are not, and flatter the accuracy. Every held-out image is compared with every fitted one.

Legend: H held-out images, F fitted ones, D features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bottleneck.heads.solver.protocol import Workers, total
from bottleneck.heads.solver.rows import as_dtype
from bottleneck.heads.solver.worker import Worker
from bottleneck.heads.splits import HELD_OUT

NEAR_COSINE = 0.99
"""Of features: above it two images are near copies."""
MAX_PRODUCTS = 1_000_000_000_000
"""Multiplications a worker is asked for, which take 10 to 20 seconds on two cores: 25,000 by 75,000 images of 512
dimensions. Larger comparisons are left out."""
NUM_ROWS = 2048
"""Images of either kind that are compared at once: their products take 16 MB in float32."""
BLOCK_VALUES = 8_000_000
"""Features of them at once: 32 MB."""


class NearCopies(NamedTuple):
    """What was found."""

    is_near: list[np.ndarray]
    """For each worker, bool for its held-out images: whether any fitted one is a near copy."""
    pairs: int


def find_near_copies(workers: Workers, folds: Sequence[np.ndarray], dim: int) -> NearCopies | None:
    """Compare the held-out images with the fitted ones, in blocks of bounded memory.

    Args:
        folds: of each worker's images.
        dim: D of the features.

    Returns:
        None where none is held out, or the comparison would take too long (MAX_PRODUCTS).
    """
    counts = [int((folds_N == HELD_OUT).sum()) for folds_N in folds]
    num_fitted = sum(int((folds_N >= 0).sum()) for folds_N in folds)
    if not sum(counts) or sum(counts) * num_fitted * dim > MAX_PRODUCTS * workers.size:
        return None
    found: list[list[np.ndarray]] = [[] for _ in counts]
    size = _rows_at_once(dim)
    for start in range(0, max(counts), size):
        handles = workers.ask(share_held_out, start, start + size)
        near_H = total(workers.ask(count_near, handles))
        ends = np.cumsum([max(0, min(count - start, size)) for count in counts])
        for own, part in zip(found, np.split(near_H, ends[:-1]), strict=True):
            own.append(part)
    near = [np.concatenate(parts) for parts in found]
    return NearCopies([one > 0 for one in near], int(sum(one.sum() for one in near)))


def share_held_out(worker: Worker, start: int, end: int) -> Any:
    """A handle with which other workers read some of this one's held-out images, scaled to length 1."""
    return worker.publish(
        _unit(as_dtype(worker.features_ND[np.flatnonzero(worker.folds_N == HELD_OUT)[start:end]], np.float32))
    )


def count_near(worker: Worker, handles: list[Any]) -> np.ndarray:
    """How many of this worker's fitted images are near copies of each held-out image behind the handles."""
    fitted = np.flatnonzero(worker.folds_N >= 0)
    size = _rows_at_once(worker.features_ND.shape[1])
    counts = []
    for handle in handles:
        held_HD = worker.fetch(handle)
        near_H = np.zeros(len(held_HD), np.int64)
        for start in range(0, len(fitted) if len(held_HD) else 0, size):
            block_FD = _unit(as_dtype(worker.features_ND[fitted[start : start + size]], np.float32))
            near_H += np.count_nonzero(held_HD @ block_FD.T > NEAR_COSINE, axis=1)
        counts.append(near_H)
    return np.concatenate(counts)


def _rows_at_once(dim: int) -> int:
    return max(1, min(NUM_ROWS, BLOCK_VALUES // dim))


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    """Rows in float32, scaled to length 1; rows of zeros, which are like nothing, stay."""
    lengths_N = np.sqrt(np.einsum("nd,nd->n", rows_ND, rows_ND, dtype=np.float64))
    result_ND: np.ndarray = (rows_ND / np.where(lengths_N == 0, 1, lengths_N)[:, None]).astype(np.float32)
    return result_ND
