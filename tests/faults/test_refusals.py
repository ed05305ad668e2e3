"""What only a person can mend stops a run within seconds, with its exit code and one clear line."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from extractjob import SHARD_SIZE, Ended, Job, Photos, Seen, num_data_files
from servers import CephServer, S3Server, free_port

from bottleneck.dataset.make_plan import make_plan
from bottleneck.networks.resolve import resolve
from bottleneck.networks.weights import load_network
from bottleneck.spec import FeatureRequest

SECONDS = 30
STARTED_SECONDS = 60
"""Where the network must be started to find out: 15 s on two cores, more when they have other things to do."""


def refused(code: int, error: str, *words: str, seconds: float = SECONDS, **keywords: Any) -> Ended:
    """Run a job that must be refused, with an error that has these words."""
    ended = Job.run(*keywords.pop("arguments"), seconds=2 * seconds, **keywords)
    print(f"{ended.seconds:.1f} s: {ended.error}")
    assert ended.code == code, ended
    assert ended.result["exit_code"] == code
    assert ended.result["error"] == error
    assert ended.error == f"error: {ended.result['message']}"
    assert not [word for word in words if word not in ended.error], ended.error
    assert "Traceback" not in ended.stderr
    assert ended.seconds < seconds
    return ended


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder, with what it holds and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


@pytest.fixture
def no_ray(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job that must not start Ray; checked in the end by the folder Ray would make."""
    folder = tmp_path / "ray"
    yield {"RAY_TMPDIR": str(folder)}
    assert not folder.exists()


def test_a_source_that_is_not_there_is_refused(output: Path, tmp_path: Path, no_ray: dict[str, str]) -> None:
    words = (str(tmp_path / "nothing"), "empty or does not exist")
    refused(2, "UsageError", *words, arguments=(tmp_path / "nothing", output), environment=no_ray)
    assert not output.exists()


def test_an_empty_source_is_refused(output: Path, tmp_path: Path, no_ray: dict[str, str]) -> None:
    (tmp_path / "empty").mkdir()
    words = (str(tmp_path / "empty"), "empty or does not exist")
    refused(2, "UsageError", *words, arguments=(tmp_path / "empty", output), environment=no_ray)
    assert not output.exists()


def test_a_source_without_images_is_refused(output: Path, tmp_path: Path, no_ray: dict[str, str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    refused(2, "UsageError", "1 x .txt", arguments=(tmp_path / "texts", output), environment=no_ray)
    assert not output.exists()


def test_an_output_that_holds_something_else_is_refused(photos: Photos, output: Path, no_ray: dict[str, str]) -> None:
    output.mkdir()
    (output / "thesis.tex").write_text("precious")
    refused(2, "UsageError", "thesis.tex", arguments=(photos.folder, output), environment=no_ray)
    assert list(contents(output)) == ["thesis.tex"]


def test_an_unknown_base_is_refused(photos: Photos, output: Path, no_ray: dict[str, str]) -> None:
    asked = ("--base", "vgg61", "--weights", "random:0")
    words = ("vgg16", "Received: vgg61")
    refused(2, "UsageError", *words, arguments=(photos.folder, output), asked=asked, environment=no_ray)
    assert not output.exists()


def test_an_unknown_layer_is_refused(photos: Photos, output: Path) -> None:
    words = ("conv_pw_9", "Received: conv_pw_99")
    refused(
        2,
        "UsageError",
        *words,
        arguments=(photos.folder, output, "--layers", "conv_pw_99:avg"),
        seconds=STARTED_SECONDS,
    )
    assert not output.exists()


@pytest.mark.matrix(9)
@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("base", ("--base", "mobilenet_0.5")),
        ("weights_sha256", ("--weights", "random:1")),
        ("layers", ("--layers", "conv_pw_12_relu:avg")),
        ("layers", ("--layers", "conv_pw_13_relu:max")),
        ("resize", ("--resize", "crop")),
        ("interpolation", ("--interpolation", "nearest")),
        ("exif", ("--exif", "ignore")),
        ("decode", ("--decode", "draft")),
        ("precision", ("--precision", "bfloat16")),
        ("dtype", ("--dtype", "float16")),
        ("max_bytes", ("--max-bytes", "1000")),
        ("max_pixels", ("--max-pixels", "1000")),
        ("formats", ("--formats", "tiff")),
        ("labels", ("--labels", "none")),
        ("shard_size", ("--shard-size", "16")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_output_planned_otherwise_is_refused_and_unchanged(
    field: str, option: tuple[str, ...], photos: Photos, reference: str
) -> None:
    before = contents(Path(reference))
    refused(4, "FingerprintError", f"{field}: planned ", arguments=(photos.folder, reference, *option))
    assert contents(Path(reference)) == before


@pytest.mark.matrix(9)
def test_an_output_of_another_source_is_refused_and_unchanged(
    photos: Photos, reference: str, tmp_path: Path, no_ray: dict[str, str]
) -> None:
    before = contents(Path(reference))
    words = ("source: planned ", str(photos.folder), str(tmp_path))
    refused(4, "FingerprintError", *words, arguments=(tmp_path, reference), environment=no_ray)
    assert contents(Path(reference)) == before


@pytest.mark.matrix(13)
def test_a_corrupt_weights_file_is_refused(photos: Photos, output: Path, tmp_path: Path) -> None:
    weights = tmp_path / "broken.weights.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    asked = ("--base", "mobilenet_0.25", "--weights", str(weights))
    refused(
        5,
        "WeightsError",
        "do not fit",
        str(weights),
        arguments=(photos.folder, output),
        asked=asked,
        seconds=STARTED_SECONDS,
    )
    assert not output.exists()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
def test_weights_that_changed_since_the_plan_stop_the_run_before_an_image_is_read(
    photos: Photos, output: Path, seen: Seen, tmp_path: Path
) -> None:
    weights = tmp_path / "network.weights.h5"

    def write(seed: int) -> None:
        load_network("mobilenet_0.25", f"random:{seed}", ()).save_weights(weights)

    write(0)
    asked = ("--base", "mobilenet_0.25", "--weights", str(weights), "--precision", "float32")
    request = FeatureRequest(base="mobilenet_0.25", weights=str(weights), precision="float32")
    make_plan(str(photos.folder), str(output), resolve(request, "float32"), shard_size=SHARD_SIZE)
    write(1)
    refused(
        *(4, "FingerprintError", "weights_sha256: planned "),
        arguments=(photos.folder, output),
        asked=asked,
        seconds=STARTED_SECONDS,
        environment=seen.environment,
    )
    assert not seen.images_read
    assert num_data_files(str(output)) == 0
    write(0)
    assert Job.run(photos.folder, output, asked=asked, environment=seen.environment).succeeded()["done_before"] == 0
    assert len(seen.images_read) == len(photos.truth)  # which is seen where it happens


@pytest.mark.matrix(13)
@pytest.mark.faults
def test_weights_that_are_not_there_are_refused(photos: Photos, output: Path, tmp_path: Path) -> None:
    weights = str(tmp_path / "nothing.h5")
    asked = ("--base", "mobilenet_0.25", "--weights", weights)
    refused(
        5,
        "WeightsError",
        "No such weights",
        weights,
        arguments=(photos.folder, output),
        asked=asked,
        seconds=STARTED_SECONDS,
    )
    assert not output.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB: room for the plan and a few shards."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)]
    if mount is None or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system: run as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.matrix(13)
def test_a_full_disk_stops_the_run_which_goes_on_with_more_room(
    photos: Photos, reference: str, small_disk: Path
) -> None:
    output = small_disk / "features"
    refused(
        5, "StoreError", "No space left", "The disk is full", arguments=(photos.folder, output), seconds=STARTED_SECONDS
    )
    assert 0 < num_data_files(str(output)) < photos.num_shards
    oracle.check(str(output), photos.truth, features_of=reference, finished=False)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert Job.run(photos.folder, output).succeeded()["done_before"] > 0
    oracle.check(str(output), photos.truth, features_of=reference)


@pytest.mark.matrix(13)
@pytest.mark.faults
def test_a_read_only_file_system_is_refused(photos: Photos, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(5, "StoreError", "read-only", arguments=(photos.folder, small_disk / "features"), seconds=STARTED_SECONDS)


@pytest.fixture
def photos_in_bucket(photos: Photos, s3_server: S3Server, bucket: str) -> str:
    s3_server.upload_folder(photos.folder / "class0", bucket, "photos/")
    return bucket


@pytest.mark.matrix(13)
def test_a_bucket_that_is_not_there_is_refused(
    photos: Photos, output: Path, photos_in_bucket: str, s3_server: S3Server, no_ray: dict[str, str]
) -> None:
    environment = s3_server.environment | no_ray
    missing = "s3://no-such-bucket-here/photos"
    words = ("no such bucket", "no-such-bucket-here")
    refused(5, "StoreError", *words, arguments=(missing, output), environment=environment)
    refused(5, "StoreError", *words, arguments=(photos.folder, missing), environment=environment)


@pytest.mark.matrix(13)
def test_wrong_credentials_are_refused(
    photos_in_bucket: str, output: Path, ceph_server: CephServer, no_ray: dict[str, str]
) -> None:
    arguments = (f"s3://{photos_in_bucket}/photos", f"s3://{photos_in_bucket}/features")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        environment = ceph_server.environment | no_ray | {name: "wrong"}
        refused(5, "StoreError", "refused", "credentials", arguments=arguments, environment=environment)


@pytest.mark.matrix(13)
def test_no_credentials_are_refused(photos_in_bucket: str, s3_server: S3Server, no_ray: dict[str, str]) -> None:
    arguments = (f"s3://{photos_in_bucket}/photos", f"s3://{photos_in_bucket}/features")
    without = {name: value for name, value in s3_server.environment.items() if "KEY" not in name}
    refused(5, "StoreError", "No usable credentials", arguments=arguments, environment=without | no_ray)


@pytest.mark.matrix(13)
def test_an_endpoint_where_nothing_listens_is_refused(
    s3_server: S3Server, output: Path, no_ray: dict[str, str]
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    environment = s3_server.environment | no_ray | {"AWS_ENDPOINT_URL": endpoint}
    words = ("AWS_ENDPOINT_URL", endpoint)
    refused(5, "StoreError", *words, arguments=("s3://bucket/photos", output), environment=environment)


@pytest.mark.matrix(13)
def test_an_output_this_user_may_not_write_is_refused(photos_in_bucket: str, ceph_server: CephServer) -> None:
    environment = ceph_server.read_only_environment(photos_in_bucket)
    arguments = (f"s3://{photos_in_bucket}/photos", f"s3://{photos_in_bucket}/features")
    refused(
        5, "StoreError", "refused", "permissions", arguments=arguments, environment=environment, seconds=STARTED_SECONDS
    )
    assert not ceph_server.keys(photos_in_bucket, "features/")


@pytest.mark.faults
def test_too_many_rejected_images_stop_the_run_which_goes_on_when_allowed(
    photos: Photos, reference: str, output: Path
) -> None:
    words = ("--max-rejected", "0%")
    ended = Job.run(photos.folder, output, "--max-rejected", "0")
    assert ended.code == 6, ended
    assert not [word for word in words if word not in ended.error]
    oracle.check(str(output), photos.truth, features_of=reference, finished=False)
    Job.run(photos.folder, output).succeeded()
    oracle.check(str(output), photos.truth, features_of=reference)
