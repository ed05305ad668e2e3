"""Processes of our own: they answer, pass errors on, and know nothing of the program that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import tiny

from bottleneck.child import ChildDiedError, answer, ask
from bottleneck.errors import BottleneckError, WeightsError

SCRIPT = """
import sys
from bottleneck.extract.sandbox import SandboxedDecoder
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureSpec
import json

print("started")
spec = FeatureSpec.from_json(json.loads(sys.argv[1]))
guarded = SandboxedDecoder()
print(guarded(open(sys.argv[2], "rb").read(), spec, Limits()).pixels_HWC.shape)
guarded.close()
"""


def test_a_script_without_a_main_guard_starts_once(tmp_path: Path) -> None:
    """Nor does a file in the working directory get into the process."""
    import json

    files = {"code/script.py": SCRIPT.encode(), "work/numpy.py": b"raise SystemExit(1)", "0.jpg": tiny.jpeg(0)}
    tiny.write_files(tmp_path, files)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "code/script.py"), json.dumps(tiny.spec().to_json()), str(tmp_path / "0.jpg")],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "started\n(224, 224, 3)\n"


KILLED = """
import os, signal, sys
from bottleneck.child import Child
from test_child import _sleep

child = Child(_sleep)
print(int(child.pipe.recv_bytes()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _sleep(pipe: Connection) -> None:
    pipe.send_bytes(str(os.getpid()).encode())
    time.sleep(1000)


def test_a_child_ends_with_a_parent_that_was_killed() -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True)
    child = int(done.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _serve(pipe: Connection) -> None:
    def act(asked: dict[str, str]) -> str:
        if asked["do"] == "die":
            os._exit(1)
        if asked["do"] == "refuse":
            raise WeightsError("no such weights")
        if asked["do"] == "fail":
            raise RecursionError("too deep")
        print("not the answer")
        return asked["do"]

    answer(pipe, act)


def test_what_a_child_answers_or_raises_arrives(capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(_serve, {"do": "answer"}) == "answer"
    with pytest.raises(WeightsError, match="no such weights"):
        ask(_serve, {"do": "refuse"})
    with pytest.raises(BottleneckError, match="RecursionError: too deep"):
        ask(_serve, {"do": "fail"})
    with pytest.raises(ChildDiedError):
        ask(_serve, {"do": "die"})
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "not the answer" in shown.err
