"""Open the plan of an output and compare it with a request, or make a new one."""

from collections.abc import Callable
from typing import Any

from bottleneck.catalog import find_network
from bottleneck.dataset.differences import differences
from bottleneck.dataset.make_plan import MAX_REJECTED, check_max_rejected, survey
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.networks.device import has_bfloat16
from bottleneck.networks.layers import check_layers
from bottleneck.networks.prepare import resolve_apart
from bottleneck.networks.quantize import check_int8
from bottleneck.networks.resolve import choose_precision, requested_layers
from bottleneck.networks.weights import check_weights
from bottleneck.sources.reading import Limits, Reading
from bottleneck.sources.selection import Selection
from bottleneck.spec import FeatureRequest
from bottleneck.storage.store import check_output_uri, normal_uri


def open_or_make_plan(
    source: str,
    output: str,
    request: FeatureRequest,
    *,
    limits: Limits,
    reading: Reading | None = None,
    selection: Selection | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
    workers_have_bfloat16: Callable[[], bool] = has_bfloat16,
) -> Plan:
    """Open the plan of an output if it agrees with the request, or make a new one.

    Args:
        selection: which images a new plan has; what is left out may be anything in an old one.
        shard_size: images of a shard in a new plan; None takes the default, and whatever an old plan has.
        max_rejected: share of the images that a list names that may be missing from a new plan.
        workers_have_bfloat16: called once for a new plan with precision `auto`: is bfloat16 in their hardware?

    Raises:
        FingerprintError: if the plan was made with other settings; it names them.
    """
    check_output_uri(output)
    check_max_rejected(max_rejected)
    plan = load_plan(output)
    if plan is None:
        # All before the seconds that Keras takes to start, and a list may take its time as well.
        limits.check_installed()
        check_weights(request.weights)
        check_layers(request.base, request.layers)
        if request.precision == "int8":
            check_int8()
        found = survey(
            source, output, reading=reading, selection=selection, shard_size=shard_size, max_rejected=max_rejected
        )
        return found.make_plan(resolve_apart(request, choose_precision(request, workers_have_bfloat16)), limits)
    check_request(plan, source, request, limits=limits, reading=reading, selection=selection, shard_size=shard_size)
    return plan


def check_request(
    plan: Plan,
    source: str,
    request: FeatureRequest,
    *,
    limits: Limits,
    reading: Reading | None,
    shard_size: int | None,
    selection: Selection | None = None,
) -> None:
    """Raise FingerprintError, naming each differing field, unless a plan agrees with the request.

    Raises:
        UsageError: if it is one of predictions.
    """
    if plan.predictions:
        raise UsageError(
            f"{plan.output} is an output of predictions. Give another output for features, or go on there with "
            f"`bottleneck predict {plan.source} {plan.predictions.head} {plan.output}`."
        )
    asked: dict[str, Any] = {
        "base": request.base,
        "resize": request.resize,
        "interpolation": request.interpolation,
        "exif": request.exif,
        "decode": request.decode,
        "dtype": request.dtype,
    }
    if layers := requested_layers(request):
        asked["layers"] = list(layers)
    if request.input.has_values:
        asked["pixels"] = request.input.resolved().to_json()
    if size := request.input.image_size or find_network(request.base)[0].image_size_px:  # an ONNX file has its own
        asked["image_size_px"] = size
    if request.precision != "auto":
        asked["precision"] = request.precision
    requested: dict[str, Any] = {
        "spec": asked,
        "limits": limits.to_json(),
        "reading": (reading or Reading()).asked(),
        "selection": (selection or Selection()).asked(),
        "source": normal_uri(source),
    }
    if shard_size is not None:
        requested["shard_size"] = shard_size
    # Other words for the weights may mean the same ones: load them to see, unless the run is refused anyhow.
    message = differences(plan, requested)
    if message is None and request.weights != plan.spec.weights:
        asked["weights_sha256"] = resolve_apart(request, plan.spec.precision).weights_sha256
        message = differences(plan, requested)
    if message is not None:
        raise FingerprintError(message)
