"""Images with several labels each: one logistic regression a name, scikit-learn's optimum, thresholds of its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import crew
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from test_fit import features_of, names

import bottleneck
from bottleneck.dataset.features import Features
from bottleneck.dataset.plan import load_plan
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.heads.head import Head
from bottleneck.heads.label_sets import LabelSets, joined, names_in
from bottleneck.heads.labels_evaluation import LabelsEvaluator
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver import fit_data
from bottleneck.heads.solver.label_counts import LabelCounts, bins_of, lower_edges
from bottleneck.heads.splits import HELD_OUT, SplitRule, Traits
from jobs import evaluate, fit, predict

NAMES = np.array(["bell", "blue", "cup", "small", "white"], object)
WAYS = {"products": (120, 150), "images": (300, 20), "sums": (300, 20)}


def data(num_images: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features, and labels that follow from them, some rare; some images have none."""
    rng = np.random.default_rng(seed)
    features_ND = rng.standard_normal((num_images, dim)) * rng.uniform(0.3, 2, dim) + 1
    scores_NL = (features_ND - 1) @ rng.standard_normal((dim, len(NAMES))) / np.sqrt(dim)
    has_label_NL = scores_NL + 0.4 * rng.standard_normal(scores_NL.shape) > np.array([0, 0.4, 0.8, 1.0, -0.5])
    return features_ND.astype(np.float32), has_label_NL


def as_text(has_label_NL: np.ndarray) -> np.ndarray:
    return np.array([joined(NAMES[row].tolist()) for row in has_label_NL], object)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sums":
        monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    return str(request.param)


@pytest.mark.parametrize(("scale", "weight"), list(itertools.product(("none", "standard", "l2"), (None, "balanced"))))
def test_the_optimum_is_that_of_one_against_the_rest(way: str, scale: Any, weight: Any) -> None:
    features_ND, has_label_NL = data(*WAYS[way])
    head = Head(multi_label=True, C=0.7, scale=scale, class_weight=weight).fit(features_ND, has_label_NL.astype(int))
    own = LogisticRegression(C=0.7, tol=1e-12, solver="newton-cholesky", max_iter=1000, class_weight=weight)
    steps = {"none": [], "standard": [StandardScaler()], "l2": [Normalizer()]}[scale]
    found = make_pipeline(*steps, OneVsRestClassifier(own)).fit(features_ND.astype(np.float64), has_label_NL)
    expected_NL = found.predict_proba(features_ND.astype(np.float64))
    np.testing.assert_allclose(head.predict_proba(features_ND), expected_NL, atol=1e-6)
    assert (head.predict(features_ND) == found.predict(features_ND.astype(np.float64))).all()
    np.testing.assert_allclose(np.exp(head.predict_log_proba(features_ND)), expected_NL, atol=1e-6)
    assert head.score(features_ND, has_label_NL) == found.score(features_ND.astype(np.float64), has_label_NL)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_gives_the_same_grid_and_thresholds(way: str, num_workers: int) -> None:
    features_ND, has_label_NL = data(*WAYS[way])
    labels, class_indices_N = np.unique(as_text(has_label_NL), return_inverse=True)
    sets = LabelSets.of(labels.tolist(), "here")
    folds_N = np.arange(len(class_indices_N)) % 3
    request = HeadRequest(c=(0.01, 1.0), multi_label=True)
    arrays, grid, led = crew.fit(features_ND, class_indices_N, folds_N, request, num_workers, sets=sets)
    assert led.solver == way
    assert grid.gap is not None
    assert grid.gap < 1e-15
    counts: Any = None
    for row in grid.rows:
        scores_NL = np.empty(has_label_NL.shape)
        for fold in range(3):
            seen_N = folds_N != fold
            own = OneVsRestClassifier(LogisticRegression(C=row["c"], tol=1e-10, solver="newton-cholesky"))
            own.fit(features_ND[seen_N].astype(np.float64), has_label_NL[seen_N])
            scores_NL[~seen_N] = own.decision_function(features_ND[~seen_N].astype(np.float64))
            rounded_NL = lower_edges(bins_of(scores_NL[~seen_N]))
            expected = average_precision_score(has_label_NL[~seen_N], rounded_NL, average="macro")
            assert row["scores"][fold] == pytest.approx(expected, abs=2e-3)  # a score at an edge may be in either bin
        if row["c"] == grid.best_c:
            counts = LabelCounts.of(scores_NL, has_label_NL)
    assert grid.best_c == max(grid.rows, key=lambda row: row["mean"])["c"]
    assert grid.label_counts is not None
    np.testing.assert_allclose(grid.label_counts.best_thresholds(), counts.best_thresholds(), atol=1 / 32)
    assert arrays["coef"].shape == (len(NAMES), features_ND.shape[1])


def test_counts_are_scikit_learns_of_rounded_scores() -> None:
    rng = np.random.default_rng(1)
    scores_NL = 3 * rng.standard_normal((500, 4))
    has_label_NL = scores_NL + 3 * rng.standard_normal((500, 4)) > 1
    parts = np.array_split(np.arange(500), 3)
    first, *rest = (LabelCounts.of(scores_NL[part], has_label_NL[part]) for part in parts)
    counts = sum(rest, first)
    rounded_NL = lower_edges(bins_of(scores_NL))
    np.testing.assert_allclose(
        counts.average_precision_L, average_precision_score(has_label_NL, rounded_NL, average=None), rtol=1e-12
    )
    exact = average_precision_score(has_label_NL, scores_NL, average="macro")
    assert counts.score("average_precision") == pytest.approx(exact, abs=2e-3)
    probabilities_NL = 1 / (1 + np.exp(-scores_NL))
    losses = [log_loss(has_label_NL[:, label], probabilities_NL[:, label]) for label in range(4)]
    assert counts.score("log_loss") == pytest.approx(np.mean(losses))
    assert counts.score("macro_f1") == pytest.approx(f1_score(has_label_NL, scores_NL >= 0, average="macro"))
    thresholds_L = counts.best_thresholds()
    for label, threshold in enumerate(thresholds_L):
        reached = f1_score(has_label_NL[:, label], scores_NL[:, label] >= threshold)
        best = max(f1_score(has_label_NL[:, label], scores_NL[:, label] >= one) for one in rounded_NL[:, label])
        assert reached == pytest.approx(best, abs=1e-12)


def test_a_threshold_is_between_what_it_divides() -> None:
    counts = LabelCounts.of(np.array([[-4.0], [2.0]]), np.array([[False], [True]]))
    assert counts.best_thresholds()[0] == pytest.approx(-1.0, abs=0.05)
    none = LabelCounts.of(np.array([[-4.0], [2.0]]), np.array([[False], [False]]))
    assert none.best_thresholds()[0] == 0


def test_every_fold_has_images_of_every_name() -> None:
    rng = np.random.default_rng(2)
    has_label_NL = rng.random((400, 5)) < [0.5, 0.3, 0.1, 0.03, 0.02]
    labels, class_indices_N = np.unique(as_text(has_label_NL), return_inverse=True)
    digests_N = rng.integers(0, 2**63, 400).astype(np.uint64)
    traits = Traits(digests_N, digests_N, np.zeros(400, bool), np.zeros(0, int), 0)
    rule = SplitRule(test_fraction=0.25, num_folds=3)
    sets = LabelSets.of(labels.tolist(), "here")
    folds_N = rule.split(class_indices_N, traits, labels.tolist(), sets).folds_N
    for fold in (HELD_OUT, 0, 1, 2):
        assert has_label_NL[folds_N == fold].any(axis=0).all(), fold
    share_L = has_label_NL[folds_N == HELD_OUT].sum(axis=0) / has_label_NL.sum(axis=0)
    np.testing.assert_allclose(share_L, 0.25, atol=0.1)
    rare_NL = has_label_NL.copy()
    rare_NL[:, 4] = np.arange(400) == 7
    labels, class_indices_N = np.unique(as_text(rare_NL), return_inverse=True)
    with pytest.raises(UsageError, match=r"1 class with too few images to be split: white \(1\)"):
        rule.split(class_indices_N, traits, labels.tolist(), LabelSets.of(labels.tolist(), "here"))


def test_an_evaluation_is_what_scikit_learn_says_of_its_predictions() -> None:
    features_ND, has_label_NL = data(300, 20)
    head = Head(multi_label=True).fit(features_ND[:200], as_text(has_label_NL[:200]))
    head.thresholds_ = np.array([0.4, 0.5, 0.3, 0.2, 0.6])
    probabilities_NL, truth_NL = head.predict_proba(features_ND[200:]), has_label_NL[200:]
    labels = [*as_text(truth_NL).tolist()[:-2], None, "blue;green"]
    evaluators = [LabelsEvaluator(NAMES.tolist(), head.thresholds_.tolist()) for _ in range(2)]
    for part, evaluator in zip(np.array_split(np.arange(100), 2), evaluators, strict=True):
        evaluator.add(part.tolist(), [labels[row] for row in part], probabilities_NL[part])
    evaluators[0].merge(evaluators[1])
    found = evaluators[0].result()
    truth_NL[-1] = NAMES == "blue"
    kept = np.delete(np.arange(100), 98)
    given_NL = head.predict(features_ND[200:])[kept]
    truth_NL = truth_NL[kept]
    assert (found.num_images, found.num_unlabelled, found.unknown_labels) == (99, 1, {"green": 1})
    is_right_N = (given_NL == truth_NL).all(axis=1)
    is_right_N[-1] = False  # it does not know green
    assert found.num_correct == is_right_N.sum()
    assert found.macro_f1 == pytest.approx(f1_score(truth_NL, given_NL, average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(truth_NL, given_NL, average="micro"))
    expected = average_precision_score(truth_NL, probabilities_NL[kept], average="macro")
    assert found.average_precision == pytest.approx(expected, abs=3e-3)
    worst = found.mistakes[0]
    column = NAMES.tolist().index(worst.label)
    distances_NL = np.where(given_NL != truth_NL, np.abs(probabilities_NL[kept] - head.thresholds_), 0)
    row = kept.tolist().index(int(worst.key))
    assert distances_NL[row, column] == distances_NL.max()
    assert worst.missed == truth_NL[row, column]
    assert json.loads(json.dumps(found.to_json()))["labels"][0]["label"] == "bell"


def test_a_head_keeps_its_names_and_thresholds(tmp_path: Path) -> None:
    features_ND, has_label_NL = data(200, 20)
    head = Head(multi_label=True).fit(features_ND, as_text(has_label_NL))
    assert head.classes_.tolist() == NAMES.tolist()
    assert head.thresholds_.tolist() == [0.5] * 5
    head.thresholds_ = np.array([0.4, 0.5, 0.3, 0.2, 0.6])
    head.save(str(tmp_path / "head"))
    again = Head.load(str(tmp_path / "head"))
    assert again.multi_label is True
    np.testing.assert_array_equal(again.predict(features_ND), head.predict(features_ND))
    table = again.predictions(features_ND[:20], top=2)
    expected = [joined(NAMES[row == 1].tolist()) for row in head.predict(features_ND[:20])]
    assert table.column("predicted").to_pylist() == expected
    assert [len(one) for one in table.column("top_labels").to_pylist()] == [2] * 20
    with pytest.raises(UsageError, match="no estimator of scikit-learn's"):
        again.to_sklearn()


def test_a_head_is_searched_as_any_of_scikit_learns() -> None:
    features_ND, has_label_NL = data(200, 20)
    search = GridSearchCV(Head(multi_label=True), {"C": [0.01, 1.0]}, cv=3, scoring="f1_macro")
    found = search.fit(features_ND, has_label_NL.astype(int))
    assert found.best_params_ == {"C": 1.0}
    assert found.best_estimator_.classes_.tolist() == [0, 1, 2, 3, 4]


def test_names_in_a_label() -> None:
    assert names_in(" dog ;cat; dog;") == ("cat", "dog")
    assert names_in(";") == ()
    assert joined(["b", "a"]) == "a;b"
    assert joined([]) == ";"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "svm"}, "`multi_label` fits logistic regressions"),
        ({"metric": "balanced_accuracy"}, "one of average_precision, macro_f1, log_loss"),
        ({"multi_label": False, "metric": "average_precision"}, "Give `multi_label` with it"),
    ],
)
def test_requests_that_mean_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        HeadRequest(**{"multi_label": True, **changes})


def test_the_metric_is_the_average_precision_unless_another_is_given() -> None:
    assert HeadRequest(multi_label=True).metric == "average_precision"
    assert HeadRequest(multi_label=True, metric="log_loss").metric == "log_loss"
    assert "multi_label" not in HeadRequest().to_json()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "a;b", "a"], "on all"),
        (["a", "a", "a"], "Expected two labels"),
        ([1, 2, 3], "expected labels as a matrix"),
        (np.array([[0, 2], [1, 0], [1, 1]]), "expected labels as a matrix"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Head(multi_label=True).fit(np.eye(3), labels)
    with pytest.raises(UsageError, match="Expected two or more in here"):
        LabelSets.of(["a", "a;"], "here")


def test_predictions_of_no_rows_have_the_same_columns() -> None:
    features_ND, has_label_NL = data(60, 4)
    head = Head(multi_label=True).fit(features_ND, has_label_NL.astype(int))
    table = head.predictions(np.empty((0, 0)))
    assert table.schema == head.predictions(features_ND[:1]).schema
    assert pa.types.is_string(table.schema.field("predicted").type)


def sets(count: int) -> list[str | None]:
    return [["ash", "ash;tall", "beech", "beech;tall", "beech;tall;old", ";"][number % 6] for number in range(count)]


@pytest.fixture(scope="module")
def wood(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("wood"), sets(240), gap=2.5)


@pytest.fixture(scope="module")
def fitted(wood: Features, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    head = tmp_path_factory.mktemp("head") / "head"
    request = HeadRequest(multi_label=True, c=(0.1, 1.0))
    return head, fit.fit(fit.Config(features=wood.plan.output, head=str(head), request=request, num_workers=0))


def test_a_fit_of_names_gives_thresholds_and_a_report(fitted: tuple[Path, dict[str, Any]], wood: Features) -> None:
    folder, result = fitted
    assert (result["classes"], result["metric"]) == (4, "average_precision")
    assert result["average_precision"] > 0.8
    head = Head.load(str(folder))
    assert head.classes_.tolist() == ["ash", "beech", "old", "tall"]
    assert head.origin.details["thresholds"] == head.thresholds_.tolist() != [0.5] * 4
    page = (folder / "report.html").read_text()
    assert "Average precision" in page
    assert "<bdi>beech</bdi>" in page
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["summary"]["average_precision"] == result["average_precision"]
    assert not (folder / "label-issues.parquet").exists()
    again = fit.fit(
        fit.Config(
            features=wood.plan.output,
            head=str(folder),
            request=HeadRequest(multi_label=True, c=(0.1, 1.0)),
            num_workers=0,
        )
    )
    assert again["sha256"] == result["sha256"]
    with pytest.raises(FingerprintError, match="multi_label: fitted True, requested False"):
        fit.fit(fit.Config(features=wood.plan.output, head=str(folder), request=HeadRequest(c=(0.1, 1.0))))


def test_its_held_out_images_are_known_later(
    fitted: tuple[Path, dict[str, Any]], wood: Features, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = fitted
    assert evaluate.main(evaluate.Config(head=str(folder), features=wood.plan.output, held_out=True)) == 0
    told = capsys.readouterr().out
    assert f"average precision {result['average_precision']:.3f}, F1" in told
    assert f"of {result['held_out']} images" in told
    with pytest.raises(UsageError, match="has a threshold for each, from its fit"):
        evaluate.main(evaluate.Config(head=str(folder), features=wood.plan.output, threshold=0.9))


def test_its_predictions_are_sets_of_names(fitted: tuple[Path, dict[str, Any]], wood: Features, tmp_path: Path) -> None:
    folder, _ = fitted
    output = str(tmp_path / "predictions")
    predict.predict(predict.Config(source=wood.plan.output, head=str(folder), output=output))
    plan = load_plan(output)
    assert plan is not None
    rows = pq.read_table(f"{output}/{plan.data_name(0)}").to_pylist()
    head = Head.load(str(folder))
    features_ND, _ = wood.arrays()
    for row, given_K in zip(rows, head.predict(features_ND[: len(rows)]), strict=True):
        assert row["predicted"] == joined(head.classes_[given_K == 1].tolist())
        assert set(row["top_labels"]) == {"ash", "beech", "old", "tall"}
    told = predict.told(output)
    assert told["predicted"]["beech"] == sum("beech" in row["predicted"] for row in _all_rows(output, plan))
    right = [joined(names_in(row["label"])) == row["predicted"] for row in _all_rows(output, plan)]
    assert told["accuracy"] == pytest.approx(np.mean(right))


def _all_rows(output: str, plan: Any) -> list[dict[str, Any]]:
    files = [f"{output}/{plan.data_name(shard)}" for shard in range(plan.num_shards)]
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def test_labels_that_look_like_sets_are_told(wood: Features, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit.fit(fit.Config(features=wood.plan.output, head=str(tmp_path / "head"), request=HeadRequest(), num_workers=0))
    assert "Give --multi-label to fit every name" in caplog.text


def test_a_name_on_every_image_is_refused_before_the_fit(tmp_path: Path) -> None:
    features = features_of(tmp_path, [f"tree;{one}" for one in names(40)])
    with pytest.raises(UsageError, match="Every image that is fitted on is labelled tree"):
        bottleneck.fit_head(features, multi_label=True)
    one = features_of(tmp_path / "one", ["tree" if number % 2 else ";" for number in range(40)])
    with pytest.raises(UsageError, match="Expected two or more in"):
        bottleneck.fit_head(one, multi_label=True)
