"""Ray as a run starts and leaves it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
import tiny
from raycluster import RayCluster

from bottleneck.dataset.plan import load_plan
from bottleneck.distributed.local_ray import NUM_STARTS, store_bytes
from bottleneck.distributed.ray_session import start_ray
from bottleneck.errors import StoreError
from jobs import extract as extract_job

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import fcntl, os, stat
import psutil
from bottleneck.distributed.ray_session import start_ray, stop_ray

def running():
    return [one.cmdline() for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]

root = os.environ["RAY_TMPDIR"]
for name in ("killed", "used"):
    os.mkdir(f"{root}/bn-ray-{name}")
    lock = os.open(f"{root}/bn-ray-{name}/lock", os.O_CREAT | os.O_RDWR)
fcntl.flock(lock, fcntl.LOCK_EX)

environment = dict(os.environ)
start_ray()
assert any("raylet" in word for command in running() for word in command)
sockets = [one for child in psutil.Process().children(recursive=True) for one in child.net_connections("inet")]
listening = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
assert listening and listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
used, [own] = f"bn-ray-used", [name for name in os.listdir(root) if name != "bn-ray-used"]
assert stat.S_IMODE(os.stat(f"{root}/{own}").st_mode) == 0o700
assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
assert "RAY_AUTH_TOKEN_PATH" not in os.environ
stop_ray()
psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
print(running(), os.listdir(root), os.listdir(os.environ["HOME"]))
assert {name: os.environ.get(name) for name in environment} == environment
"""


def test_a_local_ray_is_its_users_alone_and_leaves_nothing(tmp_path: Path) -> None:
    """It listens on the loopback address alone, behind a token; no process stays, nor a file in /tmp or in the home."""
    (tmp_path / "home").mkdir()
    with tempfile.TemporaryDirectory(prefix="bn", dir="/tmp") as root:  # sockets in it have short names, or none
        own = {"HOME": str(tmp_path / "home"), "RAY_TMPDIR": root, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **own}
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] ['bn-ray-used'] []\n"


LOST = """
import os, signal, time
import ray
from bottleneck.distributed.ray_session import start_ray

init = ray.init

def loses_it(**options):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        pass
    return init(**options)

ray.init = loses_it
try:
    start_ray()
except KeyboardInterrupt:
    print("stopped", ray.is_initialized())
"""


def test_a_ctrl_c_that_is_lost_while_ray_starts_is_answered_once_it_has() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped False\n"


@pytest.mark.parametrize(
    ("cores", "memory_gb", "shared_gb", "expected_gb"),
    [(2, 24, 12, 1), (16, 128, 64, 4), (64, 32, 16, 9.6), (64, 256, 3, 2.7), (8, 64, 0.064, 1)],
)
def test_the_store_has_room_for_a_shard_of_each_core(
    cores: int, memory_gb: float, shared_gb: float, expected_gb: float
) -> None:
    assert store_bytes(cores, int(memory_gb * 1e9), int(shared_gb * 1e9)) == pytest.approx(expected_gb * 1e9)


SLOW = """
import threading, time
import psutil, ray
from bottleneck.distributed.ray_session import start_ray, stop_ray

stopped = []

def stop_the_first_raylet():
    while not stopped:
        for child in psutil.Process().children(recursive=True):
            if child.name() == "raylet":
                child.suspend()
                stopped.append(child)
                return
        time.sleep(0.01)

threading.Thread(target=stop_the_first_raylet).start()
start_ray()
print(ray.cluster_resources()["CPU"] > 0, stopped[0].is_running())
stop_ray()
psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
print(psutil.Process().children(recursive=True))
"""


@pytest.mark.faults
def test_a_ray_that_does_not_start_in_time_is_started_again() -> None:
    """As on a machine that has too much else to do."""
    done = subprocess.run([sys.executable, "-c", SLOW], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True False\n[]\n"


def test_a_ray_that_never_starts_in_time_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a bare Exception then."""
    starts = []

    def too_slow(**options: object) -> None:
        starts.append(options)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", too_slow)
    with pytest.raises(
        StoreError, match=r"timed out during startup.* Run the same command again if the machine was busy"
    ):
        start_ray()
    assert len(starts) == NUM_STARTS


ITERATING = """
import threading, time
import ray
from bottleneck.distributed.ray_session import RESULTS_THREAD, start_ray, stop_ray

start_ray()
began = threading.Event()

def pull():
    slow = ray.data.range(200, override_num_blocks=200).map_batches(lambda rows: time.sleep(0.05) or rows)
    for _ in slow.iter_batches():
        began.set()

threading.Thread(target=pull, name=RESULTS_THREAD, daemon=True).start()
assert began.wait(60)
shutdown, seen = ray.shutdown, []

def note_threads(**options):
    # Those of Ray itself, which it ends in order.
    known = {"MainThread", "PythonGCThread", "ray_listen_error_messages", "ray_print_logs"}
    seen.append(sorted({thread.name for thread in threading.enumerate()} - known))
    shutdown(**options)

ray.shutdown = note_threads
stop_ray()
print("stopped beside", *seen)
"""


def test_no_thread_speaks_with_ray_while_it_is_stopped() -> None:
    done = subprocess.run([sys.executable, "-c", ITERATING], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped beside []\n"


REFUSED = """
import psutil, ray
from bottleneck.errors import UsageError
from bottleneck.distributed.run import Run
from bottleneck.distributed.run_options import RunOptions
from bottleneck.spec import FeatureRequest

try:
    Run(FeatureRequest(base="stub", weights="random:0"), "float32", RunOptions(use_gpu=True, runtime="openvino"))
except UsageError:
    print(ray.is_initialized())
psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
print(psutil.Process().children(recursive=True))
"""


def test_a_run_that_cannot_start_leaves_no_ray() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n[]\n"


CALLERS = """
import threading
import ray
from bottleneck.errors import UsageError
from bottleneck.distributed.run import Run
from bottleneck.distributed.run_options import RunOptions
from bottleneck.distributed.ray_session import RUN, stop_ray
from bottleneck.spec import FeatureRequest

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
kept = ray.put("kept")
context = ray.data.DataContext.get_current().copy()
context.enable_progress_bars = False
rows = {}

def iterate(name):
    rows[name] = 0
    try:
        with ray.data.DataContext.current(context):
            context.set_config(RUN, name == "ours")
            squares = ray.data.range(1000, override_num_blocks=1000).map(lambda row: row)
        for _ in squares.iter_rows():
            began[name].set()
            rows[name] += 1
            go_on.wait()
    except Exception:
        pass

began, go_on, threads = {"ours": threading.Event(), "theirs": threading.Event()}, threading.Event(), []
for name in began:
    threads.append(threading.Thread(target=iterate, args=(name,)))
    threads[-1].start()
    assert began[name].wait(60)
try:
    Run(FeatureRequest(base="stub", weights="random:0"), "float32", RunOptions(use_gpu=True, runtime="openvino"))
except UsageError:
    print(ray.is_initialized(), ray.get(kept))
go_on.set()
for thread in threads:
    thread.join()
print(rows["ours"] < 1000, rows["theirs"], ray.data.DataContext.get_current().get_config(RUN))
"""


def test_a_ray_of_the_callers_is_left_running_with_what_it_does() -> None:
    done = subprocess.run([sys.executable, "-c", CALLERS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True kept\nTrue 1000 None\n"


OTHER_VERSION = """
import sys
import ray
from bottleneck.distributed.ray_session import start_ray
from bottleneck.errors import StoreError

ray.__version__ = "2.1.0"  # what Ray compares with the cluster's
try:
    start_ray()
except StoreError as error:
    print(error)
"""


def test_a_cluster_of_another_ray_is_told_with_both_versions(tmp_path: Path) -> None:
    with RayCluster(tmp_path, {}, apart=False) as cluster:
        done = subprocess.run(
            [sys.executable, "-c", OTHER_VERSION],
            cwd=ROOT,
            env=cluster.environment | {"RAY_ADDRESS": cluster.address},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    python = ".".join(map(str, sys.version_info[:3]))
    assert (
        f"has other versions than this process: Ray {ray.__version__} and Python {python} there, "
        f"Ray 2.1.0 and Python {python} here. Both must be the same: install the cluster's versions here"
    ) in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_plan_stays_where_ray_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.photos(tmp_path / "photos", 3)
    monkeypatch.setattr(
        "bottleneck.extract.open_plan.resolve_apart", lambda *_: tiny.spec()
    )  # which takes Keras seconds
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = extract_job.Config(source=str(tmp_path / "photos"), output=str(tmp_path / "out"), features=tiny.REQUEST)
    with caplog.at_level("INFO"), pytest.raises(StoreError, match="Ray did not start on this machine"):
        extract_job.extract(config)
    assert "3 images in 1 shard" in caplog.messages[0]
    assert caplog.messages[1:] == ["starting Ray on this machine"]
    plan = load_plan(config.output)
    assert plan is not None
    assert plan.num_images == 3
