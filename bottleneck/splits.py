"""Which images a head is tested on, and the folds of the others: stratified, deterministic, copies on one side.

Images are dealt in the order of their bytes' sha256, so neither the order of the files nor the number of workers nor
chance decides; byte-identical images are dealt as one, whatever they are labelled.

Legend: N images, G groups of byte-identical images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import UsageError
from bottleneck.text import counted

HELD_OUT = -2
"""The fold of an image that no fit sees; folds themselves count from 0."""
NUM_NAMED = 5


@dataclass(frozen=True)
class Split:
    """The side of every image."""

    folds_N: np.ndarray
    """HELD_OUT, or 0 to the number of folds - 1 (all 0 without folds)."""
    copies: int
    """Images that are byte-identical to another."""
    conflicts: int
    """Groups of byte-identical images with different labels."""


def split(
    codes_N: np.ndarray, digests_N: np.ndarray, classes: Sequence[str], test_fraction: float, num_folds: int
) -> Split:
    """Deal images to a held-out part and folds.

    Args:
        codes_N: the class of every image as a number.
        digests_N: uint64, the first eight bytes of every image's sha256.
        test_fraction: share of each class that is held out, from 0 (nothing is) to below 1.
        num_folds: 1 where there is no cross-validation.

    Raises:
        UsageError: if a class has too few different images.
    """
    _, groups_N = np.unique(digests_N, return_inverse=True)
    num_groups = int(groups_N.max()) + 1
    sizes_G = np.bincount(groups_N, minlength=num_groups)
    # Of conflicting labels the smallest stands for the group; every image keeps its own.
    codes_G = np.full(num_groups, len(classes), np.int64)
    np.minimum.at(codes_G, groups_N, codes_N)
    largest_G = np.full(num_groups, -1, np.int64)
    np.maximum.at(largest_G, groups_N, codes_N)
    order_G = np.zeros(num_groups, np.uint64)
    order_G[groups_N] = digests_N
    _check_counts(np.bincount(codes_G, minlength=len(classes)), classes, test_fraction, num_folds)

    folds_G = np.zeros(num_groups, np.int64)
    by_class_G = np.lexsort((order_G, codes_G))
    starts = np.searchsorted(codes_G[by_class_G], np.arange(len(classes) + 1))
    for code in range(len(classes)):
        members = by_class_G[starts[code] : starts[code + 1]]
        before = np.cumsum(sizes_G[members]) - sizes_G[members]
        # At least one is tested, and at least one, or two to cross-validate, are left to be fitted on.
        allowed = len(members) - (1 if num_folds == 1 else 2)
        wanted = int((before < round(test_fraction * int(sizes_G[members].sum()))).sum())
        num_out = min(max(wanted, 1), allowed) if test_fraction else 0
        folds_G[members[:num_out]] = HELD_OUT
        left = members[num_out:]
        left = left[np.argsort(_mixed(order_G[left]), kind="stable")]
        before = np.cumsum(sizes_G[left]) - sizes_G[left]
        # Classes start at different folds, so that small ones do not all fill the first.
        folds_G[left] = (before * num_folds // int(sizes_G[left].sum()) + code) % num_folds
    conflicts = int((codes_G != largest_G).sum())
    return Split(folds_G[groups_N], int((sizes_G[groups_N] > 1).sum()), conflicts)


def _check_counts(counts_K: np.ndarray, classes: Sequence[str], test_fraction: float, num_folds: int) -> None:
    needed = (1 if num_folds == 1 else 2) + (1 if test_fraction else 0)
    # Two images of a class that is cross-validated are both fitted on; three give one to the test.
    needed = min(needed, 2)
    few = [f"{classes[code]} ({counts_K[code]})" for code in np.flatnonzero(counts_K < needed).tolist()]
    if few:
        named = ", ".join(few[:NUM_NAMED]) + (", ..." if len(few) > NUM_NAMED else "")
        count = counted(len(few), "class", "classes")
        raise UsageError(
            f"{count} with too few images to be split: {named}. Expected at least {needed} "
            "different ones of each class. Add images and extract with --extend, or leave the class out of the source; "
            "--test-fraction 0 with a single --c needs only one."
        )


def _mixed(digests: np.ndarray) -> np.ndarray:
    """Another order of the same digests (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = digests.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
