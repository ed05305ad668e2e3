"""A fit is killed, its driver or its workers: the next run, or the same one, gives the head of a fit left alone."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from extractjob import AnyJob
from matrix import amounts, scaled
from proxy import FaultProxy, When, kill_at
from servers import S3Server

from bottleneck.heads.head import HEAD_JSON, Head

FITTING = r"\S*RayTrainWorker"
BESIDE = r"Exchange"
OPTIONS = ("--c", "0.1", "1", "10", "--num-workers", "2")
WRITES = [
    *["label-issues.parquet", "head.safetensors", "head.json"],
    *["confusion.png", "evaluation.json", "report.html"],
]


def fit(features: str, head: str | Path, **keywords: dict[str, str]) -> AnyJob:
    return AnyJob(head, "fit", features, head, *OPTIONS, **keywords)


@dataclass(frozen=True)
class Clean:
    """A fit left alone."""

    head: Head
    seconds: float

    def check(self, uri: str | Path) -> None:
        """Another fit's head is the same; the order of sums may differ, and in it the last bits."""
        head = Head.load(str(uri))
        assert list(head.classes_) == list(self.head.classes_)
        np.testing.assert_allclose(head.coef_, self.head.coef_, rtol=0, atol=1e-8 * np.abs(self.head.coef_).max())
        np.testing.assert_allclose(head.intercept_, self.head.intercept_, rtol=0, atol=1e-8)
        grids = [[row["accuracies"] for row in one.origin_.details["grid"]] for one in (head, self.head)]
        assert grids[0] == grids[1]


@pytest.fixture(scope="module")
def clean(reference: str, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    head = tmp_path_factory.mktemp("clean") / "head"
    with fit(reference, head) as job:
        ended = job.wait()
        ended.succeeded()
        assert job.orphans() == []
    return Clean(Head.load(str(head)), ended.seconds)


@pytest.mark.matrix(2, "fit")
@pytest.mark.matrix(3, "fit")
@pytest.mark.parametrize("kills", amounts(2, 60, hours=1))
def test_a_killed_fit_gives_the_same_head_when_run_again_and_outlives_its_workers(
    kills: int, reference: str, clean: Clean, tmp_path: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    number = killed = 0
    while killed < kills:
        number += 1
        head = tmp_path / f"head-{number}"
        with fit(reference, head) as job:
            time.sleep(rng.uniform(0, 1) * clean.seconds)
            alive = job.runs()
            job.kill9()
            tried(2, alive)
            killed += alive
            print(f"driver killed after {time.monotonic() - job.started:.1f} s, with {_names(head)} there")
            assert job.orphans(waiting=False) == [], "Ray outlives its driver"
        if (head / HEAD_JSON).exists():
            clean.check(head)
        with fit(reference, head) as job:
            killed_here = 0 if (head / HEAD_JSON).exists() else _kill_workers(job, rng)
            tried(3, killed_here)
            killed += killed_here
            job.wait().succeeded()
        clean.check(head)


@pytest.mark.matrix(3, "fit")
def test_a_fit_that_loses_the_process_beside_its_workers_says_to_run_it_again(reference: str, tmp_path: Path) -> None:
    with fit(reference, tmp_path / "head") as job:
        assert job.wait_for("the workers", lambda: job.workers(FITTING))
        (beside,) = job.workers(BESIDE)
        beside.kill()
        ended = job.wait()
        assert ended.code == 3, ended
        assert "Run the same command again." in ended.error
        assert "Traceback" not in ended.stderr
        assert job.orphans(waiting=False) == []
    assert not (tmp_path / "head" / HEAD_JSON).exists()


def _names(head: Path) -> list[str]:
    return sorted(path.name for path in head.iterdir()) if head.exists() else []


def _kill_workers(job: AnyJob, rng: random.Random) -> int:
    """Kill one or two of the group's workers, the second when the group has started again or while it does."""
    killed: set[int] = set()
    wanted = rng.randint(1, 2)
    while len(killed) < wanted:
        if not job.wait_for("a worker", lambda: [one for one in job.workers(FITTING) if one.pid not in killed]):
            break
        time.sleep(rng.uniform(0, 4))
        for worker in rng.sample(workers, 1) if (workers := job.workers(FITTING)) else []:
            worker.kill()
            killed.add(worker.pid)
    print(f"{len(killed)} workers killed")
    return len(killed)


@pytest.fixture
def in_bucket(
    s3_server: S3Server, bucket: str, s3_environment: dict[str, str]
) -> Iterator[tuple[str, FaultProxy, dict[str, str]]]:
    """A place for a head behind a proxy, and the environment of jobs that write to it."""
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield f"s3://{bucket}/head", proxy, s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url}


@pytest.mark.matrix(1, "fit")
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("repeat", range(scaled(2)))
def test_a_fit_killed_at_any_write_gives_the_same_head_when_run_again(
    when: When,
    repeat: int,
    reference: str,
    clean: Clean,
    in_bucket: tuple[str, FaultProxy, dict[str, str]],
    tried: Callable[..., None],
) -> None:
    place, proxy, environment = in_bucket
    for name in WRITES:
        head = f"{place}-{WRITES.index(name)}"  # one that is there already has only its report written
        with fit(reference, head, environment=environment) as job:
            proxy.inject(kill_at(1, when, job.kill9_everything, path=f"/{head.rpartition('/')[2]}/{name}$"))
            ended = job.wait()
            tried(1)
            assert ended.code == -9, (name, when, ended)
        proxy.inject()
        AnyJob.run(head, "fit", reference, head, *OPTIONS, environment=environment).succeeded()
        clean.check(head)
