"""Held-out images with a near copy among the fitted ones: all of them, in blocks, from any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from crew import Crew

from bottleneck.heads import near_copies
from bottleneck.heads.near_copies import NEAR_COSINE, find_near_copies
from bottleneck.heads.solver.worker import Worker
from bottleneck.heads.splits import HELD_OUT
from jobs.fit_findings import near_copies_note


def images(num_images: int, dim: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Features of which every third is near another, of any length and one of them zeros, and folds."""
    rng = np.random.default_rng(0)
    features_ND = np.abs(rng.standard_normal((num_images, dim)))
    others = rng.integers(0, num_images, num_images // 3)
    noise_ND = rng.uniform(0, 0.3, (len(others), 1)) * rng.standard_normal((len(others), dim))
    features_ND[: len(others)] = features_ND[others] * 3 + noise_ND
    features_ND[5] = 0
    folds_N = np.where(rng.random(num_images) < 0.3, HELD_OUT, rng.integers(0, 3, num_images))
    return features_ND.astype(dtype), folds_N


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("dim", [12, 200])
def test_all_pairs_are_found(num_workers: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "NUM_ROWS", 7)
    monkeypatch.setattr(near_copies, "BLOCK_VALUES", 1000)
    features_ND, folds_N = images(120, dim)
    workers = []
    for part_ND, part_N in zip(
        np.array_split(features_ND, num_workers), np.array_split(folds_N, num_workers), strict=True
    ):
        workers.append(Worker())
        workers[-1].hold(part_ND)
        workers[-1].place(np.zeros(len(part_N), int), part_N, "none")
    found = find_near_copies(Crew(workers), [worker.folds_N for worker in workers], dim)
    exact_ND = features_ND.astype(np.float64)
    unit_ND = exact_ND / np.maximum(np.linalg.norm(exact_ND, axis=1, keepdims=True), 1e-300)
    near_HF = unit_ND[folds_N == HELD_OUT] @ unit_ND[folds_N >= 0].T > NEAR_COSINE
    assert found is not None
    assert list(np.concatenate(found.is_near)) == list(near_HF.any(axis=1))
    assert found.pairs == near_HF.sum()
    assert 0 < near_HF.any(axis=1).sum() < len(near_HF)


def test_a_comparison_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, folds_N = images(50, 8)
    worker = Worker()
    worker.hold(features_ND)
    worker.place(np.zeros(50, int), folds_N, "none")
    assert find_near_copies(Crew([worker]), [folds_N], 8) is not None
    monkeypatch.setattr(near_copies, "MAX_PRODUCTS", int((folds_N == HELD_OUT).sum() * (folds_N >= 0).sum()) * 8 - 1)
    assert find_near_copies(Crew([worker]), [folds_N], 8) is None


def test_without_held_out_images_there_is_nothing_to_compare() -> None:
    assert find_near_copies(Crew([Worker()]), [np.zeros(4, int)], 8) is None


def test_a_note_is_only_made_where_near_copies_tell_something() -> None:
    told = near_copies_note({"near_copies": 12, "accuracy_without_near_copies": 0.941})
    assert told == "12 test images have near copies among the training images: accuracy without them 94.10 %."
    assert near_copies_note({"near_copies": 0, "accuracy_without_near_copies": 0.9}) == ""
    assert near_copies_note({"near_copies": 100, "accuracy_without_near_copies": None}) == ""  # of random weights
    assert near_copies_note({}) == ""  # of an older head
