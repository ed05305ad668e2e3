"""The source changes under a plan, and images are done again: nobody ever sees a key twice, or not at all."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
from conftest import make_photos, photo
from extractjob import AnyJob, Job, Photos

from bottleneck.dataset.footer import read_footer
from bottleneck.dataset.plan import load_plan
from bottleneck.storage.store import open_store

ALL_REJECTED = ("--max-rejected", "1")
ASKED_TO_PLAN = ("--base", "mobilenet_0.25", "--weights", "random:0", "--dtype", "float32", "--shard-size", "8")


def overwrite(photos: Photos, keys: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for key in keys:
        (photos.folder / key).write_bytes(photo(rng))


@contextmanager
def polled(output: Path) -> Iterator[list[str]]:
    """Look at all data files again and again; yields what was wrong with what was seen."""
    wrong: list[str] = []
    ended = threading.Event()
    expected = keys_in(output)
    looks = 0

    def poll() -> None:
        nonlocal looks
        while not ended.is_set():
            if (found := keys_in(output)) != expected:
                wrong.append(f"{sorted(set(expected) ^ set(found))[:5]}, {len(found)} keys for {len(expected)}")
            looks += 1

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield wrong
    finally:
        ended.set()
        thread.join()
    assert not wrong, wrong[:3]
    assert looks > 10


def keys_in(output: Path) -> list[str]:
    tables = [pq.read_table(path, columns=["key"]) for path in (output / "data").glob("s*.parquet")]
    return sorted(key for table in tables for key in table.column("key").to_pylist())


def num_revised(output: Path) -> int:
    plan = load_plan(str(output))
    assert plan is not None
    store = open_store(plan.output)
    return sum(read_footer(store, entry)[1]["revision"] > 0 for entry in plan.data_files().values())


@pytest.mark.matrix(15)
@pytest.mark.faults
def test_a_source_that_changes_is_followed(tmp_path: Path) -> None:
    photos, output = make_photos(tmp_path / "photos", 80), tmp_path / "features"
    good = [key for key, status in photos.truth.items() if status == "ok"]
    truth = dict(photos.truth)
    with AnyJob(output, "plan", photos.folder, output, *ASKED_TO_PLAN, "--no-estimate") as job:
        job.wait().succeeded()
    deleted, overwritten, later = good[:3], good[10:14], good[30:33]
    for key in deleted:
        (photos.folder / key).unlink()
    overwrite(photos, overwritten, 1)
    Job.run(photos.folder, output, *ALL_REJECTED).succeeded()
    truth |= dict.fromkeys(deleted, "missing") | dict.fromkeys(overwritten, "changed")
    oracle.check(str(output), truth)

    # More of the same after it was extracted; what is added waits to be asked for.
    overwrite(photos, later, 2)
    (photos.folder / good[40]).rename(tmp_path / "gone.jpg")
    overwrite(photos, ["class0/new.jpg", "class1/new.jpg"], 3)
    assert Job.run(photos.folder, output, *ALL_REJECTED).succeeded()["done_now"] == 0
    extended = Job.run(photos.folder, output, *ALL_REJECTED, "--extend").succeeded()
    assert extended["extended"]["added"] == 2
    truth |= dict.fromkeys(["class0/new.jpg", "class1/new.jpg"], "ok")
    oracle.check(str(output), truth)

    requeued = AnyJob.run(output, "requeue", output, "--changed").succeeded()
    assert (requeued["images"], requeued["changed"], requeued["gone"]) == (7, 7, 4)
    assert AnyJob.run(output, "verify", output).code == 3
    with polled(output):
        done = Job.run(photos.folder, output, *ALL_REJECTED).succeeded()
    assert done["done_now"] == requeued["shards"]
    truth |= dict.fromkeys(overwritten, "ok")
    reference = tmp_path / "reference"
    shutil.copy(tmp_path / "gone.jpg", photos.folder / good[40])  # its row has kept its features
    overwrite(photos, deleted, 5)  # a clean run has a row for each key; those of these have no features to compare
    Job.run(photos.folder, reference, *ALL_REJECTED).succeeded()
    oracle.check(str(output), truth, features_of=str(reference), tolerance=1e-5)
    assert AnyJob.run(output, "verify", output, "--full").code == 0
    assert Job.run(photos.folder, output, *ALL_REJECTED).succeeded()["done_now"] == 0


@pytest.mark.matrix(2, "requeue")
@pytest.mark.faults
def test_a_driver_killed_while_it_replaces_shards_loses_nothing(tmp_path: Path) -> None:
    photos, output = make_photos(tmp_path / "photos", 160), tmp_path / "features"
    Job.run(photos.folder, output).succeeded()
    good = [key for key, status in photos.truth.items() if status == "ok"]
    overwrite(photos, good[::3], 4)  # some of every class, so of every shard
    requeued = AnyJob.run(output, "requeue", output, "--changed").succeeded()
    assert requeued["shards"] == photos.num_shards
    with polled(output):
        with Job(photos.folder, output) as job:
            assert job.wait_for("some shards", lambda: num_revised(output) > 2)
            job.kill9()
            assert job.orphans(waiting=False) == []
        before = num_revised(output)
        assert 2 < before < photos.num_shards
        result = Job.run(photos.folder, output).succeeded()
    assert (result["done_before"], result["done_now"]) == (before, photos.num_shards - before)
    reference = tmp_path / "reference"
    Job.run(photos.folder, reference).succeeded()
    oracle.check(str(output), photos.truth, features_of=str(reference), tolerance=1e-5)
    assert AnyJob.run(output, "verify", output, "--full").code == 0
    assert not list(output.rglob(".*"))
