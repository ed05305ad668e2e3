"""Splits are stratified and deterministic, and keep byte-identical images on one side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.errors import UsageError
from bottleneck.splits import HELD_OUT, split


def digests(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def classes(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def test_every_class_has_its_share_everywhere() -> None:
    codes_N = np.repeat(np.arange(17), 80)
    sides = split(codes_N, digests(len(codes_N)), classes(17), 0.25, 3)
    for code in range(17):
        counts = {side: int((sides.folds_N[codes_N == code] == side).sum()) for side in (HELD_OUT, 0, 1, 2)}
        assert counts == {HELD_OUT: 20, 0: 20, 1: 20, 2: 20}


def test_the_order_of_images_does_not_matter() -> None:
    codes_N, digests_N = np.arange(400) % 5, digests(400)
    sides = split(codes_N, digests_N, classes(5), 0.25, 4).folds_N
    order = np.random.default_rng(1).permutation(400)
    np.testing.assert_array_equal(split(codes_N[order], digests_N[order], classes(5), 0.25, 4).folds_N, sides[order])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=30, max_size=200),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from([1, 2, 3, 5]),
)
def test_copies_are_on_one_side_whatever_their_labels(
    images: list[tuple[int, int]], fraction: float, num_folds: int
) -> None:
    """Many copies among few digests, labels in conflict."""
    codes_N = np.array([code for code, _ in images])
    digests_N = digests(41)[[number for _, number in images]]
    try:
        sides = split(codes_N, digests_N, classes(4), fraction, num_folds)
    except UsageError:
        return
    for digest in np.unique(digests_N):
        assert len(set(sides.folds_N[digests_N == digest])) == 1
    assert set(sides.folds_N) <= {HELD_OUT, *range(num_folds)}
    assert (sides.folds_N >= 0).any()
    if not fraction:
        assert (sides.folds_N >= 0).all()


def test_copies_and_conflicts_are_counted() -> None:
    digests_N = digests(40)
    digests_N[1] = digests_N[0]  # two labels
    digests_N[4] = digests_N[2]  # one label
    sides = split(np.arange(40) % 2, digests_N, classes(2), 0.25, 3)
    assert (sides.copies, sides.conflicts) == (4, 1)


def test_every_fold_leaves_every_class_something_to_be_fitted_on() -> None:
    codes_N = np.concatenate([np.zeros(50, int), [1, 1], [2, 2, 2]])
    sides = split(codes_N, digests(len(codes_N)), classes(3), 0.25, 3)
    for fold in range(3):
        seen = (sides.folds_N >= 0) & (sides.folds_N != fold)
        assert set(codes_N[seen]) == {0, 1, 2}
    assert (sides.folds_N[codes_N == 2] == HELD_OUT).sum() == 1


def test_a_class_of_one_image_is_named() -> None:
    codes_N = np.concatenate([np.zeros(10, int), [1]])
    with pytest.raises(UsageError, match=r"1 class .* class 1 \(1\)"):
        split(codes_N, digests(11), classes(2), 0.25, 3)
    digests_N = digests(12)
    digests_N[11] = digests_N[10]  # two copies are one image
    with pytest.raises(UsageError, match=r"class 1 \(1\)"):
        split(np.append(codes_N, 1), digests_N, classes(2), 0.25, 1)
    assert split(codes_N, digests(11), classes(2), 0.0, 1).folds_N.max() == 0
