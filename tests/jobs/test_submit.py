"""Jobs sent to a real Ray head with token authentication, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from servers import S3Server, free_port
from tiny import photos

from bottleneck.distributed.dashboard import LostError, NoAgentError, check_address
from bottleneck.distributed.job_log import Transcript, follow
from bottleneck.errors import ClusterError, UsageError
from jobs.__main__ import JOBS, main
from jobs.command_line import options
from jobs.submit import entrypoint, outcome, patient
from jobs.submit_checks import PLACES

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "t0ken-of-the-test-cluster-0123456789abcdef"
CANARY = "canary-5ecret-of-this-machine-0123456789"
START_SECONDS = 120
NO_PLACES = {
    *("base", "layers", "resize", "interpolation", "exif", "decode", "precision", "dtype", "labels", "source_format"),
    *("image_column", "label_column", "shard_size", "max_bytes", "max_pixels", "formats", "extend", "max_rejected"),
    *(
        "address",
        "exclude_copies",
        "proba",
        "watch",
        "num_actors",
        "use_gpu",
        "local",
        "runtime",
        "pixels",
        "channels",
        "mean",
        "std",
        "image_size",
        "bases",
        "batch_size",
        "no_estimate",
        "reason",
        "changed",
        "full",
        "recompute",
        "top",
        "allow_incomplete",
    ),
    *("kind", "layer", "c", "folds", "test_fraction", "scale", "class_weight", "num_workers", "use_gpu", "min_cosine"),
    *("follow_links", "what", "num_images", "rounds", "limit_seconds", "dim", "classes"),
    "label_names",  # the names themselves, once the options are parsed
    *("accept_cut", "follow_links", "formats", "test_keys", "group_by", "held_out", "threshold", "order", "flat"),
    *(
        "metric",
        "multi_label",
        "price_per_hour",
        "hidden_size",
        "epochs",
        "seed",
        "include",
        "exclude",
        "limit",
        "sample",
    ),
}


@dataclass(frozen=True)
class Head:
    """A running head."""

    port: int
    """Of the dashboard."""
    join_port: int
    """Where a driver joins."""
    folder: Path
    home: Path
    """Of a user without a token file."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}

    def ask(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)

    def status(self, submission_id: str) -> str:
        return str(self.ask(f"/api/jobs/{submission_id}")["status"])


def clean_environment() -> dict[str, str]:
    """Ours, without what belongs to another cluster or account, and with the commands of this installation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def silent_store() -> Iterator[str]:
    """An S3 endpoint that takes requests and never answers: a job that reads from it runs until it is stopped."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def head(silent_store: str) -> Iterator[Head]:
    credentials = {"AWS_ACCESS_KEY_ID": "head", "AWS_SECRET_ACCESS_KEY": "head", "AWS_DEFAULT_REGION": "us-east-1"}
    with running_head(credentials | {"AWS_ENDPOINT_URL": silent_store}) as head:
        yield head


@contextlib.contextmanager
def running_head(store: Mapping[str, str]) -> Iterator[Head]:
    """A head, which alone knows how to reach a store."""
    # Not pytest's folder: the path of a Unix socket is at most 107 characters long.
    folder = Path(tempfile.mkdtemp(prefix="bn-ray-", dir="/tmp"))
    (folder / "home").mkdir()
    head, agent_port = Head(free_port(), free_port(), folder, folder / "home"), free_port()
    command = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "2"]
    command += ["--object-store-memory", "100000000", "--temp-dir", str(folder / "r"), "--port", str(head.join_port)]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(head.port)]
    command += ["--dashboard-agent-listen-port", str(agent_port), "--dashboard-agent-grpc-port", str(free_port())]
    command += ["--ray-client-server-port", str(free_port()), "--metrics-export-port", str(free_port())]
    environment = clean_environment() | head.environment | {"PYTHONPATH": str(ROOT)} | dict(store)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (_listens(agent_port) and _answers(head)):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield head
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for one in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(started, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _answers(head: Head) -> bool:
    with contextlib.suppress(OSError):
        return bool(head.ask("/api/version"))
    return False


class Submit:
    """A running `bottleneck submit`."""

    def __init__(
        self, *arguments: str, home: Path, environment: Mapping[str, str] | None = None, folder: Path = ROOT
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "--json", "submit", *arguments],
            cwd=folder,
            env=clean_environment() | {"HOME": str(home)} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._told: list[str] = []

    def wait_for(self, words: str) -> str:
        """The next line on stderr that holds these words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._told.append(line)
            if words in line:
                return line
        raise AssertionError(f"ended without {words!r}:\n{''.join(self._told)}")

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, the one line on stdout, stderr."""
        stdout, stderr = self.process.communicate(timeout=120)
        told = "".join(self._told) + stderr
        assert len(stdout.splitlines()) == 1, f"{stdout}\n{told}"
        return self.process.returncode, json.loads(stdout), told


def test_the_jobs_log_result_and_exit_code_come_back_and_no_secret_goes(head: Head, tmp_path: Path) -> None:
    environment = head.environment | {"AWS_SECRET_ACCESS_KEY": CANARY, "HF_TOKEN": CANARY, "RAY_ADDRESS": "127.0.0.1:1"}
    given: dict[str, Any] = {"home": head.home, "environment": environment}
    good = Submit("--address", head.url, "--wait", "--", "describe", **given)
    bad = Submit("--address", head.url, "--wait", "--", "verify", f"file://{tmp_path}", "--full", **given)
    left = Submit("--address", head.url, "--", "describe", **given)

    code, result, told = good.end()
    assert code == 0, told
    assert "vgg16" in [base["base"] for base in result["bases"]]
    assert "default layer" in told
    code, result, told = bad.end()
    assert (code, result["error"], result["exit_code"]) == (2, "UsageError", 2), told
    assert "has no plan" in told or "no plan in" in told
    code, result, told = left.end()
    assert (code, result["job"]) == (0, "describe"), told
    assert result["logs"] in told
    assert result["stop"] in told

    assert CANARY not in json.dumps(head.ask("/api/jobs/"))
    logs = [file for file in (head.folder / "r").rglob("*") if file.is_file() and "logs" in file.parts]
    assert len(logs) > 10
    assert not [file for file in logs if CANARY.encode() in file.read_bytes()]


def test_another_version_is_refused_and_code_that_is_sent_along_runs(head: Head, tmp_path: Path) -> None:
    for package in ("bottleneck", "jobs"):
        shutil.copytree(ROOT / package, tmp_path / package)
    file = tmp_path / "bottleneck" / "__init__.py"
    file.write_text(file.read_text().replace('__version__ = "', '__version__ = "0.9'))
    version = file.read_text().partition('__version__ = "')[2].partition('"')[0]
    (tmp_path / "jobs" / "private.txt").write_text(CANARY)
    given: dict[str, Any] = {"home": head.home, "environment": head.environment, "folder": tmp_path}
    refused = Submit("--address", head.url, "--wait", "--", "describe", **given)
    taken = Submit("--address", head.url, "--wait", "--with-code", "--", "describe", "vgg99", **given)
    code, result, told = refused.end()
    assert (code, result["error"]) == (5, "ClusterError"), told
    assert f"was sent by {version}" in told
    code, result, told = taken.end()
    assert (code, result["error"]) == (2, "UsageError"), told
    assert "vgg99" in result["message"]
    assert f"with the code of version {version}" in told
    sent = list((head.folder / "r").rglob("jobs/submit.py"))
    assert sent
    assert not list((head.folder / "r").rglob("private.txt"))


@pytest.mark.matrix(2, "submit")
@pytest.mark.faults
def test_an_extraction_from_bucket_to_bucket_is_killed_sent_again_and_verified(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    s3_server.upload_folder(photos(tmp_path / "photos", 80), bucket, "photos/")
    with running_head(s3_server.environment) as head:
        given: dict[str, Any] = {"home": head.home, "environment": head.environment}
        places = (f"s3://{bucket}/photos", f"s3://{bucket}/features")
        words = ("extract", *places, "--base", "mobilenet_0.25", "--weights", "random:0", "--shard-size", "4")
        killed = Submit("--address", head.url, "--wait", "--", *words, **given)
        killed.wait_for("80 images in 20 shards")
        for process in psutil.process_iter(["cmdline"]):
            if places[1] in (process.info["cmdline"] or []) and "submit" not in process.info["cmdline"]:
                process.kill()
        code, result, told = killed.end()
        assert (code, result["error"]) == (137, "JobFailed"), told
        code, result, told = Submit("--address", head.url, "--wait", "--with-code", "--", *words, **given).end()
        assert (code, result["ok"], result["done_before"] + result["done_now"]) == (0, 80, 20), told
        code, result, told = Submit("--address", head.url, "--wait", "--", "verify", places[1], "--full", **given).end()
        assert (code, result["ok"], result["finished"]) == (0, 80, True), told


class Forwarder:
    """TLS in front of a port; may be cut, as a network is."""

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._server.getsockname()[1]}"
        self.is_cut = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.is_cut.set()
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw:
            if self.is_cut.is_set():
                return
            with (
                self._context.wrap_socket(raw, server_side=True) as client,
                socket.create_connection(("127.0.0.1", self._port)) as server,
            ):
                ends: dict[Any, Any] = {client: server, server: client}
                while not self.is_cut.is_set():
                    ready = [client] if client.pending() else select.select(list(ends), [], [], 0.05)[0]
                    for one in ready:
                        if not (data := one.recv(65536)):
                            return
                        ends[one].sendall(data)


@pytest.fixture
def forwarder(head: Head, tmp_path: Path) -> Iterator[Forwarder]:
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs openssl, for a certificate")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    forwarder = Forwarder(head.port, tmp_path / "certificate.pem", tmp_path / "key.pem")
    yield forwarder
    forwarder.close()


def test_neither_ctrl_c_nor_a_lost_connection_touches_the_job(head: Head, forwarder: Forwarder, tmp_path: Path) -> None:
    given: dict[str, Any] = {"home": head.home, "environment": head.environment}
    endless = ("--wait", "--", "verify", "s3://bucket/features")
    left = Submit("--address", head.url, *endless, **given)
    cut = Submit("--address", forwarder.url, "--ca-file", str(tmp_path / "certificate.pem"), *endless, **given)
    code, result, told = Submit("--address", forwarder.url, *endless, **given).end()
    assert (code, result["error"]) == (5, "ClusterError"), told
    assert "certificate" in told

    left.wait_for("Running entrypoint")
    left.process.send_signal(signal.SIGINT)
    code, result, told = left.end()
    assert (code, result["error"], result["exit_code"]) == (3, "Interrupted", 3), told
    assert "goes on" in told
    assert head.status(result["submission_id"]) == "RUNNING"

    cut.wait_for("Running entrypoint")
    forwarder.is_cut.set()
    assert "The job goes on" in cut.wait_for("trying again")
    forwarder.is_cut.clear()
    running = [job["submission_id"] for job in head.ask("/api/jobs/") if job["status"] == "RUNNING"]
    assert result["submission_id"] in running
    assert len(running) == 2
    stop = shlex.split(result["stop"])
    assert stop[:4] == ["ray", "job", "stop", result["submission_id"]]
    for submission_id in running:
        words = [submission_id if word == result["submission_id"] else word for word in stop]
        subprocess.run(words, env=clean_environment() | head.environment, check=True, capture_output=True)
        assert head.status(submission_id) == "STOPPED"
    code, result, told = cut.end()
    assert (code, result["error"], result["exit_code"]) == (3, "Interrupted", 3), told
    assert "send the same job again" in told


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "asks for a token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-token-than-the-clusters"}, "does not accept the token"),
        ({"RAY_AUTH_MODE": "token"}, "couldn't find an authentication token"),
    ],
)
def test_without_the_clusters_token_nothing_is_sent(head: Head, environment: dict[str, str], words: str) -> None:
    before = len(head.ask("/api/jobs/"))
    code, result, told = Submit("--address", head.url, "--", "describe", home=head.home, environment=environment).end()
    assert (code, result["error"]) == (5, "ClusterError"), told
    assert words in told
    assert "Traceback" not in told
    assert len(head.ask("/api/jobs/")) == before


def test_a_cluster_is_not_joined_without_its_token_and_the_error_says_how(head: Head) -> None:
    code = "from bottleneck.errors import StoreError\nfrom bottleneck.distributed.ray_session import start_ray\n"
    code += "try:\n    start_ray()\nexcept StoreError as error:\n    print(error)"
    environment = clean_environment() | {"HOME": str(head.home), "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"RAY_ADDRESS": f"127.0.0.1:{head.join_port}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rejected the token" in done.stdout
    assert "RAY_AUTH_TOKEN_PATH" in done.stdout


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:{free}", "Connection refused"),
        ("http://192.0.2.7:8265", "neither by TLS nor with a token"),
        ("http://dashboard.internal", "neither by TLS nor with a token"),
    ],
)
def test_who_is_not_there_or_could_be_anybody_is_told_soon(address: str, words: str, tmp_path: Path) -> None:
    started = time.monotonic()
    address = address.format(free=free_port())
    code, result, told = Submit("--address", address, "--", "describe", home=tmp_path).end()
    assert (code, result["error"]) == (5, "ClusterError"), told
    assert words in told
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "http://[::1]:8265", "http://localhost:8265", "https://ray.example.com/x/"]
)
def test_this_machine_and_tls_need_no_token(address: str) -> None:
    assert check_address(address).url == address.rstrip("/")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://127.0.0.1:x", "https://u:p@host", "auto"]
)
def test_an_address_is_the_url_of_a_dashboard(address: str) -> None:
    with pytest.raises(UsageError, match="--address") as refused:
        check_address(address)
    assert "u:p" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extract", "s3://in", "s3://out"], "Expected `--`"),
        (["--"], "Received: nothing"),
        (["--", "transmogrify", "s3://in"], "unknown job 'transmogrify'"),
        (["--", "submit", "--address", "x", "--", "plan"], "unknown job 'submit'"),
        (["--", "verify", "features"], "relative to"),
        (["--", "extract", "s3://in", "s3://out", "--weights", "vgg16.h5"], "Received for weights: vgg16.h5"),
        (["--", "extract", "s3://key:hidden@in", "s3://out"], "no credentials"),
        (["--", "extract", "https://in/x?X-Amz-Signature=hidden", "s3://out"], "no credentials"),
        (["--", "describe", "x-hidden-secret-x"], "value of AWS_SECRET_ACCESS_KEY"),
        (["--with-code", "--", "describe", "AWS_SECRET_ACCESS_KEY=hidden"], "no credentials"),
    ],
)
def test_what_could_not_run_there_is_refused_here(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    assert main(["--json", "submit", "--address", "http://127.0.0.1:1", *arguments]) == 2  # where nobody listens
    shown = capsys.readouterr()
    assert words in shown.err
    assert "hidden" not in shown.err + shown.out
    assert json.loads(shown.out)["exit_code"] == 2


def test_a_wrong_option_of_the_job_is_told_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--address", "http://127.0.0.1:1", "--", "verify", "s3://bucket/x", "--fulll"]) == 2
    assert "--fulll" in capsys.readouterr().err


def test_folders_of_this_machine_are_not_sent_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["submit", "--address", "https://127.1.2.3.invalid", "--", "fit", "s3://bucket/features"]
    assert main([*command, str(tmp_path)]) == 2
    assert f"file://{tmp_path}" in capsys.readouterr().err


def test_every_option_is_known_to_name_a_place_or_not() -> None:
    names = {name for job in JOBS if job != "submit" for name in options(importlib.import_module(f"jobs.{job}").Config)}
    assert names - PLACES - NO_PLACES == set(), "say in submit_checks.PLACES, or here, whether it names a place"
    assert not PLACES & NO_PLACES


def test_arguments_reach_the_job_as_they_are() -> None:
    words = ("extract", "s3://b/it's a $HOME", "s3://b/x; rm", "--layers", "a:b", "--", "*")
    for with_code in (False, True):
        assert tuple(shlex.split(entrypoint(words, with_code=with_code))[-len(words) :]) == words


def test_a_log_that_is_read_again_is_shown_once_and_its_last_json_object_is_the_result() -> None:
    shown: list[str] = []
    transcript = Transcript(shown.append)
    transcript.add('one\n{"a": 1}\ntw')
    transcript.begin_again()
    transcript.add("one\n")
    transcript.add('{"a": 1}\ntwo\n{"exit_code": 3}\n{no json\n')
    transcript.add("[1]\nlast")
    transcript.end()
    assert shown == ["one", "two", '{"a": 1}', "{no json", "[1]", "last"]
    assert transcript.result == {"exit_code": 3}
    assert transcript.result_line == '{"exit_code": 3}'


def test_a_dashboard_that_stays_silent_is_given_up() -> None:
    class Silent:
        async def tail_job_logs(self, submission_id: str) -> Any:
            raise RuntimeError(submission_id)
            yield

        def get_job_info(self, submission_id: str) -> Any:
            raise LostError(f"No answer about {submission_id}.")

    with pytest.raises(ClusterError, match="may still run"):
        follow(Silent(), "x", Transcript(print), patience_seconds=0.1)


def test_a_log_that_flowed_for_longer_than_anybody_waits_for_an_answer_may_be_cut_once() -> None:
    class Details:
        class status:
            @staticmethod
            def is_terminal() -> bool:
                return True

    class CutOnce:
        num_asked = 0

        async def tail_job_logs(self, submission_id: str) -> Any:
            for number in range(15):
                await asyncio.sleep(0.02)
                yield f"line {number}\n"

        def get_job_info(self, submission_id: str) -> Any:
            self.num_asked += 1
            if self.num_asked == 1:
                raise LostError("Cut.")
            return Details

        def get_job_logs(self, submission_id: str) -> str:
            return "".join(f"line {number}\n" for number in range(15))

    shown: list[str] = []
    assert follow(CutOnce(), "x", Transcript(shown.append), patience_seconds=0.2) is Details
    assert shown == [f"line {number}" for number in range(15)]


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "result", "code", "words"),
    [
        ("SUCCEEDED", 0, {"ok": 1}, 0, ""),
        ("FAILED", 6, {"exit_code": 6}, 6, ""),
        ("FAILED", 1, None, 1, ""),
        ("FAILED", 127, None, 5, "--with-code"),
        ("FAILED", -9, None, 137, "signal 9"),
        ("FAILED", 137, None, 137, "signal 9"),
        ("FAILED", None, None, 5, "the runtime environment"),
        ("STOPPED", None, {"exit_code": 3}, 3, "send the same job again"),
        ("STOPPED", None, None, 3, "send the same job again"),
    ],
)
def test_how_a_job_ended(status: str, driver_exit_code: int | None, result: Any, code: int, words: str) -> None:
    ended = SimpleNamespace(
        status=SimpleNamespace(name=status),
        driver_exit_code=driver_exit_code,
        message="setting up the runtime environment failed",
    )
    found, problem = outcome(ended, result)
    assert found == code
    assert words in problem
    assert bool(words) == bool(problem)


class Replies(socketserver.StreamRequestHandler):
    """Whoever listens and is no dashboard; the server's `reply` is what it says to the first line."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(self.server.reply)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks no HTTP: it answered 'SSH-2.0-OpenSSH_9.2'"),
        (b"\x00\x00\x06\x04\x00\n", "speaks no HTTP"),
        (
            b"HTTP/1.0 404 Not Found\r\nServer: Webserver\x1b[31m\r\nContent-Type: text/html\r\n\r\n<h1>no</h1>",
            "is no Ray dashboard: asked for Ray's version it answered with 404, text/html, as Webserver\\x1b[31m.",
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\nWelcome", "answered with 200, text/html."),
        (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}", "answered with 200, application/json."),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "answered with 502, no type."),
    ],
)
def test_what_is_no_dashboard_is_said_to_be_none(
    reply: bytes, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socketserver.TCPServer(("127.0.0.1", 0), Replies) as server:
        server.reply = reply  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert main(["submit", "--address", address, "--", "describe"]) == 5
        server.shutdown()
    shown = capsys.readouterr().err
    assert words in shown
    assert "Expected the address of a Ray cluster's dashboard" in shown


def test_a_server_without_tls_or_that_hangs_up_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Replies) as server:
        server.reply = b"HTTP/1.0 400 Bad Request\r\n\r\n"  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert main(["submit", "--address", f"https://{address}", "--", "describe"]) == 5
        assert "speaks no HTTPS: it answered without TLS" in capsys.readouterr().err
        server.reply = b""  # type: ignore[attr-defined]
        assert main(["submit", "--address", f"http://{address}", "--", "describe"]) == 5
        shown = capsys.readouterr().err
        server.shutdown()
    assert re.search(r"No Ray dashboard answers at \S+: (Connection reset by peer|Remote end closed .*)\.$", shown), (
        shown
    )


def test_a_cluster_whose_agents_are_still_to_come_is_waited_for() -> None:
    answers = [NoAgentError("No available agent"), NoAgentError("No available agent"), "sent"]

    def submit(**_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patient(submit, pause_seconds=0.01)(entrypoint="x") == "sent"
    with pytest.raises(LostError):  # which may have been sent: not again
        patient(lambda: (_ for _ in ()).throw(LostError("cut")), pause_seconds=0.01)()


def test_rays_own_counts_are_no_part_of_a_jobs_log() -> None:
    shown: list[str] = []
    transcript = Transcript(shown.append)
    transcript.add("one\n[2026-11-25 12:00:00,000 I 1 2] (raylet) x.cc:1: [state-dump] Event stats:\n")
    transcript.add("[state-dump] Global stats: 5 total\n" + '{"a": 1}\n')
    assert (shown, transcript.result) == (["one"], {"a": 1})
