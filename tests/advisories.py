"""Ask the advisory database about every package that the locks pin; `make audit` does.

    python tests/advisories.py PIP_AUDIT

Exits with 0 if all were looked up and none has a known weakness, 1 for a weakness, 2 if a package could not be looked
up. No answer is never taken for a good one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("tests/requirements.lock", "cluster/cpu.lock", "cluster/gpu.lock")
"""requirements.lock is a part of the first."""
OPTIONS = ("--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json")


@dataclass(frozen=True)
class Answer:
    """What came of asking about a lock."""

    num_packages: int = 0
    weaknesses: tuple[str, ...] = ()
    unknown: str = ""
    """Why some or all packages were not looked up."""


def ask(pip_audit: str, lock: str) -> Answer:
    """Ask about the packages of a lock, which takes a request for each."""
    try:
        done = subprocess.run(
            [pip_audit, *OPTIONS, "--requirement", str(ROOT / lock)], capture_output=True, text=True, cwd=ROOT
        )
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except OSError as error:
        return Answer(unknown=str(error))
    except (ValueError, KeyError, TypeError):
        return Answer(unknown=(done.stderr.strip() or "pip-audit said nothing").splitlines()[-1])
    # A package that the database does not know is skipped without an error.
    skipped = [one for one in packages if "vulns" not in one]
    weaknesses = [
        f"{one['name']} {one['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for one in packages
        for found in one.get("vulns", ())
    ]
    unknown = "" if packages else "no package was looked up"
    if skipped:
        unknown = f"{len(skipped)} packages were not looked up, the first of them {skipped[0]}"
    return Answer(len(packages) - len(skipped), tuple(weaknesses), unknown)


def main(pip_audit: str) -> int:
    answers = {lock: ask(pip_audit, lock) for lock in LOCKS}
    for lock, answer in answers.items():
        print(f"{lock}: {answer.num_packages} packages looked up, {len(answer.weaknesses)} known weaknesses")
        for weakness in answer.weaknesses:
            print(f"  {weakness}")
        if answer.unknown:
            print(f"  not all: {answer.unknown}")
    if not any(answer.num_packages for answer in answers.values()):
        print("Nobody was asked: this is no audit. Run it again where pypi.org can be reached.")
    if any(answer.weaknesses for answer in answers.values()):
        return 1
    return 2 if any(answer.unknown for answer in answers.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
