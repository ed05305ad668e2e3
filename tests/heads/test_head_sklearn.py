"""A head is at home in scikit-learn: in searches, with weights, with names, and as an estimator of scikit-learn's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from bottleneck.errors import UsageError
from bottleneck.heads.head import Head, Origin
from bottleneck.heads.solver import fit_data
from bottleneck.heads.solver.losses import probabilities

# scikit-learn's solvers complain where they can come no nearer to the optimum; how near they are is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

WAYS = {"products": (50, 70), "images": (90, 12), "sums": (90, 12)}
LABELS = {
    "text": np.array(["ash", "beech", "cedar"]),
    "object": np.array(["b", "a", "é"], dtype=object),
    "int": np.array([7, -3, 12]),
    "bool": np.array([True, False]),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sums":
        monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    return str(request.param)


def data(num_images: int = 90, dim: int = 12, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that are not centred, of different sizes, one of them constant; labels; whole weights from 0 to 3."""
    rng = np.random.default_rng(0)
    class_indices_N = np.arange(num_images) % num_classes
    class_indices_N[: num_images // 5] = 0  # so that balancing matters
    features_ND = rng.standard_normal((num_classes, dim))[class_indices_N] + 2 * rng.standard_normal((num_images, dim))
    features_ND = features_ND * rng.uniform(0.2, 2, dim) + 3
    features_ND[:, 1] = 0.5
    return features_ND, LABELS["text"][class_indices_N], rng.integers(0, 4, num_images)


def classifier(kind: str, **parameters: Any) -> Any:
    """scikit-learn's, run to convergence."""
    if kind == "logistic":
        return LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000, **parameters)
    return LinearSVC(tol=1e-10, max_iter=100_000, random_state=0, **parameters)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


def test_a_search_finds_what_it_finds_with_scikit_learns_estimators() -> None:
    features_ND, labels_N, _ = data()
    grid = {"C": [0.01, 1.0], "scale": ["none", "standard", "l2"]}
    search = GridSearchCV(Head(), grid, cv=3).fit(features_ND, labels_N)
    steps: dict[str, list[Any]] = {"none": [], "standard": [StandardScaler()], "l2": [Normalizer()]}
    for parameters, mean in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        peer = make_pipeline(*steps[parameters["scale"]], classifier("logistic", C=parameters["C"]))
        assert mean == pytest.approx(cross_val_score(peer, features_ND, labels_N, cv=3).mean())
    assert len(set(search.cv_results_["mean_test_score"])) > 2, "the values should differ"
    assert search.best_estimator_.get_params() == {**Head().get_params(), **search.best_params_}


def test_a_pipeline_scales_as_the_head_does() -> None:
    features_ND, labels_N, _ = data()
    piped = Pipeline([("scaler", StandardScaler()), ("head", Head("svm"))])
    piped.set_params(head__C=0.1).fit(features_ND, labels_N)
    own = Head("svm", C=0.1, scale="standard").fit(features_ND, labels_N)
    assert_close(piped.decision_function(features_ND), own.decision_function(features_ND), 1e-8)


def test_a_class_weight_of_none_is_none_in_either_spelling(tmp_path: Path) -> None:
    features_ND, labels_N, _ = data()
    heads = [Head(class_weight=spelling).fit(features_ND, labels_N) for spelling in (None, "none")]
    np.testing.assert_array_equal(heads[0].coef_, heads[1].coef_)
    for head in heads:
        assert clone(head).get_params() == head.get_params()
        head.save(str(tmp_path / str(head.class_weight)))
        assert Head.load(str(tmp_path / str(head.class_weight))).get_params() == head.get_params()
        assert head.to_sklearn().class_weight is None


@pytest.mark.parametrize("kind", ["logistic", "svm"])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(("scale", "class_weight"), [("none", None), ("standard", "balanced")])
def test_the_weighted_optimum_is_scikit_learns(
    way: str, kind: Any, num_classes: int, scale: Any, class_weight: Any
) -> None:
    features_ND, labels_N, whole_N = data(*WAYS[way], num_classes)
    weights_N = whole_N * np.random.default_rng(1).uniform(0.01, 1, len(whole_N))
    head = Head(kind, C=0.5, scale=scale, class_weight=class_weight).fit(features_ND, labels_N, weights_N)
    scaled_ND = features_ND
    if scale == "standard":
        with np.errstate(invalid="ignore"):  # scikit-learn's variance of the constant feature is just below 0
            scaler = StandardScaler().fit(features_ND, sample_weight=weights_N)
        np.testing.assert_allclose(head.mean_, scaler.mean_)
        np.testing.assert_allclose(head.scale_, scaler.scale_)
        scaled_ND = scaler.transform(features_ND)
    peer = classifier(kind, C=0.5, class_weight=class_weight).fit(scaled_ND, labels_N, sample_weight=weights_N)
    if kind == "logistic" and num_classes > 2:  # what all intercepts have in common means nothing
        peer.intercept_ -= peer.intercept_.mean()
    assert_close(head.coef_, peer.coef_, 1e-6)
    assert_close(head.intercept_, peer.intercept_, 2e-6)
    assert_close(head.decision_function(features_ND), peer.decision_function(scaled_ND), 1e-6)


@pytest.mark.parametrize("kind", ["logistic", "svm"])
@pytest.mark.parametrize("scale", ["none", "standard", "l2"])
def test_a_whole_weight_is_the_image_so_many_times(way: str, kind: Any, scale: Any) -> None:
    features_ND, labels_N, weights_N = data(*WAYS[way])
    head = Head(kind, scale=scale, class_weight="balanced")
    weighted = clone(head).fit(features_ND, labels_N, sample_weight=weights_N)
    repeated = clone(head).fit(features_ND.repeat(weights_N, axis=0), labels_N.repeat(weights_N))
    assert_close(weighted.coef_, repeated.coef_, 1e-7)
    assert_close(weighted.decision_function(features_ND), repeated.decision_function(features_ND), 1e-7)
    assert not np.allclose(weighted.coef_, clone(head).fit(features_ND, labels_N).coef_, atol=1e-3)


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_a_class_of_no_weight_stays_a_class_that_is_never_said(way: str, kind: Any) -> None:
    features_ND, labels_N, _ = data(*WAYS[way])
    weights_N = np.where(labels_N == "cedar", 0.0, 1.0)
    head = Head(kind).fit(features_ND, labels_N, weights_N)
    assert head.classes_.tolist() == ["ash", "beech", "cedar"]
    assert "cedar" not in head.predict(features_ND[weights_N > 0])
    if kind == "logistic":  # a softmax of two classes shares between two rows what the log odds have in one
        without = Head(kind, C=2.0).fit(features_ND[weights_N > 0], labels_N[weights_N > 0])
        assert_close(head.predict_proba(features_ND)[:, :2], without.predict_proba(features_ND), 1e-5)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([-1.0] * 90, "Negative values in data passed to `sample_weight`"),
        ([float("nan")] * 90, "sample_weight contains NaN"),
        ([1.0] * 89, r"sample_weight.shape == \(89,\), expected \(90,\)"),
        ([[1.0]] * 90, "must be 1D"),
        ([0.0] * 90, "zero"),
        (["much"] * 90, "could not convert"),
        ([1.0] + [0.0] * 89, r"two classes with a `sample_weight` above 0\. Received one class: ash"),
    ],
    ids=["negative", "nan", "short", "2d", "zero", "text", "one class"],
)
@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_weights_that_mean_nothing_are_told(kind: Any, weights: Any, words: str) -> None:
    features_ND, labels_N, _ = data()
    with pytest.raises(ValueError, match=words):
        Head(kind).fit(features_ND, labels_N, weights)


def test_the_score_is_weighted_as_well() -> None:
    features_ND, labels_N, weights_N = data()
    head = Head().fit(features_ND, labels_N)
    expected = accuracy_score(labels_N, head.predict(features_ND), sample_weight=weights_N)
    assert head.score(features_ND, labels_N, weights_N) == expected != head.score(features_ND, labels_N)


def test_an_mlp_follows_the_weights(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is there with two labels; the heavier one wins."""
    monkeypatch.setattr("bottleneck.heads.solver.mlp.STEPS", 60)
    features_ND, labels_N, _ = data(*WAYS[way])
    others_N = np.roll(LABELS["text"], 1)[np.searchsorted(LABELS["text"], labels_N)]
    weights_N = np.repeat([1.0, 9.0], len(labels_N))
    head = Head("mlp").fit(np.vstack([features_ND, features_ND]), np.append(labels_N, others_N), weights_N)
    assert head.score(features_ND, others_N) > 0.6 > 0.4 > head.score(features_ND, labels_N)


@pytest.mark.parametrize("kind", ["logistic", "svm"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_log_of_a_probability_that_is_zero_in_floats_is_finite(kind: Any, num_classes: int) -> None:
    features_ND, labels_N, _ = data(num_classes=num_classes)
    head = Head(kind).fit(features_ND, labels_N)
    np.testing.assert_allclose(np.exp(head.predict_log_proba(features_ND)), head.predict_proba(features_ND), rtol=1e-12)
    head.temperature_ = 0.3
    head.coef_ = head.coef_ * 1e5
    assert (head.predict_proba(features_ND) == 0).any()
    logs_NK = head.predict_log_proba(features_ND)
    assert np.isfinite(logs_NK).all()
    assert logs_NK.min() < -1000
    np.testing.assert_array_equal(logs_NK.argmax(axis=1), head.predict_proba(features_ND).argmax(axis=1))


@pytest.mark.parametrize("labels", LABELS)
def test_a_head_fitted_by_hand_is_saved_with_its_classes_and_names(tmp_path: Path, labels: str) -> None:
    classes = LABELS[labels]
    features_ND, _, _ = data()
    names = [f"f{n}" for n in range(12)]
    frame = pd.DataFrame(features_ND, columns=names)
    labels_N = classes[np.arange(90) % len(classes)]
    head = Head(scale="standard").fit(frame, labels_N)
    head.save(str(tmp_path))
    loaded = Head.load(str(tmp_path))
    assert loaded.feature_names_in_.tolist() == head.feature_names_in_.tolist() == names
    assert loaded.predict(frame).tolist() == head.predict(frame).tolist()
    assert {type(label) for label in loaded.predict(frame).tolist()} == {type(label) for label in classes.tolist()}
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame[names[::-1]])
    with pytest.raises(UsageError, match="was fitted on arrays"):
        _ = loaded.origin


def test_a_head_of_arrays_has_no_names(tmp_path: Path) -> None:
    features_ND, labels_N, _ = data()
    Head().fit(features_ND, labels_N).save(str(tmp_path))
    assert not hasattr(Head.load(str(tmp_path)), "feature_names_in_")


def test_a_head_that_is_fitted_again_forgets_where_it_came_from(tmp_path: Path) -> None:
    features_ND, labels_N, _ = data()
    Head().fit(features_ND, labels_N).save(str(tmp_path), Origin("fc:none", tiny.spec(), "features", "0" * 64))
    head = Head.load(str(tmp_path))
    assert head.origin.layer == "fc:none"
    head.fit(features_ND, labels_N)
    assert not {"origin_", "sha256_"} & set(vars(head))


@pytest.mark.parametrize("kind", ["logistic", "svm", "mlp"])
@pytest.mark.parametrize("scale", ["none", "standard", "l2"])
@pytest.mark.parametrize("labels", LABELS)
def test_scikit_learns_estimator_says_what_the_head_says(
    kind: Any, scale: Any, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bottleneck.heads.solver.mlp.STEPS", 60)
    features_ND, _, _ = data()
    labels_N = LABELS[labels][np.arange(90) % len(LABELS[labels])]
    frame = pd.DataFrame(features_ND, columns=[f"f{n}" for n in range(12)])
    head = Head(kind, C=1.0 if kind == "mlp" else 0.7, scale=scale, class_weight="balanced").fit(frame, labels_N)
    twin = head.to_sklearn()
    last = twin[-1] if isinstance(twin, Pipeline) else twin
    assert isinstance(twin, Pipeline) == (scale != "none")
    assert type(last).__name__ == {"logistic": "LogisticRegression", "svm": "LinearSVC", "mlp": "MLPClassifier"}[kind]
    assert twin.predict(frame).tolist() == head.predict(frame).tolist()
    assert twin.classes_.tolist() == head.classes_.tolist()
    assert twin.feature_names_in_.tolist() == frame.columns.tolist()
    if kind == "svm":
        expected = probabilities(np.reshape(twin.decision_function(frame), (90, -1)))
        np.testing.assert_allclose(head.predict_proba(frame), expected, rtol=1e-10)
    else:
        np.testing.assert_allclose(twin.predict_proba(frame), head.predict_proba(frame), rtol=1e-10)
    if kind != "mlp":
        assert_close(twin.decision_function(frame), head.decision_function(frame), 1e-12)
        np.testing.assert_array_equal(last.coef_, head.coef_)
        assert last.get_params()["C"] == 0.7


def test_scikit_learns_estimator_can_be_fitted_again() -> None:
    features_ND, labels_N, _ = data()
    twin = Head("logistic", C=0.1, scale="standard").fit(features_ND, labels_N).to_sklearn()
    half_ND, half_N = features_ND[::2], labels_N[::2]
    assert_close(twin[0].partial_fit(half_ND).mean_, half_ND.mean(axis=0), 1e-12)
    expected = Head("logistic", C=0.1, scale="standard").fit(half_ND, half_N)
    assert_close(twin.fit(half_ND, half_N).predict_proba(features_ND), expected.predict_proba(features_ND), 1e-2)
