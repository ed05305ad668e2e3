"""What plans, extends and has images done again is killed at any time or at any write: the next run completes it."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from conftest import make_photos
from extractjob import ASKED, SHARD_SIZE, AnyJob, Job, Photos
from matrix import amounts
from proxy import FaultProxy, When, kill_at
from servers import S3Server
from test_requeue_faults import ASKED_TO_PLAN, overwrite

from bottleneck.audit.verify import verify
from bottleneck.dataset.plan import Plan, load_plan

WRITES = {
    "plan part": r"/features/plan/[^/]*\.parquet$",
    "listing": r"/features/plan/extension-[0-9]*\.json$",
    "data file": r"/features/data/",
    "_SUCCESS.json": r"/features/_SUCCESS\.json$",
}


def plan_of(output: str | Path) -> Plan:
    plan = load_plan(str(output))
    assert plan is not None
    return plan


@pytest.mark.matrix(2, "plan")
@pytest.mark.parametrize("kills", amounts(3, 60, hours=1))
def test_a_killed_planning_is_done_again(
    kills: int, photos: Photos, reference: str, tmp_path: Path, rng: random.Random, tried: Callable[..., None]
) -> None:
    expected = plan_of(reference).sha256
    seconds = 10.0
    killed = number = 0
    while killed < kills:
        number += 1
        output = tmp_path / f"features-{number}"
        arguments = ("plan", photos.folder, output, *ASKED_TO_PLAN, "--no-estimate")
        with AnyJob(output, *arguments) as job:
            time.sleep(rng.uniform(0, 1) * seconds)
            alive = job.runs()
            job.kill9()
            tried(2, alive)
            killed += alive
        print(f"killed after {time.monotonic() - job.started:.1f} s, {(output / 'plan.json').exists()}")
        if output.exists():
            oracle.check(str(output), photos.truth, finished=False)
        ended = AnyJob.run(output, *arguments)
        ended.succeeded()
        seconds = ended.seconds
        assert plan_of(output).sha256 == expected


class Bucket:
    """Photos in a bucket behind a proxy, and jobs on them that are killed at their writes."""

    def __init__(self, server: S3Server, bucket: str, proxy: FaultProxy) -> None:
        self._server, self._bucket, self._proxy = server, bucket, proxy
        self.source, self.output = f"s3://{bucket}/photos", f"s3://{bucket}/features"
        self.truth: dict[str, str] = {}

    def hold(self, photos: Photos) -> None:
        self.truth = photos.truth
        self._server.upload_folder(photos.folder, self._bucket, "photos/")

    def job(self, *arguments: str) -> AnyJob:
        environment = self._server.environment | {"AWS_ENDPOINT_URL": self._proxy.endpoint_url}
        return AnyJob(self.output, *arguments, environment=environment)

    def extract(self) -> AnyJob:
        return self.job("extract", self.source, self.output, *ASKED, "--shard-size", str(SHARD_SIZE), "--extend")

    def requeue(self) -> AnyJob:
        return self.job("requeue", self.output, "--changed")

    def kill(self, start: Callable[[], AnyJob], write: str, when: When) -> None:
        """Start a job that is killed at its first such write; what is there then is whole."""
        with start() as job:
            self._proxy.inject(kill_at(1, when, job.kill9_everything, path=WRITES[write]))
            ended = job.wait()
            assert ended.code == -9, (write, when, ended)
        self._proxy.inject()
        oracle.check(self.output, self.truth, finished=None)

    def finish(self, start: Callable[[], AnyJob]) -> dict[str, Any]:
        with start() as job:
            return job.wait().succeeded()


@pytest.fixture
def bucket_of_photos(s3_server: S3Server, bucket: str, s3_environment: dict[str, str]) -> Iterator[Bucket]:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield Bucket(s3_server, bucket, proxy)


ALWAYS: list[list[tuple[str, When]]] = [[("plan part", "after"), ("listing", "during")], [("listing", "after")]]
EVERY = [[[(write, when) for write in WRITES]] * 2 for when in ("before", "during", "after")]


@pytest.mark.matrix(1, "extract --extend")
@pytest.mark.matrix(1, "requeue")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("extending", "requeueing"),
    [pytest.param(*ALWAYS, id="some"), *(pytest.param(*steps, marks=pytest.mark.faults) for steps in EVERY)],
)
def test_what_extends_and_what_is_requeued_is_completed_after_kills_at_writes(
    extending: list[tuple[str, When]],
    requeueing: list[tuple[str, When]],
    bucket_of_photos: Bucket,
    reference: str,
    tmp_path: Path,
    tried: Callable[..., None],
) -> None:
    bucket, folder = bucket_of_photos, tmp_path / "photos"
    bucket.hold(make_photos(folder, 40))
    bucket.finish(bucket.extract)
    photos = make_photos(folder, 80)  # the first 40 stay as they are
    bucket.hold(photos)
    for write, when in extending:
        tried(1, job="extract --extend")
        bucket.kill(bucket.extract, write, when)
    bucket.finish(bucket.extract)
    oracle.check(bucket.output, bucket.truth, features_of=reference)

    changed = [key for key, status in photos.truth.items() if status == "ok"][::9]
    overwrite(photos, changed, 1)
    bucket.hold(photos)
    for write, when in requeueing:
        if write == "data file":
            bucket.finish(bucket.requeue)
        tried(1, job="requeue")
        bucket.kill(bucket.extract if write in ("data file", "_SUCCESS.json") else bucket.requeue, write, when)
    bucket.finish(bucket.requeue)
    bucket.finish(bucket.extract)
    oracle.check(bucket.output, bucket.truth)
    assert verify(bucket.output, full=True).exit_code == 0
    assert bucket.finish(bucket.extract)["done_now"] == 0
    clean = tmp_path / "clean"
    Job.run(folder, clean).succeeded()
    oracle.check(bucket.output, bucket.truth, features_of=str(clean), tolerance=1e-5)
