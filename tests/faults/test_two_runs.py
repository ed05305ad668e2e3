"""Several runs at once on one output: they share the work and no shard has two files."""

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import oracle
import psutil
import pytest
from extractjob import EXTRACTING, PREPARING, Ended, Job, Photos
from matrix import scaled
from proxy import FaultProxy
from servers import S3Server
from test_store_faults import ERRORS

START_SECONDS = 120
PREPARES_SECONDS = 3
"""A shard of eight photos is prepared in a tenth of it."""


def run_together(start: Callable[[], Job], count: int = 2) -> list[Ended]:
    """Start runs, and let none extract before all have prepared shards: starts differ by more than the work takes."""
    with ExitStack() as stack:
        jobs = [stack.enter_context(start()) for _ in range(count)]
        held: dict[Job, list[psutil.Process]] = {}
        prepared: set[Job] = set()
        deadline = time.monotonic() + START_SECONDS
        while len(held) + len(prepared) < 2 * count and all(job.runs() for job in jobs):
            assert time.monotonic() < deadline, [job.stderr() for job in jobs]
            for job in jobs:
                if job not in prepared and job.workers(PREPARING):
                    prepared.add(job)
                # Not before: stopped while it answers the driver, a worker would keep the plan from being made.
                if job in prepared and job not in held and (ready := job.workers(EXTRACTING)):
                    for worker in ready:
                        worker.send_signal(signal.SIGSTOP)
                    held[job] = ready
        time.sleep(PREPARES_SECONDS)
        for workers in held.values():
            for worker in workers:
                worker.send_signal(signal.SIGCONT)
        return [job.wait() for job in jobs]


def check_shared(ended: list[Ended], photos: Photos) -> None:
    done = [one.succeeded()["done_now"] for one in ended]
    print(f"shards done by each run: {done}")
    assert sum(done) == photos.num_shards
    assert min(done) > 0


@pytest.mark.matrix(8)
def test_two_runs_share_the_work_in_a_folder(photos: Photos, reference: str, output: Path) -> None:
    check_shared(run_together(lambda: Job(photos.folder, output)), photos)
    oracle.check(str(output), photos.truth, features_of=reference)
    assert Job.run(photos.folder, output).succeeded()["done_now"] == 0


@pytest.mark.matrix(5)
@pytest.mark.matrix(8)
def test_two_runs_share_the_work_in_a_bucket_with_a_tenth_of_errors(
    photos: Photos,
    reference: str,
    s3_server: S3Server,
    bucket: str,
    s3_environment: dict[str, str],
    rng: random.Random,
) -> None:
    s3_server.upload_folder(photos.folder, bucket, "photos/")
    source, output = f"s3://{bucket}/photos", f"s3://{bucket}/features"
    with FaultProxy(s3_server.endpoint_url, ERRORS, seed=rng.getrandbits(32)) as proxy:
        environment = s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url}
        check_shared(run_together(lambda: Job(source, output, environment=environment)), photos)
        print(f"{proxy.injected} in {len(proxy.requests)} requests")
        assert proxy.injected["answer"] > 0.05 * len(proxy.requests)
    oracle.check(output, photos.truth, features_of=reference)
    assert Job.run(source, output, environment=s3_environment).succeeded()["done_now"] == 0


@pytest.mark.matrix(2)
@pytest.mark.matrix(8)
@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(scaled(100)))
def test_runs_that_are_killed_meanwhile_share_the_work(
    number: int, photos: Photos, reference: str, output: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    """Two to four runs, all but one of them killed at a random time; the last one ends well, or the next does."""
    with ExitStack() as stack:
        jobs = [stack.enter_context(Job(photos.folder, output)) for _ in range(rng.randint(2, 4))]
        timers = [threading.Timer(rng.uniform(0, 40), job.process.kill) for job in jobs[1:]]
        for timer in timers:
            timer.start()
        jobs[0].wait().succeeded()
        for timer in timers:
            timer.cancel()
        tried(2, sum(job.process.poll() == -9 for job in jobs[1:]))
        tried(8)
    oracle.check(str(output), photos.truth, features_of=reference)
    assert Job.run(photos.folder, output).succeeded()["done_now"] == 0
