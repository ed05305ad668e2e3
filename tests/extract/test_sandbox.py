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

from bottleneck.dataset.make_plan import make_plan
from bottleneck.errors import OutOfMemoryError
from bottleneck.extract import sandbox as guard
from bottleneck.extract.decode import Decoded, Rejected
from bottleneck.extract.prepare import prepare_shard
from bottleneck.extract.sandbox import SandboxedDecoder
from bottleneck.extract.work import Work
from bottleneck.sources.reading import Limits

CRASH, HANG, NO_MEMORY = b"this picture kills", b"this picture hangs", b"this picture is huge"
KILLED, KILLED_ONCE = b"this picture is killed", b"this picture is killed once"
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
    if data.endswith({NO_MEMORY!r}):
        raise MemoryError
    if data.endswith({KILLED!r}) or (data.endswith({KILLED_ONCE!r}) and not os.path.exists(os.environ["KILLED"])):
        open(os.environ["KILLED"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return load(image)

ImageFile.load = sabotaged
"""
"""What a bug in a decoder does, for pictures with a mark behind their end; in every process that starts from here."""


@pytest.fixture(autouse=True)
def sabotaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.write_files(tmp_path / "site", {"sitecustomize.py": SABOTAGE.encode()})
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    monkeypatch.setattr(guard, "RETRY_SECONDS", (0.0, 0.0))


@pytest.fixture
def guarded() -> Iterator[SandboxedDecoder]:
    guarded = SandboxedDecoder()
    yield guarded
    guarded.close()


def test_an_image_that_kills_its_decoder_is_rejected_and_the_next_is_decoded(guarded: SandboxedDecoder) -> None:
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
    guarded: SandboxedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "DECODE_SECONDS", 1)
    assert isinstance(guarded(tiny.jpeg(0), tiny.spec(), Limits()), Decoded)
    started = time.monotonic()
    assert guarded(tiny.jpeg(1) + HANG, tiny.spec(), Limits()) == Rejected("decode_timeout")
    assert time.monotonic() - started < 5
    assert isinstance(guarded(tiny.jpeg(2), tiny.spec(), Limits()), Decoded)


@pytest.mark.parametrize("fault", [NO_MEMORY, KILLED])
def test_an_image_is_not_rejected_for_a_lack_of_memory(guarded: SandboxedDecoder, fault: bytes) -> None:
    with pytest.raises(MemoryError):
        guarded(tiny.jpeg(1) + fault, tiny.spec(), Limits())
    assert isinstance(guarded(tiny.jpeg(2), tiny.spec(), Limits()), Decoded)


def test_an_image_whose_decoder_was_killed_for_memory_is_tried_again(guarded: SandboxedDecoder, tmp_path: Path) -> None:
    assert isinstance(guarded(tiny.jpeg(1) + KILLED_ONCE, tiny.spec(), Limits()), Decoded)
    assert (tmp_path / "killed").exists()


def test_a_run_that_lacks_memory_stops_and_names_the_image(tmp_path: Path) -> None:
    def decode(*_: object) -> Decoded:
        raise MemoryError

    source = tiny.write_files(tmp_path / "photos", {"1.jpg": tiny.jpeg(1)})
    plan = make_plan(str(source), str(tmp_path / "features"), tiny.spec())
    [shard] = plan.shards()
    with pytest.raises(OutOfMemoryError, match=r"too small to decode '1\.jpg'.*--max-pixels") as raised:
        prepare_shard(Work.of(plan), shard, decode)
    assert raised.value.exit_code == 5


def test_a_guard_that_was_closed_starts_again(guarded: SandboxedDecoder) -> None:
    guarded.close()
    assert isinstance(guarded(tiny.jpeg(0), tiny.spec(), Limits()), Decoded)
    guarded.close()
    guarded.close()


def test_a_shard_is_prepared_past_its_deadly_images(tmp_path: Path, guarded: SandboxedDecoder) -> None:
    files = {"1.jpg": tiny.jpeg(1), "2.jpg": tiny.jpeg(2) + CRASH, "3.jpg": tiny.jpeg(3)}
    source = tiny.write_files(tmp_path / "photos", files)
    plan = make_plan(str(source), str(tmp_path / "features"), tiny.spec())
    [shard] = plan.shards()
    prepared = prepare_shard(Work.of(plan), shard, guarded)
    assert prepared.rows.column("reason").to_pylist() == [None, "decoder_crash", None]
    assert prepared.pixels_NHWC.shape == (2, 224, 224, 3)


DECODE = """
import sys

import tiny
from bottleneck.extract import sandbox as guard
from bottleneck.extract.prepare import prepare_shard
from bottleneck.extract.work import Work
from bottleneck.sources.reading import Limits

guard.DECODE_SECONDS = 1
for data in (tiny.jpeg(0), tiny.jpeg(1) + sys.argv[1].encode(), tiny.jpeg(2)):
    print(type(guard.decode_or_exit(data, tiny.spec(), Limits())).__name__, flush=True)
"""


@pytest.mark.parametrize(("fault", "told"), [(HANG, "Timeout"), (NO_MEMORY, "a worker ends itself")])
def test_a_worker_ends_itself_when_its_decoder_hangs_or_lacks_memory(fault: bytes, told: str) -> None:
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests.parent), str(tests), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", DECODE, fault],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stdout.split() == ["Decoded"]
    assert told in done.stderr
