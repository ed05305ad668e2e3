"""Load weights by name, from a file or store, or random; their identity is the sha256 of the values."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from bottleneck.catalog import find_network, nearest
from bottleneck.errors import UsageError, WeightsError
from bottleneck.networks.build import build_network, build_trained, cut_top, layer_names, set_weights, settle
from bottleneck.networks.weights_file import check_hdf5
from bottleneck.spec import split_layer
from bottleneck.storage.store import ObjectGoneError, open_store


def load_network(base: str, weights: str, layers: tuple[str, ...], image_size: int | None = None) -> Any:
    """The network with its weights in float32, with its top only where a layer or the weights' file needs it.

    Args:
        image_size: side of the input in pixels; default the base's own, which the top needs.

    Raises:
        UsageError: for a layer that is not there, or a size that the base or these layers cannot have.
        WeightsError: for weights that are not there, or do not fit.
    """
    check_weights(weights)
    if image_size == find_network(base)[0].image_size_px:
        image_size = None
    names = {split_layer(layer)[0] for layer in layers}
    network = build_network(base, with_top=False, image_size=image_size)
    needs_top = False
    if not names <= set(layer_names(network)):
        whole = build_network(base, with_top=True)
        _check_names(base, names, layer_names(whole))
        body = cut_top(whole, base)
        needs_top = not names <= set(layer_names(body))
        if image_size is not None:
            raise UsageError(
                f"Layers of the top have images of one size. Received: `image_size` {image_size} with "
                f"{', '.join(sorted(names - set(layer_names(network))))}. Leave one of them out."
            )
        network = whole if needs_top else body
    if weights.startswith("random:"):
        _set_random(network, int(weights.removeprefix("random:")))
    elif weights == "imagenet":
        set_weights(network, _load_imagenet(base, needs_top).get_weights())
    else:
        with local_copy(weights) as path:
            _check_file(base, weights, path, needs_top)
            if needs_top or not _file_has_top(path, network):
                _load_file(network, base, weights, path, needs_top)
            else:  # the top is dropped, so that files with and without it give one fingerprint
                whole = build_network(base, with_top=True)
                _load_file(whole, base, weights, path, needs_top)
                set_weights(network, whole.get_weights()[: len(network.weights)])
    return network


def _check_names(base: str, names: set[str], known: list[str]) -> None:
    for name in sorted(names - set(known)):
        raise UsageError(
            f"{base} has no layer of this name. Expected {nearest(name, known)} or another of the {len(known)} that "
            f"`bottleneck describe {base}` lists. Received: {name}."
        )


def _load_imagenet(base: str, with_top: bool) -> Any:
    try:
        return build_trained(base, with_top)
    except Exception as error:  # Keras raises a bare Exception where the download fails
        raise WeightsError(
            f"The ImageNet weights of {base} are not in Keras' cache (~/.keras/models) and cannot be downloaded: "
            f"{error}. Put Keras' file there, or give `weights` FILE; `weights` random:0 tries the job without them."
        ) from error


def _check_file(base: str, weights: str, path: str, needs_top: bool) -> None:
    try:
        check_hdf5(path)
    except Exception as error:  # h5py raises a dozen kinds for damaged files
        raise _no_fit(base, weights, needs_top, error) from error


def _load_file(network: Any, base: str, weights: str, path: str, needs_top: bool) -> None:
    try:
        network.load_weights(path)
        settle(network)
    except Exception as error:
        raise _no_fit(base, weights, needs_top, error) from error


def _no_fit(base: str, weights: str, needs_top: bool, error: Exception) -> WeightsError:
    top = "with" if needs_top else "with or without"
    return WeightsError(
        f"These weights do not fit {base} {top} its top. Expected a Keras weights file (.h5 or .weights.h5) of "
        f"this network. Received: {weights}: {error}."
    )


def is_file(weights: str) -> bool:
    """Whether weights are asked for by a file or URI, whose content can change."""
    return weights != "imagenet" and not weights.startswith("random:")


def check_weights(weights: str) -> None:
    """Refuse what cannot be weights, without loading anything. Raises WeightsError."""
    if not is_file(weights):
        return
    if not weights.endswith((".h5", ".onnx")):
        raise WeightsError(
            f"Expected imagenet, random:SEED, a Keras weights file ending in .h5, or for base onnx a network ending in "
            f".onnx. Received: {weights}."
        )
    if "://" in weights:
        prefix, _, name = weights.rpartition("/")
        is_there = open_store(prefix).exists(name)
    else:
        is_there = os.path.isfile(os.path.expanduser(weights))
    if not is_there:
        raise WeightsError(f"No such weights. Expected imagenet, random:SEED, a file or URI. Received: {weights}.")


@contextlib.contextmanager
def local_copy(weights: str) -> Iterator[str]:
    """The path of a weights file; one from a store is copied to a temporary file for as long."""
    if "://" not in weights:
        yield os.path.abspath(os.path.expanduser(weights))
        return
    prefix, _, name = weights.rpartition("/")
    try:
        data = open_store(prefix).read(name)
    except ObjectGoneError:
        raise WeightsError(f"No such weights. Expected an object. Received: {weights}.") from None
    with tempfile.TemporaryDirectory(prefix="bottleneck-weights-") as folder:
        # Keras tells its two layouts apart by the name.
        suffix = next(one for one in (".weights.h5", ".h5", ".onnx") if name.endswith(one))
        path = os.path.join(folder, f"network{suffix}")
        with open(path, "wb") as file:
            file.write(data)
        yield path


def _file_has_top(path: str, body: Any) -> bool:
    """Whether a Keras HDF5 file holds more layers with weights than the network without its top.

    Counted, as names say nothing: Keras numbers layers without one on through a process (`conv2d_94`).
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("model_weights", file)
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs["layer_names"]]
            num_layers = sum(1 for name in names if len(group[name].attrs["weight_names"]))
    except Exception:  # attributes may be of any type
        return False  # no HDF5 of this layout: loading it says what is wrong with it
    return num_layers > sum(1 for layer in body.layers if layer.weights)


def _set_random(network: Any, seed: int) -> None:
    """Weights by He's rule (uniform, variance 2 / fan-in) from PCG64's raw stream, which NumPy keeps stable for good.

    The same seed gives the same weights on every Keras version, backend and machine. They keep the size of what flows
    through, so that features of 150 layers fit float16: a depthwise kernel with no activation before its pointwise one
    gets half the variance, and what is added to a shortcut is divided by the root of the number of additions (Zhang,
    Dauphin and Ma 2019, "Fixup initialization"). Statistics are 0 and 1, EfficientNet's of the pixels too.
    """
    stream = np.random.PCG64(seed)
    kinds = {variable.path: type(layer).__name__ for layer in network.layers for variable in layer.weights}
    branches, num_additions = _branch_ends(network)
    values = []
    for variable in network.weights:
        shape, kind = tuple(variable.shape), kinds[variable.path]
        scale = np.float32(num_additions**-0.5 if variable.path in branches else 1)
        if len(shape) >= 2:
            count = int(np.prod(shape))
            raw = cast(np.ndarray, stream.random_raw((count + 1) // 2)).view(np.uint32)[:count]
            uniform = (raw >> np.uint32(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
            is_inner = variable.name == "depthwise_kernel"
            fan_in = int(np.prod(shape[:2] if is_inner or kind == "DepthwiseConv2D" else shape[:-1]))
            size = np.float32(np.sqrt((3 if is_inner else 6) / fan_in))
            values.append((uniform * size).reshape(shape) * scale)
        elif variable.name in ("gamma", "moving_variance", "variance") or kind == "LayerScale":
            values.append(np.full(shape, scale, np.float32))
        else:
            values.append(np.zeros(shape, np.float32))
    set_weights(network, values)


def _branch_ends(network: Any) -> tuple[set[str], int]:
    """Paths of the gammas or kernels that give the younger part of an addition, and how many additions there are."""
    producers = {id(layer.output): layer for layer in network.layers}
    order = {layer.name: number for number, layer in enumerate(network.layers)}
    additions = [layer for layer in network.layers if type(layer).__name__ == "Add"]
    ends = set()
    for addition in additions:
        end = max((producers[id(tensor)] for tensor in addition.input), key=lambda layer: order[layer.name])
        while type(end).__name__ in ("Dropout", "MaxPooling2D"):
            end = producers[id(end.input)]
        ends |= {weight.path for weight in end.weights if weight.name in ("gamma", "kernel")}
    return ends, len(additions)


def sha256_weights(network: Any) -> str:
    """Of every weight's path, shape and float32 values, in the network's order."""
    digest = hashlib.sha256()
    for variable, value in zip(network.weights, network.get_weights(), strict=True):
        # Keras numbers repeated names ("vgg16_1/..."): only the part inside the layer is the network's own.
        name = "/".join(variable.path.split("/")[-2:])
        digest.update(f"{name} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value, np.float32).data)
    return digest.hexdigest()
