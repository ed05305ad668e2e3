"""The table of the fault matrix counts what tests tried and what the oracle found, and says how to repeat it."""

import re
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest
from matrix import amounts
from oracle import Broken

@pytest.mark.matrix(2)
@pytest.mark.parametrize("kills", amounts(3, 300, hours=1))
def test_counts(kills, tried, rng):
    print("drew", kills, rng.random())
    for _ in range(kills):
        tried(2)

@pytest.mark.matrix(2, "fit")
@pytest.mark.matrix(3, "fit")
def test_loses(tried):
    tried(2)
    tried(3, 4)
    tried(3, 2, job="fit")
    tried(3, 9, job="predict")
    raise Broken("7 keys lost", "lost", 7)

@pytest.mark.matrix(13)
def test_once():
    pass

@pytest.mark.matrix(13)
def test_fails():
    assert False

@pytest.fixture
def broken():
    assert False

@pytest.mark.matrix(13)
def test_never_begins(broken):
    pass

@pytest.mark.matrix(14)
def test_skips():
    pytest.skip("no Ceph")
"""
SETTINGS = "[pytest]\naddopts = --strict-markers\nmarkers =\n    matrix\n    faults\n    timeout\n"


def run(folder: Path, *arguments: str) -> tuple[int, list[list[str]], str]:
    """Exit code, the table's cells from its file, and what was printed."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "pytest", "-p", "matrix", "--matrix", "table.md", "-s", *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "BOTTLENECK_TEST_SEED": "5", "BOTTLENECK_FAULTS": "0.1"}
    before = (folder / "table.md").read_text() if (folder / "table.md").exists() else ""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    table = (folder / "table.md").read_text()
    assert table.startswith(before)
    table = table.removeprefix(before)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert all(line in done.stdout for line in lines), done.stdout
    return done.returncode, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines], done.stdout


def test_the_table_says_what_was_tried_and_found(tmp_path: Path) -> None:
    code, rows, told = run(tmp_path)
    assert code == 1
    assert rows[0] == ["fault", "job", "times tried", "lost", "doubled", "wrong status", "other", "seed"]
    assert [[row[0].split()[0], *row[1:]] for row in rows[2:]] == [
        ["2", "extract", "33", "0", "0", "0", "0", "5"],
        ["2", "fit", "1", "7", "0", "0", "0", ""],
        ["3", "fit", "6", "7", "0", "0", "0", ""],
        ["13", "extract", "2", "0", "0", "0", "2", ""],
    ]
    assert "long amounts x 0.1" in told


def test_a_part_has_the_random_numbers_of_the_whole(tmp_path: Path) -> None:
    drawn = [re.findall(r"drew 30 (\S+)", run(tmp_path, *part)[2]) for part in ([], ["-k", "test_counts and 30"])]
    assert len(drawn[0]) == 1
    assert drawn[0] == drawn[1]


def test_a_table_that_is_there_already_is_no_test(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("| of the last time |")
    script, tests = Path(__file__).with_name("matrix.py"), str(Path(__file__).with_name("test_imports.py"))
    command = [sys.executable, str(script), "--matrix", "table.md", "--collect-only", tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 5, done.stdout + done.stderr  # none is selected
