"""Labels that are likely wrong: those that cleanlab finds, in its order, however the images lie among the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crew
import numpy as np
import pyarrow as pa
import pytest

from bottleneck.errors import CorruptError
from bottleneck.heads.head import Head
from bottleneck.heads.label_issues import (
    LABEL_ISSUES,
    counted_classes,
    find_label_issues,
    opinions,
    pick_issues,
    read_label_issues,
    write_label_issues,
)
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver import fit_data
from bottleneck.heads.splits import HELD_OUT


def judged(seed: int, num_images: int = 400, num_classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, K] of a fair classifier that is surer of some classes than of others, and labels, 6 % wrong."""
    rng = np.random.default_rng(seed)
    true_N = rng.integers(0, num_classes, num_images)
    scores_NK = rng.normal(size=(num_images, num_classes)) + 4 * np.eye(num_classes)[true_N]
    scores_NK *= rng.uniform(0.5, 1.5, num_classes)
    powers_NK = np.exp(scores_NK)
    is_wrong_N = rng.random(num_images) < 0.06
    labels_N = np.where(is_wrong_N, rng.integers(0, num_classes, num_images), true_N)
    return powers_NK / powers_NK.sum(axis=1, keepdims=True), labels_N


def picked(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> list[int]:
    num_classes = probabilities_NK.shape[1]
    means_K = np.array([probabilities_NK[labels_N == k, k].mean() for k in range(num_classes)])
    counted_N = counted_classes(probabilities_NK, means_K)
    found: list[int] = pick_issues(opinions(probabilities_NK, labels_N), counted_N, labels_N, num_classes).tolist()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("num_classes", [2, 7, 20])
@pytest.mark.parametrize("seed", range(5))
def test_images_and_order_are_cleanlabs(seed: int, num_classes: int) -> None:
    from cleanlab.filter import find_label_issues as peer

    probabilities_NK, labels_N = judged(seed, num_classes=num_classes)
    found = picked(probabilities_NK, labels_N)
    options = {"filter_by": "prune_by_class", "return_indices_ranked_by": "normalized_margin", "n_jobs": 1}
    assert found == peer(labels_N, probabilities_NK, **options).tolist()
    assert len(found) > 5


def test_a_label_that_is_the_most_probable_is_not_in_doubt() -> None:
    """Class 0 is given too often, so half of its images are pruned, but one of these is still most probably of it."""
    probabilities_NK = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.95, 0.05], [0.1, 0.9], [0.4, 0.6]])
    labels_N = np.array([0, 0, 0, 0, 1, 1])
    assert picked(probabilities_NK, labels_N) == [2]
    assert picked(np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]), np.array([0, 1, 1])) == []


def flipped(num_images: int, dim: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of ten classes, labels of which a share is another class at random, and which these are."""
    rng = np.random.default_rng(seed)
    true_N = np.arange(num_images) % 10
    features_ND = 1.4 * rng.standard_normal((10, dim))[true_N] + rng.standard_normal((num_images, dim))
    is_flipped_N = np.zeros(num_images, bool)
    is_flipped_N[rng.choice(num_images, int(share * num_images), replace=False)] = True
    labels_N = np.where(is_flipped_N, (true_N + rng.integers(1, 10, num_images)) % 10, true_N)
    return features_ND.astype(np.float32), labels_N, is_flipped_N


def issues_of(
    features_ND: np.ndarray, labels_N: np.ndarray, folds_N: np.ndarray, request: HeadRequest, num_workers: int = 1
) -> pa.Table:
    """The likely mislabelled images of a fit; keys are the numbers of the images."""
    arrays, grid, led = crew.fit(features_ND, labels_N, folds_N, request, num_workers)
    head = Head.of(request, grid, [f"class {k}" for k in range(int(labels_N.max()) + 1)], arrays)
    workers: Any = led.data.workers
    folds = [own for (own,) in led.data.by_worker(folds_N)]
    keys = [own for (own,) in led.data.by_worker(np.array([f"{n:05d}" for n in range(len(labels_N))], object))]
    for worker, own in zip(workers.workers, keys, strict=True):
        worker.keys = pa.array(own, pa.large_string())
    assert grid.out_of_fold is not None
    return find_label_issues(workers, folds, grid.out_of_fold, head)


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_flipped_labels_are_found_first_among_fitted_and_held_out_images(kind: Any) -> None:
    features_ND, labels_N, is_flipped_N = flipped(800, 30, 0.05, 0)
    folds_N = np.random.default_rng(1).integers(0, 3, 800)
    folds_N[:200] = HELD_OUT
    found = issues_of(features_ND, labels_N, folds_N, HeadRequest(kind=kind, c=(0.01, 0.1)))
    rows = np.array(found.column("key").to_pylist(), int)
    assert is_flipped_N[rows[:60]].sum() >= 0.8 * is_flipped_N.sum()
    assert list(np.array(found.column("held_out"))) == list(rows < 200)
    assert found.column("label").to_pylist() == [f"class {labels_N[row]}" for row in rows]
    scores = found.column("score").to_pylist()
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("scale", ["none", "standard", "l2"])
def test_every_solver_and_any_number_of_workers_find_the_same(scale: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, labels_N, _ = flipped(300, 20, 0.08, 2)
    rng = np.random.default_rng(1)
    folds_N = np.where(rng.random(300) < 0.2, HELD_OUT, rng.integers(0, 3, 300))
    request = HeadRequest(c=(0.01, 0.1), scale=scale)
    whole = issues_of(features_ND, labels_N, folds_N, request)
    assert len(whole) > 10
    others = [issues_of(features_ND, labels_N, folds_N, request, 3)]
    monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    monkeypatch.setattr("bottleneck.heads.label_issues.NUM_ROWS", 7)
    others += [issues_of(features_ND, labels_N, folds_N, request, number) for number in (1, 3)]
    whole, *others = (table.sort_by("key") for table in (whole, *others))  # nearly equal scores come in any order
    for other in others:
        assert other.column("key").to_pylist() == whole.column("key").to_pylist()
        assert other.column("suggested").to_pylist() == whole.column("suggested").to_pylist()
        np.testing.assert_allclose(other.column("score"), whole.column("score"), atol=1e-3)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    features_ND, labels_N, _ = flipped(200, 10, 0.1, 0)
    folds_N = np.random.default_rng(1).integers(0, 3, 200)
    found = issues_of(features_ND, labels_N, folds_N, HeadRequest(c=(0.01, 0.1)))
    write_label_issues(str(tmp_path), found)
    assert read_label_issues(str(tmp_path)).equals(found)
    (tmp_path / LABEL_ISSUES).write_bytes(b"PAR1")
    with pytest.raises(CorruptError, match="damaged"):
        read_label_issues(str(tmp_path))
    (tmp_path / LABEL_ISSUES).unlink()
    with pytest.raises(CorruptError, match="is gone"):
        read_label_issues(str(tmp_path))
