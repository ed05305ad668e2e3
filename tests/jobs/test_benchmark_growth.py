"""`bottleneck benchmark --what growth`: its made-up images, what it measures, and what follows from that."""

import hashlib
import json
import shutil
import tarfile
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import pytest
from tiny import spec

from bottleneck.errors import UsageError
from bottleneck.extract.decode import Decoded, decode
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Limits, Reading
from jobs.__main__ import main
from jobs.benchmark import growth as benchmark_growth
from jobs.benchmark import tars as benchmark_tars


def test_made_up_images_are_as_many_as_asked_for_and_no_two_alike(tmp_path: Path) -> None:
    source = str(tmp_path / "images")
    benchmark_tars.write_source(source, 30)
    images = open_source(source, resolve_reading(source, Reading()))
    found = list(images.images(Counter()))
    contents = [data for data in images.read(found) if isinstance(data, bytes)]
    assert [image.key for image in found] == [f"00000.tar/{number:09d}.jpg" for number in range(30)]
    assert len({hashlib.sha256(data).digest() for data in contents}) == 30
    assert len({len(data) for data in contents}) == 1
    first, last = (decode(data, spec(), Limits()) for data in (contents[0], contents[-1]))
    assert isinstance(first, Decoded)
    assert isinstance(last, Decoded)
    assert (first.pixels_HWC == last.pixels_HWC).all()


def test_bytes_of_full_tars_exist_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_tars, "TAR_IMAGES", 10)
    few, more, many = (str(tmp_path / name) for name in ("few", "more", "many"))
    for folder, num_images, smaller in ((few, 4, None), (more, 25, few), (many, 31, more)):
        benchmark_tars.write_source(folder, num_images, smaller)
    links = {str(path.relative_to(tmp_path)): path.stat().st_nlink for path in sorted(tmp_path.glob("*/*"))}
    assert links["few/00000.tar"] == links["more/00002.tar"] == links["many/00002.tar"] == 1  # not full, or not before
    assert links["more/00000.tar"] == links["many/00000.tar"] == links["many/00001.tar"] == 2
    with tarfile.open(tmp_path / "many" / "00003.tar") as tar:
        assert tar.getnames() == ["000000030.jpg"]


def test_images_that_do_not_fit_on_the_disk_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [1000, 10_000, 1_000_000]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2_000_000_000))
    with pytest.raises(UsageError, match=r"Expected 2\.5 GB free in .* Received: 2\.0 GB\. .* TMPDIR"):
        benchmark_tars.check_room(str(tmp_path), sizes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(3_000_000_000))
    benchmark_tars.check_room(str(tmp_path), sizes)


def test_the_commands_around_extraction_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "benchmark", "--what", "growth", "--num-images", "40"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    [row] = result["sizes"]
    assert (row["images"], row["further"], result["small"]) == (40, None, None)
    for name in benchmark_growth.COMMANDS:
        assert row[name]["seconds"] > 0, name
        assert 0 < row[name]["driver_peak_rss_bytes"] <= result["hardware"]["memory_bytes"], name
        assert 0 < row[name]["driver_cpu_seconds"] <= row[name]["all_cpu_seconds"], name
    assert row["extract"]["store_touched_bytes"] > 0
    assert row["plan"]["store_touched_bytes"] is row["resume"]["store_touched_bytes"] is None  # neither starts Ray
    assert 0 < row["half"]["first_batch_seconds"] < row["half"]["seconds"]
    assert row["resume"]["first_batch_seconds"] is None


def test_sizes_grow_tenfold() -> None:
    assert benchmark_growth.sizes_up_to(40) == [40]
    assert benchmark_growth.sizes_up_to(1000) == [1000]
    assert benchmark_growth.sizes_up_to(100_000) == [1000, 10_000, 100_000]
    assert benchmark_growth.sizes_up_to(25_000) == [1000, 10_000, 25_000]


def figures(num_images: int, *, shard_size: int = 512, seconds_per_shard: float = 0.0) -> dict[str, Any]:
    """Of a command that takes 5 s, 100 MB, and 10 microseconds and 20 bytes an image."""
    shards = -(-num_images // shard_size)
    return {
        "seconds": 5 + 10e-6 * num_images,
        "driver_peak_rss_bytes": 100_000_000 + 20 * num_images,
        "driver_cpu_seconds": 1 + 5e-6 * num_images,
        "all_cpu_seconds": 9 + 8e-6 * num_images + seconds_per_shard / 2 * shards,
        "store_touched_bytes": 7_000_000,
        "shards": shards,
        "images_per_second": num_images / (1e-4 * num_images + seconds_per_shard * shards),
        "first_batch_seconds": 4.0,
    }


def test_growth_is_told_apart_from_start_up() -> None:
    sizes = [1000, 10_000, 100_000]
    one = {f"{name} {size}": figures(size) for size in sizes for name in benchmark_growth.COMMANDS}
    one["extract 10000"] |= figures(10_000, seconds_per_shard=0.03)
    one["small 10000"] = figures(10_000, shard_size=32, seconds_per_shard=0.03)
    result = benchmark_growth.summarize([one], sizes)
    assert result["sizes"][0]["further"] is None
    for row in result["sizes"][1:]:
        assert row["further"]["plan_seconds"] == pytest.approx(10e-6)
        assert row["further"]["driver_cpu_seconds"] == pytest.approx(5e-6)
        assert row["further"]["extract_bytes"] == pytest.approx(20)
        assert row["further"]["extract_seconds_per_shard"] == pytest.approx(512 * 10e-6, rel=0.05)
    assert result["a_shard"] == {"seconds": pytest.approx(0.03), "all_cpu_seconds": pytest.approx(0.015)}
    told = benchmark_growth.table({**result, "hardware": {"cpu": "a CPU", "cores": 2}})
    assert any("a shard costs 30.0 ms beside its images, 15.0 ms of CPU time" in line for line in told)
    one["small 10000"]["images_per_second"] = None
    assert benchmark_growth.summarize([one], sizes)["a_shard"]["seconds"] is None
