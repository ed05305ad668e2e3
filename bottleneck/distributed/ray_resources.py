"""Ask Ray what the workers have: GPUs, bfloat16, free resources."""

import importlib
import sys
from typing import Any

from bottleneck.distributed.ray_session import cluster_address, log, start_ray

WAITING_SECONDS = 60.0
"""Seconds between two lines that say what a run waits for."""


def check_use_gpu(use_gpu: bool) -> None:
    """Refuse `use_gpu` on a single machine without a GPU, before anything starts. Raises UsageError."""
    from bottleneck.distributed.placement import check_gpus

    if use_gpu and not cluster_address() and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        check_gpus(use_gpu, _count_gpus())


def _count_gpus() -> int:
    """Count the GPUs of this machine as Ray would."""
    accelerators: Any = importlib.import_module("ray._private.accelerators")
    manager = accelerators.get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    gpus = int(manager.get_current_node_num_accelerators())
    return gpus if visible is None else min(gpus, len(visible))


def workers_have_bfloat16(use_gpu: bool = False) -> bool:
    """Ask a worker of the kind that will run: on a cluster one with a GPU, if it has or expects any."""
    # Not with this module, which also `doctor` needs, where packages may be broken.
    from bottleneck.networks.device import has_bfloat16

    check_use_gpu(use_gpu)
    if not cluster_address():
        return has_bfloat16()
    start_ray()
    import ray

    on_gpu = use_gpu or ray.cluster_resources().get("GPU", 0) > 0
    # Without a GPU it takes a CPU, as a head that runs no networks has none.
    asked = ray.remote(num_cpus=0 if on_gpu else 1, num_gpus=1 if on_gpu else 0)(has_bfloat16)
    answer = asked.remote()
    tell_waiting("GPU" if on_gpu else "CPU", 1)
    while not ray.wait([answer], timeout=WAITING_SECONDS)[0]:
        tell_waiting("GPU" if on_gpu else "CPU", 1)
    return bool(ray.get(answer))


def tell_waiting(kind: str, wanted: int) -> None:
    """Log that a cluster does not have a requested resource yet."""
    import ray

    there = int(ray.cluster_resources().get(kind, 0))
    if there < wanted:
        log.info("waiting for %ss: the cluster has %d, %d wanted; Ctrl-C ends it", kind, there, wanted)
