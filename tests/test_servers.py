"""The test servers themselves: what the other tests take for granted about the S3 server and the proxy."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.session
import pytest
import s3fs
from fixtures_s3 import use_environment
from proxy import Fault, FaultProxy, When, kill_at
from servers import CephServer, MotoServer, S3Server, make_server

ODD_NAMES = [
    "two words.jpg",
    " leading and trailing ",
    "a+b.jpg",
    "a%2Fb.jpg",
    "100%.jpg",
    "#hash.jpg",
    "what?.jpg",
    "a&b=c.jpg",
    "..",
    "up/../down.jpg",
    "./here.jpg",
    "double//slash.jpg",
    "new\nline.jpg",
    "tab\t.jpg",
    "back\\slash.jpg",
    "quote'\".jpg",
    "[a]*{b}.jpg",
    "\N{CAT FACE}.jpg",
    "\u00e9.jpg",
    "e\u0301.jpg",
    "x" * 1000,
]


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def filesystem(s3_environment: dict[str, str], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """s3fs, through the proxy."""
    use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
    return s3fs.S3FileSystem()


@cache
def session() -> botocore.session.Session:
    return botocore.session.Session()  # reads the description of S3 once, 0.2 s


def client_without_retries(server: S3Server, endpoint_url: str) -> Any:
    return session().create_client(
        "s3",
        region_name=server.region,
        endpoint_url=endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=botocore.config.Config(retries={"total_max_attempts": 1}, read_timeout=2),
    )


@pytest.fixture
def client(s3_server: S3Server, proxy: FaultProxy) -> Any:
    """botocore without retries, through the proxy: it shows a fault as it is."""
    return client_without_retries(s3_server, proxy.endpoint_url)


def test_objects_come_back_through_server_and_proxy(
    s3_server: S3Server, bucket: str, filesystem: s3fs.S3FileSystem, proxy: FaultProxy, tmp_path: Path
) -> None:
    objects = {f"folder/{number}.bin": os.urandom(number * 1000) for number in range(20)}
    objects["large.bin"] = os.urandom(9_000_000)
    filesystem.pipe({f"{bucket}/{key}": data for key, data in objects.items()})
    read = filesystem.cat([f"{bucket}/{key}" for key in objects])
    assert {path.removeprefix(f"{bucket}/"): data for path, data in read.items()} == objects
    assert filesystem.cat_file(f"{bucket}/large.bin", start=10, end=20) == objects["large.bin"][10:20]
    assert s3_server.keys(bucket) == sorted(objects)
    assert proxy.count("PUT") == 21
    assert not proxy.injected


def test_a_folder_is_uploaded(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    for number in range(30):
        path = tmp_path / f"class {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * number)
    assert s3_server.upload_folder(tmp_path, bucket, "images/") == 30
    keys = s3_server.keys(bucket, "images/class 1/")
    assert keys == sorted(f"images/class 1/{number}.jpg" for number in range(30) if number % 3 == 1)


def test_odd_keys_stay_what_they_are(
    s3_server: S3Server, bucket: str, filesystem: s3fs.S3FileSystem, client: Any, proxy: FaultProxy
) -> None:
    # moto answers 404 to a newline in a key.
    names = [name for name in ODD_NAMES if s3_server.kind == "ceph" or "\n" not in name]
    s3_server.upload(bucket, {f"direct/{name}": name.encode() for name in names})
    filesystem.pipe({f"{bucket}/proxied/{name}": name.encode() for name in names})
    for name in names:
        for folder in ("direct", "proxied"):
            assert client.get_object(Bucket=bucket, Key=f"{folder}/{name}")["Body"].read() == name.encode()
        assert proxy.count("PUT", f"^/{bucket}/proxied/{re.escape(name)}$") == 1
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 5})
    listed = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert listed == s3_server.keys(bucket)
    assert sorted(listed) == sorted(f"{folder}/{name}" for folder in ("direct", "proxied") for name in names)


@pytest.mark.parametrize("through_proxy", [False, True])
def test_of_eight_writers_at_once_one_creates(
    s3_server: S3Server, bucket: str, s3_environment: dict[str, str], filesystem: s3fs.S3FileSystem, proxy: FaultProxy,
    through_proxy: bool,
) -> None:  # fmt: skip
    endpoint_url = proxy.endpoint_url if through_proxy else s3_server.endpoint_url
    filesystem = s3fs.S3FileSystem(endpoint_url=endpoint_url)

    def create(writer: int) -> int | None:
        try:
            filesystem.pipe_file(f"{bucket}/shard", b"writer %d" % writer, mode="create")
        except OSError:  # FileExistsError from moto, EINVAL from Ceph
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        winners = [winner for winner in pool.map(create, range(8)) if winner is not None]
    assert len(winners) == 1
    assert filesystem.cat_file(f"{bucket}/shard") == b"writer %d" % winners[0]


def test_a_body_that_waits_for_100_continue_passes(bucket: str, client: Any) -> None:
    data = os.urandom(3_000_000)  # botocore asks above 1 MiB
    for key in ("one", "two"):
        client.put_object(Bucket=bucket, Key=key, Body=data)
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == data


def test_chunked_bodies_pass_byte_for_byte() -> None:
    """Ceph answers listings in chunks but refuses requests in chunks, so a bare socket takes the server's part."""
    request = (
        b"PUT /k%2f../%20 HTTP/1.1\r\nhost: Me\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\nt: 1\r\n\r\n"
    )
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"z" * 65536 + b"\r\n0\r\n\r\n"
    received: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            for _ in range(2):  # on one connection that is kept alive
                received.append(stream.read(len(request)))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        with FaultProxy(f"http://127.0.0.1:{listener.getsockname()[1]}") as proxy:
            port = int(proxy.endpoint_url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as client, client.makefile("rb") as stream:
                for _ in range(2):
                    client.sendall(request)
                    assert stream.read(len(answer)) == answer
        serving.result()
    assert received == [request, request]


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_answer_refuses_without_forwarding(
    s3_server: S3Server, bucket: str, client: Any, proxy: FaultProxy, status: int, code: str
) -> None:
    proxy.inject(Fault("answer", methods="PUT", path="/refused$", status=status, code=code))
    with pytest.raises(botocore.exceptions.ClientError) as error:
        client.put_object(Bucket=bucket, Key="refused", Body=b"x" * 100_000)
    assert error.value.response["Error"]["Code"] == code
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    client.put_object(Bucket=bucket, Key="accepted", Body=b"x")
    assert s3_server.keys(bucket) == ["accepted"]
    assert proxy.injected == {"answer": 1}
    assert [(request.path, request.status, request.fault) for request in proxy.requests] == [
        (f"/{bucket}/refused", status, "answer"),
        (f"/{bucket}/accepted", 200, None),
    ]


def test_answer_after_has_written_and_says_409(
    s3_server: S3Server, bucket: str, client: Any, proxy: FaultProxy
) -> None:
    proxy.inject(Fault("answer_after", methods="PUT", status=409, code="ConditionalRequestConflict"))
    with pytest.raises(botocore.exceptions.ClientError, match="ConditionalRequestConflict"):
        client.put_object(Bucket=bucket, Key="shard", Body=b"x")
    assert s3_server.keys(bucket) == ["shard"]


def test_lose_answer_has_written_and_says_nothing(
    s3_server: S3Server, bucket: str, client: Any, proxy: FaultProxy
) -> None:
    proxy.inject(Fault("lose_answer", methods="PUT"))
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        client.put_object(Bucket=bucket, Key="shard", Body=b"x")
    assert s3_server.keys(bucket) == ["shard"]
    assert proxy.requests[0].status is None


def test_reset_has_not_written(s3_server: S3Server, bucket: str, client: Any, proxy: FaultProxy) -> None:
    proxy.inject(Fault("reset"))
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        client.put_object(Bucket=bucket, Key="shard", Body=b"x")
    with closing(http.client.HTTPConnection(proxy.endpoint_url.removeprefix("http://"))) as connection:
        connection.request("GET", "/")
        with pytest.raises(ConnectionResetError):
            connection.getresponse()
    assert s3_server.keys(bucket) == []


def test_cut_body_is_shorter_than_promised(s3_server: S3Server, bucket: str, client: Any, proxy: FaultProxy) -> None:
    s3_server.upload(bucket, {"image": b"x" * 200_000})
    proxy.inject(Fault("cut_body", methods="GET", times=1))
    answer = client.get_object(Bucket=bucket, Key="image")
    assert answer["ContentLength"] == 200_000
    with pytest.raises((botocore.exceptions.IncompleteReadError, botocore.exceptions.ResponseStreamingError)):
        answer["Body"].read()
    assert client.get_object(Bucket=bucket, Key="image")["Body"].read() == b"x" * 200_000
    assert proxy.injected == {"cut_body": 1}


@pytest.mark.parametrize("kind", ["stall", "stall_body"])
def test_stall_delays_and_then_goes_on(
    s3_server: S3Server, bucket: str, client: Any, proxy: FaultProxy, kind: Any
) -> None:
    s3_server.upload(bucket, {"image": b"x" * 200_000})
    proxy.inject(Fault(kind, seconds=0.5))
    start = time.monotonic()
    assert client.get_object(Bucket=bucket, Key="image")["Body"].read() == b"x" * 200_000
    assert 0.5 <= time.monotonic() - start < 2


@pytest.mark.parametrize(("when", "stored"), [("before", []), ("during", []), ("after", ["2"])])
def test_call_comes_at_the_nth_write(
    s3_server: S3Server, bucket: str, client: Any, proxy: FaultProxy, when: When, stored: list[str]
) -> None:
    seen: list[list[str]] = []
    call = Fault("call", methods="PUT", at=2, when=when, call=lambda _: seen.append(s3_server.keys(bucket)))
    proxy.inject(call)
    for key in ("1", "2", "3"):
        client.put_object(Bucket=bucket, Key=key, Body=b"x" * 100_000)
    assert seen == [["1", *stored]]
    assert s3_server.keys(bucket) == ["1", "2", "3"]


@pytest.mark.parametrize(("when", "stored"), [("before", ["0"]), ("during", ["0"]), ("after", ["0", "1"])])
def test_kill_at_leaves_what_a_killed_client_would(
    s3_server: S3Server, bucket: str, proxy: FaultProxy, when: When, stored: list[str]
) -> None:
    program = (
        "import os, botocore.session\n"
        "client = botocore.session.Session().create_client('s3')\n"
        f"for number in range(4): client.put_object(Bucket='{bucket}', Key=str(number), Body=b'x' * 100_000)\n"
    )
    environment = os.environ | s3_server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url}
    writer: list[subprocess.Popen[bytes]] = []
    proxy.inject(kill_at(2, when, lambda: writer[0].kill()))
    writer.append(subprocess.Popen([sys.executable, "-c", program], env=environment))
    assert writer[0].wait(timeout=30) == -signal.SIGKILL
    assert s3_server.keys(bucket) == stored


def test_a_seed_gives_the_same_faults_in_any_order(s3_server: S3Server, bucket: str) -> None:
    keys = [str(number) for number in range(120)]

    def refused(seed: int, order: list[str]) -> set[str]:
        with FaultProxy(s3_server.endpoint_url, [Fault("answer", probability=0.1)], seed) as proxy:
            client = client_without_retries(s3_server, proxy.endpoint_url)
            for key in order:
                with pytest.raises(botocore.exceptions.ClientError, match=r"404|503"):
                    client.head_object(Bucket=bucket, Key=key)
        return {request.path.rpartition("/")[2] for request in proxy.requests if request.status == 503}

    first = refused(0, keys)
    assert 4 <= len(first) <= 24
    assert refused(0, keys[::-1]) == first
    assert refused(1, keys) != first


def test_s3fs_survives_a_bad_day(
    s3_server: S3Server, bucket: str, filesystem: s3fs.S3FileSystem, proxy: FaultProxy
) -> None:
    proxy.inject(Fault("answer", probability=0.1), Fault("reset", probability=0.05))
    objects = {f"{bucket}/{number}": os.urandom(1000) for number in range(40)}
    filesystem.pipe(objects)
    assert filesystem.cat(list(objects)) == objects
    assert proxy.injected["answer"] > 2
    assert proxy.injected["reset"] > 0


def test_a_failing_callback_fails_the_test(s3_server: S3Server, bucket: str) -> None:
    def call(_: object) -> None:
        raise ValueError("mistake")

    with (
        pytest.raises(RuntimeError, match="callback"),
        FaultProxy(s3_server.endpoint_url, [Fault("call", call=call)]) as proxy,
        pytest.raises(botocore.exceptions.HTTPClientError),
    ):
        client_without_retries(s3_server, proxy.endpoint_url).head_bucket(Bucket=bucket)


def test_acknowledged_objects_survive_kill_9(ceph_server: CephServer, bucket: str) -> None:
    objects = {str(number): os.urandom(5000) for number in range(50)}
    ceph_server.upload(bucket, objects)
    ceph_server.kill9()
    starter = threading.Thread(target=ceph_server.start)  # must outlive this thread
    starter.start()
    starter.join()
    client = ceph_server.client
    assert {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in objects} == objects


def test_a_reader_reads_and_cannot_write(ceph_server: CephServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ceph_server.upload(bucket, {"image": b"x"})
    use_environment(monkeypatch, ceph_server.read_only_environment(bucket))
    reader = s3fs.S3FileSystem(skip_instance_cache=True)
    assert reader.ls(bucket, detail=False) == [f"{bucket}/image"]
    assert reader.cat_file(f"{bucket}/image") == b"x"
    for mode in ("overwrite", "create"):
        with pytest.raises(PermissionError):
            reader.pipe_file(f"{bucket}/shard", b"x", mode=mode)
    with pytest.raises(PermissionError):
        reader.rm_file(f"{bucket}/image")


def test_a_wrong_secret_is_refused(ceph_server: CephServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_environment(monkeypatch, ceph_server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem(skip_instance_cache=True).ls(bucket)


def test_moto_stands_in_and_ends_with_its_owner() -> None:
    with make_server("moto") as server:
        assert isinstance(server, MotoServer)
        server.create_bucket("bucket")
        server.upload("bucket", {"image": b"x"})
        assert server.keys("bucket") == ["image"]
        assert server.read_only_environment("bucket") is None
        pid = server.pids["gateway"]
    assert not server.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_test_run_leaves_no_server(tmp_path: Path) -> None:
    program = "import servers, time; s = servers.make_server('moto'); s.start(); print(s.folder, *s.pids.values()); "
    program += "import sys; sys.stdout.flush(); time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        folder, pid = run.stdout.readline().split()
        run.kill()
    deadline = time.monotonic() + 5
    while _is_alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(int(pid))
    make_server("moto").wipe()
    assert not Path(folder).exists()


def _is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
