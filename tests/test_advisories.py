"""`make audit` tells a weakness from an answer that did not come."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from advisories import LOCKS, ROOT, main

GOOD = {"name": "good", "version": "1", "vulns": []}
WEAK = {"name": "weak", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "skipped", "skip_reason": "not on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([GOOD], 0, "1 packages looked up, 0 known weaknesses"),
        ([GOOD, WEAK], 1, "weak 2: PYSEC-1, mended in 3"),
        ([GOOD, SKIPPED], 2, "1 packages were not looked up, the first of them {'name': 'skipped'"),
        ([SKIPPED], 2, "Nobody was asked"),
        ([], 2, "Nobody was asked"),
        (None, 2, "not all: ConnectionError: no route"),
    ],
)
def test_no_answer_is_not_a_good_one(
    packages: list[dict[str, Any]] | None, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    tool = tmp_path / "pip-audit"
    tool.write_text(
        f"#!{sys.executable}\nimport sys\nprint({answer!r})\nprint('ConnectionError: no route', file=sys.stderr)\n"
        f"sys.exit({int(packages != [GOOD])})\n"
    )
    tool.chmod(0o755)
    assert main(str(tool)) == code
    printed = capsys.readouterr().out
    assert words in printed
    assert all(lock in printed for lock in LOCKS)
    assert ("Nobody was asked" in printed) == (packages in ([SKIPPED], [], None))


def test_a_tool_that_is_not_there_asked_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(tmp_path / "pip-audit")) == 2
    assert "Nobody was asked" in capsys.readouterr().out


def test_every_package_of_every_lock_is_asked_about() -> None:
    def names(lock: Path) -> set[str]:
        return set(re.findall(r"^([a-z0-9._-]+)==", lock.read_text(), re.MULTILINE))

    locks = [path for path in (ROOT, ROOT / "tests", ROOT / "cluster") for path in path.glob("*.lock")]
    assert len(locks) > len(LOCKS)
    asked = set().union(*(names(ROOT / lock) for lock in LOCKS))
    assert all(names(lock) <= asked for lock in locks)
