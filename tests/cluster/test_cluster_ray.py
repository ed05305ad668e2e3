"""A head started by the command in cluster/aws.yaml: closed to all but the token's holder, and measured as drawn."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from servers import free_port
from tiny import jpeg, write_files

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SECONDS = 60
EMIT = """
import sys, time, ray
from ray.util.metrics import Counter, Gauge
ray.init(address=sys.argv[1], log_to_driver=False)
for name, labels in {"bottleneck_images_total": ("status",), "bottleneck_stage_seconds_total": ("stage",)}.items():
    Counter(name, tag_keys=labels).inc(2, tags={labels[0]: "ok"})
Gauge("bottleneck_shards_queued").set(3)
print("emitted", flush=True)
sys.stdin.read()
"""


@dataclass
class Head:
    address: str
    dashboard: str
    metrics: str
    environment: dict[str, str]


def wait_for(what: str, is_so: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"waited {SECONDS} s for {what}"
        time.sleep(0.1)
    return found


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


@contextlib.contextmanager
def started(autoscaling: str) -> Iterator[Head]:
    """The head's command as it stands in the file, on free ports and in a folder of its own."""
    home = Path(tempfile.mkdtemp(prefix="bn-", dir="/tmp"))  # short: Ray's sockets lie below it
    (home / "token").write_text("a-token-of-this-test-0123456789abcdef")
    port, dashboard, metrics = free_port(), free_port(), free_port()
    command = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["head_start_ray_commands"][-1]
    for old, new in (
        (r"--port=\d+", f"--port={port} --dashboard-port={dashboard} --temp-dir={home} --node-ip-address=127.0.0.1"),
        (r"--metrics-export-port=\d+", f"--metrics-export-port={metrics}"),
        (r"--object-manager-port=\d+", ""),
        (r"--object-store-memory=\d+", "--object-store-memory=100000000"),
        (r"--autoscaling-config=\S+", f"--block {autoscaling and f'--autoscaling-config={home}/machines.json'}"),
    ):
        command, count = re.subn(old, new, command)
        assert count == 1, old
    (home / "machines.json").write_text(autoscaling.replace("GCS_ADDRESS", f"127.0.0.1:{port}"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    playing = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"} if autoscaling else {}
    with (home / "log").open("wb") as log:
        ray = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            env=environment | playing,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def up() -> bool:
        assert ray.poll() is None, (home / "log").read_text()
        return get(f"http://127.0.0.1:{dashboard}/api/version", "a-token-of-this-test-0123456789abcdef")[0] == 200

    try:
        wait_for("the dashboard", up)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}", environment)
    finally:
        end([*psutil.Process(ray.pid).children(recursive=True), psutil.Process(ray.pid)])
        ray.wait()
        # Nodes that the autoscaler played have left its tree of processes, but name the folder.
        end([one for one in psutil.process_iter() if _names(one, f"{home}/") and one.pid != os.getpid()])
        shutil.rmtree(home, ignore_errors=True)


def _names(process: psutil.Process, folder: str) -> bool:
    try:
        return any(folder in word for word in process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started("") as head:
        yield head


def get(url: str, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


def test_the_dashboard_answers_the_tokens_holder_and_nobody_else(head: Head) -> None:
    jobs = f"{head.dashboard}/api/jobs/"
    assert get(jobs)[0] == 401
    assert get(jobs, "another-token")[0] == 403
    assert get(jobs, (Path(head.environment["HOME"]) / "token").read_text()) == (200, "[]")


def test_the_dashboard_listens_on_the_loopback_address_alone(head: Head) -> None:
    port = int(head.dashboard.rpartition(":")[2])
    listening = {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.laddr and one.laddr.port == port and one.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}


def test_the_head_offers_no_core(head: Head) -> None:
    status, text = get(f"{head.dashboard}/api/cluster_status", (Path(head.environment["HOME"]) / "token").read_text())
    assert status == 200
    usage = json.loads(text)["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
    assert usage.get("CPU", [0, 0])[1] == 0


def test_what_grafana_draws_is_what_prometheus_reads(head: Head) -> None:
    """Names as Ray exports them: its prefix, nothing appended to a counter that ends with _total, nor to a gauge."""
    drawn = set(re.findall(r"\bray_\w+", (CLUSTER / "grafana.json").read_text()))
    emit = subprocess.Popen(
        [sys.executable, "-c", EMIT, head.address],
        env=head.environment | {"RAY_AUTH_MODE": "token"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert emit.stdout is not None
        assert emit.stdout.readline() == "emitted\n"

        def there() -> str:
            text = get(f"{head.metrics}/metrics")[1]
            return text if "ray_bottleneck_shards_queued" in text and "ray_node_mem_used" in text else ""

        text = wait_for("the metrics", there)
    finally:
        emit.kill()
        emit.wait()
    offered = set(re.findall(r"^(ray_\w+)", text, re.MULTILINE))
    own = {"ray_bottleneck_images_total", "ray_bottleneck_stage_seconds_total", "ray_bottleneck_shards_queued"}
    assert own <= offered & drawn
    assert {name for name in drawn - offered if "bottleneck" not in name} <= {"ray_node_gpus_utilization"}, (
        "no GPU here"
    )
    assert re.search(r'^ray_bottleneck_images_total\{.*SessionName="session_.*status="ok"', text, re.MULTILINE)


def test_without_a_token_the_head_does_not_start(tmp_path: Path) -> None:
    command = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["head_start_ray_commands"][-1]
    words = [
        word
        for word in shlex.split(command)
        if "autoscaling" not in word and "-port" not in word and "--port" not in word
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    done = subprocess.run(
        ["env", *words, f"--port={free_port()}", f"--temp-dir={tmp_path}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode != 0
    assert "no authentication token was found" in (done.stdout + done.stderr).lower()


@pytest.mark.faults
def test_the_cluster_of_the_file_grows_from_none_for_a_run(tmp_path: Path) -> None:
    """Its kinds of machines, played by Ray on this one, two cores each: the run asks, they come, and it finishes."""
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    kinds = config["available_node_types"]
    for kind in kinds.values():
        kind["node_config"] = {}
        kind.pop("docker", None)
        kind["resources"]["CPU"] = min(2, kind["resources"]["CPU"])
    kinds["gpu"]["max_workers"], kinds["decode"]["max_workers"] = 2, 1
    kinds["ray.head.default"] = {**kinds.pop("head"), "max_workers": 0}  # the name that the player knows
    play = {"provider": {"type": "fake_multinode", "gcs_address": "GCS_ADDRESS"}, "head_node_type": "ray.head.default"}
    for name in ("metadata", "docker", "file_mounts", "auth", "head_start_ray_commands", "worker_start_ray_commands"):
        config[name] = type(config[name])()
    rest = {name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
    write_files(tmp_path / "photos", {f"{number}.jpg": jpeg(number) for number in range(40)})
    with started(json.dumps(config | play | rest | {"file_mounts_sync_continuously": False})) as head:
        words = "--base mobilenet_0.25 --weights random:0 --shard-size 4 --use-gpu --num-actors 1 2"
        done = subprocess.run(
            [sys.executable, "-m", "jobs", "--json", "extract", "photos", "features", *words.split()],
            cwd=tmp_path,
            env=head.environment | {"RAY_ADDRESS": head.address, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["ok"] == 40
