"""Export a network, alone or with a head, as a model: uint8 in, features or probabilities out.

Legend: N images, S x S pixels of the base's input, D features, K classes, H hidden units.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from bottleneck.catalog import ONNX_BASE
from bottleneck.choices import check_choice
from bottleneck.errors import FeaturesError, FingerprintError, UsageError
from bottleneck.heads.export_facts import INPUT, head_facts, input_facts
from bottleneck.heads.export_onnx import FEATURES, OUTPUT, fused_onnx, plain_onnx, softmax_weights
from bottleneck.heads.head import Head
from bottleneck.networks.base import Base
from bottleneck.networks.build import preprocess
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import BATCH_AXIS, PreparedNetwork
from bottleneck.networks.runtimes.onnx_runtime import run_graph
from bottleneck.networks.weights import load_network, sha256_weights
from bottleneck.spec import FeatureRequest, FeatureSpec, RuntimeName, layers_in, split_layer

ModelFormat = Literal["keras", "onnx"]

MAX_DIFFERENCE = 1e-3
"""Of a probability, between the exported model and base and head in float32; found were below 1e-5."""
NUM_CHECKED = 4


def export_head(head: Head, file_format: ModelFormat, weights: str | None = None) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a model file, checked against the head, and what a program that uses it must know.

    The model is of Keras' own layers only, so `keras.saving.load_model(safe_mode=True)` takes it. It computes in
    float32, whatever precision and stored dtype the head's features had.

    Args:
        weights: where the base's weights are now, if not where the head's spec says.

    Returns:
        The file, and a JSON object: classes in the order of the outputs, input size, how images are resized.

    Raises:
        FingerprintError: if the weights are not the head's.
        FeaturesError: if the exported model does not say what the head says.
        UsageError: if a package is missing.
    """
    check_choice("file_format", file_format, ModelFormat)
    origin = head.origin
    if len(layers_in(origin.layer)) > 1:
        raise UsageError(
            f"A head on several layers side by side is not exported as one model. Received: {origin.layer}. Fit on one "
            "layer, or export the layers' networks and compute the head from head.safetensors."
        )
    request = _request(origin.spec, origin.layer, weights)
    if file_format == "onnx":
        prepared = prepare_network(request)
        _check_sha256(prepared.weights_sha256, origin.spec, request)
        graph = _graph(prepared)
        facts = head_facts(head)
        data = fused_onnx(head, graph, facts)
        difference = _difference(lambda pixels_NHWC: run_graph(data, {INPUT: pixels_NHWC})[0], head, request)
        facts["max_difference"] = difference
        return fused_onnx(head, graph, facts), facts
    if request.base == ONNX_BASE:
        raise UsageError("The network of an ONNX file is exported as one. Expected a file ending in .onnx.")
    network = load_network(request.base, request.weights, request.layers, request.input.image_size)
    _check_sha256(sha256_weights(network), origin.spec, request)
    model = build_model(head, network)
    difference = _difference(
        lambda pixels_NHWC: np.asarray(import_keras().ops.convert_to_numpy(model(pixels_NHWC))), head, request, "keras"
    )
    return _keras_file(model), {**head_facts(head), "max_difference": difference}


def _check_sha256(found: str, spec: FeatureSpec, request: FeatureRequest) -> None:
    wanted = spec.weights_sha256
    if found != wanted:
        raise FingerprintError(
            f"The weights are not those of the features. Expected those with sha256 {wanted}, as `weights` FILE or "
            f"s3:// URI. Received: {request.weights}, which has {found}."
        )


def export_network(
    spec: FeatureSpec, layer: str, file_format: ModelFormat, weights: str | None = None
) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a model file that gives the features of a layer, in float32, and what a program must know of it.

    Args:
        layer: of the spec.
        weights: where the weights are now, if not where the spec says.

    Raises:
        As `export_head`.
    """
    check_choice("file_format", file_format, ModelFormat)
    request = _request(spec, layer, weights)
    output = {"name": FEATURES, "shape": [BATCH_AXIS, spec.dim_of(layer)], "dtype": "float32"}
    facts = {**input_facts(spec, layer), "output": output}
    if file_format == "onnx":
        prepared = prepare_network(request)
        _check_sha256(prepared.weights_sha256, spec, request)
        data = plain_onnx(_graph(prepared), facts)
        found_ND = run_graph(data, {INPUT: _pictures(spec)})[0]
    else:
        if request.base == ONNX_BASE:
            raise UsageError("The network of an ONNX file is exported as one. Expected a file ending in .onnx.")
        network = load_network(request.base, request.weights, request.layers, request.input.image_size)
        _check_sha256(sha256_weights(network), spec, request)
        model = _frozen(*_feature_layers(spec, layer, network), "bottleneck_features")
        data = _keras_file(model)
        found_ND = np.asarray(import_keras().ops.convert_to_numpy(model(_pictures(spec))))
    expected_ND = Base.of(request, "float32", NUM_CHECKED, runtime="keras" if file_format == "keras" else "auto")(
        _pictures(spec)
    )[0]
    difference = float(np.abs(found_ND - expected_ND).max() / max(np.abs(expected_ND).max(), 1e-12))
    if not difference <= MAX_DIFFERENCE:
        raise FeaturesError(
            f"The exported network's features differ from the base's by {difference:.2g} of the largest value. "
            f"Expected {MAX_DIFFERENCE} at most. Report this; nothing was written."
        )
    return data, {**facts, "max_difference": difference}


def _graph(prepared: PreparedNetwork) -> bytes:
    if prepared.graph is None:
        raise UsageError(
            f"ONNX is written on TensorFlow. Received: KERAS_BACKEND={os.environ.get('KERAS_BACKEND')}. Leave it "
            "out, or export to a file ending in .keras."
        )
    return prepared.graph


def _pictures(spec: FeatureSpec) -> np.ndarray:
    size = spec.image_size_px
    return np.random.default_rng(0).integers(0, 256, (NUM_CHECKED, size, size, 3), np.uint8)


def build_model(head: Head, network: Any) -> Any:
    """uint8 RGB [N, S, S, 3] -> float32 probabilities [N, K], of Keras' standard layers."""
    keras = import_keras()
    layers = keras.layers
    pixels, values = _feature_layers(head.origin.spec, head.origin.layer, network)
    if head.scale == "standard":
        # Subtracting first, as the head does: folded into the weights, large means would cancel in float32.
        values = layers.Normalization(mean=head.mean_, variance=head.scale_**2, name="standard")(values)
    elif head.scale == "l2":
        values = layers.UnitNormalization(name="l2")(values)
    if head.kind == "mlp":
        values = _dense(head.hidden_coef_, head.hidden_intercept_, "relu", "hidden")(values)
    coef_KD, intercept_K = softmax_weights(head)
    values = _dense(coef_KD, intercept_K, "sigmoid" if head.multi_label else "softmax", OUTPUT)(values)
    return _frozen(pixels, values, "bottleneck_head")


def _frozen(pixels: Any, values: Any, name: str) -> Any:
    model = import_keras().Model(pixels, values, name=name)
    model.trainable = False
    return model


def _feature_layers(spec: FeatureSpec, layer: str, network: Any) -> tuple[Any, Any]:
    """The input, uint8 RGB [N, S, S, 3], and a layer's features of it, [N, D], as Keras has them in building."""
    keras = import_keras()
    layers, size = keras.layers, spec.image_size_px
    name, pooling = split_layer(layer)
    pixels = keras.Input((size, size, 3), dtype="uint8", name=INPUT)
    values = layers.Rescaling(1.0, name="as_float")(pixels)
    values = _preprocessing(spec.base)(values)
    values = keras.Model(network.input, network.get_layer(name).output, name=spec.base)(values, training=False)
    if pooling == "none":
        values = layers.Flatten(name="features")(values) if len(values.shape) > 2 else values
    else:
        pool = layers.GlobalAveragePooling2D if pooling == "avg" else layers.GlobalMaxPooling2D
        values = pool(name="features")(values)
    return pixels, values


def _preprocessing(base: str) -> Any:
    """Keras' preprocess_input as a layer: for every base it is one affine map of the three channels."""
    keras = import_keras()
    corners = np.zeros((4, 1, 1, 3))
    corners[1:, 0, 0] = 255 * np.eye(3)
    mapped = preprocess(corners.copy(), base)
    bias, kernel = mapped[0, 0, 0], (mapped[1:, 0, 0] - mapped[0, 0, 0]) / 255
    layer = keras.layers.Conv2D(3, 1, name="preprocessing")
    layer.build((None, None, None, 3))
    layer.set_weights([kernel[None, None].astype(np.float32), bias.astype(np.float32)])
    return layer


def _dense(coef_KD: np.ndarray, intercept_K: np.ndarray, activation: str, name: str) -> Any:
    keras = import_keras()
    layer = keras.layers.Dense(len(coef_KD), activation=activation, name=name)
    layer.build((None, coef_KD.shape[1]))
    layer.set_weights([coef_KD.T.astype(np.float32), intercept_K.astype(np.float32)])
    return layer


def _request(spec: FeatureSpec, layer: str, weights: str | None) -> FeatureRequest:
    """The head's features in float32."""
    return FeatureRequest(
        base=spec.base,
        weights=weights or spec.weights,
        layers=(layer,),
        precision="float32",
        dtype="float32",
        input=spec.request.input,
    )


def _difference(
    model: Callable[[np.ndarray], np.ndarray], head: Head, request: FeatureRequest, runtime: RuntimeName = "auto"
) -> float:
    """The largest difference of a probability, over random pictures.

    Raises:
        FeaturesError: if it is too large.
    """
    pixels_NHWC = _pictures(head.origin.spec)
    features_ND = Base.of(request, "float32", NUM_CHECKED, runtime=runtime)(pixels_NHWC)[0]
    expected = head.predictions(features_ND, len(head.classes_))
    found_NK = model(pixels_NHWC)
    index = {str(label): column for column, label in enumerate(head.classes_)}
    differences = [
        abs(float(found_K[index[label]]) - value)
        for found_K, labels, values in zip(
            found_NK,
            expected.column("top_labels").to_pylist(),
            expected.column("top_probabilities").to_pylist(),
            strict=True,
        )
        for label, value in zip(labels, values, strict=True)
    ]
    difference = float(max(differences))
    if not difference <= MAX_DIFFERENCE:
        raise FeaturesError(
            f"The exported model's probabilities differ from the head's by {difference:.2g}. Expected "
            f"{MAX_DIFFERENCE} at most. Report this, with the head; nothing was written."
        )
    return difference


def _keras_file(model: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="bottleneck-export-") as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        with open(path, "rb") as file:
            return file.read()
