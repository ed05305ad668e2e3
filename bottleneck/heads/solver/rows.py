"""The rows of one worker, converted block by block and gone through by several threads.

Features stay as they are stored: float16 takes half the memory of float32, and converting a block of it a twentieth of
the time of what is computed on it.

Legend: N rows, D features, P problems.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from bottleneck.heads.solver.losses import Problems
from bottleneck.heads.splits import HELD_OUT

BLOCK_VALUES = 500_000
"""Features or scores per block of rows, whichever are more: 4 MB in float64, about seven such arrays at a time."""
LEAST_ROWS = 256
"""Per block, as products of fewer rows are slower."""

Sums = list[np.ndarray]


@dataclass
class Rows:
    """The rows of one worker that problems see, and how to read them."""

    features_ND: np.ndarray
    """float16, float32 or float64, as stored; never changed."""
    class_indices_N: np.ndarray
    """Class indices."""
    folds_N: np.ndarray
    """The fold of a row; HELD_OUT for rows that no problem sees."""
    factors_N: np.ndarray | None = None
    """What each row is multiplied with: one over its length, where rows are scaled to length 1."""
    sample_weights_N: np.ndarray | None = None
    """What each row's loss is multiplied with; None where all rows count alike."""
    chosen_N: np.ndarray | None = field(init=False, default=None)
    """Of the features, the rows that are seen; None for all. The other arrays have only these."""

    def __post_init__(self) -> None:
        if (self.folds_N == HELD_OUT).any():
            self.chosen_N = np.flatnonzero(self.folds_N != HELD_OUT)
            self.class_indices_N, self.folds_N = self.class_indices_N[self.chosen_N], self.folds_N[self.chosen_N]
            for name in ("factors_N", "sample_weights_N"):
                values_N = getattr(self, name)
                setattr(self, name, None if values_N is None else values_N[self.chosen_N])

    def __len__(self) -> int:
        return len(self.class_indices_N)

    def block(self, part: slice, dtype: Any) -> np.ndarray:
        """A block of scaled rows."""
        block_ND = as_dtype(self.features_ND[part if self.chosen_N is None else self.chosen_N[part]], dtype)
        return block_ND if self.factors_N is None else block_ND * self.factors_N[part, None].astype(dtype)

    def copied(self, dtype: Any) -> "Rows":
        """The same rows, and only those that are seen, with features of another dtype."""
        features_ND = self.features_ND if self.chosen_N is None else self.features_ND[self.chosen_N]
        return Rows(
            features_ND.astype(dtype), self.class_indices_N, self.folds_N, self.factors_N, self.sample_weights_N
        )

    def weights(self, problems: Problems, part: slice) -> np.ndarray:
        """s [n, P] of a block of rows."""
        seen_NP = self.folds_N[part, None] != problems.left_out_P
        weights_NP: np.ndarray = seen_NP * problems.c_P * problems.class_weights_PK.T[self.class_indices_N[part]]
        if self.sample_weights_N is not None:
            weights_NP *= self.sample_weights_N[part, None]
        return weights_NP

    def summed(self, of_part: Callable[[slice], Sums], columns: int) -> Sums:
        """Sum what a function gives for blocks of rows, in as many threads as matrix products may take.

        Most of a pass is not matrix products, and those alone would have several threads.

        Args:
            columns: values a row besides its features.
        """
        size = max(LEAST_ROWS, BLOCK_VALUES // max(columns, self.features_ND.shape[1]))
        parts = [slice(start, start + size) for start in range(0, max(1, len(self)), size)]
        products = _products()
        num_threads = max((library["num_threads"] for library in products.info()), default=1)
        if num_threads == 1 or len(parts) < 2 * num_threads:
            return _summed(of_part, parts)
        runs = np.array_split(np.arange(len(parts)), num_threads)
        shares = [parts[run[0] : run[-1] + 1] for run in runs]
        with products.limit(limits=1), ThreadPoolExecutor(num_threads) as pool:
            return _added(list(pool.map(partial(_summed, of_part), shares)))


@cache
def _products() -> Any:
    """The libraries that numpy multiplies matrices with; finding them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _summed(of_part: Callable[[slice], Sums], parts: list[slice]) -> Sums:
    sums = of_part(parts[0])
    for part in parts[1:]:
        for total, one in zip(sums, of_part(part), strict=True):
            total += one
    return sums


def _added(shares: list[Sums]) -> Sums:
    return [sum(own[1:], own[0]) for own in zip(*shares, strict=True)]


def as_dtype(features_ND: np.ndarray, dtype: Any) -> np.ndarray:
    """Convert finite features; the same array where it has this dtype.

    numpy converts float16 value by value. Shifting a value's bits to where float32 has them leaves an exponent that is
    112 too small, and multiplying mends that exactly, also for subnormal values.
    """
    if features_ND.dtype != np.float16:
        return features_ND.astype(dtype, copy=False)
    bits_ND = features_ND.view(np.int16).astype(np.int32)
    bits_ND <<= 13
    bits_ND &= np.int32(-0x70000001)  # the sign was copied into what are bits of the exponent now
    values_ND = bits_ND.view(np.float32)
    values_ND *= np.float32(2.0**112)
    return values_ND.astype(dtype, copy=False)
