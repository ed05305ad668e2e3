"""Run all tests as two pytest processes: those of faults, which mostly wait for Ray or a process's end, and all others.

    python tests/side_by_side.py

Shows the others as they run, then the faults' own lines; the last line is the closing line of the others. Exits with 0
if both passed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest"]


def main() -> int:
    with tempfile.TemporaryFile("w+") as told:
        faults = subprocess.Popen([*PYTEST, "tests/faults"], cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        last = ""
        with subprocess.Popen(
            [*PYTEST, "--ignore=tests/faults"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as others:
            assert others.stdout is not None
            for line in others.stdout:
                print(line, end="", flush=True)
                last = line if line.startswith("=") else last
        faults.wait()
        told.seek(0)
        print(f"\n{told.read()}\n{last}", end="", flush=True)
    return others.returncode or faults.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # which both of them got as well
        sys.exit(130)
