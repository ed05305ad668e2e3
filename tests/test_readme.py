"""The README's commands parse, its Python blocks run, and it names every job and option."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import digits_folder

from bottleneck.dataset.export import export_features
from bottleneck.dataset.features import open_features
from bottleneck.extract.local import extract_images
from bottleneck.spec import FeatureRequest
from jobs.__main__ import JOBS
from jobs.command_line import options, parse

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^bottleneck (\w+) (.*)$", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.M)


@pytest.mark.parametrize(("job", "arguments"), COMMANDS, ids=[f"{job} {rest}" for job, rest in COMMANDS])
def test_commands_are_accepted(job: str, arguments: str) -> None:
    parse(importlib.import_module(f"jobs.{job}"), shlex.split(arguments))


@pytest.mark.parametrize("job", JOBS)
def test_every_job_and_option_is_described(job: str) -> None:
    assert any(job == name for name, _ in COMMANDS)
    for option in options(importlib.import_module(f"jobs.{job}").Config):
        described = f"--{option.replace('_', '-')}" in README
        positional = option in ("source", "head", "output", "features", "images", "image", "file", "a", "b", "job")
        assert described or positional, f"--{option} of {job} is not in the README"


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, `features` and `flowers.h5`, as the README's examples have them."""
    folder = tmp_path_factory.mktemp("readme")
    digits_folder(folder / "photos", per_class=3)
    (folder / "photos" / "0" / "broken.jpg").write_bytes(b"no image")
    request = FeatureRequest(base="vgg16", weights="random:0", precision="float32")
    extract_images(str(folder / "photos"), str(folder / "features"), request, max_rejected=1.0)
    export_features(open_features(str(folder / "features")), str(folder / "flowers.h5"))
    return folder


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.split("\n")[0])
def test_python_blocks_run_as_files(block: str, working_folder: Path) -> None:
    block = block.replace('"features")  ', '"features", base="vgg16", weights="random:0", max_rejected=1.0)  ')
    (working_folder / "example.py").write_text(block)
    done = subprocess.run([sys.executable, "example.py"], cwd=working_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "print" in block or "show" in block:
        assert done.stdout.strip()
