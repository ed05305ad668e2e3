"""Run all tests as two pytest processes: faults and clusters, which mostly wait for Ray or a process's end; all others.

    python tests/side_by_side.py

Shows the others as they run, then the waiting ones' own lines; the last line is the closing line of the others. Exits
with 0 if both passed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest"]
WAITING = ["tests/faults"]
WAITING += [
    f"tests/test_{name}.py" for name in ("submit", "doctor", "status", "metrics", "cluster_ray", "cluster_rights")
]


def main() -> int:
    with tempfile.TemporaryFile("w+") as told:
        waiting = subprocess.Popen([*PYTEST, *WAITING], cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        ignored = [f"--ignore={path}" for path in WAITING]
        last = ""
        with subprocess.Popen(
            [*PYTEST, *ignored], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as others:
            assert others.stdout is not None
            for line in others.stdout:
                print(line, end="", flush=True)
                last = line if line.startswith("=") else last
        waiting.wait()
        told.seek(0)
        print(f"\n{told.read()}\n{last}", end="", flush=True)
    return others.returncode or waiting.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # which both of them got as well
        sys.exit(130)
