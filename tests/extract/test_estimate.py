"""The formula of an estimate, a sample that is measured for one, and a run's prediction of itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny import REQUEST, photos, real_spec, write_files

from bottleneck.console import Display, Progress
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan
from bottleneck.distributed.monitor import Live
from bottleneck.distributed.network import HandedNetwork
from bottleneck.distributed.stages import ExtractFeatures, prepare_stage
from bottleneck.errors import FeaturesError
from bottleneck.extract.estimate import STARTUP_SECONDS, Costs, Estimate, RunForecast, forecast_run
from bottleneck.extract.local import extract_images
from bottleneck.extract.sample import measure_sample
from bottleneck.extract.summary import Summary
from bottleneck.extract.work import Work
from jobs.extract import report
from jobs.plan import estimated


def costs(**changes: Any) -> Costs:
    """Two cores, one network that has both of them: 50 images a second alone, 40 with decoding beside it."""
    given: dict[str, Any] = {"network_seconds": 0.02, "network_core_seconds": 0.04, "decode_core_seconds": 0.01}
    return Costs(**{**given, "read_seconds": 0.001, "cores": 2, "networks": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "rate", "limiting"),
    [
        ({}, 40.0, "network"),
        ({"decode_core_seconds": 0.06}, 20.0, "decode"),
        ({"read_seconds": 0.09}, 20.0, "read"),
        ({"network_seconds": 0.05}, 20.0, "network"),  # it does not use its cores well: decoding has the rest
        # Two GPUs: the network, which takes its process half a core, does 500 images a second on each.
        ({"network_seconds": 0.002, "network_core_seconds": 0.001, "networks": 2, "cores": 32}, 1000.0, "network"),
        ({"network_seconds": 0.002, "network_core_seconds": 0.001, "networks": 2, "cores": 8}, 8 / 0.011, "decode"),
        (
            {"network_seconds": 0.002, "network_core_seconds": 0, "networks": 1, "cores": 8, "read_seconds": 0.03},
            200.0,
            "read",
        ),
    ],
)
def test_the_rate_is_that_of_the_scarcest(changes: dict[str, Any], rate: float, limiting: str) -> None:
    assert costs(**changes).images_per_second == pytest.approx(rate)
    assert costs(**changes).limiting == limiting


def test_an_estimate_in_words_and_numbers() -> None:
    estimate = Estimate(costs=costs(), sampled=32, images=144_000, bytes_per_image=1000.0, output_bytes=144_000_000)
    assert estimate.seconds == STARTUP_SECONDS + 3600
    assert estimate.line() == (
        "40.0 images/s on this machine, limited by network: about 1 h 0 min, output about 144.0 MB (measured on 32 "
        "images)"
    )
    told = estimate.to_json()
    assert (told["images_per_second"], told["limiting"], told["hours"]) == (40.0, "network", 1.0022)
    assert (told["cores"], told["network_core_seconds"]) == (2, 0.04)


def plan_of(tmp_path: Path, shard_size: int) -> Plan:
    return make_plan(str(tmp_path / "photos"), str(tmp_path / "out"), real_spec(), shard_size=shard_size)


def test_a_sample_is_measured(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 40)
    write_files(tmp_path / "photos", {f"dogs/{n:04d}-broken.jpg": b"no image" for n in range(8)})
    plan = plan_of(tmp_path, shard_size=8)
    files_before = set((tmp_path / "out").rglob("*"))
    estimate = measure_sample(plan, 24)
    assert estimate is not None
    assert set((tmp_path / "out").rglob("*")) == files_before
    assert (estimate.images, estimate.sampled) == (48, 24)
    one = estimate.costs
    assert 0 < one.network_seconds < 5
    assert 0 < one.decode_core_seconds < 1
    assert 0 < one.read_seconds < 1

    assert extract_images(plan.source, plan.output, REQUEST, max_rejected=1.0, batch_size=8).ok == 40
    actual = sum(path.stat().st_size for path in (tmp_path / "out" / "data").iterdir())
    assert estimate.output_bytes == pytest.approx(actual, rel=0.15)
    assert measure_sample(plan, 24) is None  # nothing is left to do


def test_nothing_to_measure_is_said(tmp_path: Path) -> None:
    write_files(tmp_path / "photos", {f"{n}.jpg": b"no image" for n in range(6)})
    plan = plan_of(tmp_path, shard_size=4)
    with pytest.raises(FeaturesError, match="None of the 6 images sampled can be decoded: 6 x not_an_image"):
        measure_sample(plan, 8)


def test_a_source_that_is_gone_costs_the_estimate_and_not_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of_photos = photos(tmp_path / "photos", 4)
    plan = plan_of(tmp_path, shard_size=4)
    shutil.rmtree(plan_of_photos)
    assert estimated(plan) is None
    assert capsys.readouterr().out == "estimate     none: None of the 4 images sampled can be decoded: 4 x missing.\n"


SPENT = {
    "batches": 3,
    "images": 96,
    "network": 96 * 0.02,
    "network_core": 96 * 0.04,
    "prepared": 256,
    "accepted": 256,
    "decode_core": 256 * 0.01,
    "read": 256 * 0.001,
}
"""What `costs` would have taken, of half a run of 512 images."""


def predicted(done: int = 96, planned: int = 512, **changes: float) -> RunForecast | None:
    return forecast_run({**SPENT, **changes}, done=done, planned=planned, cores=2, networks=1)


def test_a_run_predicts_what_is_left_of_it() -> None:
    made = predicted()
    assert made is not None
    assert (made.done, made.left, made.limiting) == (96, 416, "network")
    # 256 of the 416 images are still to be decoded.
    assert made.images_per_second == pytest.approx(2 / (0.04 + 0.01 * 256 / 416))
    assert "about 10 s for the other 416 images (from the first 96)" in made.line()
    half_rejected = predicted(accepted=128)
    assert half_rejected is not None
    assert half_rejected.images_per_second == pytest.approx(2 / (0.02 + 0.01 * 256 / 416))


@pytest.mark.parametrize(
    ("done", "changes"),
    [
        (96, {"batches": 1}),
        (96, {"batches": 0, "images": 0}),
        (25, {}),
        (400, {}),
        (96, {"prepared": 0, "accepted": 0}),
    ],
)
def test_a_run_with_too_little_behind_or_before_it_predicts_nothing(done: int, changes: dict[str, float]) -> None:
    assert predicted(done, **changes) is None


def test_a_prediction_is_compared_with_what_came() -> None:
    made = RunForecast(at=1000.0, done=100, left=400, images_per_second=10.0, limiting="network")
    details = made.compared(500, 1050.0)
    assert details == {
        "predicted_after_images": 100,
        "predicted_images_per_second": 10.0,
        "predicted_seconds": 40.0,
        "actual_images_per_second": 8.0,
        "actual_seconds": 50.0,
    }
    assert made.compared(100, 1050.0) == {}  # another run did the rest


@pytest.mark.parametrize("is_predicted", [True, False])
def test_the_comparison_is_told_at_the_end(is_predicted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    made = RunForecast(at=1000.0, done=1100, left=400, images_per_second=10.0, limiting="network")
    details = made.compared(1500, 1050.0) if is_predicted else {}
    report(Summary("out", 1500, 1500, {}, 3, 0, 3, 60.0, "f" * 64, details=details))
    line = "predicted after 1,100 images: 10.0 images/s, was 8.0 (0.80); 40 s for the rest, took 50 s"
    assert capsys.readouterr().out.splitlines()[1:] == ([line] if is_predicted else [])


def test_the_display_tells_an_expectation_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("extract") as display:
        for images, expected in ((0, ""), (10, "expected: 5 images/s"), (20, "expected: 5 images/s")):
            display.show(Progress(images, 100, 0, "network", expected=expected))
    assert capsys.readouterr().err.count("extract: expected: 5 images/s\n") == 1


def test_an_eta_counts_down_between_batches_and_what_is_overdue_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("bottleneck.console.time.monotonic", lambda: now)
    display = Display("extract")
    lines = []
    for after, images in ((0, 0), (18, 32), (36, 64), (46, 64), (53, 64), (72, 64), (90, 96)):
        now = 1000.0 + after
        display.show(Progress(images, 96, 0, "network"))
        lines.append(display.line(Progress(images, 96, 0, "network")).removesuffix(" · limited by network"))
    assert lines[2:] == [
        "64 of 96 · 1.8 images/s · ETA 18 s",
        "64 of 96 · 1.8 images/s · ETA 8 s",
        "64 of 96 · 1.8 images/s · ETA 1 s",
        "64 of 96 · 0.6 images/s · ETA 54 s",
        "96 of 96 · done",
    ]


def test_a_run_that_waits_says_for_what(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("extract") as display:
        display.show(Progress(0, 9, 0, "start", "CPUs: others use 2 of the cluster's 2"))
    assert capsys.readouterr().err == "extract: 0 of 9 · waiting for CPUs: others use 2 of the cluster's 2\n"


class Remote:
    """A counter as the actors know it, in this process."""

    def __init__(self, counter: Live) -> None:
        self.counter = counter

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = staticmethod(getattr(self.counter, name))

        return Method


def test_the_stages_count_what_images_cost(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 23)
    write_files(tmp_path / "photos", {"dogs/0000-broken.jpg": b"no image"})
    plan = plan_of(tmp_path, shard_size=12)
    live = Live()
    extract = ExtractFeatures(REQUEST, "float32", 4, HandedNetwork("auto", 0, None), Remote(live))
    work = json.dumps(Work.of(plan).to_json())
    for shard in plan.shards():
        prepared = prepare_stage(pa.table({"work": [work], "shard": [json.dumps(asdict(shard))]}), guarded=False)
        assert "receipt" in extract(prepared).column("result")[0].as_py()
    spent = live.snapshot([], None)["spent"]
    # Six batches, of which the first counts for nothing.
    assert (spent["batches"], spent["images"], spent["prepared"], spent["accepted"]) == (5, 19, 24, 23)
    assert min(spent.values()) > 0
    assert spent["commit"] < spent["network"] < sum(live.batch_seconds) * 4 + spent["commit"]
    made = forecast_run(spent, done=12, planned=100, cores=2, networks=1)
    assert made is not None
    assert made.images_per_second > 0
