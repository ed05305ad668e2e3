"""Build the networks of the catalog in code."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bottleneck.catalog import STUB, find_network
from bottleneck.errors import UsageError
from bottleneck.networks.keras_import import import_keras

PREPROCESSING = ("Rescaling", "Normalization")
"""Layers with which a network preprocesses pixels itself (`inside` in the catalog)."""


def build_network(base: str, with_top: bool, image_size: int | None = None) -> Any:
    """Build a network in float32, with Keras' initial weights, which are always replaced.

    Without its top it ends with the last layer that needs none of the top's weights (`avg_pool`, `dropout`), but for
    networks with a heavy top, which end where Keras' own do without it.

    Args:
        image_size: side of the input in pixels; default the base's own.

    Raises:
        UsageError: for a size that the base cannot have.
    """
    row, _ = find_network(base)
    if with_top or row.heavy_top:
        return _construct(base, None, with_top, image_size)
    return cut_top(_construct(base, None, True, image_size), base)


def build_trained(base: str, with_top: bool) -> Any:
    """The network as Keras builds it for ImageNet's weights, with these, downloaded if they are not in Keras' cache."""
    return _construct(base, "imagenet", with_top)


def cut_top(network: Any, base: str) -> Any:
    """The network up to the first layer with weights of the top; it shares its layers with the whole network."""
    keras = import_keras()
    row, _ = find_network(base)
    return _apart(lambda: keras.Model(network.input, network.get_layer(row.top).input, name=network.name))


def to_bfloat16(network: Any) -> Any:
    """The same network in bfloat16, except for preprocessing layers, where x - mean would cancel."""
    keras = import_keras()

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an addition: it computes in what it is given
        config = layer.get_config()
        if type(layer).__name__ not in PREPROCESSING:
            config["dtype"] = "bfloat16"
        return type(layer).from_config(config)

    copy = _apart(lambda: keras.models.clone_model(network, clone_function=clone, call_function=None, recursive=True))
    set_weights(copy, network.get_weights())
    return copy


def set_weights(network: Any, values: list[Any]) -> None:
    """Set a network's weights, in its order."""
    network.set_weights(values)
    settle(network)


def settle(network: Any) -> None:
    """Make Normalization use its current weights: after Keras' set_weights it still uses the old ones."""
    for layer in network.layers:
        if type(layer).__name__ == "Normalization":
            layer.finalize_state()


def preprocess(pixels_NHWC: Any, base: str) -> Any:
    """Apply the base's preprocess_input to float32 RGB in [0, 255], a NumPy array or a tensor."""
    mode = find_network(base)[0].preprocessing
    if mode == "inside":
        return pixels_NHWC
    utils = import_keras().applications.imagenet_utils
    return utils.preprocess_input(pixels_NHWC, data_format="channels_last", mode=mode)


def layer_names(network: Any) -> list[str]:
    return [layer.name for layer in network.layers[1:]]  # the first is the input


def _construct(base: str, weights: str | None, with_top: bool, image_size: int | None = None) -> Any:
    keras = import_keras()
    row, width = find_network(base)
    size = image_size or row.image_size_px
    arguments: dict[str, Any] = {
        "weights": weights,
        "include_top": with_top,
        "input_shape": (size, size, 3),
    }
    if width is not None:
        arguments["alpha"] = width
    constructor = _stub if row is STUB else getattr(keras.applications, row.constructor)
    try:
        network = _apart(lambda: constructor(**arguments))
    except ValueError as error:
        if image_size is None:
            raise
        raise UsageError(
            f"{base} takes no images of `image_size` {image_size}: {error} Leave it out, or try another."
        ) from None
    if weights is None and row.constructor.startswith("EfficientNetB"):
        return _apart(lambda: _with_deviation(network))
    return network


def _stub(weights: str | None, include_top: bool, input_shape: tuple[int, int, int]) -> Any:
    """The network of STUB, which costs next to nothing and goes the way of every other one; with or without a top."""
    if weights:
        raise UsageError(f"The base stub has no weights. Expected `weights` random:0. Received: {weights}.")
    keras = import_keras()
    pixels_NHWC = keras.Input(input_shape)
    return keras.Model(pixels_NHWC, keras.layers.GlobalAveragePooling2D(name="mean")(pixels_NHWC), name="stub")


def _with_deviation(network: Any) -> Any:
    """EfficientNet as Keras builds it for ImageNet's weights, and for these only: with a second rescaling.

    Its Normalization divides by the square root of a weight in which the files have the deviation, not the variance
    (https://github.com/tensorflow/tensorflow/issues/49930).
    """
    keras = import_keras()
    deviations = (0.229, 0.224, 0.225)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        if layer.name != "normalization":
            return outputs
        return keras.layers.Rescaling([value**-0.5 for value in deviations], name="rescaling_1")(outputs)

    return keras.models.clone_model(network, call_function=call)


def _apart(build: Callable[[], Any]) -> Any:
    """Build in a new thread, where Keras counts layers from 0; otherwise a second Inception starts with `conv2d_94`.

    So layers are called in every process what they are called in the first network of one; and the caller's own
    counting and dtype policy, which Keras has for each thread, neither matter nor change.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build).result()
