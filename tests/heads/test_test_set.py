"""`bottleneck fit --test`: evaluated on other features, which are looked through before the fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_fit import answer_of, features_of, names, without_ray

from bottleneck import fit_head
from bottleneck.dataset.features import Features
from bottleneck.errors import UsageError
from bottleneck.heads.head import Head
from jobs.__main__ import main

__all__ = ["without_ray"]

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("forest"), names(80), gap=0.7)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """60 images of the classes, 5 of another and 3 of none."""
    labels = [*names(60), *["elm"] * 5, None, None, None]
    return features_of(tmp_path_factory.mktemp("others"), labels, gap=0.7, series=1)


def accuracy_on(features: Features, head: Head) -> float:
    """Of the labelled images; a label that the head does not know is an error."""
    features_ND, labels_N = features.arrays()
    labelled_N = np.array([label is not None for label in labels_N])
    return float((head.predict(features_ND[labelled_N]) == labels_N[labelled_N]).mean())


def test_a_head_is_fitted_on_all_images_and_evaluated_on_the_others(
    forest: Features, others: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    head, test = tmp_path / "head", others.plan.output
    arguments = ["fit", forest.plan.output, str(head), "--test", test, "--scale", "auto", "--metric", "macro_f1"]
    result = answer_of(arguments, capsys)
    assert (result["fitted_on"], result["held_out"]) == (80, 0)
    assert result["test"] == {
        "features": test,
        "plan_sha256": others.plan.sha256,
        "images": 65,
        "unlabelled": 3,
        "unknown": 5,
        "copies": 0,
    }
    assert result["accuracy"] == pytest.approx(accuracy_on(others, Head.load(str(head))))
    assert f"Evaluated on the 65 labelled images of {test}." in caplog.messages
    assert any("5 test images with labels the head does not know" in one for one in caplog.messages)
    page = (head / "report.html").read_text()
    assert f"Evaluated on the 65 labelled images of {test}." in page
    assert "Macro f1 on held-out folds by scale and C" in page

    evaluation = json.loads((head / "evaluation.json").read_text())
    (head / "report.html").unlink()
    assert answer_of(arguments, capsys) == result
    again = json.loads((head / "evaluation.json").read_text())
    assert again["confusion"] == evaluation["confusion"]
    assert main([*arguments[:-4], "--metric", "macro_f1", "--scale", "l2"]) == 4
    assert "scale: fitted auto, requested l2" in capsys.readouterr().err
    assert main(["fit", forest.plan.output, str(head), "--scale", "auto", "--metric", "macro_f1"]) == 4
    assert f"test: fitted {others.plan.sha256}, requested None" in capsys.readouterr().err


def test_images_of_the_fit_in_the_test_set_are_counted(
    forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    test = features_of(tmp_path, names(20), gap=0.7)  # of the same series
    result = answer_of(["fit", forest.plan.output, str(tmp_path / "head"), "--test", test.plan.output], capsys)
    assert result["test"]["copies"] == 20
    told = "20 test images are byte-identical to images of the fit, so expect less on new ones."
    assert told in caplog.messages
    assert told in (tmp_path / "head/report.html").read_text()


@pytest.mark.parametrize(
    ("labels", "given", "options", "code", "words"),
    [
        (names(20), {"dim": 5}, [], 4, "are of another kind than those of {forest}. Differing: dims: {forest} [6]"),
        ([None] * 20, {}, [], 2, "{test} has no ok image with a label, so nothing can be evaluated on it"),
        (["elm"] * 20, {}, [], 2, "is one of the classes. Expected some of ash beech cedar. Received: elm."),
        (names(20), {"nan": True}, [], 5, "{test}/data/"),
        (names(20), {"done": False}, [], 3, "is not finished"),
        (names(20), {}, ["--test-fraction", "0.1"], 2, "takes neither --test-fraction nor --test-keys"),
        (names(20), {}, ["--test-keys", "a*"], 2, "takes neither --test-fraction nor --test-keys"),
    ],
    ids=["fingerprint", "no label", "no known label", "nan", "unfinished", "fraction", "keys"],
)
def test_a_test_set_that_means_nothing_is_told_before_the_fit(
    labels: Any,
    given: dict[str, Any],
    options: list[str],
    code: int,
    words: str,
    forest: Features,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test = features_of(tmp_path, labels, series=1, **given).plan.output
    monkeypatch.setattr("bottleneck.heads.fit.Coordinator", lambda *_: pytest.fail("was fitted"))
    assert main(["fit", forest.plan.output, str(tmp_path / "head"), "--test", test, *options]) == code
    told = capsys.readouterr().err
    assert words.format(forest=forest.plan.output, test=test) in told
    assert "NaN or infinite" in told or "nan" not in given
    assert not (tmp_path / "head" / "head.json").exists()


def test_features_are_not_their_own_test_set(
    forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", forest.plan.output, str(tmp_path / "head"), "--test", f"{forest.plan.output}/"]) == 2
    assert "--test holds the images that are fitted on" in capsys.readouterr().err


@pytest.mark.parametrize("given", [lambda test: test, lambda test: test.plan.output], ids=["features", "uri"])
def test_the_library_takes_a_test_set(given: Callable[[Features], Any], forest: Features, others: Features) -> None:
    head = fit_head(forest, test=given(others), scale="auto", metric="log_loss", folds=2)
    assert head.origin.details["fitted_on"] == 80
    assert head.origin.details["accuracy"] == pytest.approx(accuracy_on(others, head))
    assert head.scale in ("none", "standard", "l2")
    assert len(head.origin.details["grid"]) == 3
    with pytest.raises(UsageError, match="takes neither"):
        fit_head(forest, test=others, test_fraction=0.5)


def test_the_grid_names_scale_and_metric(forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = tmp_path / "head"
    options = ["--scale", "auto", "--metric", "log_loss", "--c", "0.1", "1"]
    assert main(["fit", forest.plan.output, str(head), *options]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    at = lines.index("log_loss of each fold:")
    assert lines[at + 1].split() == ["scale", "C", "fold", "1", "fold", "2", "fold", "3", "mean"]
    details = Head.load(str(head)).origin.details
    expected = [[row["scale"], f"{row['c']:g}", f"{row['mean']:.4f}"] for row in details["grid"]]
    assert [[line.split()[n] for n in (0, 1, -1)] for line in lines[at + 2 : at + 8]] == expected
    best = min(details["grid"], key=lambda row: row["mean"])
    assert (Head.load(str(head)).scale, details["c"]) == (best["scale"], best["c"])
    assert f"C = {best['c']:g}, scale {best['scale']}" in shown
    page = (head / "report.html").read_text()
    assert "Log loss on held-out folds, the lower the better, by scale and C" in page
    assert f'class="best"><th scope="row">{best["scale"]} (best)</th><td>{best["c"]:g}</td>' in page
