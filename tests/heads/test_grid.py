"""A grid over scalings and C, by any metric, is that of scikit-learn's GridSearchCV over a pipeline."""

from __future__ import annotations

from typing import Any

import crew
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from test_coordinator import WAYS, data, folds_of, peer, scores

from bottleneck.errors import UsageError
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver import fit_data

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

C = (0.01, 1.0)
SCALERS = {"none": "passthrough", "standard": StandardScaler(), "l2": Normalizer()}
SCORINGS = {
    "accuracy": "accuracy",
    "macro_f1": "f1_macro",
    "balanced_accuracy": "balanced_accuracy",
    "log_loss": "neg_log_loss",
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sums":
        monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    return str(request.param)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("logistic", "accuracy"), ("logistic", "macro_f1"), ("logistic", "log_loss"), ("svm", "balanced_accuracy")],
)
def test_a_grid_over_scalings_is_that_of_grid_search(way: str, kind: Any, metric: Any) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3)
    class_indices_N[: num_images // 4] = 0  # so that the metrics differ
    folds_N = folds_of(num_images, 3, held_out=20)
    seen_N = folds_N >= 0
    request = HeadRequest(kind=kind, c=C, scale="auto", metric=metric)
    arrays, grid, led = crew.fit(features_ND, class_indices_N, folds_N, request, num_workers=2)
    pipeline = Pipeline([("scaler", "passthrough"), ("head", peer(kind, "none", "none", 1.0)[-1])])
    search = GridSearchCV(
        pipeline,
        [{"scaler": [scaler], "head__C": C} for scaler in SCALERS.values()],
        scoring=SCORINGS[metric],
        cv=PredefinedSplit(folds_N[seen_N]),
    ).fit(features_ND[seen_N].astype(np.float64), class_indices_N[seen_N])
    expected = np.transpose([search.cv_results_[f"split{fold}_test_score"] for fold in range(3)])
    sign = -1 if metric == "log_loss" else 1
    np.testing.assert_allclose([row["scores"] for row in grid.rows], sign * expected, rtol=1e-4)  # the grid's tolerance
    assert [(row["scale"], row["c"]) for row in grid.rows] == [(scale, c) for scale in SCALERS for c in C]
    np.testing.assert_allclose(
        [row["mean"] for row in grid.rows], sign * search.cv_results_["mean_test_score"], rtol=1e-4
    )
    best = search.best_params_
    assert (SCALERS[grid.best.scale], grid.best_c) == (best["scaler"], best["head__C"])
    assert led.data.variant.scale == grid.best.scale
    expected_NK = search.best_estimator_.decision_function(features_ND.astype(np.float64))
    if kind == "logistic":  # what all scores of an image have in common means nothing
        expected_NK -= search.best_estimator_[-1].intercept_.mean()
    own_NK = scores(arrays, features_ND, grid.best.scale)
    np.testing.assert_allclose(own_NK, expected_NK, atol=2e-6 * np.abs(expected_NK).max())


@pytest.mark.parametrize("best", ["none", "standard", "l2"])
def test_the_scaling_that_is_chosen_is_the_heads_own(way: str, best: Any) -> None:
    """Also where another one was tried after it: the head is that of a request for this scaling."""
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = made_for(best, num_images, dim)
    folds_N = folds_of(num_images, 3)
    auto, grid, _ = crew.fit(features_ND, class_indices_N, folds_N, HeadRequest(kind="svm", scale="auto"), 2)
    assert grid.best.scale == best, grid.rows
    alone = crew.fit(features_ND, class_indices_N, folds_N, HeadRequest(kind="svm", scale=best), 2)[0]
    assert auto.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(auto[name], value, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_the_kind_that_is_chosen_is_the_heads_own(way: str, seed: int) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3, seed)
    folds_N = folds_of(num_images, 3)
    auto, grid, _ = crew.fit(features_ND, class_indices_N, folds_N, HeadRequest(kind="auto", scale="auto", c=C), 2)
    cells = [(row["kind"], row["scale"], row["c"]) for row in grid.rows]
    assert cells == [(kind, scale, c) for kind in ("logistic", "svm") for scale in SCALERS for c in C]
    best = max(grid.rows, key=lambda row: row["mean"])
    assert (*grid.best, grid.best_c) == (best["kind"], best["scale"], best["c"])
    request = HeadRequest(kind=grid.best.kind, scale=grid.best.scale, c=C)
    alone, own, _ = crew.fit(features_ND, class_indices_N, folds_N, request, 2)
    assert [row["scores"] for row in own.rows] == [
        row["scores"] for row in grid.rows if (row["kind"], row["scale"]) == grid.best
    ]
    assert auto.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(auto[name], value, rtol=1e-6, atol=1e-8, err_msg=name)


def made_for(scale: str, num_images: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that one scaling shows best."""
    rng = np.random.default_rng(0)
    class_indices_N = np.arange(num_images) % 3
    features_ND = 0.01 * rng.standard_normal((num_images, dim))
    if scale == "standard":  # small values beside a large one that says nothing
        features_ND[:, 3:] = 0
        features_ND[:, 3] = 10 * rng.standard_normal(num_images)
    features_ND[np.arange(num_images), class_indices_N] += 0.02 if scale == "standard" else 1
    if scale == "none":  # two classes that differ in nothing but their length
        features_ND[:, 0] += np.where(class_indices_N == 1, 3 * features_ND[:, 1], 0)
        features_ND[class_indices_N == 1, 1] = 0
    if scale == "l2":  # images of very different lengths
        features_ND += 0.2 * rng.standard_normal((num_images, dim)) * (np.arange(dim) < 6)
        features_ND *= np.exp(2 * rng.standard_normal(num_images))[:, None]
    return features_ND.astype(np.float32), class_indices_N


def test_what_a_scaling_found_before_a_worker_died_is_not_taken_for_anothers(way: str) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3)
    folds_N = folds_of(num_images, 3)
    request = HeadRequest(c=C, scale="auto")
    first, before, led = crew.fit(features_ND, class_indices_N, folds_N, request, 2)
    again = crew.Crew([crew.Worker(), crew.Worker()])
    again.memory = led.data.workers.memory  # type: ignore[attr-defined]
    second, after, _ = crew.fit(features_ND, class_indices_N, folds_N, request, 2, again)
    np.testing.assert_allclose(second["coef"], first["coef"], atol=1e-8)
    assert [row["scores"] for row in after.rows] == [row["scores"] for row in before.rows]
    busy = ("solve", "product")
    assert sum(name in busy for name in again.asked) <= sum(name in busy for name in led.data.workers.asked) / 10  # type: ignore[attr-defined]


def test_every_cell_is_told_with_its_score() -> None:
    features_ND, class_indices_N = data(60, 90, 3)
    workers = crew.Crew([crew.Worker()])
    request = HeadRequest(c=C, scale="auto", metric="log_loss")
    _, grid, _ = crew.fit(features_ND, class_indices_N, folds_of(60, 3), request, crew=workers)
    told = {(event["variant"].scale, event["c"], event["fold"]): event["score"] for event in workers.events}
    assert told == {
        (row["scale"], row["c"], fold): score for row in grid.rows for fold, score in enumerate(row["scores"])
    }


def test_a_small_network_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bottleneck.heads.solver.mlp.STEPS", 60)
    features_ND, class_indices_N = data(60, 20, 3)

    def fit(**options: Any) -> tuple[dict[str, np.ndarray], int]:
        workers = crew.Crew([crew.Worker()])
        request = HeadRequest(kind="mlp", **options)
        arrays, _, _ = crew.fit(features_ND, class_indices_N, np.zeros(60, int), request, crew=workers)
        return arrays, len(workers.events)

    usual, epochs = fit()
    small, few = fit(hidden_size=8, epochs=5)
    other, _ = fit(hidden_size=8, epochs=5, seed=1)
    assert (usual["hidden_coef"].shape, epochs) == ((256, 20), 40)
    assert (small["hidden_coef"].shape, small["coef"].shape, few) == ((8, 20), (3, 8), 5)
    assert np.abs(small["coef"] - other["coef"]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"metric": "f1"},
            "`metric` takes accuracy, macro_f1, balanced_accuracy, log_loss or average_precision. Received: 'f1'",
        ),
        ({"kind": "auto", "metric": "log_loss"}, "gives margins, no probabilities"),
        ({"kind": "auto", "hidden_size": 7}, "`hidden_size` is an option of the mlp"),
        ({"scale": "best"}, "`scale` takes none, standard, l2 or auto"),
        ({"kind": "mlp", "scale": "auto"}, "`scale` auto cannot choose"),
        ({"kind": "svm", "metric": "log_loss"}, "no probabilities"),
        ({"hidden_size": 64}, "`hidden_size` is an option of the mlp. Received: 64 with logistic"),
        ({"kind": "svm", "epochs": 3}, "`epochs` is an option of the mlp"),
        ({"seed": 3}, "`seed` is an option of the mlp"),
        ({"kind": "mlp", "hidden_size": 0}, "`hidden_size` takes a whole number from 1 to 65,536. Received: 0"),
        ({"kind": "mlp", "epochs": 0}, "`epochs` takes a whole number from 1"),
        ({"kind": "mlp", "epochs": 2.5}, "Received: 2.5"),
        ({"kind": "mlp", "seed": -1}, "`seed` takes a whole number from 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: Any, words: str) -> None:
    with pytest.raises(UsageError) as told:
        HeadRequest(**changes)
    assert words in str(told.value)
