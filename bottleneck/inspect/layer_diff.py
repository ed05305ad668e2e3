"""Measure how far the features of one layer are apart in two outputs."""

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NUM_NAMED = 5
"""Keys named per group of images; all are counted."""


# Cosines of features that should be equal crowd below 1, so bins are of their distance from it, each 1.5 % wider than
# the one before: from 1e-12 to 2 in 1,904 of them. Nearer to 1 than that is the first bin.
_EDGES = np.concatenate([[0.0], np.geomspace(1e-12, 2.0, 1904)])


@dataclass
class Group:
    """A group of images."""

    images: int = 0
    keys: list[str] = field(default_factory=list)
    """The first of them."""

    def add(self, keys: list[str]) -> None:
        self.images += len(keys)
        self.keys += keys[: NUM_NAMED - len(self.keys)]


class LayerDiff:
    """The differences of one layer's features."""

    def __init__(self, top: int, min_cosine: float) -> None:
        self.top, self.min_cosine = top, min_cosine
        self.images = self.equal = self.below = 0
        self.min, self._sum = 1.0, 0.0
        self.max_difference = self.max_relative_difference = 0.0
        self.worst: list[tuple[float, str]] = []
        """Cosine and key, smallest cosine first; not of images whose features are equal."""
        self._counts = np.zeros(len(_EDGES), np.int64)

    def add(self, keys: list[str], a_ND: np.ndarray, b_ND: np.ndarray) -> None:
        """Compare the features of some images.

        Args:
            a_ND, b_ND: float16 or float32, of the same images in the same order.
        """
        if not keys:
            return
        a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
        differences_N = np.abs(a_ND - b_ND).max(axis=1)
        equal_N = differences_N == 0
        squares_N = np.vecdot(a_ND, a_ND) * np.vecdot(b_ND, b_ND)
        cosines_N = np.vecdot(a_ND, b_ND) / np.sqrt(np.where(squares_N > 0, squares_N, np.inf))
        cosines_N = np.where(equal_N, 1.0, np.clip(cosines_N, -1, 1))
        largest_N = np.maximum(np.abs(a_ND).max(axis=1), np.abs(b_ND).max(axis=1))
        relative_N = differences_N / np.where(largest_N > 0, largest_N, 1.0)
        self.images += len(keys)
        self.equal += int(equal_N.sum())
        self.below += int((cosines_N < self.min_cosine).sum())
        self.min = min(self.min, float(cosines_N.min()))
        self._sum += float(cosines_N.sum())
        self.max_difference = max(self.max_difference, float(differences_N.max()))
        self.max_relative_difference = max(self.max_relative_difference, float(relative_N.max()))
        self._counts += np.bincount(np.searchsorted(_EDGES, 1 - cosines_N), minlength=len(_EDGES))
        differing = [(float(cosines_N[row]), keys[row]) for row in np.flatnonzero(~equal_N).tolist()]
        self.worst = heapq.nsmallest(self.top, [*self.worst, *differing])

    @property
    def mean(self) -> float:
        return self._sum / self.images

    def percentile(self, percent: float) -> float:
        """The cosine below which this share of images lies; its distance from 1 is accurate to 1.5 %."""
        # The largest distances are the smallest cosines, so counting starts at the far end.
        from_below = np.cumsum(self._counts[::-1])
        place = int(np.searchsorted(from_below, percent / 100 * self.images, side="right"))
        return max(self.min, 1.0 - float(_EDGES[len(_EDGES) - 1 - min(place, len(_EDGES) - 1)]))

    def to_json(self) -> dict[str, Any]:
        counts = {"images": self.images, "equal": self.equal, "below": self.below}
        if not self.images:  # all are rejected
            return counts
        return {
            **counts,
            "min": self.min,
            "percentile_1": self.percentile(1),
            "median": self.percentile(50),
            "mean": self.mean,
            "max_difference": self.max_difference,
            "max_relative_difference": self.max_relative_difference,
            "worst": [{"key": key, "cosine": cosine} for cosine, key in self.worst],
        }
