"""`make test` and `make test-all` run every file of tests once between them, and add up what happened."""

from pathlib import Path

from side_by_side import ROOT, closing_line, faults, files, groups


def test_every_file_is_run_once() -> None:
    run = [path for rest in (False, True) for group in groups(rest=rest) for path in group]
    assert sorted(run) == sorted([*files(), *faults()])
    assert all(Path(ROOT, path).exists() for path in run)


def test_the_closing_line_counts_both_processes() -> None:
    first = "tests/test_a.py .F\n= 1 failed, 12 passed, 3 deselected in 65.02s (0:01:05) =\n"
    second = "==== short test summary info ====\n===== 4 passed, 2 skipped, 1 error in 3.20s =====\n"
    assert closing_line(first, second) == "16 passed, 2 failed, 2 skipped"
    assert closing_line(first, "a process that died at its start\n") == "12 passed, 1 failed, 0 skipped"
