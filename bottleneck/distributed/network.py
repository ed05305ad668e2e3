"""Prepare a run's network once, and hand it to the actors through the cache or Ray's object store."""

from dataclasses import dataclass
from typing import Any, cast

from bottleneck.child import as_result, raised
from bottleneck.choices import check_choices
from bottleneck.distributed.placement import Placement
from bottleneck.distributed.ray_session import cluster_address
from bottleneck.networks.base import Execution
from bottleneck.networks.cache import has_network, load_network
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import PreparedNetwork
from bottleneck.networks.resolve import wants_keras
from bottleneck.networks.runtimes.choose import choose_runtime
from bottleneck.spec import FeatureRequest, Precision, RuntimeName


@dataclass(frozen=True)
class HandedNetwork:
    """A run's network and its runtime, as every actor gets them."""

    runtime: RuntimeName
    num_images: int
    num_threads: int | None
    handle: list[Any] | str | None = None
    """The prepared network: its key in the cache, or Ray's handle in a list; None if it is prepared where it runs."""

    def __post_init__(self) -> None:
        check_choices(self)

    def received(self) -> Execution:
        """In an actor: what a `Base` is started with.

        Raises:
            BottleneckError: what preparing it met.
        """
        network = _received(self.handle)
        return {
            "runtime": self.runtime,
            "num_images": self.num_images,
            "num_threads": self.num_threads,
            "network": network,
        }


def hand_network(
    request: FeatureRequest, precision: Precision, runtime: RuntimeName, placement: Placement, num_images: int
) -> HandedNetwork:
    """Prepare the network for the actors.

    On one machine the network is prepared and the runtime chosen here, while nothing else runs. On a cluster a worker
    prepares it, as only the workers know their weights, and each actor chooses for its own machine.
    """
    import ray

    num_threads = placement.num_threads
    if placement.num_gpus or wants_keras(request.base, runtime, precision):
        return HandedNetwork("keras", num_images, num_threads)
    if cluster_address():
        # As many CPUs as the networks, which wait for this one, leave to those who prepare shards. In a list, or Ray
        # would put the network itself into every call.
        prepare = ray.remote(num_cpus=placement.decode_cpus, max_retries=3)(_prepared)
        return HandedNetwork(runtime, num_images, num_threads, [prepare.remote(request, precision)])
    network = prepare_network(request, precision)
    chosen = choose_runtime(runtime, network, precision, num_threads, num_images)
    if chosen == "keras":
        return HandedNetwork("keras", num_images, num_threads)
    # The object store has room for shards, not for a VGG16 with its top: on this machine actors read the cache.
    handle = network.key if has_network(network.key) else [ray.put({"network": network})]
    return HandedNetwork(cast(RuntimeName, chosen), num_images, num_threads, handle)


def _prepared(request: FeatureRequest, precision: Precision) -> dict[str, Any]:
    try:
        return {"network": prepare_network(request, precision)}
    except Exception as error:  # raised here, it would reach the actors as one of Ray's
        return as_result(error)


def _received(handle: list[Any] | str | None) -> PreparedNetwork | None:
    import ray

    if handle is None or isinstance(handle, str):
        return load_network(handle) if handle else None
    result = ray.get(handle[0])
    if "error" in result:
        raise raised(result["error"])
    network: PreparedNetwork = result["network"]
    return network
