"""Splits are stratified and deterministic, and keep byte-identical images on one side."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.errors import UsageError
from bottleneck.heads.splits import HELD_OUT, SplitRule, split


def digests(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def classes(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def test_every_class_has_its_share_everywhere() -> None:
    class_indices_N = np.repeat(np.arange(17), 80)
    sides = split(class_indices_N, digests(len(class_indices_N)), classes(17), 0.25, 3)
    for code in range(17):
        counts = {side: int((sides.folds_N[class_indices_N == code] == side).sum()) for side in (HELD_OUT, 0, 1, 2)}
        assert counts == {HELD_OUT: 20, 0: 20, 1: 20, 2: 20}


def test_the_order_of_images_does_not_matter() -> None:
    class_indices_N, digests_N = np.arange(400) % 5, digests(400)
    sides = split(class_indices_N, digests_N, classes(5), 0.25, 4).folds_N
    order = np.random.default_rng(1).permutation(400)
    np.testing.assert_array_equal(
        split(class_indices_N[order], digests_N[order], classes(5), 0.25, 4).folds_N, sides[order]
    )


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
    class_indices_N = np.array([code for code, _ in images])
    digests_N = digests(41)[[number for _, number in images]]
    try:
        sides = split(class_indices_N, digests_N, classes(4), fraction, num_folds)
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
    class_indices_N = np.concatenate([np.zeros(50, int), [1, 1], [2, 2, 2]])
    sides = split(class_indices_N, digests(len(class_indices_N)), classes(3), 0.25, 3)
    for fold in range(3):
        seen = (sides.folds_N >= 0) & (sides.folds_N != fold)
        assert set(class_indices_N[seen]) == {0, 1, 2}
    assert (sides.folds_N[class_indices_N == 2] == HELD_OUT).sum() == 1


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 12)), min_size=8, max_size=120),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from([1, 2, 3, 5]),
    st.booleans(),
)
def test_whatever_is_split_can_be_fitted_fold_by_fold(
    images: list[tuple[int, int, int]], fraction: float, num_folds: int, grouped: bool
) -> None:
    """No fold is empty, none has all images of a class, and copies and groups stay whole."""
    class_indices_N, numbers_N, groups_N = (np.array(values) for values in zip(*images, strict=True))
    class_indices_N = np.unique(class_indices_N, return_inverse=True)[1]
    digests_N, num_classes = digests(31)[numbers_N], int(class_indices_N.max()) + 1
    groups_N = groups_N if grouped else None  # type: ignore[assignment]
    try:
        sides = split(class_indices_N, digests_N, classes(num_classes), fraction, num_folds, groups_N=groups_N)
    except UsageError as error:
        assert "too few" in str(error) or num_folds > 1  # noqa: PT017
        return
    fitted_N = sides.folds_N >= 0
    assert set(sides.folds_N[fitted_N]) == set(range(num_folds))
    for code in range(num_classes):
        assert len(set(sides.folds_N[fitted_N & (class_indices_N == code)])) >= min(num_folds, 2)
    for same_N in (digests_N, *([groups_N] if grouped else [])):
        for value in np.unique(same_N):
            assert len(set(sides.folds_N[same_N == value])) == 1


def test_more_folds_than_images_are_told() -> None:
    class_indices_N = np.array([0, 0, 1, 1])
    with pytest.raises(UsageError, match=r"`folds` 5 needs as many different images .* There are 4"):
        split(class_indices_N, digests(4), classes(2), 0.0, 5)
    assert set(split(class_indices_N, digests(4), classes(2), 0.0, 4).folds_N) == {0, 1, 2, 3}


def test_a_class_does_not_lie_wholly_in_one_fold() -> None:
    """Of its two images one has 99 copies, which would leave both in the first fold."""
    class_indices_N = np.repeat([0, 1], [60, 100])
    digests_N = np.concatenate([digests(60), np.repeat(digests(2, seed=1), [99, 1])])
    folds_N = split(class_indices_N, digests_N, classes(2), 0.0, 3).folds_N
    assert len(set(folds_N[class_indices_N == 1])) == 2


def test_groups_of_all_classes_are_dealt_in_shares() -> None:
    rng = np.random.default_rng(0)
    class_indices_N, groups_N = rng.integers(0, 7, 4000), rng.integers(0, 100, 4000)
    sides = split(class_indices_N, digests(4000), classes(7), 0.25, 3, groups_N=groups_N)
    shares = [(sides.folds_N == side).mean() for side in (HELD_OUT, 0, 1, 2)]
    np.testing.assert_allclose(shares, 0.25, atol=0.05)
    assert sides.num_groups == 100
    order = rng.permutation(4000)
    again = split(class_indices_N[order], digests(4000)[order], classes(7), 0.25, 3, groups_N=groups_N[order])
    np.testing.assert_array_equal(again.folds_N, sides.folds_N[order])


def test_groups_that_make_a_fold_impossible_are_told() -> None:
    class_indices_N = np.arange(60) % 2
    with pytest.raises(UsageError, match=r"Expected at least 2 groups of images of each class"):
        split(class_indices_N, digests(60), classes(2), 0.0, 3, groups_N=class_indices_N)
    with pytest.raises(UsageError, match=r"`folds` 3 needs as many groups of images .* There are 2"):
        split(class_indices_N, digests(60), classes(2), 0.0, 3, groups_N=class_indices_N // 2 + np.arange(60) // 30)


def test_named_tests_are_held_out_with_their_copies() -> None:
    class_indices_N, digests_N = np.arange(60) % 3, digests(60)
    digests_N[3] = digests_N[57]
    tests_N = np.arange(60) >= 50
    sides = split(class_indices_N, digests_N, classes(3), 0.0, 3, tests_N=tests_N)
    np.testing.assert_array_equal(sides.folds_N == HELD_OUT, tests_N | (np.arange(60) == 3))
    assert sides.num_moved == 1
    with pytest.raises(UsageError, match=r"class 2 \(1\).* of each class outside `test_keys`"):
        split(class_indices_N, digests(60), classes(3), 0.0, 3, tests_N=(class_indices_N == 2) & (np.arange(60) > 2))


def rows(keys: list[str], **columns: list[Any]) -> pa.Table:
    return pa.table({"key": keys, "sha256": [hashlib.sha256(key.encode()).digest() for key in keys], **columns})


KEYS = ["train/a_1.jpg", "train/a_2.jpg", "train/b_1.jpg", "test/c_1.jpg", "odd.jpg"]


def test_a_rule_finds_tests_and_groups() -> None:
    def rule(**fields: Any) -> SplitRule:
        return SplitRule(test_fraction=0.25, num_folds=3, **fields)

    traits = rule(test_keys=("test/*", "odd.*")).traits(rows(KEYS))
    assert (traits.tests_N.tolist(), traits.num_matches.tolist()) == ([False] * 3 + [True] * 2, [1, 1])
    for pattern in (r"/(.)_", r"[abc](?=_)"):
        found = rule(group_by=pattern).traits(rows(KEYS))
        groups = found.groups_N.tolist()
        assert groups[0] == groups[1] != groups[2]
        assert (len(set(groups)), found.num_ungrouped, groups[4]) == (4, 1, found.digests_N[4])
    by_column = rule(group_by="width").traits(rows(KEYS, width=[1, 1, 2, 2, None]))
    assert len(set(by_column.groups_N.tolist())) == 3
    whole = rule(group_by="width", test_keys=("x*",))
    assert SplitRule.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"test_keys": ("tset/*",)}, r"`test_keys` tset/\* matches none of the 5 labelled images"),
        ({"test_keys": ("test/*", "nothing")}, r"`test_keys` nothing matches none"),
        ({"test_keys": ("t*", "odd*")}, r"`test_keys` t\* odd\* matches all 5 labelled images"),
        ({"group_by": "lable"}, r"`group_by` takes a regular expression .* Received: lable, which gives none"),
    ],
)
def test_rules_that_fit_no_or_all_images_are_told(fields: dict[str, Any], words: str) -> None:
    rule = SplitRule(test_fraction=0.25, num_folds=3, **fields)
    with pytest.raises(UsageError, match=words):
        rule.check(rule.traits(rows(KEYS)))


def test_a_class_of_one_image_is_named() -> None:
    class_indices_N = np.concatenate([np.zeros(10, int), [1]])
    with pytest.raises(UsageError, match=r"1 class .* class 1 \(1\)"):
        split(class_indices_N, digests(11), classes(2), 0.25, 3)
    digests_N = digests(12)
    digests_N[11] = digests_N[10]  # two copies are one image
    with pytest.raises(UsageError, match=r"class 1 \(1\)"):
        split(np.append(class_indices_N, 1), digests_N, classes(2), 0.25, 1)
    assert split(class_indices_N, digests(11), classes(2), 0.0, 1).folds_N.max() == 0
