"""`bottleneck benchmark SOURCE --what s3`: extraction from a bucket beside the same from disk."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
from s3fs import S3FileSystem
from servers import S3Server

from bottleneck.errors import UsageError
from bottleneck.storage.s3 import BucketStore
from bottleneck.storage.store import Wanted, open_store
from jobs import benchmark
from jobs.__main__ import main
from jobs.benchmark import faults as benchmark_faults
from jobs.benchmark import s3 as benchmark_s3


@pytest.mark.usefixtures("s3_environment")
def test_disk_and_bucket_are_measured_and_the_bucket_left_as_it_was(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, prefix = tiny.photos(tmp_path / "photos", 5), f"s3://{bucket}/here"
    open_store(prefix).create("mine.txt", b"stays")
    options = ["--what", "s3", "--bucket", f"{prefix}/", "--num-images", "40", "--base", "stub"]
    assert main(["--json", "benchmark", str(photos), *options]) == 0
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    for where in ("disk", "s3"):
        assert result[where]["images_per_second"] > 0
        assert result[where]["seconds"] > 0
    assert any("of the disk" in line for line in benchmark_s3.table(result))
    assert [entry.key for entry in open_store(prefix).list()] == ["mine.txt"]


@pytest.mark.usefixtures("s3_environment")
def test_the_proxy_forwards_and_answers_a_tenth_with_errors(bucket: str, s3_server: S3Server) -> None:
    for has_faults in (False, True):
        prefix = f"s3://{bucket}/faults-{has_faults}"
        with benchmark_faults.proxied(s3_server.endpoint_url, has_faults, seed=0) as proxy:
            S3FileSystem.clear_instance_cache()
            store = BucketStore(prefix)
            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(lambda number: store.create(f"{number:02d}", b"x" * number), range(50)))  # noqa: B023
            wanted = [Wanted(*entry) for entry in store.list()]
            assert list(store.get_many(wanted)) == [b"x" * number for number in range(50)]
            assert store.stat("49") is not None
        assert proxy.num_requests >= 102
        assert (proxy.num_faults > 3) == has_faults
    S3FileSystem.clear_instance_cache()


def test_the_table_of_faults_tells_both_ratios() -> None:
    one = {"images_per_second": 20.0, "seconds": 60.0, "requests": 1000, "faults": 0}
    result = {
        "images": 64,
        "source": "photos",
        "spec": {"base": "vgg16", "precision": "float32"},
        "hardware": {"cpu": "some", "cores": 2},
        "none": one,
        "faults": one | {"faults": 100},
        "command_ratio": 1.25,
        "extraction_ratio": 1.5,
    }
    assert "1.25 times as long, extraction alone 1.50 times" in benchmark_faults.table(result)[-1]


def test_a_bucket_is_given_where_one_is_needed() -> None:
    for received in ("", "here", "gs://bucket/here"):
        with pytest.raises(UsageError, match=f"--what s3 takes --bucket s3://.* Received: '{received}'"):
            benchmark.Config(source="photos", what="s3", bucket=received)
    with pytest.raises(UsageError, match="--what faults takes --bucket s3://"):
        benchmark.Config(source="photos", what="faults")
    with pytest.raises(UsageError, match="--what extract takes no --bucket"):
        benchmark.Config(source="photos", bucket="s3://bucket/here")
