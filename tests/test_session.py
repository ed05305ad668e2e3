"""Ray as a run starts and leaves it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import psutil
from bottleneck.session import start_ray, stop_ray

def running():
    return [one.cmdline() for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]

start_ray()
assert any("raylet" in word for command in running() for word in command)
stop_ray()
psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
print(running())
"""


def test_no_process_is_left_when_ray_is_stopped() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


LOST = """
import os, signal, time
import ray
from bottleneck.session import start_ray

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
