"""Prepare a network: from the cache, or with Keras in a process of its own.

The process that asks stays free of Keras: the second time, a network is ready in a fraction of a second.
"""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bottleneck.catalog import ONNX_BASE, find_network
from bottleneck.child import ChildDiedError, answer, ask
from bottleneck.errors import WeightsError
from bottleneck.networks.cache import cache_folder, load_network, store_network
from bottleneck.networks.layers import check_layers
from bottleneck.networks.onnx_features import prepare_onnx
from bottleneck.networks.onnx_file import sha256_onnx
from bottleneck.networks.prepared import MAX_DIFFERENCE, PreparedNetwork, differences, reference_pixels
from bottleneck.networks.quantize import check_int8, quantize_network
from bottleneck.networks.resolve import load_feature_model, requested_layers, wants_keras
from bottleneck.networks.runtimes.onnx_runtime import start
from bottleneck.networks.weights import check_weights, is_file, local_copy
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision, sha256_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Of prepared networks; counts up where an older one must not be used."""
PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "tf2onnx", "onnx")
"""Those whose version can change a graph."""


def prepare_network(
    request: FeatureRequest, precision: Precision = "float32", *, with_graph: bool = True
) -> PreparedNetwork:
    """The network of a request, from the cache or built now.

    Args:
        precision: in int8 the graph is quantized; for the others it is in float32, which runtimes lower themselves.
        with_graph: as an ONNX graph, if Keras' backend is TensorFlow. Making it takes 3 to 15 s.

    Raises:
        UsageError: for an unknown base or layer, a pooling that does not fit the layer, or a network or machine that is
            not fit for int8.
        WeightsError: for weights that are not available or do not fit.
    """
    check_weights(request.weights)
    check_layers(request.base, request.layers)
    if precision == "int8":
        check_int8()
        return quantize_network(prepare_network(request))
    identity = _identity(request)
    for has_graph in (True, False)[: 1 if with_graph else 2]:
        if (network := load_network(network_key(request, identity, has_graph))) is not None:
            return network
    folder = cache_folder()
    with contextlib.ExitStack() as stack:
        if not _is_writable(folder):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bottleneck-network-"))
        try:
            key = ask(
                _prepare, {"request": asdict(request), "identity": identity, "graph": with_graph, "folder": folder}
            )
        except ChildDiedError:
            raise WeightsError(
                f"The process that loaded {request.base} with weights {request.weights} died: the file is damaged, or "
                "the memory is too small for this network."
            ) from None
        network = load_network(key, folder)
    if network is None:
        raise WeightsError(
            f"The prepared network of {request.base} cannot be read back from {folder}. Is the disk full? Free some "
            "space, or set BOTTLENECK_CACHE to another folder."
        )
    return network


def resolve_apart(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """The spec of a request; see `prepare_network`. The graph is made along if `auto` runs one in this precision."""
    with_graph = not wants_keras(request.base, "auto", precision)
    return prepare_network(request, precision, with_graph=with_graph).spec(request, precision)


def network_key(request: FeatureRequest, identity: str, with_graph: bool) -> str:
    """The name of a request's network in the cache."""
    return sha256_json(
        {
            "format": FORMAT,
            "graph": with_graph,
            "base": request.base,
            "weights": identity or _keras_files(request.base),
            "layers": list(requested_layers(request)),
            "versions": {name: _version(name) for name in PACKAGES},
            "input": asdict(request.input),
            "backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
        }
    )


def _identity(request: FeatureRequest) -> str:
    """What the weights are, without Keras; empty for `imagenet`, which is what Keras' files are."""
    if not is_file(request.weights):
        return request.weights if request.weights != "imagenet" else ""
    digest = hashlib.sha256()
    if request.base == ONNX_BASE:
        with local_copy(request.weights) as path:
            return sha256_onnx(path)
    with local_copy(request.weights) as path, open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _keras_files(base: str) -> list[list[Any]]:
    """Name, size and time of the files in Keras' cache that can be this network's: they identify `imagenet`."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    family = re.sub(r"[^a-z0-9]", "", find_network(base)[0].constructor.lower())
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(os.path.join(home, "models")):
            if family in re.sub(r"[^a-z0-9]", "", entry.name.lower()):
                status = entry.stat()
                found.append([entry.name, status.st_size, status.st_mtime_ns])
    return sorted(found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _is_writable(folder: str) -> bool:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _prepare(pipe: Connection) -> None:
    def prepared(asked: dict[str, Any]) -> str:
        request = FeatureRequest.from_json(asked["request"])
        if request.base == ONNX_BASE:
            with local_copy(request.weights) as path:
                found = prepare_onnx(request, path, network_key(request, asked["identity"], asked["graph"]))
            store_network(found, asked["folder"])
            return found.key
        _, model, spec = load_feature_model(request, "float32")
        references = tuple(_features(model, reference_pixels(spec.image_size_px)))
        network = PreparedNetwork(
            key=network_key(
                request, asked["identity"], asked["graph"]
            ),  # once more, as the weights may have been downloaded
            base=spec.base,
            weights_sha256=spec.weights_sha256,
            layers=spec.layers,
            dims=spec.dims,
            image_size_px=spec.image_size_px,
            references=references,
            graph=_graph(model, references) if asked["graph"] else None,
        )
        store_network(network, asked["folder"])
        return network.key

    answer(pipe, prepared)


def _features(model: Any, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
    from keras import ops

    outputs = model(pixels_NHWC, training=False)
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [np.asarray(ops.convert_to_numpy(output), np.float32) for output in outputs]


def _graph(model: Any, references: tuple[np.ndarray, ...]) -> bytes | None:
    """The model as ONNX; None if only Keras gives its features: on another backend, or if the graph gives others."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return None
    from bottleneck.networks.to_onnx import to_onnx

    try:
        graph: bytes = to_onnx(model).SerializeToString()
        found = start(graph, None)(reference_pixels(model.input_shape[1]))
    except MemoryError:
        raise
    except Exception as error:  # of the converter, protobuf (above 2 GB) or ONNX Runtime
        log.warning("no graph, so Keras runs this network: %s: %s", type(error).__name__, error)
        return None
    if not differences(found, references) <= MAX_DIFFERENCE:
        log.warning("its graph gives other features, so Keras runs this network")
        return None
    return graph
