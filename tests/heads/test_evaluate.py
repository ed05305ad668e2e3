"""Counting predictions: every number is scikit-learn's, however the images were split among batches and workers."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from bottleneck.errors import UsageError
from bottleneck.heads import evaluator as evaluator_module
from bottleneck.heads.evaluate import Evaluation, classification_report, wilson_interval
from bottleneck.heads.evaluator import Evaluator
from bottleneck.heads.head import Head, probabilities


def head_of(num_classes: int) -> Head:
    """A head that passes scores through: its features are the scores themselves."""
    head = Head()
    head.classes_ = np.array([f"class {n:03d}" for n in range(num_classes)], object)
    head.coef_, head.intercept_ = np.eye(num_classes), np.zeros(num_classes)
    head.n_features_in_ = num_classes
    return head


def photos(num_images: int, num_classes: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, labels and scores of images that are mostly recognised."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, num_classes, num_images)
    scores_NK = rng.normal(size=(num_images, num_classes)) + 2 * np.eye(num_classes)[labels_N]
    names_N = np.array([f"class {n:03d}" for n in labels_N], object)
    return [f"{n:05d}.jpg" for n in range(num_images)], names_N, scores_NK


def evaluated(
    head: Head,
    keys: list[str],
    labels_N: np.ndarray,
    scores_NK: np.ndarray,
    batch: int = 64,
    threshold: float | None = None,
) -> Evaluator:
    evaluator = Evaluator(head.classes_, threshold)
    for start in range(0, len(keys), batch):
        part = slice(start, start + batch)
        evaluator.add(keys[part], labels_N[part], head.predict_proba(scores_NK[part].astype(np.float32)))
    return evaluator


@pytest.mark.parametrize("num_classes", [3, 17, 200])
def test_numbers_are_scikit_learns(num_classes: int) -> None:
    head = head_of(num_classes)
    keys, labels_N, scores_NK = photos(1000, num_classes)
    found = evaluated(head, keys, labels_N, scores_NK).result()
    predicted_N = answers(head, scores_NK)
    shown = sorted({*labels_N, *predicted_N})
    scores = metrics.precision_recall_fscore_support(labels_N, predicted_N, labels=shown, zero_division=0)
    assert [line.label for line in found.per_class] == shown
    for ours, theirs in zip(list(zip(*found.per_class, strict=True))[1:], scores, strict=True):
        assert list(ours) == list(theirs)
    assert found.accuracy == metrics.accuracy_score(labels_N, predicted_N)
    macro = metrics.precision_recall_fscore_support(labels_N, predicted_N, average="macro", zero_division=0)[:3]
    assert found.macro[1:4] == macro
    expected_KK = metrics.confusion_matrix(labels_N, predicted_N, labels=list(head.classes_))
    assert (found.confusion_KK == expected_KK).all()
    assert found.confusion_KK.dtype == np.int64
    probabilities_NK = probabilities(scores_NK)
    if num_classes > 5:
        top5 = metrics.top_k_accuracy_score(labels_N, probabilities_NK, k=5, labels=list(head.classes_))
        assert found.top5_accuracy == top5
    else:
        assert found.top5_accuracy == 1.0
    assert found.calibration_error == pytest.approx(calibration_error(probabilities_NK, predicted_N == labels_N))


def answers(head: Head, scores_NK: np.ndarray) -> np.ndarray:
    return np.array(head.predictions(scores_NK).column("predicted").to_pylist(), object)


def calibration_error(probabilities_NK: np.ndarray, right_N: np.ndarray) -> float:
    """Equations 2 and 3 of Guo et al. 2017, written as they stand there."""
    sure_N = probabilities_NK.max(axis=1)
    error = 0.0
    for m in range(1, 16):
        inside_N = (sure_N > (m - 1) / 15) & (sure_N <= m / 15)
        if inside_N.any():
            gap = abs(right_N[inside_N].mean() - sure_N[inside_N].mean())
            error += inside_N.sum() / len(sure_N) * gap
    return float(error)


@pytest.mark.parametrize("seed", range(5))
def test_the_report_is_scikit_learns_to_the_letter(seed: int) -> None:
    head = head_of(12)
    keys, labels_N, scores_NK = photos(150, 12, seed)
    labels_N[:3] = "a label that is much longer than the others"
    predicted_N = answers(head, scores_NK)
    expected = metrics.classification_report(list(labels_N), list(predicted_N), zero_division=0)
    assert classification_report(evaluated(head, keys, labels_N, scores_NK).result()) == expected


def test_labels_the_head_does_not_know_are_its_errors() -> None:
    head = head_of(4)
    keys, labels_N, scores_NK = photos(40, 4)
    labels_N[::4] = "unheard of"
    found = evaluated(head, keys, labels_N, scores_NK).result()
    assert found.unknown_labels == {"unheard of": 10}
    assert found.num_images == 40
    assert found.accuracy == metrics.accuracy_score(list(labels_N), list(answers(head, scores_NK)))
    assert found.unknown_K.sum() == 10
    assert any(mistake.label == "unheard of" for mistake in found.mistakes)
    assert {line.label: line.support for line in found.per_class}["unheard of"] == 10


def test_very_many_unknown_labels_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_module, "MAX_UNKNOWN", 5)
    head = head_of(3)
    keys, labels_N, scores_NK = photos(20, 3)
    labels_N[:] = [f"unknown {n:02d}" for n in range(20)]
    found = evaluated(head, keys, labels_N, scores_NK).result()
    assert len(found.unknown_labels) == 6
    assert found.unknown_labels[evaluator_module.OTHER_LABELS] == 15
    assert found.num_images == 20
    assert found.accuracy == 0


def test_images_without_label_are_counted_and_left_out() -> None:
    head = head_of(4)
    keys, labels_N, scores_NK = photos(40, 4)
    labels_N[:10] = None
    found = evaluated(head, keys, labels_N, scores_NK).result()
    assert (found.num_unlabelled, found.num_images) == (10, 30)
    assert found.accuracy == metrics.accuracy_score(list(labels_N[10:]), list(answers(head, scores_NK)[10:]))
    with pytest.raises(UsageError, match="No image has a label"):
        evaluated(head, keys[:10], labels_N[:10], scores_NK[:10]).result()


def test_the_worst_mistakes_are_the_surest_wrong_answers() -> None:
    head = head_of(5)
    keys, labels_N, scores_NK = photos(500, 5)
    found = evaluated(head, keys, labels_N, scores_NK).result()
    table = head.predictions(scores_NK).to_pydict()
    wrong = [
        (key, label, predicted, probability)
        for key, label, predicted, probability in zip(
            keys, labels_N, table["predicted"], table["probability"], strict=True
        )
        if label != predicted
    ]
    wrong.sort(key=lambda one: (-one[3], one[0]))
    assert len(wrong) > evaluator_module.NUM_MISTAKES
    assert [tuple(mistake) for mistake in found.mistakes] == wrong[: evaluator_module.NUM_MISTAKES]


def test_the_most_confused_pairs_come_with_examples() -> None:
    head = head_of(5)
    keys, labels_N, scores_NK = photos(500, 5)
    found = evaluated(head, keys, labels_N, scores_NK).result()
    predicted = dict(zip(keys, answers(head, scores_NK), strict=True))
    labels = dict(zip(keys, labels_N, strict=True))
    counts = [pair.images for pair in found.confused]
    assert len(counts) == evaluator_module.NUM_CONFUSED
    assert counts == sorted(counts, reverse=True)
    errors_KK = found.confusion_KK - np.diag(np.diag(found.confusion_KK))
    assert counts[0] == errors_KK.max()
    for pair in found.confused:
        assert len(pair.keys) == min(pair.images, evaluator_module.NUM_EXAMPLES)
        assert all((labels[key], predicted[key]) == (pair.label, pair.predicted) for key in pair.keys)
        for label in (pair.label, pair.predicted):
            assert labels[found.examples[label]] == predicted[found.examples[label]] == label


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(0, 200))
def test_batches_and_workers_change_nothing(batch: int, cut: int) -> None:
    head = head_of(4)
    keys, labels_N, scores_NK = photos(200, 4)
    labels_N[::9] = None
    labels_N[::11] = "unheard of"
    whole = evaluated(head, keys, labels_N, scores_NK, batch=1000, threshold=0.6)
    first = evaluated(head, keys[:cut], labels_N[:cut], scores_NK[:cut], batch, 0.6)
    first.merge(evaluated(head, keys[cut:], labels_N[cut:], scores_NK[cut:], batch, 0.6))
    expected, found = whole.result().to_json(), first.result().to_json()
    # Sums of floats, which their order may change in the last bit.
    for name in ("bin_probability", "sum_log_loss", "sum_squared_error"):
        assert found.pop(name) == pytest.approx(expected.pop(name))
    for name in ("calibration_error", "log_loss", "brier_score"):
        assert found["summary"].pop(name) == pytest.approx(expected["summary"].pop(name))
    assert found == expected


def test_memory_is_bounded_by_classes_not_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_module, "MAX_PAIRS", 50)
    head = head_of(30)
    keys, labels_N, scores_NK = photos(3000, 30)
    evaluator = evaluated(head, keys, labels_N, scores_NK)
    assert len(evaluator._examples) <= 50 + 30
    assert len(evaluator._mistakes) <= evaluator_module.NUM_MISTAKES
    assert evaluator.result().num_images == 3000
    assert evaluator.result().confused[0].keys


def test_an_evaluation_survives_json() -> None:
    head = head_of(6)
    keys, labels_N, scores_NK = photos(300, 6)
    labels_N[0], labels_N[1] = None, "unheard of"
    found = evaluated(head, keys, labels_N, scores_NK, threshold=0.5).result()
    text = json.dumps(found.to_json())
    again = Evaluation.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert classification_report(again) == classification_report(found)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval(correct: int, images: int, low: float, high: float) -> None:
    """The last one is the worked example of Newcombe, Statistics in Medicine 17 (1998) 857-872."""
    assert wilson_interval(correct, images) == pytest.approx((low, high), abs=5e-5)


def test_wrong_calls_are_refused() -> None:
    head = head_of(6)
    keys, labels_N, scores_NK = photos(10, 6)
    evaluator = Evaluator(head.classes_)
    with pytest.raises(ValueError, match="9 keys"):
        evaluator.add(keys[1:], labels_N, head.predict_proba(scores_NK))
    with pytest.raises(ValueError, match="6 classes"):
        evaluator.add(keys, labels_N, head.predict_proba(scores_NK)[:, :5])
    with pytest.raises(ValueError, match="different classes"):
        evaluator.merge(Evaluator(["a", "b"]))
    with pytest.raises(ValueError, match="thresholds"):
        evaluator.merge(Evaluator(head.classes_, 0.5))
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="from 0 to 1"):
            Evaluator(head.classes_, threshold)
    evaluator.add([], [], np.empty((0, 6)))


@pytest.mark.parametrize("num_classes", [2, 3, 17])
def test_log_loss_and_brier_score_are_scikit_learns(num_classes: int) -> None:
    head = head_of(num_classes)
    keys, labels_N, scores_NK = photos(500, num_classes)
    scores_NK[0, :] = -2000 * np.eye(num_classes)[int(labels_N[0][-3:])]  # a probability of 0 for the label
    found = evaluated(head, keys, labels_N, scores_NK).result()
    probabilities_NK, names = probabilities(scores_NK), list(head.classes_)
    assert found.log_loss == pytest.approx(metrics.log_loss(labels_N.tolist(), probabilities_NK, labels=names))
    if num_classes == 2:
        expected = metrics.brier_score_loss(labels_N == names[1], probabilities_NK[:, 1])
    else:
        expected = metrics.brier_score_loss(labels_N.tolist(), probabilities_NK, labels=names)
    assert found.brier_score == pytest.approx(expected)


def test_labels_the_head_does_not_know_have_no_log_loss() -> None:
    head = head_of(4)
    keys, labels_N, scores_NK = photos(80, 4)
    known = evaluated(head, keys[20:], labels_N[20:], scores_NK[20:]).result()
    labels_N[:20] = "unheard of"
    found = evaluated(head, keys, labels_N, scores_NK).result()
    assert (found.log_loss, found.brier_score) == pytest.approx((known.log_loss, known.brier_score))
    none = evaluated(head, keys[:20], labels_N[:20], scores_NK[:20]).result()
    assert (none.log_loss, none.brier_score) == (None, None)


@pytest.mark.parametrize("threshold", [0.0, 0.55, 0.9, 1.0])
def test_images_below_the_threshold_are_undecided(threshold: float) -> None:
    head = head_of(5)
    keys, labels_N, scores_NK = photos(400, 5)
    labels_N[:40] = "unheard of"  # which are errors if they are answered
    labels_N[-10:] = None
    found = evaluated(head, keys, labels_N, scores_NK, threshold=threshold).result()
    sure_N = probabilities(scores_NK).max(axis=1)[:-10] >= threshold
    right_N = (answers(head, scores_NK) == labels_N)[:-10]
    assert found.coverage == sure_N.mean()
    assert found.accuracy_answered == (right_N[sure_N].mean() if sure_N.any() else None)
    if threshold == 0:
        assert (found.coverage, found.accuracy_answered) == (1.0, found.accuracy)
    assert found.accuracy == right_N.mean(), "the accuracy is that of all images"


def test_the_curve_goes_from_the_surest_images_to_all() -> None:
    head = head_of(5)
    keys, labels_N, scores_NK = photos(400, 5)
    found = evaluated(head, keys, labels_N, 3 * scores_NK).result()
    sure_N, right_N = probabilities(3 * scores_NK).max(axis=1), answers(head, scores_NK) == labels_N
    curve = found.coverage_curve
    assert len(curve) > 50
    for point in curve:
        answered_N = sure_N >= point.threshold
        assert point.coverage == pytest.approx(answered_N.mean())
        assert point.accuracy == pytest.approx(right_N[answered_N].mean())
    assert [point.coverage for point in curve] == sorted({point.coverage for point in curve})
    assert (curve[-1].coverage, curve[-1].accuracy) == (1.0, pytest.approx(found.accuracy))


def test_the_interval_of_none_or_all_right_ends_at_zero_or_one() -> None:
    for num_images in range(1, 60):
        assert wilson_interval(0, num_images)[0] == 0.0
        assert wilson_interval(num_images, num_images)[1] == 1.0
