"""Images that kill or hang the decoder: exactly those are rejected, and the run ends well."""

from pathlib import Path

import numpy as np
import oracle
import pytest
from conftest import make_photos, photo
from extractjob import SHARD_SIZE, Job

WATCH = str(Path(__file__).parent / "watch")


def _run(source: Path, poison: dict[int, str], output: Path, seconds: float) -> None:
    """Extract 80 photos of which some (index -> comment, at which the decoder breaks) are poison."""
    made = make_photos(source, 80)
    keys = sorted(made.truth)
    reasons = {"crash": "decoder_crash", "hang": "decode_timeout"}
    for index, comment in poison.items():
        (source / keys[index]).write_bytes(photo(np.random.default_rng(index), comment))
        made.truth[keys[index]] = reasons[comment]
    environment = {"PYTHONPATH": WATCH, "BROKEN_DECODER": "1"}
    with Job(source, output, "--max-rejected", "0.2", environment=environment) as job:
        result = job.wait(seconds).succeeded()
        assert job.orphans() == []
    assert result["done_now"] == made.num_shards
    oracle.check(str(output), made.truth)
    assert Job.run(source, output, "--max-rejected", "0.2").succeeded()["done_now"] == 0


def test_images_that_kill_the_decoder_are_rejected_alone(tmp_path: Path) -> None:
    poison = {0: "crash", 3 * SHARD_SIZE + 5: "crash", 9 * SHARD_SIZE + 7: "crash"}
    _run(tmp_path / "photos", poison, tmp_path / "features", 240)


@pytest.mark.faults
def test_images_that_hang_the_decoder_are_rejected_alone(tmp_path: Path) -> None:
    # Each hangs for 30 s in three tasks and once more in a child process.
    poison = {4: "hang", 2 * SHARD_SIZE: "crash", 7 * SHARD_SIZE + 3: "hang"}
    _run(tmp_path / "photos", poison, tmp_path / "features", 540)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_shard_of_nothing_but_poison_is_rejected(tmp_path: Path) -> None:
    _run(tmp_path / "photos", dict.fromkeys(range(SHARD_SIZE, 2 * SHARD_SIZE), "crash"), tmp_path / "features", 900)
