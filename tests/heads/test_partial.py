"""A killed fit goes on where it was, in this process; what is kept is small, checked, and swept at the end."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_fit import features_of, names

from bottleneck.dataset.features import Features, open_features, rows_of
from bottleneck.errors import StoreError, UsageError
from bottleneck.heads.fit import fit_features
from bottleneck.heads.head import Head
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver import fit_data, partial
from bottleneck.heads.solver.partial import STEP_SECONDS, Pace, PartialResults, partial_results
from bottleneck.heads.solver.protocol import FitEvent, LocalWorkers
from bottleneck.heads.solver.worker import Worker
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import open_store
from jobs import fit as job

C = (0.1, 1.0, 10.0)


class Killed(Exception):
    """In place of a signal, which would end the tests as well."""


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("forest"), names(120), gap=0.7)


class Counting(LocalWorkers):
    """Knows how many folds it was asked to solve."""

    num_solved = 0

    def ask_each(self, method: Any, arguments: Any) -> list[Any]:
        self.num_solved += len(arguments) if method is Worker.solve else 0
        return super().ask_each(method, arguments)


def fit(features: Features, head: Path, request: HeadRequest, killed_at: str = "") -> tuple[Head, int]:
    """Fit beside a head's place; killed when an event of this name comes after the first fold's or steps.

    Returns:
        The head, and the number of folds that were solved.
    """
    kept = partial_results(open_store(str(head)), features, request.to_json())
    seen = []

    def on_event(event: FitEvent) -> None:
        seen.extend(name for name in event if name == killed_at)
        if len(seen) > len(C):  # an event for each C of the first fold
            raise Killed

    workers = Counting(Worker(), on_event, kept)
    return fit_features(workers, features, request, rows_of(features)).head, workers.num_solved


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_a_killed_fit_goes_on_and_gives_the_same_head(forest: Features, tmp_path: Path, kind: Any) -> None:
    request = HeadRequest(kind=kind, c=C)
    whole, num_whole = fit(forest, tmp_path / "whole", request)
    with pytest.raises(Killed):
        fit(forest, tmp_path / "head", request, killed_at="fold")
    left = sorted(tmp_path.joinpath("head").iterdir())
    assert left, "nothing was kept"
    assert all(path.name.startswith("fit-") and path.stat().st_size < 20_000 for path in left)
    head, num_solved = fit(forest, tmp_path / "head", request)
    assert num_solved == num_whole - len(left), "kept folds are solved again"
    for name in ("coef_", "intercept_"):
        np.testing.assert_array_equal(getattr(head, name), getattr(whole, name))
    scores = [[row["scores"] for row in one.origin_.details["grid"]] for one in (head, whole)]
    assert scores[0] == scores[1]
    if kind == "svm":
        assert head.temperature_ == whole.temperature_


def test_a_long_fit_by_sums_goes_on_at_its_last_kept_step(
    forest: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_data, "MAX_COMPACT_VALUES", 0)
    monkeypatch.setattr(partial, "STEP_SECONDS", 0.0)
    request = HeadRequest(c=C)
    whole, _ = fit(forest, tmp_path / "whole", request)
    with pytest.raises(Killed):
        fit(forest, tmp_path / "head", request, killed_at="step")
    assert len(list(tmp_path.joinpath("head").iterdir())) == 1, "a step replaces the one before"
    head, _ = fit(forest, tmp_path / "head", request)
    np.testing.assert_allclose(head.coef_, whole.coef_, rtol=0, atol=1e-9 * np.abs(whole.coef_).max())


def test_results_of_another_fit_and_damaged_ones_are_left_aside(
    forest: Features, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = HeadRequest(c=C)
    with pytest.raises(Killed):
        fit(forest, tmp_path, request, killed_at="fold")
    store = open_store(str(tmp_path))
    assert not partial_results(store, forest, HeadRequest(c=C, folds=4).to_json()).read()
    found = partial_results(store, forest, request.to_json()).read()
    damaged = sorted(tmp_path.iterdir())
    for path in damaged:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert found
    assert not partial_results(store, forest, request.to_json()).read()
    assert caplog.text.count("is damaged and left aside") == len(damaged)
    for path in damaged:
        path.write_bytes(b"")
    fit(forest, tmp_path, request)


def test_a_place_that_takes_no_results_costs_no_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(FolderStore):
        def list(self, prefix: str = "") -> Any:
            raise StoreError("no right to list")

        def replace(self, key: str, data: bytes, etag: str = "") -> bool:
            raise StoreError("no right to write")

    caplog.set_level(logging.INFO)
    kept = PartialResults(Refusing(str(tmp_path)), {})
    kept.keep("one", np.ones(3))
    kept.keep("two", np.ones(3))
    assert kept.read() == {}
    kept.sweep()
    assert caplog.text.count("no right to write") == 1
    assert caplog.text.count("no right to list") == 2


def test_steps_are_kept_from_time_to_time() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    due = []
    for now[0] in (0.0, 1.0, STEP_SECONDS, STEP_SECONDS + 1, 2 * STEP_SECONDS):
        due.append(pace.is_due("theta", np.ones(1)))
    assert due == [False, False, True, False, True]


@pytest.fixture(scope="module")
def here(forest: Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head fitted by the command, in a process that was asked for no Ray."""
    head = tmp_path_factory.mktemp("heads") / "here"
    head.mkdir()
    (head / "fit-0123456789abcdef-0123456789abcdef.partial").write_bytes(b"of another fit that was killed")
    (head / "fit-notes.partial").write_bytes(b"of the user")
    program = (
        "import sys; from jobs.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'ray' not in sys.modules, 'Ray was imported'; sys.exit(code)"
    )
    arguments = ["fit", forest.plan.output, str(head), "--num-workers", "0", "--c", *map(str, C)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return head


def test_a_fit_in_this_process_needs_no_ray_and_sweeps_what_was_kept(forest: Features, here: Path) -> None:
    assert [path.name for path in here.iterdir() if path.name.startswith("fit-")] == ["fit-notes.partial"]
    assert (here / "report.html").exists()
    head = Head.load(str(here))
    alone, _ = fit(forest, here.parent / "alone", HeadRequest(layer=head.origin.layer, c=C))
    np.testing.assert_allclose(head.coef_, alone.coef_, rtol=0, atol=1e-10 * np.abs(alone.coef_).max())
    assert open_features(forest.plan.output).plan.sha256 == head.origin.plan_sha256


@pytest.mark.parametrize(
    ("num_workers", "use_gpu", "said"), [(-1, False, "takes a number from 0 up"), (0, True, "from 1 up")]
)
def test_workers_that_no_fit_can_have_are_refused(
    forest: Features, tmp_path: Path, num_workers: int, use_gpu: bool, said: str
) -> None:
    head = tmp_path / "head"
    with pytest.raises(UsageError, match=said):
        job.fit(job.Config(features=forest.plan.output, head=str(head), num_workers=num_workers, use_gpu=use_gpu))
    assert not head.exists()


def test_a_place_with_kept_results_alone_holds_no_head(forest: Features, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(forest, tmp_path, HeadRequest(c=C), killed_at="fold")
    assert list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="holds no head"):
        Head.load(str(tmp_path))


@pytest.mark.parametrize(
    ("num_workers", "fit_seconds", "seconds", "is_said"), [(1, 2, 12, True), (1, 9, 12, False), (4, 2, 12, False)]
)
def test_a_fit_that_waited_for_ray_says_what_is_faster(
    num_workers: int, fit_seconds: float, seconds: float, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ("--num-workers 0" in job.faster_way(num_workers, fit_seconds, seconds)) == is_said
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not job.faster_way(num_workers, fit_seconds, seconds)
