"""Export a head and its base as one model: uint8 images in, probabilities out.

Legend: N images, S x S pixels of the base's input, D features, K classes, H hidden units.
"""

import json
import os
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from bottleneck.catalog import ONNX_BASE
from bottleneck.choices import check_choice
from bottleneck.errors import FeaturesError, FingerprintError, UsageError
from bottleneck.heads.export_onnx import OUTPUT, fused_onnx, softmax_weights
from bottleneck.heads.head import Head
from bottleneck.networks.base import Base
from bottleneck.networks.build import preprocess
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import BATCH_AXIS, PIXELS
from bottleneck.networks.runtimes.onnx_runtime import run_graph
from bottleneck.networks.weights import load_network, sha256_weights
from bottleneck.spec import FeatureRequest, FeatureSpec, RuntimeName, split_layer
from bottleneck.storage.store import ObjectChangedError, ObjectGoneError, Store, Wanted

ModelFormat = Literal["keras", "onnx"]

MAX_DIFFERENCE = 1e-3
"""Of a probability, between the exported model and base and head in float32; found were below 1e-5."""
NUM_CHECKED = 4
INPUT = PIXELS
"""Name of the input in the model file."""


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
    request = _request(origin.spec, origin.layer, weights)
    if file_format == "onnx":
        prepared = prepare_network(request)
        _check_sha256(prepared.weights_sha256, head, request)
        if prepared.graph is None:
            raise UsageError(
                f"ONNX is written on TensorFlow. Received: KERAS_BACKEND={os.environ.get('KERAS_BACKEND')}. Leave it "
                "out, or export to a file ending in .keras."
            )
        facts = _facts(head)
        data = fused_onnx(head, prepared.graph, facts)
        difference = _difference(lambda pixels_NHWC: run_graph(data, {INPUT: pixels_NHWC})[0], head, request)
        facts["max_difference"] = difference
        return fused_onnx(head, prepared.graph, facts), facts
    if request.base == ONNX_BASE:
        raise UsageError("The network of an ONNX file is exported as one. Expected a file ending in .onnx.")
    network = load_network(request.base, request.weights, request.layers)
    _check_sha256(sha256_weights(network), head, request)
    model = build_model(head, network)
    difference = _difference(
        lambda pixels_NHWC: np.asarray(import_keras().ops.convert_to_numpy(model(pixels_NHWC))), head, request, "keras"
    )
    return _keras_file(model), {**_facts(head), "max_difference": difference}


def _check_sha256(found: str, head: Head, request: FeatureRequest) -> None:
    wanted = head.origin.spec.weights_sha256
    if found != wanted:
        raise FingerprintError(
            f"The weights are not the head's. Expected those with sha256 {wanted}, as `weights` FILE or s3:// URI. "
            f"Received: {request.weights}, which has {found}."
        )


def _facts(head: Head) -> dict[str, Any]:
    """What a program that uses the model must know."""
    origin = head.origin
    spec = origin.spec
    return {
        "classes": [str(label) for label in head.classes_],
        **({"thresholds": head.thresholds_.tolist()} if head.multi_label else {}),
        "input": {
            "name": INPUT,
            "shape": [BATCH_AXIS, spec.image_size_px, spec.image_size_px, 3],
            "dtype": "uint8",
            "channels": "RGB",
        },
        "output": {"name": OUTPUT, "shape": [BATCH_AXIS, len(head.classes_)], "dtype": "float32"},
        "image_size_px": spec.image_size_px,
        "resize": spec.resize,
        "interpolation": spec.interpolation,
        "exif": spec.exif,
        "decode": spec.decode,
        "base": spec.base,
        "layer": origin.layer,
        "fingerprint": spec.fingerprint,
        "head_sha256": getattr(head, "sha256_", None),
    }


def build_model(head: Head, network: Any) -> Any:
    """uint8 RGB [N, S, S, 3] -> float32 probabilities [N, K], of Keras' standard layers."""
    keras = import_keras()
    spec, layers = head.origin.spec, keras.layers
    size = spec.image_size_px
    name, pooling = split_layer(head.origin.layer)
    pixels = keras.Input((size, size, 3), dtype="uint8", name=INPUT)
    values = layers.Rescaling(1.0, name="as_float")(pixels)
    values = _preprocessing(spec.base)(values)
    values = keras.Model(network.input, network.get_layer(name).output, name=spec.base)(values, training=False)
    if pooling == "none":
        values = layers.Flatten(name="features")(values) if len(values.shape) > 2 else values
    else:
        pool = layers.GlobalAveragePooling2D if pooling == "avg" else layers.GlobalMaxPooling2D
        values = pool(name="features")(values)
    if head.scale == "standard":
        # Subtracting first, as the head does: folded into the weights, large means would cancel in float32.
        values = layers.Normalization(mean=head.mean_, variance=head.scale_**2, name="standard")(values)
    elif head.scale == "l2":
        values = layers.UnitNormalization(name="l2")(values)
    if head.kind == "mlp":
        values = _dense(head.hidden_coef_, head.hidden_intercept_, "relu", "hidden")(values)
    coef_KD, intercept_K = softmax_weights(head)
    values = _dense(coef_KD, intercept_K, "sigmoid" if head.multi_label else "softmax", OUTPUT)(values)
    model = keras.Model(pixels, values, name="bottleneck_head")
    model.trainable = False
    return model


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
    size = head.origin.spec.image_size_px
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (NUM_CHECKED, size, size, 3), np.uint8)
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


def facts_etag(store: Store, name: str, head: Head) -> str:
    """The etag of a file with facts that an export of this head left when it was killed; empty where there is no file.

    Raises:
        UsageError: if anything else has this name.
    """
    entry = store.stat(name)
    if entry is None and not store.exists(name):
        return ""
    try:
        facts = json.loads(store.get(Wanted(name, 0, entry.etag))) if entry else None
    except (ObjectGoneError, ObjectChangedError, ValueError, RecursionError):
        facts = None
    is_ours = isinstance(facts, dict) and (facts.get("fingerprint"), facts.get("head_sha256")) == (
        head.origin.spec.fingerprint,
        getattr(head, "sha256_", None),
    )
    if entry is None or not is_ours:
        raise UsageError(
            f"{store.uri}/{name} is there already and does not describe an export of this head. It would be written "
            "beside the model. Give another name, or remove it."
        )
    return entry.etag


def facts_file(facts: dict[str, Any]) -> bytes:
    """What stands beside a model file, for people and programs."""
    return json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n"
