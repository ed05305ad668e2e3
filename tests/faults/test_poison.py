"""Images that kill or hang the decoder, or are none: exactly those are rejected, and the run ends well."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracle
import pytest
from conftest import BAD, make_photos, photo
from extractjob import SHARD_SIZE, Job
from PIL import Image

WATCH = str(Path(__file__).parent / "watch")


def _run(source: Path, poison: dict[int, str], output: Path, seconds: float, tried: Callable[..., None]) -> None:
    """Extract 80 photos of which some (index -> comment, at which the decoder breaks) are poison."""
    made = make_photos(source, 80)
    keys = sorted(made.truth)
    reasons = {"crash": "decoder_crash", "hang": "decode_timeout"}
    for index, comment in poison.items():
        (source / keys[index]).write_bytes(photo(np.random.default_rng(index), comment))
        made.truth[keys[index]] = reasons[comment]
    environment = {"PYTHONPATH": WATCH, "BROKEN_DECODER": "1"}
    tried(11, len(poison))
    with Job(source, output, "--max-rejected", "0.2", environment=environment) as job:
        result = job.wait(seconds).succeeded()
        assert job.orphans() == []
    assert result["done_now"] == made.num_shards
    oracle.check(str(output), made.truth)
    assert Job.run(source, output, "--max-rejected", "0.2").succeeded()["done_now"] == 0


@pytest.mark.matrix(11)
def test_images_that_kill_the_decoder_are_rejected_alone(tmp_path: Path, tried: Callable[..., None]) -> None:
    poison = {0: "crash", 3 * SHARD_SIZE + 5: "crash", 9 * SHARD_SIZE + 7: "crash"}
    _run(tmp_path / "photos", poison, tmp_path / "features", 240, tried)


@pytest.mark.matrix(11)
@pytest.mark.faults
def test_images_that_hang_the_decoder_are_rejected_alone(tmp_path: Path, tried: Callable[..., None]) -> None:
    # Each hangs for 30 s in three tasks and once more in a child process.
    poison = {4: "hang", 2 * SHARD_SIZE: "crash", 7 * SHARD_SIZE + 3: "hang"}
    _run(tmp_path / "photos", poison, tmp_path / "features", 540, tried)


@pytest.mark.matrix(11)
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("poison", ["crash", "hang"])
def test_a_shard_of_nothing_but_poison_is_rejected(poison: str, tmp_path: Path, tried: Callable[..., None]) -> None:
    _run(
        tmp_path / "photos",
        dict.fromkeys(range(SHARD_SIZE, 2 * SHARD_SIZE), poison),
        tmp_path / "features",
        900,
        tried,
    )


@pytest.mark.matrix(10)
@pytest.mark.faults
def test_a_twentieth_of_bad_images_of_every_kind_is_rejected_for_its_reason(
    tmp_path: Path, tried: Callable[..., None]
) -> None:
    source, output = tmp_path / "photos", tmp_path / "features"
    made = make_photos(source, 1_000)
    good = sorted(key for key, status in made.truth.items() if status == "ok")
    big = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(big, "PNG")
    whole = photo(np.random.default_rng(0))
    kinds = {
        **BAD,
        "truncated": whole[: len(whole) // 2],
        "too_many_pixels": big.getvalue(),
        "too_many_bytes": whole + bytes(100_000),
    }
    for number, key in enumerate(good[::20]):
        made.truth[key] = list(kinds)[number % len(kinds)]
        (source / key).write_bytes(kinds[made.truth[key]])
    tried(10, sum(status != "ok" for status in made.truth.values()))
    options = ("--max-bytes", "90000", "--max-rejected", "0.1")
    Job.run(source, output, *options).succeeded()
    oracle.check(str(output), made.truth)
    assert Job.run(source, output, *options).succeeded()["done_now"] == 0
