"""Keys and labels that a terminal would obey, sent through every job that shows any."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiny
from crew import Crew

from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import UsageError
from bottleneck.heads.fit import fit_features
from bottleneck.heads.solver.worker import Worker
from bottleneck.storage.store import open_store
from jobs import classify, doctor, extract, results
from jobs.__main__ import main

NAME = "a\x1b[31m\x1b]0;owned\x07\n\u202eFAKE accuracy 100 %\u2028\x9b2J\x7f"
"""Colour, the terminal's title, a line of its own, writing direction, C1 codes."""
NETWORK = ["--base", "mobilenet_0.25", "--weights", "random:0", "--precision", "float32", "--dtype", "float32"]


def assert_harmless(shown: str) -> None:
    for line in shown.split("\n"):
        assert not [one for one in line if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")], repr(line)
        assert not line.lstrip().startswith("FAKE"), line


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """`photos` whose names are hostile, and `features` of them, without a network."""
    keys = [f"{label}/{number} {NAME}.jpg" for number in range(6) for label in (NAME, "tulip")]
    photos = tiny.write_files(tmp_path / f"photos {NAME}", {key: tiny.jpeg(n) for n, key in enumerate(keys)})
    tiny.write_files(photos, {f"{NAME}.txt": b"no image"})
    plan = make_plan(str(photos), str(tmp_path / "features"), tiny.spec())
    store = open_store(plan.output)
    for shard in plan.shards():
        keys = [image.key for image in read_images(store, shard)]
        rows = tiny.data_rows(plan.spec, keys, {keys[-1]: "truncated"})
        write_shard(store, plan.data_name(shard.number), plan.spec, shard.number, rows, run_id="", device=NAME)
    finish(plan)
    (tmp_path / "head in place").mkdir()
    return tmp_path


def test_no_job_lets_a_name_reach_the_terminal(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fit_here(features: Any, request: Any, rows_of: Any, **_: Any) -> Any:
        return fit_features(Crew([Worker()]), features, request, rows_of)

    monkeypatch.setattr("bottleneck.distributed.fit.train_head", fit_here)
    caplog.set_level("INFO")
    photos, features = str(world / f"photos {NAME}"), str(world / "features")
    head, predictions = str(world / f"head {NAME}"), str(world / "predictions")
    key = f"{NAME}/0 {NAME}.jpg"
    allowed = ["--max-rejected", "1"]
    for arguments, code in (
        (["plan", photos, features, *NETWORK, "--no-estimate"], 0),
        (["extract", photos, features, *NETWORK, *allowed], 0),
        (["status", features], 0),
        (["verify", features], 0),
        (["fit", features, head, "--c", "1"], 0),
        (["evaluate", head, features], 0),
        (["predict", features, head, predictions, *allowed], 0),
        (["similar", key, features], 0),
        (["duplicates", features, str(world / f"{NAME}.parquet")], 0),
        (["diff", features, features], 0),
        (["export", features, str(world / f"{NAME}.npz")], 0),
        (["requeue", features, "--reason", "truncated"], 0),
        (["extract", f"{photos}/none", features, *NETWORK], 4),
        (["plan", f"{photos}/none", str(world / "other"), *NETWORK], 2),
        (["similar", f"{NAME}.jpg", features, "--allow-incomplete"], 2),
        (["evaluate", str(world / NAME), features], 2),
        (["export", features, f"x.{NAME}"], 2),
        (["describe", NAME], 2),
        (["classify", f"{photos}/none", "--base", NAME], 2),
        (["submit", "--address", "http://127.0.0.1:1", "--", "fit", NAME, NAME], 2),
    ):
        for words in (arguments, ["--json", *arguments]):
            (world / f"{NAME}.npz").unlink(missing_ok=True)
            (world / f"{NAME}.parquet").unlink(missing_ok=True)
            assert main(words) == code, (words, capsys.readouterr())
            shown = capsys.readouterr()
            assert_harmless(shown.out)
            assert_harmless(shown.err)
            assert code or shown.out
    for record in caplog.records:
        assert_harmless(results.LineFormatter().format(record))
    assert "FAKE" in caplog.text


def test_what_needs_a_network_or_a_cluster_escapes_too(capsys: pytest.CaptureFixture[str]) -> None:
    classify._tell({"image": NAME, "classes": [{"class": NAME, "probability": 0.5}]})
    classify._tell({"image": NAME, "reason": "missing"})
    results.show(f"  source: {NAME}", lead=doctor.lead(doctor.Finding("source", "ok", NAME)))
    extended = extract.Extended(1, 1, 1, (NAME,), (NAME,))
    extract.tell_extended(extended)
    shown = capsys.readouterr().out
    assert shown.count("FAKE") == 4
    assert_harmless(shown)


def test_the_log_of_a_command_is_escaped(world: Path) -> None:
    (world / "features").rename(world / NAME)
    command = [sys.executable, "-m", "jobs", "extract", str(world / f"photos {NAME}"), str(world / NAME), *NETWORK]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"})
    assert done.returncode == 6, done.stderr  # two of twelve are rejected
    assert "not images: 1 x .txt" in done.stderr
    assert "FAKE" in done.stderr
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)


def test_an_error_is_escaped_where_it_is_printed_not_where_it_is_raised() -> None:
    assert NAME in str(UsageError(f"Received: {NAME}"))
