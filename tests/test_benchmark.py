"""The job `benchmark`: what it measures, and what follows from that."""

import json
import math
from pathlib import Path

import pytest
import tiny

from bottleneck.errors import UsageError
from jobs import benchmark
from jobs.__main__ import main


def test_all_four_are_measured_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tiny.photos(tmp_path / "photos", 40)
    (photos / "cats" / "broken.jpg").write_bytes(b"not a picture")
    assert main(["benchmark", str(photos), "--num-images", "64", "--base", "mobilenet_0.25"]) == 0
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
    assert any("of the ceiling" in line for line in benchmark.table(result))


def test_images_are_taken_evenly_and_again_where_they_are_too_few(tmp_path: Path) -> None:
    photos = tiny.photos(tmp_path / "photos", 10)
    assert benchmark.copy_images(str(photos), str(tmp_path / "some"), 4, tiny.spec()) == 0
    keys = [f"cats/{n:04d}.jpg" for n in (1, 5, 9)] + [f"dogs/{n:04d}.jpg" for n in (0, 4)]
    chosen = [file.read_bytes() for file in sorted((tmp_path / "some").iterdir())]
    assert chosen == [(photos / keys[n]).read_bytes() for n in (0, 1, 3, 4)]
    benchmark.copy_images(str(photos), str(tmp_path / "many"), 25, tiny.spec())
    many = [file.read_bytes() for file in sorted((tmp_path / "many").iterdir())]
    assert len(many) == 25
    assert many[:10] == many[10:20]


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    source = tiny.write_files(tmp_path / "photos", {"a.jpg": b"", "b.jpg": b"no picture"})
    with pytest.raises(UsageError, match="Received 2 that say so"):
        benchmark.copy_images(str(source), str(tmp_path / "images"), 4, tiny.spec())


def test_the_ceiling_adds_network_and_decoding_on_the_same_cores() -> None:
    one = {
        "job": {"images_per_second": 60.0},
        "keras_loop": {"images_per_second": 10.0},
        "network": {"images_per_second": 80.0, "threads": 2, "device": "tensorflow cpu:0"},
        "decode": {"images_per_second": 800.0},
    }
    slower = {**one, "job": {"images_per_second": 20.0}}
    result = benchmark.summarize([one, slower, one], {"cores": 2, "gpus": []})
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
    assert benchmark.summarize([one], {"cores": 8, "gpus": ["A"]})["ceiling_images_per_second"] == 3000
    assert benchmark.summarize([one], {"cores": 8, "gpus": ["A", "B"]})["ceiling_images_per_second"] == 4000


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--num-images .* Received: 0"):
        benchmark.Config(source="photos", num_images=0)
    with pytest.raises(UsageError, match=r"--rounds .* Received: 0"):
        benchmark.Config(source="photos", rounds=0)


def test_a_job_that_lost_count_of_its_first_batch_leaves_a_gap() -> None:
    part = {"images_per_second": 10.0, "threads": 2, "device": "tensorflow cpu:0"}
    one = dict.fromkeys(("keras_loop", "network", "decode"), part)
    rounds = [{**one, "job": {**part, "first_batch_seconds": seconds}} for seconds in (None, 4.0, 6.0)]
    assert benchmark.summarize(rounds, {"cores": 2, "gpus": []})["job"]["first_batch_seconds"] == 5
    assert benchmark.summarize(rounds[:1], {"cores": 2, "gpus": []})["job"]["first_batch_seconds"] is None
