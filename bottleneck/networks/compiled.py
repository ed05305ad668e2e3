"""Compile a network into one function from uint8 pixels to pooled features."""

import os
import tempfile
from typing import Any

import numpy as np

from bottleneck.catalog import find_network
from bottleneck.errors import UsageError
from bottleneck.networks.build import preprocess
from bottleneck.networks.keras_import import import_keras
from bottleneck.spec import Precision, split_layer


def feature_model(network: Any, base: str, layers: tuple[str, ...]) -> Any:
    """uint8 [N, H, W, C] -> one float32 [N, D] for each layer; preprocessing happens here and nowhere else."""
    keras = import_keras()
    row, _ = find_network(base)
    taken = keras.Model(network.input, [network.get_layer(split_layer(layer)[0]).output for layer in layers])
    pixels = keras.Input((row.image_size_px, row.image_size_px, 3), dtype="uint8")
    outputs = taken(preprocess(keras.ops.cast(pixels, "float32"), base), training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return keras.Model(pixels, [_pool(output, layer) for output, layer in zip(outputs, layers, strict=True)])


def _pool(output: Any, layer: str) -> Any:
    from keras import ops

    name, pooling = split_layer(layer)
    output = ops.cast(output, "float32")
    if pooling == "none":
        # A map of H x W x C is stored row by row, column by column, channels last.
        return ops.reshape(output, (-1, int(np.prod(output.shape[1:]))))
    if len(output.shape) != 4:
        raise UsageError(f"Layer {name} is a plain vector and cannot be pooled. Expected {name}. Received: {layer}.")
    return ops.mean(output, axis=(1, 2)) if pooling == "avg" else ops.max(output, axis=(1, 2))


def compile_model(model: Any, batch_size: int, precision: Precision, num_threads: int | None) -> Any:
    """Compile a model for a fixed batch shape: a function from a NumPy array to a list of NumPy arrays."""
    import keras

    backend = keras.backend.backend()
    shape = (batch_size, *model.input_shape[1:])
    if backend == "tensorflow":
        import tensorflow as tf

        # XLA was 8 times slower than TensorFlow's own kernels on CPUs, so the graph stays a graph.
        function = tf.function(
            lambda pixels: model(pixels, training=False),
            input_signature=[tf.TensorSpec(shape, tf.uint8)],
            autograph=False,
        )
        compiled = function.get_concrete_function()
        return lambda pixels_NHWC: [output.numpy() for output in _as_list(compiled(tf.constant(pixels_NHWC)))]
    if backend == "openvino":
        return _compile_openvino(model, shape, precision, num_threads)
    if backend == "jax":
        import jax

        trainable = [variable.value for variable in model.trainable_variables]
        frozen = [variable.value for variable in model.non_trainable_variables]
        function = jax.jit(lambda t, f, pixels: model.stateless_call(t, f, pixels, training=False)[0])
        return lambda pixels_NHWC: [np.asarray(output) for output in _as_list(function(trainable, frozen, pixels_NHWC))]
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def forward(pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(np.ascontiguousarray(pixels_NHWC)).to(device), training=False)
            return [output.cpu().numpy() for output in _as_list(outputs)]

    return forward


def _compile_openvino(model: Any, shape: tuple[int, ...], precision: Precision, num_threads: int | None) -> Any:
    import keras
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch: batches come one after the other
        "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[precision],
    }
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = str(num_threads)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.xml")
        batch = keras.InputSpec(shape=shape, dtype="uint8")
        model.export(path, format="openvino", verbose=False, input_signature=[batch])
        compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda pixels_NHWC: [np.array(output) for output in compiled(pixels_NHWC).to_tuple()]


def _as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
