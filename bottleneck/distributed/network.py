"""Prepare a run's network once, and hand it to the actors through the cache or Ray's object store."""

from typing import Any

from bottleneck.child import as_result, raised
from bottleneck.distributed.placement import Placement
from bottleneck.distributed.ray_session import cluster_address
from bottleneck.networks.cache import has_network, load_network
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import PreparedNetwork
from bottleneck.networks.resolve import wants_keras
from bottleneck.networks.runtimes.choose import choose_runtime
from bottleneck.spec import FeatureRequest, Precision, RuntimeName


def hand_network(
    request: FeatureRequest, precision: Precision, runtime: RuntimeName, placement: Placement, num_images: int
) -> dict[str, Any]:
    """What the constructor of `ExtractFeatures` gets to know about the network and its runtime.

    On one machine the network is prepared and the runtime chosen here, while nothing else runs. On a cluster a worker
    prepares it, as only the workers know their weights, and each actor chooses for its own machine.
    """
    import ray

    given: dict[str, Any] = {"runtime": runtime, "num_images": num_images, "network": None}
    if placement.num_gpus or wants_keras(request.base, runtime, precision):
        return {**given, "runtime": "keras"}
    if cluster_address():
        # As many CPUs as the networks, which wait for this one, leave to those who prepare shards. In a list, or Ray
        # would put the network itself into every call.
        prepare = ray.remote(num_cpus=placement.decode_cpus, max_retries=3)(_prepared)
        return {**given, "network": [prepare.remote(request)]}
    network = prepare_network(request)
    chosen = choose_runtime(runtime, network, precision, placement.num_threads, num_images)
    if chosen == "keras":
        return {**given, "runtime": "keras"}
    # The object store has room for shards, not for a VGG16 with its top: on this machine actors read the cache.
    handle = network.key if has_network(network.key) else [ray.put({"network": network})]
    return {**given, "runtime": chosen, "network": handle}


def _prepared(request: FeatureRequest) -> dict[str, Any]:
    try:
        return {"network": prepare_network(request)}
    except Exception as error:  # raised here, it would reach the actors as one of Ray's
        return as_result(error)


def received_network(handle: list[Any] | str | None) -> PreparedNetwork | None:
    """In an actor: the network that `hand_network` handed over; None if it is to be prepared here.

    Raises:
        BottleneckError: what preparing it met.
    """
    import ray

    if handle is None or isinstance(handle, str):
        return load_network(handle) if handle else None
    result = ray.get(handle[0])
    if "error" in result:
        raise raised(result["error"])
    network: PreparedNetwork = result["network"]
    return network
