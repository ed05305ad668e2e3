"""The metrics by which cross-validation chooses have scikit-learn's values, from counts that add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from bottleneck.heads.solver.losses import probabilities
from bottleneck.heads.solver.metrics import Counts, best_of

PEERS: dict[Any, Any] = {
    "accuracy": lambda true, best, _: accuracy_score(true, best),
    "macro_f1": lambda true, best, _: f1_score(true, best, average="macro", zero_division=0),
    "balanced_accuracy": lambda true, best, _: balanced_accuracy_score(true, best),
    "log_loss": lambda true, _, said: log_loss(true, said, labels=range(said.shape[1])),
}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("metric", PEERS)
@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("absent", [0, 1], ids=["all classes", "a class without images"])
def test_a_score_is_scikit_learns_however_the_images_are_cut(metric: Any, num_classes: int, absent: int) -> None:
    rng = np.random.default_rng(0)
    scores_NK = 2 * rng.standard_normal((300, 1 if num_classes == 2 else num_classes))
    class_indices_N = rng.choice(num_classes - absent, 300)
    scores_NK[np.arange(300), np.minimum(class_indices_N, scores_NK.shape[1] - 1)] += 1
    said_NK = probabilities(scores_NK)
    expected = PEERS[metric](class_indices_N, said_NK.argmax(axis=1), said_NK)
    parts = [slice(0, 0), slice(0, 7), slice(7, 300)]
    first, *rest = [Counts.of(scores_NK[part], class_indices_N[part]) for part in parts]
    assert sum(rest, first).score(metric) == pytest.approx(expected, abs=1e-12)
    assert Counts.of(scores_NK, class_indices_N).score(metric) == pytest.approx(expected, abs=1e-12)


def test_classes_that_nobody_has_and_nobody_is_given_do_not_count() -> None:
    counts = Counts.of(np.eye(4)[[0, 1, 1]], np.array([0, 1, 0]))
    assert counts.score("macro_f1") == pytest.approx(f1_score([0, 1, 0], [0, 1, 1], average="macro"))


def test_the_best_is_the_first_of_the_highest_and_of_the_lowest_log_losses() -> None:
    assert best_of([0.5, 0.9, 0.9], "macro_f1") == 1
    assert best_of([0.5, 0.4, 0.4], "log_loss") == 1
