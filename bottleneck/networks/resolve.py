"""Resolve a request into a spec: weights, layers and precision."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from bottleneck.catalog import ONNX_BASE, find_network
from bottleneck.networks.device import keras_has_gpu
from bottleneck.networks.feature_model import feature_model
from bottleneck.networks.weights import load_network, sha256_weights
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision, RuntimeName, canonical_layer


def requested_layers(request: FeatureRequest) -> tuple[str, ...]:
    """The full names of the layers a request asks for; the base's default layer where it names none.

    Of an ONNX file it has none: only the file tells.
    """
    default = find_network(request.base)[0].default_layer
    return tuple(map(canonical_layer, request.layers)) or ((default,) if default else ())


def resolve(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """Load what a request names and return its spec. Imports Keras and takes seconds; `resolve_apart` does not.

    Args:
        request: What the user asked for.
        precision: The concrete one, from `choose_precision`.

    Raises:
        UsageError: for an unknown base or layer, or a pooling that does not fit the layer.
        WeightsError: for weights that are not available or do not fit.
    """
    return load_feature_model(request, precision)[2]


def wants_keras(base: str, asked: RuntimeName, precision: Precision) -> bool:
    """Whether a network runs with Keras, so that no graph is needed.

    int8 never does. `auto` is Keras on a GPU, with another backend of Keras than TensorFlow, and for bfloat16 where
    OpenVINO is not installed.
    """
    if base == ONNX_BASE or precision == "int8":
        return False
    if asked != "auto":
        return asked == "keras"
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow" or keras_has_gpu():
        return True
    return precision == "bfloat16" and find_spec("openvino") is None


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
    network = load_network(request.base, request.weights, layers, request.input.image_size)
    model = feature_model(network, request.base, layers)
    spec = request.resolved(
        precision,
        weights_sha256=sha256_weights(network),
        layers=layers,
        dims=tuple(int(output.shape[-1]) for output in model.outputs),
        image_size_px=int(network.input_shape[1]),
    )
    return network, model, spec
