"""Decide where networks go: on GPUs, or spread over the nodes' cores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bottleneck.catalog import ONNX_BASE
from bottleneck.errors import UsageError
from bottleneck.networks.device import CORES_PER_ACTOR
from bottleneck.networks.quantize import check_int8_runtime
from bottleneck.spec import Precision, RuntimeName

DECODE_CPUS = 0.49
"""CPUs of each preparing task beside networks on CPUs, which use all cores anyway."""


@dataclass(frozen=True)
class Placement:
    """The number of networks, and the resources Ray reserves for each."""

    min_actors: int
    max_actors: int
    num_gpus: int
    """GPUs per network, 0 or 1."""
    num_cpus: float
    """CPUs per network; 0 on a single machine and on GPUs."""
    num_threads: int | None
    """Threads of each network on CPUs."""
    decode_cpus: float = 1
    """CPUs that Ray reserves for each preparing task."""


def place(
    nodes: Sequence[Mapping[str, float]],
    num_actors: Sequence[int] = (),
    *,
    use_gpu: bool = False,
    may_grow: bool = False,
    on_cpus: bool = False,
) -> Placement:
    """Decide where networks run.

    Args:
        nodes: resources of each node that is alive, as Ray counts them.
        num_actors: one number, or the least and the most. Empty: one a GPU, or one for every `CORES_PER_ACTOR` cores.
        use_gpu: on GPUs even where the cluster has none yet.
        on_cpus: beside GPUs, too; see `needs_cpus`.
        may_grow: more nodes can join, so that one that is alone is none of a single machine's, and GPUs may come.

    Raises:
        UsageError: if GPUs are asked for, and none is there or can come.
    """
    gpus = 0 if on_cpus else int(sum(node.get("GPU", 0) for node in nodes))
    if not may_grow:
        check_gpus(use_gpu, gpus)
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if gpus or use_gpu:
        least, most = _asked(num_actors) or (max(1, gpus),) * 2
        return Placement(least, most, num_gpus=1, num_cpus=0, num_threads=None)
    large = [count for count in cores if count >= CORES_PER_ACTOR]
    fits = [count // CORES_PER_ACTOR for count in large] or [1 for _ in cores or [0]]
    least, most = _asked(num_actors) or (sum(fits),) * 2
    if not cores:  # all nodes are still to come, nobody knows how large
        return Placement(least, most, num_gpus=0, num_cpus=1.02, num_threads=None, decode_cpus=DECODE_CPUS)
    if len(nodes) == 1 and not may_grow:
        # With no CPU set aside they share the cores with what prepares shards, the last of both included.
        return Placement(least, most, num_gpus=0, num_cpus=0, num_threads=max(1, cores[0] // most))
    # An actor that takes no CPU would start anywhere, all on one node, or on a head that is to run none. It takes so
    # much that no more fit on a node than it has cores for, and leaves room for a task that prepares: networks that
    # took every CPU would wait for ever for those who feed them.
    size = min(large or cores)  # nodes that are smaller than others decode for them
    fit = max(1, size // CORES_PER_ACTOR)
    num_cpus = min(max(0.75 * size / fit, size / (fit + 1) + 0.01), (size - DECODE_CPUS) / fit)
    return Placement(least, most, num_gpus=0, num_cpus=num_cpus, num_threads=size // fit, decode_cpus=DECODE_CPUS)


def waiting_for(placement: Placement, total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """The resource for which a network waits on a cluster; empty if there is room.

    Args:
        total, free: of the whole cluster, as Ray counts them.
    """
    kind, wanted = ("GPU", float(placement.num_gpus)) if placement.num_gpus else ("CPU", placement.num_cpus)
    there, left = total.get(kind, 0), free.get(kind, 0)
    if left >= wanted:
        return ""
    if there < wanted:
        return f"{kind}s: the cluster has {there:g}"
    return f"{kind}s: others use {there - left:g} of the cluster's {there:g}"


def needs_cpus(base: str, runtime: RuntimeName, use_gpu: bool, precision: Literal["auto"] | Precision = "auto") -> bool:
    """Whether a network can run on CPUs only.

    Raises:
        UsageError: if GPUs are requested as well, or a runtime that does not take int8.
    """
    if precision == "int8":
        check_int8_runtime(runtime)
    is_for_cpus = runtime not in ("auto", "keras") or base == ONNX_BASE or precision == "int8"
    if use_gpu and is_for_cpus:
        raise UsageError(
            f"`use_gpu` does not go with `base` {base}, `runtime` {runtime} and `precision` {precision}, which run on "
            "CPUs. Leave it out, or give a base of the catalog, `runtime` auto or keras, and no int8."
        )
    return is_for_cpus


def check_gpus(use_gpu: bool, gpus: int) -> None:
    """Raise UsageError instead of waiting for GPUs that a single machine does not have."""
    if use_gpu and not gpus:
        raise UsageError(
            "`use_gpu` takes a machine with a GPU that Ray finds, or a cluster named by RAY_ADDRESS, which may get its "
            "GPUs later. Received: a machine without. Leave `use_gpu` out to compute on CPUs; `bottleneck doctor` "
            "tells what is found here."
        )


def _asked(num_actors: Sequence[int]) -> tuple[int, int] | None:
    return (num_actors[0], num_actors[-1]) if num_actors else None
