"""Images that kill or hang their decoder take nothing else along."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from bottleneck import guard
from bottleneck.decode import Decoded, Rejected
from bottleneck.guard import GuardedByProcess
from bottleneck.plan import make_plan
from bottleneck.prepare import Work, prepare_shard
from bottleneck.spec import Limits

CRASH, HANG = b"this picture kills", b"this picture hangs"
SABOTAGE = f"""
import io, os, signal, time
from PIL.ImageFile import ImageFile

load = ImageFile.load

def sabotaged(image):
    data = image.fp.getvalue() if isinstance(image.fp, io.BytesIO) else b""
    if data.endswith({CRASH!r}):
        os.kill(os.getpid(), signal.SIGSEGV)
    if data.endswith({HANG!r}):
        time.sleep(1000)
    return load(image)

ImageFile.load = sabotaged
"""
"""What a bug in a decoder does, for pictures with a mark behind their end; in every process that starts from here."""


@pytest.fixture(autouse=True)
def sabotaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.write_files(tmp_path / "site", {"sitecustomize.py": SABOTAGE.encode()})
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


@pytest.fixture
def guarded() -> Iterator[GuardedByProcess]:
    guarded = GuardedByProcess()
    yield guarded
    guarded.close()


def test_an_image_that_kills_its_decoder_is_rejected_and_the_next_is_decoded(guarded: GuardedByProcess) -> None:
    for data in (tiny.jpeg(0), tiny.jpeg(1) + CRASH, tiny.jpeg(2), tiny.jpeg(3) + CRASH, tiny.jpeg(4) + CRASH, b""):
        outcome = guarded(data, tiny.spec(), Limits())
        if data.endswith(CRASH):
            assert outcome == Rejected("decoder_crash")
        elif not data:
            assert outcome == Rejected("empty")
        else:
            assert isinstance(outcome, Decoded)
            assert outcome.pixels_HWC.shape == (224, 224, 3)


def test_an_image_that_hangs_its_decoder_is_rejected_in_time(
    guarded: GuardedByProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "DECODE_SECONDS", 1)
    assert isinstance(guarded(tiny.jpeg(0), tiny.spec(), Limits()), Decoded)
    started = time.monotonic()
    assert guarded(tiny.jpeg(1) + HANG, tiny.spec(), Limits()) == Rejected("decode_timeout")
    assert time.monotonic() - started < 5
    assert isinstance(guarded(tiny.jpeg(2), tiny.spec(), Limits()), Decoded)


def test_a_guard_that_was_closed_starts_again(guarded: GuardedByProcess) -> None:
    guarded.close()
    assert isinstance(guarded(tiny.jpeg(0), tiny.spec(), Limits()), Decoded)
    guarded.close()
    guarded.close()


def test_a_shard_is_prepared_past_its_deadly_images(tmp_path: Path, guarded: GuardedByProcess) -> None:
    files = {"1.jpg": tiny.jpeg(1), "2.jpg": tiny.jpeg(2) + CRASH, "3.jpg": tiny.jpeg(3)}
    source = tiny.write_files(tmp_path / "photos", files)
    plan = make_plan(str(source), str(tmp_path / "features"), tiny.spec())
    [shard] = plan.shards()
    prepared = prepare_shard(Work.of(plan), shard, guarded)
    assert prepared.rows.column("reason").to_pylist() == [None, "decoder_crash", None]
    assert prepared.pixels_NHWC.shape == (2, 224, 224, 3)


DECODE = f"""
import tiny
from bottleneck import guard
from bottleneck.prepare import Work, prepare_shard
from bottleneck.spec import Limits

guard.DECODE_SECONDS = 1
for data in (tiny.jpeg(0), tiny.jpeg(1) + {HANG!r}, tiny.jpeg(2)):
    print(type(guard.guarded_by_exit(data, tiny.spec(), Limits())).__name__, flush=True)
"""


def test_a_worker_ends_itself_when_its_decoder_hangs() -> None:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), str(tests), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", DECODE],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stdout.split() == ["Decoded"]
    assert "Timeout" in done.stderr
