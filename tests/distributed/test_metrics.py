"""What Prometheus reads of a run."""

import re
import subprocess
import sys
from pathlib import Path

from bottleneck.distributed.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import time, urllib.request
import ray
from bottleneck.distributed.monitor import Live
from bottleneck.distributed.ray_session import start_ray, stop_ray

start_ray()
live = ray.remote(num_cpus=0)(Live).remote(with_metrics=True)
live.report.remote(0, 8, network=2.0, idle=0.5, decode=0.25, read=0.125)
live.report_network.remote(0, 0.75, 0.0)
live.report_committed.remote({"ok": 5, "truncated": 2, "empty": 1}, 1000, 200)
ray.get(live.snapshot.remote([], None, 7))
node = ray.nodes()[0]
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
deadline, text = time.monotonic() + 60, ""
while "bottleneck_shards_queued" not in text and time.monotonic() < deadline:
    time.sleep(0.2)
    text = urllib.request.urlopen(address, timeout=10).read().decode()
print(text)
stop_ray()
"""


def test_prometheus_reads_what_the_workers_of_a_run_have_told() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("ray_bottleneck_"):
            name, labels, value = re.fullmatch(r"ray_(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
            told = [one for one in re.findall(r'(\w+="[^"]*")', labels) if re.match("status|reason|stage", one)]
            found[name, *told] = float(value)
    assert {name for name, *_ in found} == METRICS.keys()
    assert found == {
        ("bottleneck_images_total", 'status="ok"'): 5,
        ("bottleneck_images_total", 'status="rejected"'): 3,
        ("bottleneck_rejected_total", 'reason="truncated"'): 2,
        ("bottleneck_rejected_total", 'reason="empty"'): 1,
        ("bottleneck_shards_total",): 1,
        ("bottleneck_shards_queued",): 7,
        ("bottleneck_bytes_read_total",): 1000,
        ("bottleneck_bytes_written_total",): 200,
        ("bottleneck_stage_seconds_total", 'stage="network"'): 2,
        ("bottleneck_stage_seconds_total", 'stage="idle"'): 0.5,
        ("bottleneck_stage_seconds_total", 'stage="decode"'): 0.25,
        ("bottleneck_stage_seconds_total", 'stage="read"'): 0.125,
        ("bottleneck_stage_seconds_total", 'stage="write"'): 0.75,
    }
