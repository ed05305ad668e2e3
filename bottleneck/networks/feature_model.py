"""Build the model that takes a network's features: preprocessing before it, pooling after it."""

from typing import Any

import numpy as np

from bottleneck.errors import UsageError
from bottleneck.networks.build import preprocess
from bottleneck.networks.keras_import import import_keras
from bottleneck.spec import split_layer


def feature_model(network: Any, base: str, layers: tuple[str, ...]) -> Any:
    """uint8 [N, H, W, C] -> one float32 [N, D] for each layer; preprocessing happens here and nowhere else."""
    keras = import_keras()
    size = network.input_shape[1]
    taken = keras.Model(network.input, [network.get_layer(split_layer(layer)[0]).output for layer in layers])
    pixels = keras.Input((size, size, 3), dtype="uint8")
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
