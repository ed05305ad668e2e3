"""`bottleneck fit` on Ray Train: real features, several workers, workers that die, input that cannot be fitted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crew
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import tiny
from sklearn.linear_model import LogisticRegression
from test_jobs import run

from bottleneck.dataset.features import Features, open_features, rows_of
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import FeaturesError, UsageError
from bottleneck.heads.fit import fit_features
from bottleneck.heads.head import Head
from bottleneck.heads.request import HeadRequest, Variant
from bottleneck.heads.solver.grid import Grid
from bottleneck.heads.splits import HELD_OUT, split
from bottleneck.storage.store import open_store
from jobs.__main__ import main

LAYER = tiny.LAYERS[0]
SHARD = 16


def features_of(
    folder: Path,
    labels: list[str | None],
    *,
    nan: bool = False,
    done: bool = True,
    dim: int = 6,
    gap: float = 2.0,
    series: int = 0,
    beside: int = 0,
) -> Features:
    """A features dataset with an image for each label, written by the real writer; classes are so far apart.

    The images of another series have other digests. With `beside` there is another layer of so many dimensions.
    """
    layers = {"layers": (LAYER, "fc2:none"), "dims": (dim, beside)} if beside else {"dims": (dim,)}
    spec = tiny.spec(**layers)
    keys = [f"{label or ''}/{n:05d}.jpg".lstrip("/") for n, label in enumerate(labels)]
    tiny.write_files(folder / "photos", {key: tiny.jpeg(0) for key in keys})
    output = str(folder / "features")
    plan = make_plan(str(folder / "photos"), output, spec, shard_size=SHARD)
    means = np.random.default_rng(0).standard_normal((len(set(labels)), dim)) * gap
    order = sorted({str(label) for label in labels})
    images = list(plan.images())
    shards = range(plan.num_shards if done else plan.num_shards - 1)
    for shard in shards:
        own = images[shard * SHARD : (shard + 1) * SHARD]
        rows = tiny.data_rows(spec, [image.key for image in own], seed=shard)
        values = np.stack(rows.column(LAYER).to_pylist()).astype(np.float32)
        values += means[[order.index(str(image.label)) for image in own]]
        if nan and shard == 1:
            values[3, 2] = np.nan
        column = tiny.pa.array(list(values), rows.schema.field(LAYER).type)
        rows = rows.set_column(rows.schema.get_field_index(LAYER), rows.schema.field(LAYER), column)
        digests = [bytes([shard, n, series]) + bytes(29) for n in range(len(own))]
        at = rows.schema.get_field_index("sha256")
        rows = rows.set_column(at, rows.schema.field(at), tiny.pa.array(digests, rows.schema.field(at).type))
        write_shard(open_store(output), plan.data_name(shard), spec, shard, rows, run_id="test", device="none")
    if done:
        finish(plan)
    return open_features(output, allow_incomplete=True)


def names(count: int, num_classes: int = 3) -> list[str | None]:
    return [["ash", "beech", "cedar", "dogwood"][number % num_classes] for number in range(count)]


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("forest"), names(200), gap=0.7)


@pytest.fixture(scope="module")
def fitted(forest: Features, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    head = tmp_path_factory.mktemp("head") / "one"
    code, result, told = run("fit", forest.plan.output, str(head), "--c", "0.1", "1", "10")
    assert code == 0, told
    return head, result, told


def test_a_fit_gives_head_grid_and_report(fitted: tuple[Path, dict[str, Any], str], forest: Features) -> None:
    folder, result, told = fitted
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png",
        "evaluation.json",
        "head.json",
        "head.safetensors",
        "label-issues.parquet",
        "report.html",
    ]
    assert (result["classes"], result["images"], result["fitted_on"] + result["held_out"]) == (3, 200, 200)
    assert [row["c"] for row in result["grid"]] == [0.1, 1.0, 10.0]
    assert all(row["gap"] < 1e-6 for row in result["grid"])
    assert "fold 3" in told
    assert "precision    recall  f1-score   support" in told
    issues = pq.read_table(folder / "label-issues.parquet")
    assert issues.column_names == ["key", "label", "suggested", "score", "held_out"]
    assert (result["label_issues"], len(issues) > 0) == (len(issues), True)
    first = issues.slice(0, 1).to_pylist()[0]
    assert f"first of all {first['key']} (labelled {first['label']}, looks like {first['suggested']})" in told
    assert f'<span class="key"><bdi>{first["label"]}/' in (folder / "report.html").read_text()
    features_ND, labels_N = forest.arrays(LAYER)
    tables = [table.column("sha256").to_pylist() for table in forest.tables(["sha256"])]
    digests_N = np.array([int.from_bytes(value[:8], "big") for part in tables for value in part], np.uint64)
    class_indices_N = np.unique(labels_N.astype(str), return_inverse=True)[1]
    out_N = split(class_indices_N, digests_N, ["ash", "beech", "cedar"], 0.25, 3).folds_N == HELD_OUT
    peer = LogisticRegression(C=result["c"], tol=1e-10, max_iter=10_000).fit(
        features_ND[~out_N].astype(float), labels_N[~out_N].astype(str)
    )
    head = Head.load(str(folder))
    assert result["temperature"] == head.temperature_
    head.temperature_ = 1.0
    np.testing.assert_allclose(head.predict_proba(features_ND), peer.predict_proba(features_ND), atol=1e-4)
    assert result["accuracy"] == pytest.approx(peer.score(features_ND[out_N], labels_N[out_N].astype(str)))


def test_fitted_again_it_is_done_already(fitted: tuple[Path, dict[str, Any], str], forest: Features) -> None:
    folder, result, _ = fitted
    arguments = ["fit", forest.plan.output, str(folder), "--c", "0.1", "1", "10"]
    code, again, _ = run(*arguments, RAY_ADDRESS="127.0.0.1:1")  # needs no Ray at all
    assert (code, again) == (0, result)
    code, _, told = run(*arguments, "--folds", "4")
    assert code == 4
    assert "folds: fitted 3, requested 4" in told


def started(output: str, head: Path, num_workers: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A fit in a process of its own, once its workers have read the features, and these workers."""
    told = head.with_suffix(".log")
    with told.open("w") as log:
        options = ["--c", "0.1", "1", "10", "--num-workers", str(num_workers)]
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "--json", "fit", output, str(head), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while "classes read" not in told.read_text():
        assert time.monotonic() < deadline, told.read_text()
        assert process.poll() is None, told.read_text()
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    return process, [child for child in family if "RayTrainWorker" in _title(child)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.matrix(3, "fit")
def test_a_killed_worker_changes_nothing(
    fitted: tuple[Path, dict[str, Any], str], forest: Features, tmp_path: Path
) -> None:
    """Two workers, one of which is killed; the group starts again and the head is that of one worker."""
    process, workers = started(forest.plan.output, tmp_path / "head", 2)
    assert len(workers) == 2
    random.choice(workers).kill()
    stdout, _ = process.communicate(timeout=240)
    assert process.returncode == 0, (tmp_path / "head.log").read_text()
    assert json.loads(stdout.splitlines()[-1])["num_workers"] == 2
    one, two = Head.load(str(fitted[0])), Head.load(str(tmp_path / "head"))
    np.testing.assert_allclose(two.coef_, one.coef_, atol=1e-8 * np.abs(one.coef_).max())
    np.testing.assert_allclose(two.intercept_, one.intercept_, atol=1e-8)
    assert two.origin_.details["grid"][0]["accuracies"] == one.origin_.details["grid"][0]["accuracies"]


def test_a_fit_asked_to_stop_leaves_no_process_and_no_head(forest: Features, tmp_path: Path) -> None:
    process, workers = started(forest.plan.output, tmp_path / "head", 1)
    os.killpg(process.pid, signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)
    told = (tmp_path / "head.log").read_text()
    assert process.returncode == 3, told
    assert json.loads(stdout.splitlines()[-1])["error"] == "Interrupted"
    assert "Traceback" not in told
    assert not psutil.wait_procs(workers, timeout=30)[1]
    left = list((tmp_path / "head").glob("*"))
    assert all(path.suffix == ".partial" for path in left), left  # results of folds, for the next run


STOPPED = """
import sys, threading, time
import psutil, ray
from bottleneck.distributed import train as trainer
from bottleneck.dataset.features import open_features, rows_of
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.grid import Grid
from bottleneck.heads.solver.grid import Grid
from bottleneck.distributed.train import train_head

def stop(event):
    raise KeyboardInterrupt

def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ends
        return ""

def workers():
    words = map(title, psutil.Process().children(recursive=True))
    return [word for word in words if "Exchange" in word or "RayTrainWorker" in word]

stop_ray, seen = trainer.stop_ray, []

def note_threads():
    seen.append("trainer" in {thread.name for thread in threading.enumerate()})
    stop_ray()

trainer.stop_ray = note_threads
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
kept = ray.put("kept")
features = open_features(sys.argv[1])
try:
    train_head(features, HeadRequest(), rows_of(features), on_event=stop)
except KeyboardInterrupt:
    print("stopped beside its thread:", *seen)
print("the caller's Ray runs:", ray.is_initialized(), ray.get(kept))
deadline = time.monotonic() + 30
while workers() and time.monotonic() < deadline:
    time.sleep(0.1)
print("left in it:", *workers())
"""


def test_a_fit_that_is_stopped_leaves_its_callers_ray_running_and_nothing_in_it(forest: Features) -> None:
    """No thread of it speaks with Ray then: one that does while Ray stops ends the process without a word."""
    command = [sys.executable, "-c", STOPPED, forest.plan.output]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "stopped beside its thread: False",
        "the caller's Ray runs: True kept",
        "left in it:",
    ], done.stderr


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job fits in this process."""

    def fit_here(
        features: Features,
        request: HeadRequest,
        rows_of: dict[str, int],
        *,
        test: Features | None,
        on_event: Callable[[Any], None],
        **_: Any,
    ) -> Any:
        workers = crew.Crew([crew.Worker(), crew.Worker()])
        fitted = fit_features(workers, features, request, rows_of, test)
        for event in workers.events:
            on_event(event)
        return fitted

    monkeypatch.setattr("bottleneck.distributed.fit.train_head", fit_here)


@pytest.mark.usefixtures("without_ray")
def test_nothing_is_judged_where_nothing_is_held_out(
    forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "fit", forest.plan.output, str(tmp_path / "head"), "--test-fraction", "0"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["fitted_on"], result["held_out"], result["accuracy"], result["report"]) == (200, 0, None, None)
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == ["head.json", "head.safetensors"]


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("harm", ["source", "drawing"])
def test_a_report_that_cannot_be_made_costs_no_head(
    harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    features = features_of(tmp_path, names(60), gap=0.3)
    if harm == "source":
        shutil.rmtree(tmp_path / "photos")
        (tmp_path / "photos").write_text("no folder any more")
    else:
        monkeypatch.setattr("bottleneck.inspect.report.draw_confusion", lambda *_: 1 / 0)
    head = tmp_path / "head"
    assert main(["--json", "fit", features.plan.output, str(head)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Head.load(str(head)).sha256_ == result["sha256"]
    if harm == "source":
        assert result["report"] == str(head / "report.html")
        assert "pictures missing" in (head / "report.html").read_text()
    else:
        assert result["report"] is None
        assert [one for one in caplog.messages if "The report" in one] == [
            "The report could not be written: division by zero. The head is saved; run the same command again "
            "to write the report."
        ]


def answer_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a job says that is done well."""
    assert main([*arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.usefixtures("without_ray")
def test_a_split_that_the_data_has_is_used_and_found_again(
    forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, output = tmp_path / "head", forest.plan.output
    options = ["--test-keys", "*/000[0-4]?.jpg", "--group-by", r"/(\d{4})", "--c", "0.1", "1"]
    result = answer_of(["fit", output, str(head), *options], capsys)
    assert (result["fitted_on"], result["held_out"], result["groups"]) == (150, 50, 20)
    assert (result["test_keys"], result["group_by"]) == (["*/000[0-4]?.jpg"], r"/(\d{4})")
    page = (head / "report.html").read_text()
    assert "Held out are the images whose keys match *" in page
    assert "Images were kept together in 20 groups by" in page
    features_ND, labels_N = forest.arrays(LAYER)
    keys_N = forest.keys()
    is_test_N = np.array([key.partition("/")[2] < "00050" for key in keys_N])
    assert result["accuracy"] == Head.load(str(head)).score(features_ND[is_test_N], labels_N[is_test_N])

    assert answer_of(["fit", output, str(head), *options], capsys) == result
    judged = answer_of(["evaluate", str(head), output, "--held-out"], capsys)
    assert (judged["images"], judged["accuracy"]) == (50, result["accuracy"])
    assert (judged["held_out"], judged["fitted_on_these"]) == (True, False)


@pytest.mark.usefixtures("without_ray")
def test_near_copies_across_the_split_are_told_with_the_accuracy_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = features_of(tmp_path, names(120), dim=4, gap=1.0)
    head, output = tmp_path / "head", features.plan.output
    options = ["--test-keys", "*/000[0-3]?.jpg"]
    assert main(["fit", output, str(head), *options]) == 0
    told = capsys.readouterr()
    result = answer_of(["fit", output, str(head), *options], capsys)
    features_ND, labels_N = features.arrays(LAYER)
    keys_N = features.keys()
    is_test_N = np.array([key.partition("/")[2] < "00040" for key in keys_N])
    unit_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    near_NM = unit_ND[is_test_N] @ unit_ND[~is_test_N].T > 0.99
    is_near_N = near_NM.any(axis=1)
    assert 1 < is_near_N.sum() < len(is_near_N)
    without = Head.load(str(head)).score(features_ND[is_test_N][~is_near_N], labels_N[is_test_N][~is_near_N])
    assert (result["near_copies"], result["near_copy_pairs"]) == (is_near_N.sum(), near_NM.sum())
    assert result["accuracy_without_near_copies"] == pytest.approx(without)
    assert without != result["accuracy"]
    assert result["label_issues"] is None, "a single C has no folds to find any"
    assert not (head / "label-issues.parquet").exists()
    line = f"{is_near_N.sum()} test images have near copies among the training images: accuracy without them "
    assert f"{line}{100 * without:.2f} %." in told.out
    page = (head / "report.html").read_text()
    assert line in page
    assert "Likely mislabelled" not in page
    answer_of(["evaluate", str(head), output, "--held-out", "--report", str(tmp_path / "report")], capsys)
    assert line in (tmp_path / "report/report.html").read_text()


@pytest.mark.usefixtures("without_ray")
def test_the_held_out_part_is_known_later_and_only_in_the_same_features(
    forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, output = tmp_path / "head", forest.plan.output
    result = answer_of(["fit", output, str(head), "--kind", "svm"], capsys)
    judged = answer_of(["evaluate", str(head), output, "--held-out"], capsys)
    assert (judged["images"], judged["accuracy"]) == (result["held_out"], result["accuracy"])
    assert answer_of(["evaluate", str(head), output], capsys)["images"] == 200

    before = (head / "evaluation.json").read_text()
    (head / "report.html").unlink()  # as if the job had been killed before it
    (head / "evaluation.json").unlink()
    assert answer_of(["fit", output, str(head), "--kind", "svm"], capsys) == result
    again, once = json.loads((head / "evaluation.json").read_text()), json.loads(before)
    assert again["confusion"] == once["confusion"]

    other = features_of(tmp_path / "other", names(60)).plan.output
    assert main(["evaluate", str(head), other, "--held-out"]) == 4
    assert "is not, or no longer, what the head was fitted on" in capsys.readouterr().err
    answer_of(["fit", other, str(tmp_path / "all"), "--test-fraction", "0"], capsys)
    assert main(["evaluate", str(tmp_path / "all"), other, "--held-out"]) == 2
    assert "The fit held no image out. Fit with a `test_fraction` above 0" in capsys.readouterr().err


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--test-keys", "tset/*"], "--test-keys tset/* matches none of the 200 labelled images"),
        (["--test-keys", "*"], "--test-keys * matches all 200 labelled images"),
        (["--test-keys", "ash/*"], "ash (0). Expected at least 1 different images of each class outside --test-keys"),
        (["--test-keys", "ash/*", "beech/*"], "2 classes with too few images to be split: ash (0), beech (0)"),
        (["--test-keys", "a*", "--test-fraction", "0.1"], "so it takes no --test-fraction"),
        (["--group-by", "("], "--group-by takes a regular expression or a column. Received: (, where"),
        (["--group-by", "nothing"], "Received: nothing, which gives none of the 200 labelled images a group"),
        (["--group-by", "label"], "Expected at least 2 groups of images of each class"),
        (["--c", "1", "2", "--folds", "190"], "--folds 190 needs as many different images"),
    ],
)
def test_a_split_that_cannot_be_is_told_before_the_fit(
    options: list[str], words: str, forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", forest.plan.output, str(tmp_path / "head"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "head").exists()


@pytest.mark.usefixtures("without_ray")
def test_a_best_c_at_an_end_of_the_grid_is_told_and_a_small_network_has_none(
    forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    result = answer_of(["fit", forest.plan.output, str(tmp_path / "one"), "--c", "1e-4", "1e-3"], capsys)
    assert (result["c"], result["grid_end"]) == (1e-3, "largest")
    assert "The best C, 0.001, is the largest of the grid: a larger one may be better." in caplog.messages
    assert "is the largest of the grid" in (tmp_path / "one/report.html").read_text()
    assert main(["fit", forest.plan.output, str(tmp_path / "two"), "--kind", "mlp"]) == 0
    assert "C = " not in capsys.readouterr().out
    assert "<dt>C</dt>" not in (tmp_path / "two/report.html").read_text()
    assert answer_of(["fit", forest.plan.output, str(tmp_path / "two"), "--kind", "mlp"], capsys)["c"] is None


def test_the_end_of_a_grid_is_one_beyond_which_may_be_more() -> None:
    def end(best: float, *means: float) -> str | None:
        c_values = (0.1, 1.0, 10.0)
        rows = [{"kind": "svm", "scale": "l2", "c": c, "mean": mean} for c, mean in zip(c_values, means, strict=True)]
        others = [{"kind": "svm", "scale": "none", "c": 0.01, "mean": 0.1}, {**rows[0], "kind": "logistic", "c": 0.02}]
        return Grid([*others, *rows], best, Variant("svm", "l2")).end

    assert end(0.1, 0.9, 0.8, 0.8) == "smallest"
    assert end(10.0, 0.7, 0.8, 0.9) == "largest"
    assert end(1.0, 0.7, 0.8, 0.7) is None
    assert end(0.1, 0.9, 0.9, 0.9) is None  # all are as good
    assert Grid().end is None


def test_a_place_that_takes_no_head_is_told_before_the_fit(
    forest: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bottleneck.distributed.fit.train_head", lambda *_, **__: pytest.fail("was fitted"))
    (tmp_path / "file").write_text("in the way")
    assert main(["fit", forest.plan.output, str(tmp_path / "file" / "head")]) == 5
    assert "A part of the path is a file" in capsys.readouterr().err
    assert main(["fit", forest.plan.output, "gs://bucket/head"]) == 2


def fit_in_process(features: Features, **request: Any) -> Any:
    return fit_features(crew.Crew([crew.Worker(), crew.Worker()]), features, HeadRequest(**request), rows_of(features))


def test_a_class_of_one_image_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"too few images to be split: elm \(1\)"):
        fit_in_process(features_of(tmp_path, [*names(40), "elm"]))


def test_labels_that_only_rejected_images_had_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ok image with a label"):
        fit_in_process(features_of(tmp_path, [None] * 40))


def test_nan_features_are_told(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match=r"NaN or infinite, first those of .*jpg"):
        fit_in_process(features_of(tmp_path, names(40), nan=True))


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    fitted = fit_in_process(features_of(tmp_path, [*names(60), None, None]))
    assert (fitted.details["unlabelled"], fitted.details["images"]) == (2, 60)


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (["ash"] * 40, [], "same label: ash"),
        ([None] * 40, [], "no ok image with a label"),
        (names(40), ["--c", "0"], "--c takes numbers above 0"),
        (names(40), ["--layer", "fc2"], "Expected --layer to be one of conv_pw_13_relu:avg"),
    ],
    ids=["one label", "no label", "c", "layer"],
)
def test_what_cannot_be_fitted_is_told_before_ray_starts(
    labels: Any, options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = features_of(tmp_path, labels)
    assert main(["fit", features.plan.output, str(tmp_path / "head"), *options]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert not (tmp_path / "head").exists()


def test_more_workers_than_cpus_are_told(forest: Features, tmp_path: Path) -> None:
    code, _, told = run("fit", forest.plan.output, str(tmp_path / "head"), "--num-workers", "1000")
    assert code == 2
    assert "--num-workers takes 1 to the cluster's number of CPUs" in told


def test_an_unfinished_dataset_is_refused_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = features_of(tmp_path, names(60), done=False)
    assert main(["fit", features.plan.output, str(tmp_path / "head")]) == 3
    assert "is not finished" in capsys.readouterr().err
    code, result, told = run("fit", features.plan.output, str(tmp_path / "head"), "--allow-incomplete")
    assert code == 0, told
    assert result["images"] == 48


def test_a_malformed_head_in_the_way_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = features_of(tmp_path, names(40))
    tiny.write_files(tmp_path / "head", {"head.json": b"{"})
    assert main(["fit", features.plan.output, str(tmp_path / "head")]) == 1
    assert "truncated" in capsys.readouterr().err
