"""Run a network with Keras, on the backend KERAS_BACKEND names: GPUs, and bfloat16 on CPUs."""

from typing import Any

import numpy as np

from bottleneck.networks.build import to_bfloat16
from bottleneck.networks.device import device_name
from bottleneck.networks.feature_model import feature_model
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.prepared import Forward
from bottleneck.networks.resolve import load_feature_model
from bottleneck.networks.runtimes.torch_runtime import OverlappedForward, keep_channels_last
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision


def start(
    request: FeatureRequest, precision: Precision, batch_size: int, num_threads: int | None
) -> tuple[Forward, FeatureSpec, str]:
    """Load and compile a network: the function that runs it on full batches, its spec, and its device."""
    keras = import_keras(num_threads)
    network, model, spec = load_feature_model(request, precision)
    if precision == "bfloat16":
        model = feature_model(to_bfloat16(network), request.base, spec.layers)
    return compile_model(model, batch_size), spec, device_name(keras)


def compile_model(model: Any, batch_size: int) -> Forward:
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
    if backend == "jax":
        import jax

        trainable = [variable.value for variable in model.trainable_variables]
        frozen = [variable.value for variable in model.non_trainable_variables]
        function = jax.jit(lambda t, f, pixels: model.stateless_call(t, f, pixels, training=False)[0])
        return lambda pixels_NHWC: [np.asarray(output) for output in _as_list(function(trainable, frozen, pixels_NHWC))]
    import torch

    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # float32 is what was asked for, and TF32 has 10 bits of its 23
        keep_channels_last(model)
        return OverlappedForward(lambda pixels: _as_list(model(pixels, training=False)), shape)

    def forward(pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(np.require(pixels_NHWC, requirements=["C", "W"])), training=False)
            return [output.numpy() for output in _as_list(outputs)]

    return forward


def _as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
