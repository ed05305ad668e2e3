"""No secret of the environment ends in anything a job writes: what it prints, its outputs, Ray's logs.

Each job is run as a user runs it, with canaries where secrets are, and afterwards every file is looked through.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny

from jobs.__main__ import JOBS

ROOT = Path(__file__).resolve().parents[1]
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "AZURE_STORAGE_KEY")
FLOW = """
plan {photos} {out}/features --base stub --weights random:0 --shard-size 16 --no-estimate
extract {photos} {out}/features --base stub --weights random:0 --shard-size 16 --max-rejected 0.5 --num-actors 1
fit {out}/features {out}/head --c 1 10 --folds 2
"""
"""One after the other, as each needs what the one before made; extracting and fitting run on Ray."""
REST = """
status {out}/features
verify {out}/features --full
evaluate {out}/head {out}/features --report {out}/report
predict {out}/features {out}/head {out}/predictions
classify {photos}/0/0000.jpg --head {out}/head
similar {photos}/1/0000.jpg {out}/features --sheet {out}/sheet.html
duplicates {out}/features {out}/duplicates.parquet
report {out}/features {out}/overview.html
describe
export {out}/features {out}/features.npz
diff {out}/features {out}/features
doctor {photos} {out}/new
extract {photos} {out}/other --base stub --weights {out}/none.h5
verify {photos}
"""
"""At the same time; the last two fail, as errors are printed too."""
LAST = """
requeue {out}/features --reason truncated
status {out}/features
"""
"""After which the features are unfinished."""
ELSEWHERE = {
    "submit": "test_submit",
    "demo": "extract, with photos it makes",
    "benchmark": "extract, verify and fit, measured",
}
"""Jobs that are not in the flow, and which test looks after them, or which jobs they consist of."""


def of_flow(text: str, **places: str) -> list[list[str]]:
    return [shlex.split(line.format(**places)) for line in text.strip().splitlines()]


def test_every_job_is_looked_after() -> None:
    run = {arguments[0] for arguments in of_flow(FLOW + REST.lstrip() + LAST.lstrip(), photos="photos", out="out")}
    assert run | ELSEWHERE.keys() == set(JOBS)


@pytest.fixture
def world() -> Iterator[Path]:
    """A folder with a short name, as Ray has sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="bn", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def environment_of(world: Path, secrets: dict[str, str]) -> dict[str, str]:
    for name in ("home", "ray"):
        (world / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    own = {"HOME": str(world / "home"), "RAY_TMPDIR": str(world / "ray"), "PYTHONPATH": str(ROOT)}
    return {**kept, **own, "RAY_AUTH_MODE": "token", "KERAS_HOME": str(world / "home" / "keras"), **secrets}


@contextlib.contextmanager
def kept(world: Path) -> Iterator[None]:
    """Keep what Ray writes, which a run removes when it ends: the same files, by other names."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(0.2):
            for path in (world / "ray").rglob("*"):
                with contextlib.suppress(OSError):
                    if path.is_file() and not path.is_symlink():
                        other = world / "kept" / path.relative_to(world)
                        other.parent.mkdir(parents=True, exist_ok=True)
                        other.hardlink_to(path)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_all(world: Path, environment: dict[str, str], **places: str) -> None:
    """Run the flow; what each job prints is kept among the files."""

    def run(number: int, arguments: list[str], exit_codes: tuple[int, ...]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", "--json", *arguments],
            env=environment,
            cwd=world,
            capture_output=True,
            timeout=300,
        )
        (world / f"{number:02d}-{arguments[0]}.out").write_bytes(done.stdout)
        (world / f"{number:02d}-{arguments[0]}.err").write_bytes(done.stderr)
        assert done.returncode in exit_codes, (arguments, done.returncode, done.stderr.decode())
        json.loads(done.stdout.splitlines()[-1])

    for number, arguments in enumerate(of_flow(FLOW, **places)):
        run(number, arguments, (0,))
    rest = of_flow(REST, **places)
    wrong = len(rest) - 2
    with ThreadPoolExecutor(2) as pool:
        # The doctor may find a machine wanting.
        codes = [
            (2, 5) if number >= wrong else (0, 5) if job[0] == "doctor" else (0,) for number, job in enumerate(rest)
        ]
        list(pool.map(run, range(10, 10 + len(rest)), rest, codes))
    for number, arguments in enumerate(of_flow(LAST, **places), 30):
        run(number, arguments, (0, 3))


def found_in(data: bytes, secrets: dict[str, str]) -> set[str]:
    """The secrets that stand in some bytes, as they are or in base64."""
    return {
        name
        for name, secret in secrets.items()
        if secret.encode() in data or base64.b64encode(secret.encode()).rstrip(b"=")[:-1] in data
    }


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()


def check(seen: dict[str, bytes], secrets: dict[str, str]) -> None:
    leaks = {name: found for name, data in seen.items() if (found := found_in(data, secrets))}
    assert not leaks, leaks


def test_no_job_writes_a_secret_anywhere(world: Path) -> None:
    secrets = {name: f"canary-{name.lower()}-0123456789abcdef" for name in SECRETS}
    tiny.digits_folder(world / "photos", per_class=4)
    tiny.write_files(world / "photos", {"3/broken.jpg": tiny.jpeg(1)[:300]})
    environment = environment_of(world, secrets)
    with kept(world):
        run_all(world, environment, photos=str(world / "photos"), out=str(world / "out"))
    assert not list((world / "ray").iterdir())
    seen = dict(files_below(world))
    check(seen, secrets)
    written = "\n".join(seen)
    for expected in ("features/_SUCCESS.json", "head/head.json", "report/report.html", "sheet.html", "features.npz"):
        assert f"out/{expected}" in written
    assert re.search(r"kept/ray/.*logs/gcs_server", written)  # what Ray writes was looked through
    assert "predictions/data" in written


def test_a_secret_that_is_written_is_found(tmp_path: Path) -> None:
    secrets = {"A": "canary-0123456789abcdef"}
    for number, data in enumerate([b"x canary-0123456789abcdef", base64.b64encode(b"canary-0123456789abcdef")]):
        (tmp_path / f"{number}").write_bytes(data)
        with pytest.raises(AssertionError, match=f"'{number}'"):
            check(dict(files_below(tmp_path)), secrets)
        (tmp_path / f"{number}").unlink()


@pytest.mark.faults
def test_no_job_writes_the_secret_it_reads_a_bucket_with(
    world: Path, bucket: str, s3_server: Any, s3_environment: dict[str, str]
) -> None:
    secret = s3_environment["AWS_SECRET_ACCESS_KEY"]
    secrets = {"AWS_SECRET_ACCESS_KEY": secret, "RAY_AUTH_TOKEN": "canary-ray-0123456789abcdef"}
    tiny.digits_folder(world / "photos", per_class=4)
    files = {f"photos/{name}": data for name, data in files_below(world / "photos")}
    s3_server.upload(bucket, {**files, "photos/3/broken.jpg": tiny.jpeg(1)[:300]})
    environment = environment_of(world, {**s3_environment, **secrets})
    with kept(world):
        run_all(world, environment, photos=f"s3://{bucket}/photos", out=f"s3://{bucket}/out")
    client = s3_server.client
    objects = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in s3_server.keys(bucket)}
    assert any(name.startswith("out/predictions/data/") for name in objects)
    check(dict(files_below(world)) | objects, secrets)
