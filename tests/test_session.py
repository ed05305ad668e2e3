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
