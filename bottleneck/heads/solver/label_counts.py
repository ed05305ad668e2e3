"""Count what was predicted for images with several labels each, in flat memory.

Legend: N images, L labels, K sets of labels that images have, B bins of scores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.heads.request import Metric
from bottleneck.heads.solver.metrics import Counts

BINS_PER_UNIT = 64
"""Of log odds: a probability of a half is known to 0.004, a smaller or larger one better."""
NUM_BINS = 4096
"""From -32 to 32, beyond which a probability differs from 0 or 1 by 1e-14."""


AnyCounts = Any
"""Counts or LabelCounts; those of one fit are all of one kind, and added up."""


def bins_of(scores: np.ndarray) -> np.ndarray:
    """The bins of log odds: that of 0 is NUM_BINS / 2, and each holds its lower edge."""
    bins: np.ndarray = np.clip(np.floor(scores * BINS_PER_UNIT) + NUM_BINS // 2, 0, NUM_BINS - 1).astype(np.int64)
    return bins


def lower_edges(bins: np.ndarray) -> np.ndarray:
    """The least log odds of each bin."""
    edges: np.ndarray = (bins - NUM_BINS // 2) / BINS_PER_UNIT
    return edges


@dataclass(frozen=True)
class LabelCounts:
    """Histograms of the log odds of every label, for the images that have it and for those that do not."""

    with_LB: np.ndarray
    """int64, images that have the label."""
    without_LB: np.ndarray
    images: int
    log_loss: float
    """Sum over images and labels of minus the log probability of what is true."""

    @classmethod
    def of(cls, scores_NL: np.ndarray, has_label_NL: np.ndarray) -> "LabelCounts":
        """Count a batch.

        Args:
            scores_NL: log odds.
            has_label_NL: bool, the truth.
        """
        num_labels = scores_NL.shape[1]
        places_NL = bins_of(scores_NL) + NUM_BINS * np.arange(num_labels)
        size = num_labels * NUM_BINS
        with_LB = np.bincount(places_NL[has_label_NL], minlength=size).reshape(num_labels, NUM_BINS)
        without_LB = np.bincount(places_NL[~has_label_NL], minlength=size).reshape(num_labels, NUM_BINS)
        losses_NL = np.logaddexp(0, np.where(has_label_NL, -scores_NL, scores_NL))
        return cls(with_LB, without_LB, len(scores_NL), float(losses_NL.sum()))

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        return LabelCounts(
            self.with_LB + other.with_LB,
            self.without_LB + other.without_LB,
            self.images + other.images,
            self.log_loss + other.log_loss,
        )

    @property
    def support_L(self) -> np.ndarray:
        """Images that have each label."""
        support_L: np.ndarray = self.with_LB.sum(axis=1)
        return support_L

    @property
    def average_precision_L(self) -> np.ndarray:
        """scikit-learn's average_precision_score of each label, of scores that are equal within a bin; NaN without an
        image that has the label."""
        hits_LB, predicted_LB = self._from_above()
        precision_LB = hits_LB / np.maximum(predicted_LB, 1)
        reversed_LB = self.with_LB[:, ::-1]
        with np.errstate(invalid="ignore"):
            average_L: np.ndarray = (precision_LB * reversed_LB).sum(axis=1) / self.support_L
        return average_L

    def score(self, metric: Metric) -> float:
        """`average_precision` and `macro_f1` are means over the labels that images have; `log_loss` over images and
        labels."""
        if metric == "log_loss":
            return self.log_loss / max(self.images * len(self.with_LB), 1)
        there_L = self.support_L > 0
        if metric == "macro_f1":
            return float(self.f1(np.zeros(len(self.with_LB)))[there_L].mean()) if there_L.any() else 0.0
        return float(self.average_precision_L[there_L].mean()) if there_L.any() else 0.0

    def hits(self, thresholds_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images that are rightly given each label, and all that are given it.

        Args:
            thresholds_L: log odds from which a label is predicted, lower edges of bins.
        """
        is_above_LB = np.arange(NUM_BINS) >= bins_of(thresholds_L)[:, None]
        hits_L = (self.with_LB * is_above_LB).sum(axis=1)
        return hits_L, hits_L + (self.without_LB * is_above_LB).sum(axis=1)

    def f1(self, thresholds_L: np.ndarray) -> np.ndarray:
        """scikit-learn's f1_score of each label; 0 where it is neither there nor predicted."""
        hits_L, predicted_L = self.hits(thresholds_L)
        f1_L: np.ndarray = 2 * hits_L / np.maximum(predicted_L + self.support_L, 1)
        return f1_L

    def best_thresholds(self) -> np.ndarray:
        """The log odds [L] with the largest F1 of each label: between the two images that they divide, so that
        neither is at the edge. 0 for a label that no image has."""
        hits_LB, predicted_LB = self._from_above()
        f1_LB = 2 * hits_LB / np.maximum(predicted_LB + self.support_L[:, None], 1)
        best_L = f1_LB.argmax(axis=1)
        filled_LB = (self.with_LB + self.without_LB)[:, ::-1] > 0
        thresholds_L = np.zeros(len(best_L))
        for label, best in enumerate(best_L.tolist()):
            if not self.support_L[label]:
                continue
            below = np.flatnonzero(filled_LB[label, best + 1 :])
            gap = int(below[0]) if len(below) else 0
            thresholds_L[label] = lower_edges(np.array(NUM_BINS - 1 - best - gap // 2))
        return thresholds_L

    def _from_above(self) -> tuple[np.ndarray, np.ndarray]:
        """Images with the label, and all, that have a score in a bin or above it, from the highest bin down."""
        hits_LB = self.with_LB[:, ::-1].cumsum(axis=1)
        return hits_LB, hits_LB + self.without_LB[:, ::-1].cumsum(axis=1)


def counts_of(scores_NK: np.ndarray, class_indices_N: np.ndarray, has_label_KL: np.ndarray | None) -> AnyCounts:
    """Count a batch of images of one class each, or of one set of labels each."""
    if has_label_KL is None:
        return Counts.of(scores_NK, class_indices_N)
    return LabelCounts.of(scores_NK, has_label_KL[class_indices_N])
