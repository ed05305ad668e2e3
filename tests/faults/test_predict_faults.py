"""A run that predicts is killed like one that extracts, and loses and doubles no more: the protocol is the same."""

import random
from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
from extractjob import SHARD_SIZE, Photos, PredictJob, num_data_files
from matrix import amounts
from test_kill import kill_workers

from bottleneck.audit.verify import verify


def clean_run(reference: str, head: Path, output: Path) -> str:
    """Predictions that nothing happened to, from the stored features."""
    PredictJob.run(reference, head, output).succeeded()
    return str(output)


@pytest.mark.matrix(2, "predict")
@pytest.mark.matrix(3, "predict")
@pytest.mark.parametrize("kills", amounts(3, 60, hours=3))
def test_a_killed_run_that_predicts_is_resumed_and_outlives_its_workers(
    kills: int,
    photos: Photos,
    reference: str,
    head: Path,
    tmp_path: Path,
    rng: random.Random,
    tried: Callable[..., None],
) -> None:
    clean = clean_run(reference, head, tmp_path / "clean")
    oracle.check(clean, photos.truth)
    number = killed = 0
    while killed < kills:
        number += 1
        output = tmp_path / f"predictions-{number}"
        arguments = (photos.folder, head, output, "--batch-size", "8", "--shard-size", str(SHARD_SIZE))
        with PredictJob(*arguments) as job:
            assert job.wait_for_shards(rng.randint(1, 6))
            job.kill9()
            assert job.orphans(waiting=False) == []
        killed += 1
        tried(2)
        before = num_data_files(str(output))
        oracle.check(str(output), photos.truth, features_of=clean, finished=False)
        with PredictJob(*arguments) as job:
            killed_here = kill_workers(job, rng, at_most=2)
            tried(3, killed_here)
            result = job.wait().succeeded()
        assert killed_here == 2
        killed += killed_here
        assert (result["done_before"], result["done_now"]) == (before, photos.num_shards - before)
        oracle.check(str(output), photos.truth, features_of=clean)
        assert verify(str(output), full=True).exit_code == 0
        assert PredictJob.run(*arguments).succeeded()["done_now"] == 0
