"""Resolve a request into a spec: weights, layers and precision."""

from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from bottleneck.catalog import find_network
from bottleneck.child import ChildDiedError, answer, ask
from bottleneck.errors import WeightsError
from bottleneck.networks.compiled import feature_model
from bottleneck.networks.weights import load_network, sha256_weights
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision, canonical_layer


def requested_layers(request: FeatureRequest) -> tuple[str, ...]:
    """The full names of the layers a request asks for; the base's default layer where it names none."""
    network, _ = find_network(request.base)
    return tuple(canonical_layer(layer) for layer in request.layers) or (network.default_layer,)


def resolve(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """Load what a request names and return its spec. Imports Keras and takes seconds; `resolve_apart` keeps that away.

    Args:
        request: What the user asked for.
        precision: The concrete one, from `choose_precision`.

    Raises:
        UsageError: for an unknown base or layer, or a pooling that does not fit the layer.
        WeightsError: for weights that are not available or do not fit.
    """
    return load_feature_model(request, precision)[2]


def resolve_apart(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """`resolve` in a process of its own, so that the caller stays free of Keras' memory and start-up."""
    find_network(request.base)
    try:
        return FeatureSpec.from_json(ask(_resolve, {"request": asdict(request), "precision": precision}))
    except ChildDiedError:
        raise WeightsError(
            f"The process that loaded {request.base} with weights {request.weights} died: the file is damaged, or the "
            "memory is too small for this network."
        ) from None


def _resolve(pipe: Connection) -> None:
    def resolved(asked: dict[str, Any]) -> dict[str, Any]:
        request = asked["request"]
        return resolve(FeatureRequest(**{**request, "layers": tuple(request["layers"])}), asked["precision"]).to_json()

    answer(pipe, resolved)


def choose_precision(request: FeatureRequest, has_bfloat16: Callable[[], bool]) -> Precision:
    """The precision a plan records: the requested one, or for `auto` the fastest that is safe for the base.

    Args:
        has_bfloat16: asks a worker like those that will run; only called where the answer matters.
    """
    if request.precision != "auto":
        return request.precision
    return "bfloat16" if find_network(request.base)[0].bfloat16_is_safe and has_bfloat16() else "float32"


def load_feature_model(request: FeatureRequest, precision: Precision) -> tuple[Any, Any, FeatureSpec]:
    """The network with its weights, the model that takes its features (both float32), and what they are."""
    layers = requested_layers(request)
    network = load_network(request.base, request.weights, layers)
    model = feature_model(network, request.base, layers)
    spec = FeatureSpec(
        base=request.base,
        weights=request.weights,
        weights_sha256=sha256_weights(network),
        layers=layers,
        dims=tuple(int(output.shape[-1]) for output in model.outputs),
        image_size_px=find_network(request.base)[0].image_size_px,
        resize=request.resize,
        interpolation=request.interpolation,
        exif=request.exif,
        decode=request.decode,
        precision=precision,
        dtype=request.dtype,
    )
    return network, model, spec
