"""The documents, read together: commands parse, Python blocks run, jobs, options and links are all there."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import option_tables
import pytest
from tiny import digits_folder

from bottleneck.dataset.export import export_features
from bottleneck.dataset.features import open_features
from bottleneck.extract.local import extract_images
from bottleneck.spec import FeatureRequest
from jobs.__main__ import JOBS
from jobs.command_line import options, parse

ROOT = Path(__file__).resolve().parents[1]
PATHS = [
    ROOT / name
    for name in (
        "README.md",
        "jobs/README.md",
        "jobs/benchmark/README.md",
        "bottleneck/sources/README.md",
        "cluster/README.md",
        "SECURITY.md",
        ".github/CONTRIBUTING.md",
        "tests/faults/MATRIX.md",
    )
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}
USER_TEXT = "\n".join(TEXTS[name] for name in ("README.md", "jobs/README.md", "bottleneck/sources/README.md"))
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", USER_TEXT, re.DOTALL)
COMMANDS = re.findall(r"^bottleneck (\w+) (.*)$", "\n".join(re.findall(r"```sh\n(.*?)```", USER_TEXT, re.DOTALL)), re.M)
LINKS = [(name, link) for name, text in TEXTS.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)]
README_BYTES = 12_000


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].encode()) <= README_BYTES


@pytest.mark.parametrize(("job", "arguments"), COMMANDS, ids=[f"{job} {rest}" for job, rest in COMMANDS])
def test_commands_are_accepted(job: str, arguments: str) -> None:
    parse(importlib.import_module(f"jobs.{job}"), shlex.split(arguments))


@pytest.mark.parametrize("job", JOBS)
def test_every_job_and_option_is_described(job: str) -> None:
    assert any(job == name for name, _ in COMMANDS)
    [section] = re.findall(rf"^<!-- options of {job} -->\n(.*?)<!-- end of options -->", USER_TEXT, re.M | re.DOTALL)
    for option in options(importlib.import_module(f"jobs.{job}").Config, named=True):
        assert f"`--{option.replace('_', '-')}`" in section


def test_the_option_tables_are_those_of_the_jobs() -> None:
    document = TEXTS["jobs/README.md"]
    assert option_tables.renewed(document) == document, "run: .venv/bin/python tests/option_tables.py"


def test_the_readme_lists_every_job() -> None:
    table = re.findall(r"^\| (.*?) \|", TEXTS["README.md"], re.M)
    listed = {job for cell in table for job in re.findall(r"`(\w+)`", cell)}
    assert set(JOBS) <= listed


def anchors(text: str) -> set[str]:
    """The headings of a document as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("document", "link"), LINKS, ids=[f"{name}: {link}" for name, link in LINKS])
def test_links_lead_somewhere(document: str, link: str) -> None:
    if link.startswith("http"):
        return
    path, _, anchor = link.partition("#")
    target = ((ROOT / document).parent / path).resolve() if path else ROOT / document
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text())


def test_every_module_the_readme_names_exists() -> None:
    life = TEXTS["README.md"].partition("## The life of an image")[2].partition("```")[0]
    named = re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_]+)`", life)
    assert len(named) >= 8
    for name in named:
        module, _, attribute = name.rpartition(".")
        try:
            assert hasattr(importlib.import_module(f"bottleneck.{module}"), attribute)
        except (ModuleNotFoundError, AssertionError):
            importlib.import_module(f"bottleneck.{name}")


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, `features` and `flowers.h5`, as the documents' examples have them."""
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
