"""The temperature of a logistic head: taken where the folds say so, and without effect on predictions."""

from __future__ import annotations

from pathlib import Path

import crew
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from bottleneck.heads.head import Head
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver import fit_data
from bottleneck.heads.solver.grid import Grid
from bottleneck.heads.solver.losses import probabilities
from bottleneck.heads.solver.out_of_fold import worthwhile
from bottleneck.heads.splits import HELD_OUT

NUM_CLASSES = 3


def noisy(num_images: int, dim: int, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    class_indices_N = np.arange(num_images) % NUM_CLASSES
    means = distance * rng.standard_normal((NUM_CLASSES, dim))
    return (means[class_indices_N] + rng.standard_normal((num_images, dim))).astype(np.float32), class_indices_N


def fitted(
    num_images: int, dim: int, distance: float, c: tuple[float, ...], num_workers: int = 1
) -> tuple[Head, np.ndarray, np.ndarray, np.ndarray]:
    """A head, and the features, classes and folds of its images, of which a third is held out."""
    features_ND, class_indices_N = noisy(num_images, dim, distance)
    rng = np.random.default_rng(1)
    folds_N = np.where(rng.random(num_images) < 1 / 3, HELD_OUT, rng.integers(0, 3, num_images))
    request = HeadRequest(c=c)
    arrays, grid, _ = crew.fit(features_ND, class_indices_N, folds_N, request, num_workers)
    return Head.of(request, grid, ["a", "b", "c"], arrays), features_ND, class_indices_N, folds_N


@pytest.mark.parametrize("way", ["products", "images", "sums"])
def test_a_head_that_is_too_sure_is_made_less_so(way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if way == "sums":
        monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    num_images, dim, distance = (150, 120, 0.15) if way == "products" else (300, 40, 0.4)
    head, features_ND, class_indices_N, folds_N = fitted(num_images, dim, distance, (30.0, 31.0), 2)
    assert head.temperature_ < 0.5
    raw = Head.of(HeadRequest(), Grid(), ["a", "b", "c"], {"coef": head.coef_, "intercept": head.intercept_})
    np.testing.assert_array_equal(head.predict(features_ND), raw.predict(features_ND))
    np.testing.assert_array_equal(head.decision_function(features_ND), raw.decision_function(features_ND))
    scores_NK = head.decision_function(features_ND)
    found_NK = head.predict_proba(features_ND)
    np.testing.assert_allclose(found_NK, probabilities(scores_NK * head.temperature_))
    is_out_N = folds_N == HELD_OUT
    losses = [log_loss(class_indices_N[is_out_N], one.predict_proba(features_ND[is_out_N])) for one in (head, raw)]
    assert losses[0] < 0.95 * losses[1], "it holds for images that neither folds nor head have seen"
    head.save(str(tmp_path))
    np.testing.assert_array_equal(Head.load(str(tmp_path)).predict_proba(features_ND), found_NK)


def test_every_solver_finds_the_same_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [fitted(240, 40, 0.4, (3.0, 3.1))[0].temperature_]
    monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    found.append(fitted(240, 40, 0.4, (3.0, 3.1), 3)[0].temperature_)
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_head_that_is_right_as_often_as_it_is_sure_keeps_its_probabilities(tmp_path: Path) -> None:
    head, features_ND, class_indices_N, folds_N = fitted(600, 5, 0.5, (0.3, 1.0))
    assert head.temperature_ == 1.0
    seen = folds_N >= 0
    peer = LogisticRegression(C=head.C, tol=1e-10, max_iter=10_000)
    peer.fit(features_ND[seen].astype(float), class_indices_N[seen])
    np.testing.assert_allclose(head.predict_proba(features_ND), peer.predict_proba(features_ND), atol=1e-6)
    head.save(str(tmp_path))
    assert Head.load(str(tmp_path)).temperature_ == 1.0


def test_folds_without_an_error_say_nothing_of_how_sure_a_head_may_be() -> None:
    """Any sharper head would fit them better; 1e-4 of a probability would be a lie."""
    assert fitted(240, 10, 4.0, (1e-4, 1.1e-4))[0].temperature_ == 1.0


def test_what_is_gained_must_be_noticeable() -> None:
    assert worthwhile(2.0, 100.0, 95.0) == 2.0
    assert worthwhile(2.0, 100.0, 97.0) == 1.0  # 3 % of the log loss, but chance explains as much
    assert worthwhile(2.0, 10_000.0, 9_950.0) == 1.0  # no chance, but half a percent
    assert worthwhile(9.999, 100.0, 5.0) == 1.0
    assert worthwhile(0.01, 100.0, 5.0) == 0.01


def test_a_head_that_is_fitted_again_on_arrays_forgets_it() -> None:
    head, features_ND, class_indices_N, _ = fitted(240, 40, 0.4, (3.0, 3.1))
    assert head.temperature_ != 1.0
    head.fit(features_ND, class_indices_N)
    assert head.temperature_ == 1.0
