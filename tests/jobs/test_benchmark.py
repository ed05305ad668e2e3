"""The job `benchmark`: what it measures, and what follows from that."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from sklearn.linear_model import LogisticRegression

from bottleneck.audit.verify import verify
from bottleneck.dataset.features import open_features
from bottleneck.errors import UsageError
from jobs import benchmark
from jobs.__main__ import main
from jobs.benchmark import extract as benchmark_extract
from jobs.benchmark import head as benchmark_head
from jobs.benchmark import head_growth as benchmark_head_growth
from jobs.benchmark import made_up
from jobs.benchmark import sklearn_side as benchmark_sklearn


def test_all_four_are_measured_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tiny.photos(tmp_path / "photos", 40)
    (photos / "cats" / "broken.jpg").write_bytes(b"not a picture")
    assert main(["--json", "benchmark", str(photos), "--num-images", "64", "--base", "mobilenet_0.25"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["images"], result["rejected_and_left_out"]) == (64, 1)
    for part in ("job", "keras_loop", "network", "decode"):
        assert result[part]["images_per_second"] > 0, part
        assert 0 <= result[part]["others_cpu_share"] < 1, part
    job = result["job"]
    assert 0 < job["first_batch_seconds"] < job["seconds"]
    assert 64 / job["images_per_second"] < job["seconds"]
    assert 0 < job["driver_peak_rss_bytes"] < job["peak_pss_bytes"] < result["hardware"]["memory_bytes"]
    assert result["versions"]["bottleneck-features"]
    assert result["hardware"]["cores"] >= 1
    assert any("of the ceiling" in line for line in benchmark_extract.table(result))


def test_images_are_taken_evenly_and_again_where_they_are_too_few(tmp_path: Path) -> None:
    photos = tiny.photos(tmp_path / "photos", 10)
    assert benchmark_extract.copy_images(str(photos), str(tmp_path / "some"), 4, tiny.spec()) == 0
    keys = [f"cats/{n:04d}.jpg" for n in (1, 5, 9)] + [f"dogs/{n:04d}.jpg" for n in (0, 4)]
    chosen = [file.read_bytes() for file in sorted((tmp_path / "some").iterdir())]
    assert chosen == [(photos / keys[n]).read_bytes() for n in (0, 1, 3, 4)]
    benchmark_extract.copy_images(str(photos), str(tmp_path / "many"), 25, tiny.spec())
    many = [file.read_bytes() for file in sorted((tmp_path / "many").iterdir())]
    assert len(many) == 25
    assert many[:10] == many[10:20]


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    source = tiny.write_files(tmp_path / "photos", {"a.jpg": b"", "b.jpg": b"no picture"})
    with pytest.raises(UsageError, match="Received 2 that say so"):
        benchmark_extract.copy_images(str(source), str(tmp_path / "images"), 4, tiny.spec())


def test_the_ceiling_adds_network_and_decoding_on_the_same_cores() -> None:
    one = {
        "job": {"images_per_second": 60.0},
        "keras_loop": {"images_per_second": 10.0},
        "network": {"images_per_second": 80.0, "threads": 2, "device": "tensorflow cpu:0"},
        "decode": {"images_per_second": 800.0},
    }
    slower = {**one, "job": {"images_per_second": 20.0}}
    result = benchmark_extract.summarize([one, slower, one], {"cores": 2, "gpus": []})
    assert result["job"]["images_per_second"] == 60
    assert math.isclose(result["ceiling_images_per_second"], 1 / (1 / 80 + 1 / 800))
    assert math.isclose(result["job_to_ceiling"], 60 * (1 / 80 + 1 / 800))
    assert result["job_to_keras_loop"] == 6


def test_on_gpus_the_slower_side_is_the_ceiling() -> None:
    one = {
        "job": {"images_per_second": 900.0},
        "keras_loop": {"images_per_second": 300.0},
        "network": {"images_per_second": 3000.0, "threads": 8, "device": "tensorflow gpu:0"},
        "decode": {"images_per_second": 4000.0},
    }
    assert benchmark_extract.summarize([one], {"cores": 8, "gpus": ["A"]})["ceiling_images_per_second"] == 3000
    assert benchmark_extract.summarize([one], {"cores": 8, "gpus": ["A", "B"]})["ceiling_images_per_second"] == 4000


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--num-images .* Received: 0"):
        benchmark.Config(source="photos", num_images=0)
    with pytest.raises(UsageError, match=r"--rounds .* Received: 0"):
        benchmark.Config(source="photos", rounds=0)
    with pytest.raises(UsageError, match=r"--classes .* from 2 up. Received: 1"):
        benchmark.Config(what="head-growth", classes=1)
    with pytest.raises(UsageError, match=r"--limit-seconds .* Received: nan"):
        benchmark.Config(source="features", what="head", limit_seconds=math.nan)


def test_a_source_is_given_where_one_is_needed() -> None:
    for what in ("extract", "head"):
        with pytest.raises(UsageError, match=f"--what {what} takes a source"):
            benchmark.Config(what=what)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--what head-growth takes no source"):
        benchmark.Config(source="photos", what="head-growth")


def test_a_job_that_lost_count_of_its_first_batch_leaves_a_gap() -> None:
    part = {"images_per_second": 10.0, "threads": 2, "device": "tensorflow cpu:0"}
    one = dict.fromkeys(("keras_loop", "network", "decode"), part)
    rounds = [{**one, "job": {**part, "first_batch_seconds": seconds}} for seconds in (None, 4.0, 6.0)]
    assert benchmark_extract.summarize(rounds, {"cores": 2, "gpus": []})["job"]["first_batch_seconds"] == 5
    assert benchmark_extract.summarize(rounds[:1], {"cores": 2, "gpus": []})["job"]["first_batch_seconds"] is None


def test_fits_are_measured_beside_scikit_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = str(tmp_path / "features")
    made_up.write_features(features, 90, 6, 3)
    assert main(["--json", "benchmark", features, "--what", "head"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["images"], result["classes"], result["dim"]) == (90, 3, 6)
    assert [row["c"] for row in result["rows"]] == [0.1, 1, 10, 100, 1000, 10000]
    for row in result["rows"]:
        assert 0 <= row["solver_gap"] < 1e-8
        assert len(row["grid_search_gaps"]) == 3
        assert min(row["grid_search_gaps"]) > -1e-6  # nobody is below the optimum
        assert abs(row["converged_gap"]) < 1e-6
    assert (result["accuracies_equal"], result["accuracies_known"]) == (6, 6)
    assert result["converged"]["over_limit"] == 0
    assert result["fit"]["seconds"] > result["fit"]["fit_seconds"] > 0
    assert result["fit"]["fitted_on"] < 90
    for part in ("fit", "solver", "grid_search", "converged"):
        assert 0 <= result[part]["others_cpu_share"] < 1, part
    assert any("6 of 6 folds" in line for line in benchmark_head.table(result))


def test_scikit_learn_is_given_up_in_time(tmp_path: Path) -> None:
    features = str(tmp_path / "features")
    made_up.write_features(features, 90, 6, 3)
    found = benchmark_sklearn.measure_converged(features, made_up.LAYER, 1e-6)
    assert [row["seconds"] for row in found["rows"]] == [None] * 6
    assert (found["over_limit"], found["grid_seconds_at_least"]) == (6, pytest.approx(18e-6))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_objective_is_the_one_scikit_learn_minimises(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    features_ND, class_indices_N = rng.standard_normal((60, 3)), np.arange(60) % num_classes
    data = benchmark_sklearn.Data(features_ND, class_indices_N, np.arange(60) % 3, num_classes)
    seen_N = data.folds_N != 1
    fitted = LogisticRegression(C=2.0).fit(features_ND[seen_N], class_indices_N[seen_N])
    truth = np.eye(num_classes, dtype=bool)[class_indices_N[seen_N]]
    losses = -np.log(fitted.predict_proba(features_ND[seen_N])[truth])
    expected = 2 * losses.sum() + (fitted.coef_**2).sum() / 2
    assert benchmark_sklearn.objective(fitted, data, 1) == pytest.approx(expected, rel=1e-12)
    tiny_loss = benchmark_sklearn.log_losses(np.array([[50.0, 0.0], [0.0, 800.0]]), np.array([0, 0]))
    assert tiny_loss == pytest.approx([math.exp(-50), 800], rel=1e-12)


def test_growth_is_measured_on_made_up_features_beside_scikit_learn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_head_growth, "STEPS", (60,))
    size = ["--num-images", "300", "--dim", "8", "--classes", "3"]
    assert main(["--json", "benchmark", "--what", "head-growth", *size]) == 0
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    few, many = result["fits"]
    assert [(fit["images"], fit["num_workers"]) for fit in (few, many)] == [(60, 1), (300, 1)]
    assert many["peak_pss_bytes"] > many["worker_peak_rss_bytes"] > 0
    assert many["peak_to_float32_features"] == many["peak_pss_bytes"] / (300 * 8 * 4)
    assert 0 <= many["gap"] < 1e-15
    assert 1 / 3 < many["accuracy"] <= 1
    solver, converged = result["solver"], result["scikit_learn"]
    assert solver["images"] == many["fitted_on"]
    assert converged["objective"] == pytest.approx(solver["objective"], rel=1e-6)
    assert converged["to_solver"] == converged["seconds"] / solver["seconds"]
    shown = benchmark_head_growth.table(result)
    assert any("a further image took" in line for line in shown)
    assert any("x as long" in line for line in shown)


def test_one_fit_of_scikit_learn_that_is_not_done_in_time_says_how_long_it_had() -> None:
    fit = {"images": 90, "fit_seconds": 2.0, "peak_pss_bytes": 1e9, "worker_peak_rss_bytes": None, "gap": 1e-20}
    fit |= {"num_workers": 1, "seconds": 4.0, "accuracy": 0.9}
    solver = {"images": 66, "seconds": 2.0, "gap": 1e-19, "objective": 5.0}
    rounds = [{"90/1": fit, "solver": solver, "scikit_learn": {"seconds": None, "objective": None}}]
    result = benchmark_head_growth.summarize(rounds, 6)
    told = {"dim": 6, "classes": 3, "limit_seconds": 30.0, "hardware": {"cpu": "a CPU", "cores": 2}, **result}
    assert any("not done after 30 s, more than 15.0x as long" in line for line in benchmark_head_growth.table(told))


def test_made_up_features_are_like_those_of_a_network() -> None:
    """Never negative, correlated, and no class is apart from all others."""
    class_indices_N = np.arange(2_000) % 20
    features_ND = made_up.made_up_features(class_indices_N, 20, 48, seed=1)
    assert features_ND.dtype == np.float32
    assert features_ND.min() == 0
    assert 0.1 < (features_ND == 0).mean() < 0.5
    assert np.abs(np.corrcoef(features_ND.T) - np.eye(48)).max() > 0.3
    inputs_NJ = np.hstack([features_ND, np.ones((2_000, 1))])
    weights_JK = np.linalg.lstsq(inputs_NJ[:1_500], np.eye(20)[class_indices_N[:1_500]])[0]
    accuracy = ((inputs_NJ[1_500:] @ weights_JK).argmax(axis=1) == class_indices_N[1_500:]).mean()
    assert 0.5 < accuracy < 0.97
    assert not np.array_equal(features_ND, made_up.made_up_features(class_indices_N, 20, 48, seed=2))


def test_made_up_features_are_an_output_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_up, "SHARD_SIZE", 16)
    made_up.write_features(str(tmp_path / "features"), 50, 4, 3)
    assert verify(str(tmp_path / "features"), full=True).exit_code == 0
    features_ND, labels_N = open_features(str(tmp_path / "features")).arrays()
    assert features_ND.shape == (50, 4)
    assert len(np.unique(features_ND, axis=0)) == 50
    assert np.unique(labels_N.astype(str), return_counts=True)[1].tolist() == [17, 17, 16]
