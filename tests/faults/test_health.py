"""A run that goes on for long holds no more than it did, and one that is stopped at any second leaves nothing."""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from assets import asset
from extractjob import Job, Photos, clean_environment
from matrix import scale, scaled

HEALTH = Path(__file__).parent / "health.py"
MINUTES = 30
SLOW_SECONDS = 60
"""In which far more is decoded than VGG16 computes on."""
TARS = 1_000
"""More than are done in that time."""
GROWTH = 1.05
"""What a process may take more in the last quarter than in the second, at most, and:"""
GROWTH_BYTES = 8_000_000


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where all temporary files go; a short name, as Ray's sockets in it may have no long ones."""
    with tempfile.TemporaryDirectory(prefix="bh") as folder:
        yield Path(folder)


def _left(temporary: Path) -> list[str]:
    return [path.name for path in temporary.iterdir()]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Links to one tar of photos."""
    source = tmp_path / "photos"
    source.mkdir()
    with tarfile.open(source / "0000.tar", "w") as tar:
        for path in sorted(asset("flowers17").glob("*/*.jpg")):
            tar.add(path, path.name)
    for number in range(1, TARS):
        os.link(source / "0000.tar", source / f"{number:04d}.tar")
    return source


def _looks(source: Path, output: Path, seconds: float, base: str, temporary: Path) -> list[Any]:
    """What was seen of a run that was stopped after so many seconds."""
    environment = clean_environment() | {"TMPDIR": str(temporary)}
    command = [sys.executable, HEALTH, source, output, str(seconds), base]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _left(temporary) == []
    assert not list(output.rglob(".*"))
    looks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # Keras says more
    print(f"{looks[-1]['images']:,} images in {seconds:.0f} s, {len(looks)} looks; then stopped")
    return looks


@pytest.mark.faults
def test_what_prepares_shards_waits_for_a_slow_network(tars: Path, tmp_path: Path, temporary: Path) -> None:
    looks = _looks(tars, tmp_path / "features", SLOW_SECONDS, "vgg16", temporary)
    assert max(one["store_bytes"] for one in looks) > 0
    assert {one["spilled"] for one in looks} == {0}


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_long_run_holds_no_more_than_a_short_one(tars: Path, tmp_path: Path, temporary: Path) -> None:
    looks = _looks(tars, tmp_path / "features", MINUTES * 60 * scale(), "mobilenet_0.25", temporary)
    quarter = len(looks) // 4
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]
    _tell("the object store, bytes", *(_median(part, lambda one: one["store_bytes"]) for part in (early, late)))
    grown = []
    for kind in sorted(set.intersection(*(set(one["processes"]) for one in early + late))):
        for at, what, free in ((1, "bytes", GROWTH_BYTES), (2, "open files", 3)):
            before, after = (_median(part, lambda one: one["processes"][kind][at]) for part in (early, late))  # noqa: B023
            _tell(f"{kind}, {what}", before, after)
            if after > before * GROWTH + free:
                grown.append(f"{kind}: {what} {before:,.0f} to {after:,.0f}")
    assert not grown
    assert {one["spilled"] for one in looks} == {0}
    # What is in it comes and goes: at its highest it is as high as it was.
    assert max(one["store_bytes"] for one in late) <= 1.5 * max(one["store_bytes"] for one in looks[: 2 * quarter])


def _median(looks: list[Any], value: Callable[[Any], float]) -> float:
    return statistics.median(map(value, looks))


def _tell(what: str, before: float, after: float) -> None:
    print(f"{what:45} second quarter {before:15,.0f}   last quarter {after:15,.0f}")


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_a_run_stopped_at_any_second_leaves_no_process_and_no_file(
    photos: Photos, reference: str, tmp_path: Path, temporary: Path, rng: random.Random
) -> None:
    environment = {"TMPDIR": str(temporary)}
    codes = []
    output = tmp_path / "features-0"
    for number in range(scaled(60)):
        if number % 4 == 0 or (output / "_SUCCESS.json").exists():  # so that some begin and some go on
            output = tmp_path / f"features-{number}"
        with Job(photos.folder, output, environment=environment) as job:
            pause = rng.uniform(0, 25)
            job.wait_for("a moment", lambda job=job, pause=pause: time.monotonic() > job.started + pause)
            if job.runs():
                job.signal_group(signal.SIGINT)
            ended = job.wait()
            codes.append((round(pause, 1), ended.code))
            # Before the job has begun Python itself answers, with 130 or as the signal.
            assert ended.code in ((0, 3) if pause > 5 else (0, 3, 130, -signal.SIGINT)), (pause, ended)
            assert job.orphans(waiting=False) == [], pause
        assert _left(temporary) == [], (pause, ended)
        if output.exists():
            assert not list(output.rglob(".*"))
            if (output / "plan.json").exists():
                oracle.check(str(output), photos.truth, features_of=reference, finished=None)
    print(codes)
    assert {code for _, code in codes} >= {3}
