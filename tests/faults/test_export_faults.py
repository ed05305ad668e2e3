"""An export is killed at any time: the file is there whole or not at all, and running it again gives the same."""

import json
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extractjob import AnyJob
from matrix import scaled

from jobs.benchmark.made_up import write_features

FILES = ["x.h5", "x.npz", "x.npy", "x.tfrecord", "x.keras", "x.onnx"]
OF_HEADS = (".keras", ".onnx")
KILLS = 10
"""Of each kind of file."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Features of 100,000 images, 512 values each."""
    folder = str(tmp_path_factory.mktemp("large") / "features")
    write_features(folder, 100_000, 512, 3, 2048)
    return folder


def whole(file: Path) -> Any:
    """What a file holds that must be read whole, without what differs between two good ones."""
    if file.suffix not in OF_HEADS:
        return file.read_bytes()
    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
    else:
        import onnx

        onnx.checker.check_model(onnx.load(file))
    return json.loads(Path(f"{file}.json").read_text())  # also what says how to use it is there


@pytest.mark.matrix(2, "export")
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FILES)
def test_a_killed_export_leaves_a_whole_file_or_none_and_can_be_run_again(
    name: str, large: str, head: Path, tmp_path: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    source = head if name.endswith(OF_HEADS) else large
    clean = tmp_path / "clean" / name
    seconds = AnyJob.run(clean, "export", source, clean).seconds
    expected = whole(clean)
    for number in range(scaled(KILLS)):
        file = tmp_path / str(number) / name
        with AnyJob(file, "export", source, file) as job:
            time.sleep(rng.uniform(0.2, 1) * seconds)
            tried(2, job.runs())
            job.kill9_everything()
        print(f"killed after {time.monotonic() - job.started:.1f} s of {seconds:.1f} s; file there: {file.exists()}")
        if not file.exists():
            AnyJob.run(file, "export", source, file).succeeded()
        assert whole(file) == expected
