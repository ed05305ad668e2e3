"""What S3 does to a run: it has patience with errors and lost answers, and a kill at any write is resumed."""

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import oracle
import pytest
from extractjob import EXTRACTING, Job, Photos
from matrix import scaled
from proxy import Fault, FaultProxy, When, kill_at
from servers import S3Server

PLAN_PART, PLAN, DATA, SUCCESS = (
    r"/features/plan/.*\.parquet$",
    r"/features/plan\.json$",
    r"/features/data/",
    r"/features/_SUCCESS\.json$",
)
WRITES = {"plan part": PLAN_PART, "plan.json": PLAN, "data file": DATA, "_SUCCESS.json": SUCCESS}

ERRORS = [
    Fault("answer", probability=0.04, status=503, code="SlowDown"),
    Fault("answer", probability=0.03, status=500, code="InternalError"),
    Fault("answer", probability=0.03, status=503, code="ServiceUnavailable"),
]
BAD_NETWORK = [
    Fault("lose_answer", methods="PUT", probability=0.15),
    Fault("answer_after", methods="PUT", probability=0.05, status=409, code="ConditionalRequestConflict"),
    Fault("cut_body", methods="GET", probability=0.05),
    Fault("reset", probability=0.03),
]
SLOW_NETWORK = [
    Fault("stall", methods="GET", probability=0.05),
    Fault("stall_body", methods="GET", probability=0.05),
]


class Bucket:
    """The photos in a bucket behind a proxy, and jobs on them."""

    def __init__(self, photos: Photos, reference: str, server: S3Server, bucket: str, proxy: FaultProxy) -> None:
        self.photos, self.reference, self.server, self.proxy = photos, reference, server, proxy
        self.source, self.output = f"s3://{bucket}/photos", f"s3://{bucket}/features"
        self._bucket = bucket

    def job(self) -> Job:
        environment = self.server.environment | {"AWS_ENDPOINT_URL": self.proxy.endpoint_url}
        return Job(self.source, self.output, environment=environment)

    def names(self) -> list[str]:
        return [key.removeprefix("features/") for key in self.server.keys(self._bucket, "features/")]

    def check(self) -> None:
        """What must be so at the end, with the run that has nothing left to do."""
        oracle.check(self.output, self.photos.truth, features_of=self.reference)
        self.proxy.inject()
        reads, writes = self.proxy.count("GET", "/photos/."), self.proxy.count("PUT")
        with self.job() as job:
            assert job.wait().succeeded()["done_now"] == 0
        assert self.proxy.count("GET", "/photos/.") == reads
        assert self.proxy.count("PUT") == writes

    def check_unfinished(self) -> None:
        """The same after a kill."""
        if "_SUCCESS.json" not in self.names():
            oracle.check(self.output, self.photos.truth, features_of=self.reference, finished=False)


@pytest.fixture
def photos_in_bucket(
    photos: Photos, reference: str, s3_server: S3Server, bucket: str, s3_environment: dict[str, str], rng: random.Random
) -> Iterator[Bucket]:
    s3_server.upload_folder(photos.folder, bucket, "photos/")
    with FaultProxy(s3_server.endpoint_url, seed=rng.getrandbits(32)) as proxy:
        yield Bucket(photos, reference, s3_server, bucket, proxy)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(
            BAD_NETWORK, id="lost answers and cut bodies", marks=[pytest.mark.matrix(6), pytest.mark.matrix(7)]
        ),
        pytest.param(SLOW_NETWORK, id="stalls", marks=[pytest.mark.faults, pytest.mark.matrix(6)]),
        # In every run with two runs at once, in test_two_runs.py.
        pytest.param(ERRORS, id="10 % errors", marks=[pytest.mark.faults, pytest.mark.matrix(5)]),
    ],
)
def test_a_run_has_patience_with_the_store(faults: list[Fault], photos_in_bucket: Bucket) -> None:
    proxy = photos_in_bucket.proxy
    proxy.inject(*faults)
    with photos_in_bucket.job() as job:
        result = job.wait().succeeded()
    print(f"{proxy.injected} in {len(proxy.requests)} requests, {result['seconds']} s")
    assert sum(proxy.injected.values()) > 0.05 * len(proxy.requests)
    assert all(proxy.injected[fault.kind] for fault in faults)
    assert result["done_before"] == 0
    # A write whose answer was lost is done, but not known as this run's.
    assert 0.5 * result["shards"] < result["done_now"] <= result["shards"] == photos_in_bucket.photos.num_shards
    photos_in_bucket.check()


def _kill_and_resume(
    bucket: Bucket, steps: list[tuple[str, When]], rng: random.Random, tried: Callable[..., None]
) -> None:
    """One run for each step, whose driver and workers are all killed at that write; then one that ends well."""
    for write, when in steps:
        at = rng.randint(1, 5) if write == "data file" else 1
        with bucket.job() as job:
            bucket.proxy.inject(kill_at(at, when, job.kill9_everything, path=WRITES[write]))
            ended = job.wait()
            tried(1)
            assert ended.code == -9, (write, when, ended)
        names = bucket.names()
        print(f"killed {when} the write of {write}: {len(names)} objects")
        if at == 1:
            there = any(_is(write, name) for name in names)
            assert there == (when == "after") or write == "plan part", (write, when, names)
        bucket.check_unfinished()
    bucket.proxy.inject()
    with bucket.job() as job:
        job.wait().succeeded()
    bucket.check()


def _is(write: str, name: str) -> bool:
    return bool(re.search(WRITES[write], f"/features/{name}"))


@pytest.mark.matrix(1)
def test_a_run_killed_at_a_write_is_resumed(
    photos_in_bucket: Bucket, rng: random.Random, tried: Callable[..., None]
) -> None:
    steps: list[tuple[str, When]] = [
        ("plan part", "after"),
        ("plan.json", "during"),
        ("data file", "during"),
        ("_SUCCESS.json", "after"),
    ]
    _kill_and_resume(photos_in_bucket, steps, rng, tried)


@pytest.mark.matrix(1)
@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("repeat", range(scaled(3)))
def test_a_run_killed_at_every_write_is_resumed(
    when: When, repeat: int, photos_in_bucket: Bucket, rng: random.Random, tried: Callable[..., None]
) -> None:
    print(f"repeat {repeat}")
    _kill_and_resume(photos_in_bucket, [(write, when) for write in WRITES], rng, tried)


@pytest.mark.matrix(3)
def test_a_run_outlives_actors_killed_at_their_writes(photos_in_bucket: Bucket, tried: Callable[..., None]) -> None:
    killed = []

    def kill_actors(job: Job) -> Callable[[], Any]:
        def kill() -> None:
            for worker in job.workers(EXTRACTING):
                killed.append(worker.pid)
                tried(3)
                worker.kill()

        return kill

    with photos_in_bucket.job() as job:
        kill = kill_actors(job)
        photos_in_bucket.proxy.inject(
            kill_at(2, "before", kill, path=DATA),
            kill_at(11, "during", kill, path=DATA),
            kill_at(21, "after", kill, path=DATA),
        )
        result = job.wait().succeeded()
    assert len(killed) == 3
    assert result["done_before"] == 0
    photos_in_bucket.check()
