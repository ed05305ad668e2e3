"""What the folds of the best C say of the images they left out, and the temperature that follows.

Legend: N images, D features, K classes (one column of scores where there are two).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from bottleneck.heads.solver.worker import Worker

NUM_ROWS = 4096
"""Images whose scores are in memory at once."""
LARGEST_POWER = 1.0
"""Of ten: a logistic head is made at most ten times as sharp. An optimum beyond is that of folds without an error,
whose log loss only falls with sharpness."""
LEAST_GAIN = 0.01
"""Share of the log loss that a temperature must save."""
LEAST_NATS = 3.32
"""Log loss, summed over the images, that it must save: the likelihood ratio test of one parameter at 99 %, 6.63 / 2."""


@dataclass(frozen=True)
class OutOfFold:
    """Scores of the fitted images by the models that have not seen them.

    Where one worker solves a fold, these are the scores; where images stay with their workers, the models.
    """

    scores_NK: np.ndarray | None = None
    """float32, of the fitted images in their order."""
    models: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Weights [D, K] and intercepts [K] by the fold that they have not seen."""

    def by_worker(self, folds: Sequence[np.ndarray]) -> list[Self]:
        """The part of each worker.

        Args:
            folds: of each worker's images.
        """
        if self.scores_NK is None:
            return [self] * len(folds)
        ends = np.cumsum([int((folds_N >= 0).sum()) for folds_N in folds])
        return [type(self)(part_NK) for part_NK in np.split(self.scores_NK, ends[:-1])]

    def blocks(self, worker: Worker) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield numbers of the worker's fitted images and their scores [n, K]; this must be the worker's part."""
        if self.scores_NK is not None:
            rows_N = np.flatnonzero(worker.folds_N >= 0)
            for start in range(0, len(rows_N), NUM_ROWS):
                part = slice(start, start + NUM_ROWS)
                yield rows_N[part], self.scores_NK[part]
        for fold, (weights_DK, intercepts_K) in self.models.items():
            yield from worker.left_out_scores(weights_DK, intercepts_K, fold)


def worthwhile(temperature: float, before: float, after: float) -> float:
    """The temperature of a logistic head: the best one if it lowers the log loss of the folds noticeably, else 1.

    Args:
        temperature: the factor of the scores with the least log loss, up to LARGEST_POWER.
        before, after: the summed log loss without and with it.
    """
    is_inside = math.log10(temperature) < 0.99 * LARGEST_POWER
    return temperature if is_inside and before - after >= max(LEAST_GAIN * before, LEAST_NATS) else 1.0
