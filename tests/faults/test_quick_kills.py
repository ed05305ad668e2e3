"""Kill runs without Ray, a second each: at every step they take on the output, and at any time between.

A run is killed before a step that is chosen evenly among all that a run takes (opening, linking, renaming or removing a
file of the output), so before and after each write, or at a random time, so during one. What the kills hit is printed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import oracle
import pytest
from conftest import make_photos, photo
from extractjob import AnyJob, Photos
from matrix import amounts

from bottleneck.storage.store import UNNAMED_FILES

STUB = ("--base", "stub", "--weights", "random:0", "--dtype", "float32", "--shard-size", "4")
NUM_PHOTOS = 80
KILLS_A_ROUND = 6


@dataclass
class Way:
    """One way to fill an output, as the jobs that do it one after the other."""

    photos: Photos
    jobs: list[list[str]]
    """The arguments of each, without the output, which is their second last but for `requeue`."""
    start: Path | None = None
    """An output that the jobs go on with; None for a new one."""
    at_once: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    reference: str = ""
    steps: int = 0
    """Of all jobs undisturbed."""


def _run(way: Way, output: Path, number: int, log: Path, kill_at: int = 0) -> AnyJob:
    environment = {
        **way.environment,
        "PYTHONPATH": str(Path(__file__).parent / "watch"),
        "STEPS_OUTPUT": f"{output}/",
        "STEPS_LOG": str(log),
        "KILL_AT_STEP": str(kill_at),
    }
    asked = [str(output) if one == "OUTPUT" else one for one in way.jobs[number]]
    return AnyJob(output, *asked, environment=environment)


def _overwrite(photos: Photos, step: int) -> None:
    import numpy as np

    rng = np.random.default_rng(4)
    for key in [key for key, status in photos.truth.items() if status == "ok"][::step]:
        (photos.folder / key).write_bytes(photo(rng))


@pytest.fixture(scope="module", params=["local", "named files", "three at once", "extend", "requeue", "onnx"])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Way:
    """A way with its reference, whose run without faults tells how many steps there are."""
    folder = tmp_path_factory.mktemp("way")
    photos = make_photos(folder / "photos", NUM_PHOTOS)
    asked = STUB
    if request.param == "onnx":
        asked = ("--base", "onnx", "--weights", _tiny_network(folder), "--dtype", "float32", "--shard-size", "4")
        asked = (*asked, "--pixels", "unit")
    extract = ["extract", str(photos.folder), "OUTPUT", "--local", *asked]
    found = Way(photos, [extract])
    if request.param == "named files":
        found.environment[UNNAMED_FILES] = "off"
    if request.param == "three at once":
        found.at_once = 3
    if request.param == "extend":
        found.start = folder / "start"
        AnyJob.run(found.start, "extract", photos.folder, found.start, "--local", *asked, "--limit", "32").succeeded()
        found.jobs = [[*extract, "--extend"]]
    if request.param == "requeue":
        found.start = folder / "start"
        AnyJob.run(found.start, "extract", photos.folder, found.start, "--local", *asked).succeeded()
        _overwrite(photos, 3)
        found.jobs = [["requeue", "OUTPUT", "--changed"], extract]
    found.reference = str(folder / "reference")
    AnyJob.run(found.reference, *[found.reference if one == "OUTPUT" else one for one in extract]).succeeded()
    log, output = folder / "steps.log", folder / "whole"
    log.touch()
    if found.start:
        shutil.copytree(found.start, output)
    for number in range(len(found.jobs)):
        with _run(found, output, number, log) as job:
            assert job.wait().code in (0, 3)
    oracle.check(str(output), photos.truth, features_of=found.reference)
    found.steps = len(log.read_text().splitlines())
    return found


@pytest.mark.matrix(2)
@pytest.mark.matrix(1)
@pytest.mark.parametrize("kills", amounts(6, 100, hours=0.5))
def test_runs_without_ray_that_are_killed_again_and_again_lose_nothing(
    kills: int, way: Way, tmp_path: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    killed, hit, rounds = 0, Counter[str](), 0
    while killed < kills:
        rounds += 1
        assert rounds < 20 + 2 * kills, f"{killed} kills in {rounds} rounds"
        output, log = tmp_path / f"features-{rounds}", tmp_path / f"steps-{rounds}.log"
        log.touch()
        if way.start:
            shutil.copytree(way.start, output)
        left = min(KILLS_A_ROUND, kills - killed)
        for number in range(len(way.jobs)):
            here = _killed_until_done(way, output, number, log, rng, left if number else -(-left // len(way.jobs)))
            killed, left = killed + here, left - here
            tried(2, here)
        steps = [line for line in log.read_text().splitlines() if line.startswith("kill ")]
        hit.update(_kind(line) for line in steps)
        tried(1, len(steps))
        oracle.check(str(output), way.photos.truth, features_of=way.reference)
        # What replaces a file has a name before, which a kill leaves; `oracle` knows it, and later runs sweep it.
        assert not [path for path in output.rglob(".*") if not oracle.LEFTOVER.fullmatch(str(path.relative_to(output)))]
        done = len(log.read_text().splitlines())
        with _run(way, output, len(way.jobs) - 1, log) as job:
            assert job.wait().succeeded()["done_now"] == 0
        written = [line for line in log.read_text().splitlines()[done:] if "os.link" in line or "os.rename" in line]
        assert not written, "a run with nothing to do wrote"
        shutil.rmtree(output)
    hit["at a random time"] = killed - sum(hit.values())
    print(f"{killed} kills in {rounds} rounds of {way.steps} steps: {dict(hit.most_common())}")


def _killed_until_done(way: Way, output: Path, number: int, log: Path, rng: random.Random, at_most: int) -> int:
    """Start one job of a way until it ends well; kill so many of its runs, if they live long enough."""
    killed = 0
    while True:
        with contextlib.ExitStack() as stack:
            jobs = []
            for _ in range(way.at_once):
                kill_at = rng.randint(1, way.steps) if killed + len(jobs) < at_most and rng.random() < 0.7 else 0
                jobs.append(stack.enter_context(_run(way, output, number, log, kill_at)))
                if not kill_at and killed + len(jobs) <= at_most:
                    timer = threading.Timer(rng.uniform(0.3, 2.5), jobs[-1].process.kill)
                    stack.callback(timer.cancel)
                    timer.start()
            ended = [job.wait() for job in jobs]
        killed += sum(one.code == -9 for one in ended)
        for one in ended:
            assert one.code in (0, -9), f"exit code {one.code}\n{one.stdout}\n{one.stderr}"  # whole, with its traceback
        if any(one.code == 0 for one in ended):
            return killed
        finished = None if way.start else False
        if output.exists() and not (output / "_SUCCESS.json").exists():
            oracle.check(str(output), way.photos.truth, finished=finished)


def _kind(line: str) -> str:
    """A step without its numbers: `link data/s.parquet`."""
    _, event, name = line.split(" ", 2)
    return f"{event.removeprefix('os.')} {re.sub(r'[0-9a-f]*[0-9][0-9a-f-]*', '', name) or 'the folder'}"


def _tiny_network(folder: Path) -> str:
    """A network of one product, as an ONNX file."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "weights"], ["maps"], strides=[4, 4]),
            helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
            helper.make_node("Flatten", ["means"], ["features"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = os.path.join(folder, "tiny.onnx")
    onnx.save(model, path)
    return path
