"""The table of bases, and the networks it names built in code. Keras is imported inside the functions."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from bottleneck.errors import UsageError
from bottleneck.progress import quiet_start


@dataclass(frozen=True)
class Network:
    """A row of the table of bases."""

    module: str
    """Module of keras.applications."""
    constructor: str
    preprocessing: str
    """Mode of keras.applications' preprocess_input: `caffe` is BGR minus the ImageNet mean, `tf` is [-1, 1]."""
    default_layer: str
    """The last layer before the top."""
    bfloat16_is_safe: bool
    """Whether bfloat16 features have a cosine of at least 0.9999 to float32 ones, measured on flowers."""
    image_size_px: int = 224
    widths: tuple[float, ...] = ()
    """Values of `alpha`, for families that come in widths."""


NETWORKS = {
    "vgg16": Network("vgg16", "VGG16", "caffe", "block5_pool", bfloat16_is_safe=True),
    # bfloat16 gains MobileNet nothing on a CPU and costs it a cosine of 0.987: its depthwise filters are thin.
    "mobilenet": Network(
        "mobilenet", "MobileNet", "tf", "conv_pw_13_relu", bfloat16_is_safe=False, widths=(0.25, 0.5, 0.75, 1.0)
    ),
}


def find_network(base: str) -> tuple[Network, float | None]:
    """`mobilenet_0.75` -> (its row, 0.75). Raises UsageError with the names there are."""
    family, underscore, width = base.rpartition("_")
    if base in NETWORKS and not NETWORKS[base].widths:
        return NETWORKS[base], None
    if underscore and family in NETWORKS:
        for value in NETWORKS[family].widths:
            if width == str(value):
                return NETWORKS[family], value
    names = [name for family, row in NETWORKS.items() for name in ([f"{family}_{w}" for w in row.widths] or [family])]
    raise UsageError(f"Unknown base. Expected one of {nearest_first(base, names)}. Received: {base}.")


def import_keras(num_threads: int | None = None) -> Any:
    """Import Keras, quietly, and set its backend's threads; later calls find both done."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    backend = os.environ["KERAS_BACKEND"]
    try:
        with quiet_start():
            import keras
    except ImportError as error:
        raise UsageError(
            f"Keras' backend {backend} is not installed ({error}). Expected tensorflow, torch or jax in KERAS_BACKEND."
        ) from error
    if num_threads and backend == "tensorflow":
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != num_threads:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
    elif num_threads and backend == "torch":
        import torch

        torch.set_num_threads(num_threads)
    return keras


def build_network(base: str, with_top: bool, dtype: str = "float32") -> Any:
    """The network in code, with Keras' own initial weights (which are always replaced)."""
    keras = import_keras()
    network, width = find_network(base)
    size = network.image_size_px
    arguments: dict[str, Any] = {"weights": None, "include_top": with_top, "input_shape": (size, size, 3)}
    if width is not None:
        arguments["alpha"] = width
    constructor = getattr(getattr(keras.applications, network.module), network.constructor)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return constructor(**arguments)
    finally:
        keras.config.set_dtype_policy(before)


def has_top(network: Any, base: str) -> bool:
    return bool(network.layers[-1].name != find_network(base)[0].default_layer)


def layer_names(network: Any) -> list[str]:
    return [layer.name for layer in network.layers[1:]]  # the first is the input


def nearest_first(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=5, cutoff=0.3)
    return ", ".join(near + [other for other in names if other not in near])
