"""What a job answers: results on stdout or one JSON object, whatever the end, and nothing that a terminal obeys."""

import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import jobs.describe
from bottleneck.console import Display, Progress
from bottleneck.errors import UsageError
from bottleneck.text import counted, printable, size
from jobs import results
from jobs.__main__ import main, split_json

HOSTILE = "a\x1b[31m\x1b]0;owned\x07\n\u202eFAKE accuracy 100\u2028\x9b2J\x7f\ud800"
"""Colour, the terminal's title, a line of its own, writing direction, C1 codes, half a character."""


def assert_harmless(shown: str) -> None:
    for line in shown.split("\n"):
        assert not [one for one in line if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")], repr(line)
        assert not line.startswith(("FAKE", "\u202eFAKE"))


@pytest.fixture
def answers_oddly(monkeypatch: pytest.MonkeyPatch) -> None:
    """`describe` as a job that says, logs and answers what it should not."""

    def odd(_: object) -> int:
        print("what Keras says as it downloads")
        results.show(f"  {HOSTILE}")
        results.answer({"label": HOSTILE})
        return 0

    monkeypatch.setattr(jobs.describe, "main", odd)


@pytest.mark.usefixtures("answers_oddly")
def test_a_result_is_on_stdout_and_with_json_it_is_the_only_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe"]) == 0
    shown = capsys.readouterr()
    assert "FAKE accuracy 100" in shown.out
    assert len(shown.out.splitlines()) == 1
    assert shown.err == "what Keras says as it downloads\n"
    assert_harmless(shown.out)

    assert main(["describe", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"label": HOSTILE}
    assert shown.out.isascii()
    assert "FAKE accuracy 100" in shown.err
    assert_harmless(shown.err + shown.out)


def test_the_json_object_is_json_also_of_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with results.answering(as_json=True):
        results.answer({"mean": float("nan"), "rows": [{"gap": float("inf")}, (1, 0.5, None, "x")]})
    expected = {"mean": None, "rows": [{"gap": None}, [1, 0.5, None, "x"]]}
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == expected


def test_the_reader_of_a_result_may_leave(tmp_path: Path) -> None:
    code = (
        f"from jobs import results; [results.show('x' * 99) for _ in range(9999)]; open({str(tmp_path / 'end')!r}, 'w')"
    )
    done = subprocess.run(
        f"{sys.executable} -c {json.dumps(code)} | head -1", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("x" * 99 + "\n", "")
    assert (tmp_path / "end").exists()


@pytest.mark.parametrize("arguments", ["--help", "extract --help"])
@pytest.mark.parametrize("buffering", ["", "-u"])
def test_help_ends_well_where_its_reader_leaves(arguments: str, buffering: str) -> None:
    command = f"{sys.executable} {buffering} -m jobs {arguments} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unexpected_exception_has_its_own_code_a_json_line_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> int:
        raise LookupError(HOSTILE)

    monkeypatch.setattr(jobs.describe, "main", fails)
    assert main(["describe", "--json"]) == 70
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert (told["error"], told["exit_code"]) == ("LookupError", 70)
    assert "error: LookupError: " in shown.err
    assert_harmless(shown.err)
    [record] = caplog.records
    logged = results.LineFormatter().format(record)
    assert "in fails" in logged
    assert_harmless(logged)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Expected the name of a job"),
        (["extrct", "a", "b"], "unknown job 'extrct', did you mean extract"),
        (["\x1b[31m"], "unknown job '\\x1b[31m'"),
        (["--full"], "name of a job before its options"),
        (["extract", "photos"], "Missing from bottleneck extract: OUTPUT"),
        (["verify", "features", "--fulll"], "Unrecognized options: --fulll"),
        (["verify", "features", HOSTILE], "Unrecognized options: a\\x1b]0;"),
        (["verify", "features", "--recompute", "x"], "--recompute"),
        (["submit", "--address", "http://127.0.0.1:1", "--", "extrct"], "did you mean extract"),
        (["--expect-version", "9.9", "verify", "features"], "9.9"),
        (["verify", f"nowhere/{HOSTILE[:-1]}"], "plan"),
    ],
)
def test_every_error_keeps_the_contract(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*arguments[:1], "--json", *arguments[1:]])
    assert code in (2, 5)
    shown = capsys.readouterr()
    assert words in shown.err
    assert [line for line in shown.err.splitlines() if line.startswith("error: ")] == [shown.err.splitlines()[-1]]
    assert json.loads(shown.out)["exit_code"] == code
    assert_harmless(shown.err + shown.out)

    assert main(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err


def test_json_is_asked_for_before_or_after_the_jobs_name() -> None:
    assert split_json(["--json", "verify", "x"]) == (True, ["verify", "x"])
    assert split_json(["verify", "x", "--json"]) == (True, ["verify", "x"])
    assert split_json(["submit", "--wait", "--", "verify", "--json"])[0] is False


def test_logs_and_progress_escape_what_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "gone: %s", (HOSTILE,), None)
    line = results.LineFormatter().format(record)
    assert line.count("\n") == 0
    assert_harmless(line)
    with Display("extract") as display:
        display.show(Progress(1, 3, 0, HOSTILE, expected=HOSTILE))
    shown = capsys.readouterr().err
    assert "FAKE" in shown
    assert_harmless(shown)


def test_what_is_printable_stays_as_it_is() -> None:
    assert printable("Gänseblümchen/日本 1.jpg") == "Gänseblümchen/日本 1.jpg"
    assert printable("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"
    assert printable(printable(HOSTILE)) == printable(HOSTILE)


def test_counts_have_their_nouns() -> None:
    assert [counted(count, "image") for count in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]
    assert [size(count) for count in (1, 999, 29_869, 1_500_000)] == ["1 byte", "999 bytes", "29.9 kB", "1.5 MB"]


def test_a_terminal_without_letters_but_asciis_ends_no_job() -> None:
    code = "from jobs import results\nwith results.answering(as_json=False): results.show('\u00e9 \\x1b')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("\\xe9 \\x1b\n", "")


def test_an_error_that_quotes_another_has_one_dot() -> None:
    assert str(UsageError("It failed: no such file.. Give another, as ../x or x/.. or ...")) == (
        "It failed: no such file. Give another, as ../x or x/.. or ..."
    )
