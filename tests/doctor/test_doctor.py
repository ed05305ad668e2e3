"""What the doctor finds: on real folders, a real S3 server, a real Ray cluster with a token."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pyarrow as pa
import pytest
import tiny
from fixtures_s3 import use_environment
from proxy import Fault, FaultProxy
from servers import CephServer, S3Server, free_port

from bottleneck.audit.verify import verify
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.doctor import machine
from bottleneck.doctor.checks import Check, Finding, examine, without_secrets
from bottleneck.doctor.cluster import check_address, try_cluster
from bottleneck.doctor.storage import PROBE, try_output, try_source, try_writing
from bottleneck.errors import StoreError, UsageError
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import Wanted, cached_store, open_store

TOKEN = "a-token-that-nobody-must-see-0123456789"


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def examined(look: Any, seconds: float = 30.0) -> list[Finding]:
    return list(examine(Check("it", look, seconds)))


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "--json", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | environment,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def committed(source: str, output: str) -> None:
    """A finished output of one shard, with made-up features."""
    plan = make_plan(source, output, tiny.spec())
    keys = [image.key for image in plan.images()]
    rows = tiny.data_rows(plan.spec, keys)
    etags = pa.array([image.etag for image in plan.images()])
    rows = rows.set_column(rows.schema.get_field_index("etag"), rows.schema.field("etag"), etags)
    write_shard(open_store(output), plan.data_name(0), plan.spec, 0, rows, run_id="", device="")
    finish(plan)


@pytest.fixture(autouse=True)
def fresh_stores() -> Iterator[None]:
    """A store remembers that it has been answered, and the endpoint it was opened with."""
    cached_store.cache_clear()
    yield
    cached_store.cache_clear()


def test_a_machine_with_a_source_and_an_output(tmp_path: Path) -> None:
    tiny.photos(tmp_path / "photos", 2)
    home = {"KERAS_HOME": str(tmp_path / "keras"), "RAY_ADDRESS": ""}
    home |= dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:1")
    code, told, shown = doctor(str(tmp_path / "photos"), str(tmp_path / "a" / "out"), **home)
    assert code == told["exit_code"] == 0, shown
    found = {check["name"]: check for check in told["checks"]}
    assert {name for name in found if found[name]["state"] == "failure"} == set()
    assert "ray 2." in found["packages"]["message"]
    assert "Keras starts on" in found["network"]["message"]
    assert found["weights"]["state"] == "warning"
    assert "--weights FILE" in found["weights"]["message"]
    assert "40 x 30" in found["image"]["message"]
    assert {"processor", "memory", "temporary folder", "writing", "create-only writes", "clock"} <= found.keys()
    assert len(shown.splitlines()) == len(found) + 1
    assert "\033[" not in shown  # colours are for terminals
    assert not (tmp_path / "a").exists()  # nothing is left


def test_weights_in_kerass_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_files(tmp_path, {f"models/{machine.WEIGHTS}": b"weights"})
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert states(machine.weights()) == {"weights": "ok"}


def test_a_backend_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "no-such-backend")
    [finding] = machine.packages()
    assert finding.state == "failure"
    assert "backend no-such-backend is not installed" in finding.message
    [finding] = machine.backend()
    assert finding.state == "failure"
    assert "Keras does not start" in finding.message


def test_a_temporary_folder_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    assert states(machine.temporary_folder()) == {"temporary folder": "failure"}


@pytest.mark.parametrize(("mode", "state"), [(0o600, "ok"), (0o644, "warning"), (0o640, "warning")])
def test_a_token_that_others_can_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, state: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert list(machine.token()) == []
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(mode)
    [finding] = machine.token()
    assert finding.state == state
    assert (f"mode {mode:04o}" in finding.message) == (state == "warning")


def test_pydatas_package_of_the_same_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = b"Metadata-Version: 2.1\nName: Bottleneck\nVersion: 1.6.0\n"
    tiny.write_files(tmp_path, {"Bottleneck-1.6.0.dist-info/METADATA": metadata})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "pip uninstall Bottleneck" in next(machine.packages()).message


def test_a_check_that_hangs_or_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield Finding("first", "ok", "was quick")
        waiting.wait()

    def breaks() -> Iterator[Finding]:
        yield Finding("first", "ok", "is well")
        raise ZeroDivisionError("by zero")

    def fails() -> Iterator[Finding]:
        raise StoreError(f"The store did not like {TOKEN}.")
        yield

    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    try:
        first, late = examined(hangs, 3.0)  # within which its thread has started, however busy the machine is
    finally:
        waiting.set()
    assert (first.message, late.state) == ("was quick", "failure")
    assert "no answer within 3 s" in late.message
    assert "ZeroDivisionError: by zero" in examined(breaks)[1].message
    [failure] = examined(fails)
    assert failure == Finding("it", "failure", "The store did not like <RAY_AUTH_TOKEN>.")
    assert without_secrets("RAY_AUTH_MODE is token") == "RAY_AUTH_MODE is token"


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"texts/a.txt": b"text", "bad/a.jpg": b"no image"})
    [nothing] = try_source(str(tmp_path / "none"))
    assert (nothing.state, "is empty or does not exist" in nothing.message) == ("failure", True)
    [texts] = try_source(str(tmp_path / "texts"))
    assert "only 1 x .txt" in texts.message
    bad = list(try_source(str(tmp_path / "bad")))
    assert [finding.state for finding in bad] == ["ok", "warning"]
    assert "rejected as not_an_image" in bad[1].message


def test_outputs_that_cannot_be_used(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"others/a.txt": b"text", "file": b""})
    with pytest.raises(UsageError, match="holds something else"):
        list(try_output(str(tmp_path / "others")))
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["a.txt"]
    with pytest.raises(StoreError, match="part of the path is a file"):
        list(try_output(str(tmp_path / "file" / "out")))
    with pytest.raises(UsageError, match="only read"):
        list(try_output("http://127.0.0.1:1/out"))


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    source, output = str(tiny.photos(tmp_path / "photos", 2)), tmp_path / "out"
    output.mkdir()
    assert set(states(try_output(str(output))).values()) == {"ok"}
    assert list(output.iterdir()) == []
    committed(source, str(output))
    files = sorted(output.rglob("*"))
    findings = list(try_output(str(output)))
    assert "holds a plan of 2 images" in findings[0].message
    assert sorted(output.rglob("*")) == files
    assert verify(str(output), full=True).exit_code == 0


class Overwriting(FolderStore):
    """A store that does not know conditional writes."""

    def create(self, key: str, data: bytes) -> bool:
        return self.replace(key, data)


class Forgetful(FolderStore):
    """A store that gives back something else than was written."""

    def get(self, wanted: Wanted) -> bytes:
        return super().get(wanted)[:-1]


def test_stores_that_cannot_keep_the_guarantee_are_failures(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert states(try_writing(Overwriting(str(tmp_path / "out"))))["create-only writes"] == "failure"
    assert states(try_writing(Forgetful(str(tmp_path / "out"))))["writing"] == "failure"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bucket_keeps_one_object_that_verify_knows(
    tmp_path: Path, s3_environment: dict[str, str], s3_server: S3Server, bucket: str
) -> None:
    source, output = str(tiny.photos(tmp_path / "photos", 2)), f"s3://{bucket}/out"
    first = list(try_output(output))
    assert {finding.state for finding in first} == {"ok"}
    assert f"it stays, as {PROBE}" in first[1].message
    committed(source, output)
    again = list(try_output(output))
    assert {finding.state for finding in again} == {"ok"}
    assert "an object of an earlier check is there" in again[1].message
    assert [key for key in s3_server.keys(bucket) if "d0c7" in key] == [f"out/{PROBE}"]
    report = verify(output, full=True)
    assert (report.exit_code, report.unused_parts, report.foreign) == (0, 1, ())
    s3_server.upload_folder(tmp_path / "photos", bucket, "photos/")
    assert states(try_source(f"s3://{bucket}/photos")) == {"source": "ok", "image": "ok"}


class WithoutConditions(http.server.BaseHTTPRequestHandler):
    """Part of a gateway that takes no notice of If-None-Match: a bucket in memory."""

    protocol_version = "HTTP/1.1"  # in which a client may wait for 100 Continue
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if "list-type=2" not in query:
            self._answer(self.objects.get(path), missing=path not in self.objects)
            return
        prefix = urllib.parse.parse_qs(query).get("prefix", [""])[0]
        bucket, dated = path.strip("/"), time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        keys = [key.removeprefix(f"/{bucket}/") for key in self.objects]
        listed = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{dated}</LastModified><ETag>x</ETag><Size>1</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        self._answer(f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())

    def _answer(self, body: bytes | None, missing: bool = False) -> None:
        self.send_response(404 if missing else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("ETag", '"x"')
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_a_gateway_that_ignores_conditions_is_a_failure_and_gets_no_plan(
    tmp_path: Path, s3_server: S3Server, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutConditions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": url})
        findings = {finding.name: finding for finding in try_output("s3://bucket/out")}
        WithoutConditions.objects.clear()
        cached_store.cache_clear()
        with pytest.raises(StoreError, match=r"s3://bucket/planned cannot be an output: .*If-None-Match"):
            make_plan(str(tiny.photos(tmp_path / "photos", 2)), "s3://bucket/planned", tiny.spec())
        assert [path.rpartition("/")[0] for path in WithoutConditions.objects] == ["/bucket/planned/plan"]
        server.shutdown()
    assert findings["writing"].state == "ok"
    assert findings["create-only writes"].state == "failure"
    assert "If-None-Match" in findings["create-only writes"].message


def test_buckets_that_cannot_be_used(
    s3_server: S3Server, s3_environment: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [failure] = examined(lambda: try_output("s3://there-is-no-such-bucket/out"))
    assert "no such bucket" in failure.message
    [failure] = examined(lambda: try_source("s3://there-is-no-such-bucket/photos"))
    assert "no such bucket" in failure.message
    with FaultProxy(s3_server.endpoint_url, [Fault("stall", seconds=60)]) as proxy:
        use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
        cached_store.cache_clear()
        started = time.monotonic()
        [failure] = examined(lambda: try_output(f"s3://{bucket}/out"), 1.0)
        assert time.monotonic() - started < 5
        assert "no answer within 1 s" in failure.message


def test_rights_and_credentials_are_tried(
    ceph_server: CephServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceph_server.upload(bucket, {"photos/a.jpg": tiny.jpeg(1)})
    use_environment(monkeypatch, ceph_server.read_only_environment(bucket))
    assert states(try_source(f"s3://{bucket}/photos")) == {"source": "ok", "image": "ok"}
    listed, refused = examined(lambda: try_output(f"s3://{bucket}/out"))
    assert (listed.state, refused.state) == ("ok", "failure")
    assert "refused" in refused.message
    assert "permissions of this user" in refused.message

    use_environment(monkeypatch, ceph_server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong-and-never-shown"})
    cached_store.cache_clear()
    code, told, shown = doctor(f"s3://{bucket}/photos", f"s3://{bucket}/out", RAY_ADDRESS="")
    assert code == told["exit_code"] == 5
    failures = {check["name"]: check["message"] for check in told["checks"] if check["state"] == "failure"}
    assert failures.keys() == {"source", "output"}
    assert "refused the credentials" in failures["source"]
    assert "FAIL  source: " in shown
    assert "wrong-and-never-shown" not in shown + json.dumps(told)


@pytest.mark.parametrize("address", ["somewhere", "host:port", "ftp://host:1", "http://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        check_address(address)


def test_an_address_with_credentials_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        check_address(f"http://user:{TOKEN}@host:8265")
    assert TOKEN not in str(refused.value)


def test_a_cluster_that_is_not_there_is_told() -> None:
    port = free_port()
    for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
        [failure] = try_cluster(address)
        assert failure.state == "failure"
        assert "whether Ray runs there" in failure.message


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str, dict[str, str]]]:
    """A node that wants a token: its address, its dashboard's, and the environment that holds the token."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets want a short path
    (folder / "token").write_text(TOKEN)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("metrics-export-port", "runtime-env-agent-port", "ray-client-server-port")
    ports = dict(zip(names, (free_port() for _ in names), strict=True))
    command = [
        *("ray", "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"),
        *("--dashboard-host=127.0.0.1", f"--temp-dir={folder / 'ray'}", "--object-store-memory=100000000"),
        *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    with (folder / "log").open("w") as log:
        ray = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        agent = ("127.0.0.1", ports["dashboard-agent-listen-port"])
        ends, is_up = time.monotonic() + 120, False
        while not is_up:
            assert ray.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < ends, (folder / "log").read_text()
            time.sleep(0.2)
            with contextlib.suppress(OSError), direct.open(request, timeout=5), socket.create_connection(agent, 5):
                is_up = True
        yield f"127.0.0.1:{ports['port']}", url, own
    finally:
        processes = [psutil.Process(ray.pid), *psutil.Process(ray.pid).children(recursive=True)]
        ray.terminate()
        _, left = psutil.wait_procs(processes, timeout=15)
        for process in left:
            process.kill()
        ray.wait()
        shutil.rmtree(folder, ignore_errors=True)


def use_token(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_cluster_and_its_workers_are_tried(
    cluster: tuple[str, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, url, own = cluster
    use_token(monkeypatch, own)
    code, told, shown = doctor("--address", address)
    assert code == 0, shown
    assert TOKEN not in shown
    joined = [Finding(**check) for check in told["checks"][-2:]]
    for answered, node in (joined, try_cluster(url)):  # the second by a job
        assert answered.state == "ok", answered
        assert re.search(r"Ray 2\.\S+, Python 3\.\S+; 1 node, 1 CPU, 0 GPUs", answered.message)
        assert node.name == "1 x node of 1 CPU"
        assert node.state == "ok" or "bfloat16" in node.message


def test_a_dashboard_that_wants_a_token_is_told(
    cluster: tuple[str, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, url, own = cluster
    use_token(monkeypatch, own | {"RAY_AUTH_TOKEN": "another-token-that-is-wrong-0123456789"})
    [failure] = try_cluster(url)
    assert failure.state == "failure"
    assert "does not accept the token" in failure.message
    assert "RAY_AUTH_TOKEN_PATH" in failure.message
    assert "another-token" not in failure.message
    use_token(monkeypatch, {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)})
    [failure] = try_cluster(url)
    assert "asks for a token" in failure.message


@pytest.mark.faults  # Ray tries for 20 s
def test_a_cluster_that_is_joined_wants_a_token(
    cluster: tuple[str, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _, own = cluster
    use_token(monkeypatch, own | {"RAY_AUTH_TOKEN": "another-token-that-is-wrong-0123456789"})
    [failure] = try_cluster(address)
    assert "does not accept this token" in failure.message
    assert "RAY_AUTH_TOKEN_PATH" in failure.message
