"""One optimum, scikit-learn's, by three ways and from any number of workers."""

from __future__ import annotations

import itertools
from typing import Any

import crew
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from bottleneck.errors import UsageError
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver import fit_data
from bottleneck.heads.solver.certify import certified_gap
from bottleneck.heads.solver.losses import probabilities
from bottleneck.heads.splits import HELD_OUT

# scikit-learn's solvers complain where they can come no nearer to the optimum; how near they are is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

KINDS = ("logistic", "svm")
SCALES = ("none", "standard", "l2")
C = (0.01, 1.0, 10.0)


def data(num_images: int, dim: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap, on features that are far from centred, of very different sizes, one of them constant."""
    rng = np.random.default_rng(seed)
    class_indices_N = np.arange(num_images) % num_classes
    means = rng.standard_normal((num_classes, dim))
    features_ND = means[class_indices_N] + 2.5 * rng.standard_normal((num_images, dim))
    features_ND = features_ND * rng.uniform(0.2, 2, dim) + 3
    features_ND[:, 1] = 0.5
    return features_ND.astype(np.float32), class_indices_N


def folds_of(num_images: int, num_folds: int, held_out: int = 0) -> np.ndarray:
    folds_N = np.random.default_rng(1).integers(0, num_folds, num_images)
    folds_N[:held_out] = HELD_OUT
    return folds_N


def peer(kind: str, scale: str, class_weight: str, c: float) -> Any:
    """scikit-learn's estimator, run to convergence."""
    weight = None if class_weight == "none" else class_weight
    if kind == "logistic":
        estimator: Any = LogisticRegression(
            C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000, class_weight=weight
        )
    else:
        estimator = LinearSVC(C=c, tol=1e-10, max_iter=100_000, class_weight=weight, dual="auto", random_state=0)
    steps = {"none": [], "standard": [StandardScaler()], "l2": [Normalizer()]}[scale]
    return make_pipeline(*steps, estimator)


def scores(arrays: dict[str, np.ndarray], features_ND: np.ndarray, scale: str) -> np.ndarray:
    features_ND = features_ND.astype(np.float64)
    if scale == "standard":
        features_ND = (features_ND - arrays["mean"]) / arrays["scale"]
    elif scale == "l2":
        features_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    result: np.ndarray = features_ND @ arrays["coef"].T + arrays["intercept"]
    return result


WAYS = {"products": (60, 90), "images": (150, 20), "sums": (150, 20)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sums":
        monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    return str(request.param)


@pytest.mark.parametrize(("kind", "scale", "num_classes"), list(itertools.product(KINDS, SCALES, (2, 4))))
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_the_optimum_is_scikit_learns(way: str, kind: Any, scale: Any, num_classes: int, class_weight: Any) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, num_classes)
    class_indices_N[: num_images // 5] = 0  # so that balancing matters
    request = HeadRequest(kind=kind, c=(0.5,), scale=scale, class_weight=class_weight, folds=3)
    folds_N = folds_of(num_images, 3 if request.cross_validated else 1)
    arrays, _, led = crew.fit(features_ND, class_indices_N, folds_N, request)
    assert led.solver == way
    found = peer(kind, scale, class_weight, 0.5).fit(features_ND.astype(np.float64), class_indices_N)
    if kind == "logistic" and num_classes > 2:  # what all intercepts have in common means nothing
        found[-1].intercept_ -= found[-1].intercept_.mean()
    expected = found.decision_function(features_ND.astype(np.float64)).reshape(num_images, -1)
    own = scores(arrays, features_ND, scale)
    np.testing.assert_allclose(own, expected, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(arrays["coef"], found[-1].coef_, atol=2e-6 * np.abs(found[-1].coef_).max())
    np.testing.assert_allclose(arrays["intercept"], np.ravel(found[-1].intercept_), atol=5e-6)
    np.testing.assert_allclose(probabilities(own), probabilities(expected), atol=1e-4)


@pytest.mark.parametrize("c", [1e-4, 1.0, 1e4])
def test_the_objective_is_at_its_optimum(way: str, c: float) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3)

    def objective(coef: np.ndarray, intercept: np.ndarray) -> float:
        scores_NK = features_ND.astype(np.float64) @ coef.T + intercept
        scores_NK = scores_NK - scores_NK[np.arange(num_images), class_indices_N][:, None]
        return float(c * np.log(np.exp(scores_NK).sum(axis=1)).sum() + (coef**2).sum() / 2)

    arrays, _, _ = crew.fit(features_ND, class_indices_N, np.zeros(num_images, int), HeadRequest(c=(c,)))
    found = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-13, max_iter=10_000).fit(
        features_ND.astype(np.float64), class_indices_N
    )
    own = objective(arrays["coef"], arrays["intercept"])
    assert own <= objective(found.coef_, found.intercept_) * (1 + 1e-8)


@pytest.mark.parametrize(("kind", "scale", "num_classes"), list(itertools.product(KINDS, SCALES, (2, 4))))
def test_the_gap_is_that_of_the_arrays_that_are_saved(way: str, kind: Any, scale: Any, num_classes: int) -> None:
    """Also where a solver's own coordinates hide an error: the gap that is certified bounds that of moved ones."""
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, num_classes)
    request = HeadRequest(kind=kind, c=(0.5,), scale=scale, class_weight="balanced", folds=3)
    folds_N = folds_of(num_images, 3 if request.cross_validated else 1)
    arrays, grid, led = crew.fit(features_ND, class_indices_N, folds_N, request)
    assert led.solver == way
    assert grid.gap is not None
    assert grid.gap < 1e-15
    weights_K = num_images / (num_classes * np.bincount(class_indices_N, minlength=num_classes))

    def objective(coef: np.ndarray, intercept: np.ndarray) -> float:
        scores_NK = scores({**arrays, "coef": coef, "intercept": intercept}, features_ND, scale)
        penalty = (coef**2).sum() / 2
        if kind == "svm":
            sign_NK = np.where(class_indices_N[:, None] == (np.arange(num_classes) if num_classes > 2 else [1]), 1, -1)
            own_N = weights_K[class_indices_N][:, None]  # of the positive class alone, as LIBLINEAR has it
            weights_NK = np.where(sign_NK > 0, own_N, own_N if num_classes == 2 else 1)
            losses_NK = np.maximum(1 - sign_NK * scores_NK, 0) ** 2
            return float(0.5 * (weights_NK * losses_NK).sum() + penalty + (intercept**2).sum() / 2)
        losses_N = -np.log(probabilities(scores_NK)[np.arange(num_images), class_indices_N])
        return float(0.5 * (weights_K[class_indices_N] * losses_N).sum() + penalty)

    best = objective(arrays["coef"], arrays["intercept"])
    rng = np.random.default_rng(3)
    for size in (1e-4, 1e-2):
        moved = {
            name: arrays[name] + size * rng.standard_normal(arrays[name].shape) * np.abs(arrays[name]).mean()
            for name in ("coef", "intercept")
        }
        gap = certified_gap(led.data, moved, 0.5)
        excess = objective(moved["coef"], moved["intercept"]) / best - 1
        assert 1e-13 < excess < 1.02 * gap * (1 + excess)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
def test_the_grid_is_that_of_grid_search(way: str, kind: Any, scale: Any) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3)
    folds_N = folds_of(num_images, 3, held_out=20)
    request = HeadRequest(kind=kind, c=C, scale=scale, folds=3)
    arrays, grid, _ = crew.fit(features_ND, class_indices_N, folds_N, request, num_workers=2)
    seen = folds_N >= 0
    estimator = peer(kind, scale, "none", 1.0)
    search = GridSearchCV(estimator, {f"{estimator.steps[-1][0]}__C": C}, cv=PredefinedSplit(folds_N[seen]))
    search.fit(features_ND[seen].astype(np.float64), class_indices_N[seen])
    expected = [search.cv_results_[f"split{fold}_test_score"] for fold in range(3)]
    np.testing.assert_allclose(np.array([row["accuracies"] for row in grid.rows]), np.transpose(expected), atol=1e-12)
    assert [grid.best_c] == list(search.best_params_.values())
    assert all(row["gap"] < 1e-6 for row in grid.rows)
    expected_NK = search.decision_function(features_ND.astype(np.float64))
    if kind == "logistic":  # what all scores of an image have in common means nothing
        expected_NK -= search.best_estimator_[-1].intercept_.mean()
    np.testing.assert_allclose(scores(arrays, features_ND, scale), expected_NK, atol=2e-6 * np.abs(expected_NK).max())


@pytest.mark.parametrize("kind", ["logistic", "svm"])
@pytest.mark.parametrize("scale", SCALES)
def test_any_number_of_members_gives_the_same_head(way: str, kind: Any, scale: Any) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3)
    folds_N = folds_of(num_images, 3, held_out=20)
    request = HeadRequest(kind=kind, c=C, scale=scale)
    heads = [crew.fit(features_ND, class_indices_N, folds_N, request, workers)[0] for workers in (1, 2, 4)]
    for other in heads[1:]:
        for name, value in heads[0].items():
            np.testing.assert_allclose(other[name], value, atol=1e-8 * max(1, np.abs(value).max()), err_msg=name)


def test_near_copies_far_from_the_origin_cost_no_digits() -> None:
    """As of a deep layer: all activations at or above 0, and the same photo compressed twice."""
    num_images, dim, c = 60, 500, 10.0
    rng = np.random.default_rng(2)
    class_indices_N = np.arange(num_images) % 3
    features_ND = 30 * np.abs(rng.standard_normal((num_images, dim))) + 100
    features_ND[class_indices_N == 1, :50] += 20
    features_ND[3] = features_ND[0] + 1e-3 * rng.standard_normal(dim)
    folds_N = np.zeros(num_images, int)
    heads = [crew.fit(features_ND, class_indices_N, folds_N, HeadRequest(c=(c,)), size)[0] for size in (1, 2)]
    coef = heads[0]["coef"]
    np.testing.assert_allclose(heads[1]["coef"], coef, rtol=0, atol=1e-8 * np.abs(coef).max())
    # At the optimum a coefficient is what the images pull it to.
    own = probabilities(scores(heads[0], features_ND, "none"))
    pull = -c * (own - np.eye(3)[class_indices_N]).T @ features_ND
    np.testing.assert_allclose(pull, coef, rtol=0, atol=1e-6 * np.abs(coef).max())


@pytest.mark.parametrize("c", [(10.0,), (100.0,), (1e-3, 100.0)])
def test_an_svm_on_large_features_needs_no_smaller_c_before(c: tuple[float, ...]) -> None:
    num_images, dim = 300, 1000
    rng = np.random.default_rng(4)
    class_indices_N = np.arange(num_images) % 6
    spread = np.logspace(2, -1, dim)
    features_ND = spread * np.abs(rng.standard_normal((num_images, dim))) + spread
    request = HeadRequest(kind="svm", c=c)
    arrays, grid, _ = crew.fit(features_ND, class_indices_N, folds_of(num_images, 3), request)
    assert all(row["gap"] < 1e-6 for row in grid.rows)
    sign_NK = np.where(class_indices_N[:, None] == np.arange(6), 1.0, -1.0)
    lack_NK = np.maximum(0, 1 - sign_NK * scores(arrays, features_ND, "none"))
    weights_DK = np.vstack([arrays["coef"].T, arrays["intercept"]])
    value = (weights_DK**2).sum() / 2 + grid.best_c * (lack_NK**2).sum()
    images_ND = np.hstack([features_ND, np.ones((num_images, 1))])
    gradient_DK = weights_DK - 2 * grid.best_c * images_ND.T @ (sign_NK * lack_NK)
    assert (gradient_DK**2).sum() / 2 < 1e-6 * value


def test_an_mlp_is_the_same_from_any_number_of_members(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bottleneck.heads.solver.mlp.STEPS", 60)
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3)
    folds_N = np.zeros(num_images, int)
    one, three = (
        crew.fit(features_ND, class_indices_N, folds_N, HeadRequest(kind="mlp"), workers)[0] for workers in (1, 3)
    )
    for name, value in one.items():
        np.testing.assert_allclose(three[name], value, atol=1e-6, err_msg=name)
    hidden_NH = np.maximum(features_ND @ one["hidden_coef"].T + one["hidden_intercept"], 0)
    right = (hidden_NH @ one["coef"].T + one["intercept"]).argmax(axis=1) == class_indices_N
    assert right.mean() > 0.8


def test_one_pass_serves_every_c_and_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve problems take about as many passes over the images as the hardest one alone."""
    monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    features_ND, class_indices_N = data(150, 20, 3)
    passes = []
    for request in (HeadRequest(c=(100.0,)), HeadRequest(c=(0.1, 1.0, 10.0, 100.0))):
        _, _, led = crew.fit(features_ND, class_indices_N, folds_of(150, 3), request)
        passes.append(sum(name in ("evaluate", "product") for name in led.data.workers.asked))  # type: ignore[attr-defined]
    assert passes[1] < 2.5 * passes[0]


def test_what_was_found_before_a_worker_died_is_not_done_again(way: str) -> None:
    num_images, dim = WAYS[way]
    features_ND, class_indices_N = data(num_images, dim, 3)
    folds_N = folds_of(num_images, 3)
    request = HeadRequest(c=C)
    first, _, led = crew.fit(features_ND, class_indices_N, folds_N, request, 2)
    again = crew.Crew([crew.Worker(), crew.Worker()])
    again.memory = led.data.workers.memory  # type: ignore[attr-defined]
    second, _, _ = crew.fit(features_ND, class_indices_N, folds_N, request, 2, again)
    np.testing.assert_allclose(second["coef"], first["coef"], atol=1e-8)
    busy = ("solve", "product")
    assert sum(name in busy for name in again.asked) <= sum(name in busy for name in led.data.workers.asked) / 10  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c": (0.0,)}, "above 0"),
        ({"c": (float("nan"),)}, "above 0"),
        ({"c": (1.0, 1.0)}, "twice"),
        ({"c": (1.0, 2.0), "kind": "mlp"}, "no penalty"),
        ({"folds": 1}, "from 2 up"),
        ({"test_fraction": 1.0}, "below 1"),
    ],
)
def test_requests_that_mean_nothing_are_refused(changes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        HeadRequest(**changes)
