"""Extract for a while, then stop as on Ctrl-C, and tell every ten seconds what each process of the run holds.

    python tests/faults/health.py SOURCE OUTPUT SECONDS BASE

Prints one JSON line a look: {"shards": n, "store_bytes": what objects take in Ray's store, "spilled": files,
"processes": {kind: [processes, bytes of their own, open files]}}, kinds as Ray calls its workers.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from glob import glob
from pathlib import Path
from typing import Any

import psutil
import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bottleneck.console import Progress
from bottleneck.dataset.make_plan import make_plan
from bottleneck.distributed.run import Run
from bottleneck.distributed.run_options import RunOptions
from bottleneck.spec import FeatureRequest

LOOK_SECONDS = 10.0


def look() -> dict[str, Any]:
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    driver = psutil.Process()
    for process in [driver, *driver.children(recursive=True)]:
        try:
            kind = "driver" if process == driver else _kind(process)
            held = (1, process.memory_full_info().uss, process.num_fds())
        except psutil.Error:
            continue
        kinds[kind] = [one + other for one, other in zip(kinds[kind], held, strict=True)]
    total, free = ray.cluster_resources(), ray.available_resources()
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    return {
        "store_bytes": int(total["object_store_memory"] - free["object_store_memory"]),
        "spilled": len(glob(f"{session}/**/ray_spilled_objects*/*", recursive=True)),
        "processes": kinds,
    }


def _kind(process: psutil.Process) -> str:
    found = re.search(r"ray::(?:MapWorker\()?(?:MapBatches\()?(\w+)", process.cmdline()[0] if process.cmdline() else "")
    return found[1] if found else process.name()


def main(source: str, output: str, seconds: float, base: str) -> None:
    ends = looked = 0.0

    def show(progress: Progress) -> None:
        nonlocal ends, looked
        now = time.monotonic()
        ends = ends or now + seconds
        if now - looked > LOOK_SECONDS:
            looked = now
            print(json.dumps({"images": progress.images, **look()}), flush=True)
        if now > ends:
            raise KeyboardInterrupt

    request = FeatureRequest(base=base, weights="random:0", precision="float32")
    with Run(request, "float32", RunOptions()) as run:
        plan = make_plan(source, output, run.spec())
        try:
            run.extract(plan, 0.05, show)
        except KeyboardInterrupt:
            return
    raise SystemExit("the source was too small for so many seconds")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
