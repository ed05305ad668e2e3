"""Kill a run, or parts of it, again and again: the next run, or the same one, ends well; nothing is lost or doubled."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import oracle
import psutil
import pytest
from extractjob import (
    COUNTING,
    EMITTING,
    EXTRACTING,
    EXTRACTING_STARTS,
    PREPARING,
    WAITING_SECONDS,
    AnyJob,
    Ended,
    Job,
    Photos,
    Seen,
    num_data_files,
)
from matrix import amounts

from bottleneck.storage.store import UNNAMED_FILES

STOP_SECONDS = 15
"""A scheduler gives 30 s before it kills."""


def check(output: Path, photos: Photos, reference: str, seen: Seen | None = None) -> None:
    """All that RELIABILITY.md asks of an output at its end, with the run that has nothing left to do."""
    oracle.check(str(output), photos.truth, features_of=reference)
    if seen:
        seen.forget()
    with Job(photos.folder, output, environment=seen.environment if seen else None) as job:
        result = job.wait().succeeded()
        assert (result["done_before"], result["done_now"]) == (photos.num_shards, 0)
    if seen:
        assert not seen.images_read
        assert not seen.writes


def check_unfinished(output: Path, photos: Photos, reference: str, *, unnamed_files: bool = True) -> None:
    """The same of an output whose run was killed: whatever is there is whole."""
    if not (output / "_SUCCESS.json").exists():
        if output.exists():
            oracle.check(str(output), photos.truth, features_of=reference, finished=False)
        if unnamed_files:
            assert not list(output.rglob(".*"))


@pytest.mark.matrix(2)
@pytest.mark.parametrize("kills", amounts(10, 300, hours=8))
def test_a_driver_killed_again_and_again_loses_nothing(
    kills: int, photos: Photos, reference: str, tmp_path: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    killed = number = 0
    while killed < kills:
        number += 1
        output = tmp_path / f"features-{number}"
        seen = Seen(photos.folder, output, tmp_path / f"seen-{number}.log")
        if number % 2 == 0:  # as on NFS
            seen.environment[UNNAMED_FILES] = "off"
        killed_here = _kill_drivers_until_done(photos, reference, output, seen, rng, at_most=min(kills - killed, 5))
        killed += killed_here
        tried(2, killed_here)
        # What was read but not committed is read again; features are computed and written again for one shard a kill.
        written = {name: count for name, count in seen.writes.items() if name.startswith("data/")}
        read_again = sum(seen.images_read.values()) - len(photos.truth)
        written_again = sum(written.values()) - photos.num_shards
        print(f"{killed_here} kills: {read_again} images read again, {written_again} shards written again")
        assert len(written) == photos.num_shards
        assert written_again <= killed_here
        check(output, photos, reference, seen)


def _kill_drivers_until_done(
    photos: Photos, reference: str, output: Path, seen: Seen, rng: random.Random, at_most: int
) -> int:
    """Start runs on one output and kill the driver of each, at any time or while it extracts, then let one finish."""
    with contextlib.ExitStack() as stack:
        dead: list[tuple[float, Job]] = []
        while True:
            job = stack.enter_context(Job(photos.folder, output, environment=seen.environment))
            if len(dead) < at_most:
                _wait_for_a_moment(job, at_any_time=len(dead) % 2 == 0, rng=rng)
            ended = job.wait() if len(dead) == at_most or not job.runs() else None
            for died_at, earlier in dead:
                if time.monotonic() - died_at > WAITING_SECONDS:
                    assert earlier.orphans(0) == []
            if ended:
                result = ended.succeeded()
                assert result["done_before"] + result["done_now"] == photos.num_shards
                return len(dead)
            job.kill9()
            dead.append((time.monotonic(), job))
            assert job.orphans(waiting=False) == [], "Ray outlives its driver"
            check_unfinished(output, photos, reference, unnamed_files=UNNAMED_FILES not in seen.environment)


def _wait_for_a_moment(job: Job, *, at_any_time: bool, rng: random.Random) -> None:
    if at_any_time:
        pause = rng.uniform(0, 15)
        print(f"kill after {pause:.2f} s")
        job.wait_for("a moment", lambda: time.monotonic() > job.started + pause)
    else:
        before, more = num_data_files(job.output), rng.randint(1, 6)
        print(f"kill after {more} shards on top of {before}")
        job.wait_for_shards(before + more)
        time.sleep(rng.uniform(0, 0.05))


@pytest.mark.matrix(3)
@pytest.mark.parametrize("kills", amounts(6, 300, hours=6))
def test_a_run_outlives_its_workers(
    kills: int, photos: Photos, reference: str, tmp_path: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    killed = number = 0
    while killed < kills:
        number += 1
        output = tmp_path / f"features-{number}"
        with Job(photos.folder, output) as job:
            killed_here = kill_workers(job, rng, at_most=min(6, kills - killed))
            tried(3, killed_here)
            result = job.wait().succeeded()
        killed += killed_here
        # ... also the shard of an actor killed between its write and its answer.
        assert (result["done_before"], result["done_now"]) == (0, photos.num_shards)
        check(output, photos, reference)


def kill_workers(job: AnyJob, rng: random.Random, at_most: int) -> int:
    """Kill a worker each time some more shards are done: the first two a task and an actor, then any that is there."""
    kinds = [PREPARING, EXTRACTING]
    killed = 0
    while killed < at_most:
        wanted = kinds[killed] if killed < len(kinds) else rf"{PREPARING}|{EMITTING}|{EXTRACTING}"
        enough = num_data_files(job.output) + (rng.randint(1, 4) if killed else 0)
        if not job.wait_for_shards(enough) or not job.wait_for(f"a worker {wanted}", lambda w=wanted: job.workers(w)):
            break
        time.sleep(rng.uniform(0, 0.1))
        killed += _kill_one(job, wanted, rng)
    return killed


def _kill_one(job: AnyJob, title: str, rng: random.Random) -> int:
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        victim = rng.choice(job.workers(title))
        print(f"kill {victim.cmdline()[0].strip()} with {num_data_files(job.output)} shards done")
        victim.kill()
        return 1
    return 0


@pytest.mark.matrix(3)
def test_a_run_outlives_its_helpers_while_it_starts(
    photos: Photos, reference: str, output: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    """Of the process that counts, and of the one that hands out shards, there is only one each."""
    with Job(photos.folder, output) as job:
        for title in (COUNTING, EMITTING):
            assert job.wait_for("an actor that starts", lambda: job.workers(EXTRACTING_STARTS))
            assert job.wait_for("the helper", lambda title=title: job.workers(title))
            time.sleep(rng.uniform(0, 1))
            assert _kill_one(job, title, rng) == 1
            tried(3)
        job.wait().succeeded()
    check(output, photos, reference)


def _sigint(job: Job) -> None:
    job.signal(signal.SIGINT)


def _sigint_to_group(job: Job) -> None:
    job.signal_group(signal.SIGINT)


def _sigterm(job: Job) -> None:
    job.signal(signal.SIGTERM)


def test_a_run_asked_to_stop_stops_in_order(
    photos: Photos, reference: str, output: Path, seen: Seen, rng: random.Random
) -> None:
    for ask in (_sigint_to_group, _sigterm):
        with Job(photos.folder, output, environment=seen.environment) as job:
            assert job.wait_for_shards(num_data_files(str(output)) + rng.randint(1, 4))
            ended = _ask_to_stop(job, ask)
        check_unfinished(output, photos, reference)
        assert 0 < num_data_files(str(output)) < photos.num_shards, ended
    with Job(photos.folder, output, environment=seen.environment) as job:
        result = job.wait().succeeded()
    assert result["done_before"] > 0
    check(output, photos, reference, seen)


@pytest.mark.parametrize("ask", [_sigint, _sigint_to_group, _sigterm])
def test_a_run_asked_to_stop_while_it_starts_stops_in_order(
    ask: Callable[[Job], None], photos: Photos, output: Path, rng: random.Random
) -> None:
    with Job(photos.folder, output) as job:
        # Python itself takes a moment until a signal is the job's to answer.
        assert job.wait_for("Ray", job.processes)
        time.sleep(rng.uniform(0, 5))
        _ask_to_stop(job, ask)


def _ask_to_stop(job: Job, ask: Callable[[Job], None]) -> Ended:
    asked = time.monotonic()
    ask(job)
    ended = job.wait()
    took = time.monotonic() - asked
    print(f"{ask.__name__}: ended after {took:.1f} s")
    assert ended.code == 3, ended
    assert took < STOP_SECONDS
    assert ended.result == {"error": "Interrupted", "message": "interrupted", "exit_code": 3}
    assert "run the same command again" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert job.orphans(waiting=False) == []
    return ended
