"""Count how many images a head answers if it may leave some undecided, and how many rightly.

A head that leaves an image undecided where its top probability is below a threshold is right more often on the rest
(Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017).

Legend: N images, B bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_BINS_A_BIT = 16
NUM_BITS = 24
"""Top probabilities up to 1 - 2^-24 are told apart: float32 knows none between that and 1."""
NUM_DOUBT_BINS = NUM_BINS_A_BIT * NUM_BITS
"""Bins of equal width in bits of doubt, -log2(1 - p): as fine near 1, where most images are, as near 0.5."""


class CoveragePoint(NamedTuple):
    """What answering only the surest images is worth."""

    threshold: float
    """The least top probability of an image that is answered."""
    coverage: float
    """Share of the images that are answered."""
    accuracy: float
    """Share of those that are answered rightly."""


def doubt_bins(top_probabilities_N: np.ndarray) -> np.ndarray:
    """The bin of each top probability, from 0 (in most doubt) to NUM_DOUBT_BINS - 1."""
    doubt_N = np.maximum(1 - top_probabilities_N, 2.0**-NUM_BITS)
    found_N: np.ndarray = np.floor(-np.log2(doubt_N) * NUM_BINS_A_BIT).astype(np.int64)
    return found_N.clip(0, NUM_DOUBT_BINS - 1)


def coverage_curve(counts_B: Sequence[int], correct_B: Sequence[int]) -> list[CoveragePoint]:
    """The points of the curve, from the surest images alone to all of them.

    Args:
        counts_B, correct_B: images by `doubt_bins`, and those answered rightly.
    """
    answered_B, right_B = np.cumsum(counts_B[::-1]), np.cumsum(correct_B[::-1])
    thresholds_B = 1 - 2.0 ** (-np.arange(NUM_DOUBT_BINS) / NUM_BINS_A_BIT)
    return [
        CoveragePoint(float(threshold), float(answered / answered_B[-1]), float(right / answered))
        for threshold, answered, right, own in zip(thresholds_B[::-1], answered_B, right_B, counts_B[::-1], strict=True)
        if own
    ]
