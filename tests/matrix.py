"""The fault matrix: run what kills, cuts and corrupts, and print what was tried and what was found, as one table.

    python tests/matrix.py                              # everything, with the long amounts: hours
    BOTTLENECK_FAULTS=0.1 python tests/matrix.py        # a tenth of the long amounts
    python tests/matrix.py -k nodes --matrix nodes.md   # a part, by pytest's own options

It is pytest with `-m matrix`; the table is printed at the end and added to those in tests/faults/MATRIX.md, or where
`--matrix` says, after each test; of a test that is cut short nothing is counted. A test says by
`@pytest.mark.matrix(4)` which fault it tries, or by `matrix(2, "fit")` also on which job if that is not extract, and by
the fixture `tried` how often; without a word it counts once. What a test finds is counted as what the oracle calls it,
anything else that fails a test as `other`; exit code 1 then, as always. BOTTLENECK_TEST_SEED with the seed of a line
repeats its random choices.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "faults" / "MATRIX.md"

FAULTS = {
    1: "killed before, during or after a write",
    2: "driver killed (kill -9) at a random time",
    3: "actor or task killed (kill -9)",
    4: "node killed (kill -9 of its raylet and all)",
    5: "store answers 10 % errors",
    6: "store cuts, resets and stalls",
    7: "write done, its answer lost; 409",
    8: "several runs on one output",
    9: "gone on with other settings",
    10: "bad images of every kind",
    11: "images that kill or hang the decoder",
    12: "odd keys",
    13: "credentials, rights, disk, weights",
    14: "tampering with the output",
    15: "source changes",
    16: "millions of images planned",
}
"""By numbers that stay, for tests, changelog and issues to speak of."""

TRIED = pytest.StashKey[Counter[tuple[int, str]]]()
FOUND = ("lost", "doubled", "wrong status", "other")
NUMBERS = range(2, 3 + len(FOUND))
"""The columns with numbers."""


@dataclass
class Line:
    """What came of one fault on one job."""

    tried: int = 0
    found: Counter[str] = field(default_factory=Counter)
    seeds: set[int] = field(default_factory=set)


class Matrix:
    """The table, as it fills."""

    def __init__(self, file: str | None) -> None:
        self.file = Path(file) if file else None
        self._before = self.file.read_text() if self.file and self.file.exists() else "# The fault matrix\n"
        self.lines: dict[tuple[int, str], Line] = {}
        self._started = time.monotonic()

    def add(self, item: pytest.Item, error: BaseException | None, *, begun: bool) -> None:
        """A test has ended, or could not begin."""
        tried = item.stash.get(TRIED, Counter())
        seeds = {int(value) for name, value in item.user_properties if name == "seed"}
        for mark in item.iter_markers("matrix"):
            number, job = (*mark.args, "extract")[:2]
            line = self.lines.setdefault((number, job), Line())
            line.tried += begun * (tried[number, ""] + tried[number, job] if tried else 1)
            line.seeds |= seeds
            if error is not None:
                line.found += getattr(error, "found", None) or Counter(other=1)

    def keep(self) -> None:
        """Add the table, as it is by now, to its file."""
        if self.file and self.lines:
            self.file.write_text(f"{self._before}\n{self.text()}")

    def text(self) -> str:
        """Markdown that is also read well as it is."""
        rows = [["fault", "job", "times tried", *FOUND, "seed"]]
        for (number, job), line in sorted(self.lines.items()):
            seeds = " ".join(map(str, sorted(line.seeds)))
            found = [str(line.found[kind]) for kind in FOUND]
            rows.append([f"{number} {FAULTS[number]}", job, f"{line.tried:,}", *found, seeds])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * (width - (at in NUMBERS)) + ":" * (at in NUMBERS) for at, width in enumerate(widths)])
        padded = [
            [f"{cell:{'>' if at in NUMBERS else '<'}{widths[at]}}" for at, cell in enumerate(row)] for row in rows
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in padded)
        return f"{self._where()}\n\n{table}\n"

    def _where(self) -> str:
        """When, how long, on what and with what this was found."""
        took = datetime.timedelta(seconds=round(time.monotonic() - self._started))
        packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "keras", "pyarrow", "s3fs"))
        return (
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, after {took}: bottleneck "
            f"{version('bottleneck-features')} ({_commit()}), Python {platform.python_version()}, {packages}; "
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores ({_processor()}); "
            f"long amounts x {scale():g}."
        )


def scale() -> float:
    """Of the long amounts, how much is asked for."""
    return float(os.environ.get("BOTTLENECK_FAULTS", "1"))


def scaled(amount: int) -> int:
    return max(1, round(amount * scale()))


def amounts(always: int, long: int, hours: float) -> list[Any]:
    """How often a test tries its fault: in every run, and in the long matrix, where it may take so many hours."""
    marks = [pytest.mark.faults, pytest.mark.timeout(max(900, hours * 3600 * scale()))]
    return [always, pytest.param(scaled(long), marks=marks, id=f"{scaled(long)} in the long matrix")]


@functools.cache
def seed() -> int:
    """Of this whole process; BOTTLENECK_TEST_SEED gives it."""
    return int(os.environ.get("BOTTLENECK_TEST_SEED") or random.SystemRandom().getrandbits(32))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", metavar="FILE", help="also add the table of faults to a file")


MATRIX = pytest.StashKey[Matrix]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MATRIX] = Matrix(config.getoption("--matrix"))


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Count: `tried(2)` says that fault 2 was tried once more, `tried(2, 5)` five times, before that may fail the test.

    Where it was tried on one of several jobs that the test is marked with: `tried(1, job="requeue")`.
    """
    counts = request.node.stash.setdefault(TRIED, Counter())

    def count(number: int, times: int = 1, *, job: str = "") -> None:
        counts[number, job] += times

    return count


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test's own; with the same seed they are the same in every run and in any part of it."""
    print(f"BOTTLENECK_TEST_SEED={seed()} repeats {request.node.nodeid}", file=sys.stderr)
    request.node.user_properties.append(("seed", seed()))
    return random.Random(f"{seed()} {request.node.name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[Any]:
    report: pytest.TestReport = yield
    matrix = item.config.stash[MATRIX]
    begun = report.when == "call"
    if report.failed or (begun and report.passed):
        matrix.add(item, call.excinfo.value if call.excinfo else None, begun=begun)
        matrix.keep()  # now, as hours may be spent until the end
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    matrix = config.stash[MATRIX]
    if matrix.lines:
        terminalreporter.section("the fault matrix")
        terminalreporter.write(matrix.text())


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "no git"
    return done.stdout.strip() or "no commit"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--matrix", default=TABLE)
    asked, others = parser.parse_known_args()
    # As one word: of a file by itself that is there already pytest would think that it is to be tested.
    table = f"--matrix={Path(asked.matrix).absolute()}"
    return subprocess.call([sys.executable, "-m", "pytest", "-m", "matrix", table, *others], cwd=ROOT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # pytest has got it as well, and prints the table
        sys.exit(130)
