"""`bottleneck benchmark SOURCE --what s3`: extraction from a bucket beside the same from disk."""

import json
from pathlib import Path

import pytest
import tiny

from bottleneck.errors import UsageError
from bottleneck.store import open_store
from jobs import benchmark, benchmark_s3
from jobs.__main__ import main


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


def test_a_bucket_is_given_where_one_is_needed() -> None:
    for received in ("", "here", "gs://bucket/here"):
        with pytest.raises(UsageError, match=f"--what s3 takes --bucket s3://.* Received: '{received}'"):
            benchmark.Config(source="photos", what="s3", bucket=received)
    with pytest.raises(UsageError, match="--what extract takes no --bucket"):
        benchmark.Config(source="photos", bucket="s3://bucket/here")
