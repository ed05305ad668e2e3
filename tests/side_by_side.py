"""Run tests as two pytest processes at once, as much of a test is waiting for Ray or for a process's end.

    python tests/side_by_side.py          what a change needs at once
    python tests/side_by_side.py --rest   what that leaves out: clusters, kills, benchmarks, every base

Shows the first process as it runs, then the second one's lines, then a closing line with the counts of both. Exits
with 0 if both passed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest"]

# Of the rest, the second process takes the faults but FAULTS_FIRST; a file that is not named is a quick one.
BUILD_NETWORKS = [
    "base",
    "catalog",
    "benchmark",
    "benchmark_growth",
    "benchmark_peers",
    "benchmark_s3",
    "head_export",
    "onnx_file",
    "runtimes",
    "flowers",
]
REST = [*BUILD_NETWORKS, "secrets", "cluster_image", "cluster_ray", "cluster_rights", "metrics"]
FAULTS_FIRST = ["fit_faults", "predict_faults", "two_runs"]
QUICK_SECOND = [
    "decode",
    "diff",
    "shard",
    "features",
    "dataset_export",
    "head",
    "jobs",
    "coordinator",
    "predict",
    "report",
    "requeue",
]
QUICK_SECOND += ["ray_session", "store", "verify", "fit"]


def files() -> list[str]:
    """Every file of tests but those of faults."""
    found = (path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    return sorted(str(path) for path in found if path.parts[1] != "faults")


def faults() -> list[str]:
    """Every file of faults."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/faults").glob("test_*.py"))


def paths(names: list[str]) -> list[str]:
    found = {Path(path).stem.removeprefix("test_"): path for path in files()}
    return [found[name] for name in names]


def groups(*, rest: bool) -> tuple[list[str], list[str]]:
    """The files of the two processes."""
    if rest:
        moved = [f"tests/faults/test_{name}.py" for name in FAULTS_FIRST]
        return [*paths(REST), *moved], [path for path in faults() if path not in moved]
    second = paths(QUICK_SECOND)
    elsewhere = {*second, *paths(REST)}
    return [path for path in files() if path not in elsewhere], second


def closing_line(*outputs: str) -> str:
    """One line like pytest's last one, with the counts of several of these."""
    counts: Counter[str] = Counter()
    for output in outputs:
        last = [line for line in output.splitlines() if re.fullmatch(r"=+ .*\d+ \w+.* in [\d.]+s.*", line)]
        for number, what in re.findall(r"(\d+) (failed|passed|skipped|error)s?\b", last[-1] if last else ""):
            counts[what] += int(number)
    return f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed, {counts['skipped']} skipped"


def main(arguments: list[str]) -> int:
    first, second = groups(rest=arguments == ["--rest"])
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryDirectory(prefix="bottleneck-test-cache-") as cache:
        os.environ["BOTTLENECK_CACHE"] = cache  # so that a network is prepared once for both
        other = subprocess.Popen([*PYTEST, *second], cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        lines = []
        with subprocess.Popen(
            [*PYTEST, *first], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as shown:
            assert shown.stdout is not None
            for line in shown.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        other.wait()
        told.seek(0)
        print(f"\n{told.read()}")
        told.seek(0)
        print(closing_line("".join(lines), told.read()), flush=True)
    return shown.returncode or other.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # which both of them got as well
        sys.exit(130)
