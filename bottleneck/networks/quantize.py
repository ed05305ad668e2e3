"""Quantize a network's graph to int8, calibrated with photos that every installation has.

An int8 feature depends on nothing but weights, layers and code: the ranges of activations come from crops of the two
sample photos of scikit-learn, and are rounded up to a coarse grid, so that the last digits in which machines differ do
not change the graph.

Legend: N crops, S x S pixels of the input.
"""

import logging
import math
import os
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bottleneck.child import ChildDiedError, answer, ask
from bottleneck.errors import UsageError, WeightsError
from bottleneck.networks.cache import load_network, store_network
from bottleneck.networks.device import has_vnni
from bottleneck.networks.prepared import MIN_COSINES, PIXELS, PreparedNetwork, all_cosines
from bottleneck.networks.runtimes import onnx_runtime
from bottleneck.spec import QUANTIZATION, RuntimeName, sha256_json

log = logging.getLogger(__name__)

PHOTOS = ("china.jpg", "flower.jpg")
"""The sample photos, 640 x 427 pixels."""
SCALES = (1.0, 0.7, 0.45)
"""Sides of the crops, to the height of a photo."""
PLACES = (0.0, 0.35, 0.65, 1.0)
"""Where a crop lies along the space it has, from the left and from the bottom."""
STEPS = 16
"""Ranges an octave: rounding up costs 2 % of the resolution on average."""
QUANTIZED = ("Conv", "MaxPool", "Relu")
"""Operators that become int8; preprocessing, pooling into features and dense layers stay float32."""
BATCH_SIZE = 8
RUNTIMES_INT8 = ("onnxruntime", "openvino")


def check_int8(runtime: RuntimeName = "auto") -> None:
    """Raise UsageError unless this machine runs int8 networks, with this runtime."""
    check_int8_runtime(runtime)
    if not has_vnni():
        raise UsageError(
            "`precision` int8 takes a CPU with VNNI (avx512_vnni, avx_vnni or amx_int8 among its flags): on others "
            "products of 8 bits overflow, and it is no faster. Received: a machine without. Give `precision` float32."
        )


def check_int8_runtime(runtime: RuntimeName) -> None:
    """Raise UsageError for a runtime that does not run int8 networks."""
    if runtime not in ("auto", *RUNTIMES_INT8):
        raise UsageError(
            f"`precision` int8 takes `runtime` auto, {' or '.join(RUNTIMES_INT8)}. Received: {runtime}. Leave "
            "`runtime` out."
        )


def quantize_network(network: PreparedNetwork) -> PreparedNetwork:
    """The int8 network of a float32 one, from the cache or quantized now, which takes VGG16 20 to 60 s.

    Its references stay those of float32.

    Raises:
        UsageError: if it has no graph, or its features are too far from float32.
        WeightsError: if the process that quantizes it dies.
    """
    key = quantized_key(network)
    if (cached := load_network(key)) is not None:
        return cached
    if network.graph is None:
        raise UsageError(
            f"There is no graph of {network.base} to quantize: graphs are made on Keras' TensorFlow backend, and only "
            "kept if they give Keras' features. Leave KERAS_BACKEND out, or give `precision` float32."
        )
    with TemporaryDirectory(prefix="bottleneck-quantize-") as folder:
        store_network(network, folder)
        try:
            found = ask(_answer, {"key": network.key, "folder": folder})
        except ChildDiedError:
            raise WeightsError(
                f"The process that quantized {network.base} died: is the memory too small for this network?"
            ) from None
        least, mean, least_allowed = found["least"], found["mean"], MIN_COSINES["int8"]
        told = f"cosine to float32 on {found['num_crops']} crops: {least:.4f} at least, {mean:.4f} on average"
        if not least >= least_allowed:
            raise UsageError(
                f"{network.base} is not offered in int8: {told}. Expected {least_allowed} at least. Give `precision` "
                "float32 or auto."
            )
        log.info("quantized %s to int8; %s", network.base, told)
        with open(os.path.join(folder, "int8.onnx"), "rb") as file:
            quantized = replace(network, key=key, graph=file.read())
    store_network(quantized)
    return quantized


def quantized_key(network: PreparedNetwork) -> str:
    """The name of the int8 network in the cache."""
    return sha256_json({"network": network.key, "quantization": QUANTIZATION})


def calibration_pixels(size_px: int) -> np.ndarray:
    """The crops: uint8 RGB [N, S, S, 3], every second one mirrored."""
    from PIL import Image

    sklearn = find_spec("sklearn")
    assert sklearn is not None
    assert sklearn.origin is not None
    crops = []
    for name in PHOTOS:
        with Image.open(os.path.join(os.path.dirname(sklearn.origin), "datasets", "images", name)) as file:
            photo = file.convert("RGB")
        for scale in SCALES:
            side = round(scale * photo.height)
            for place in PLACES:
                left = round(place * (photo.width - side))
                top = round((1 - place) * (photo.height - side))
                box = (left, top, left + side, top + side)
                crop = np.asarray(photo.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box))
                crops += [crop, crop[:, ::-1]]
    return np.stack(crops)


def rounded_up(value: float) -> float:
    """The next number of the grid away from 0."""
    if value == 0 or not math.isfinite(value):
        return value
    return math.copysign(2.0 ** (math.ceil(math.log2(abs(value)) * STEPS) / STEPS), value)


def _answer(pipe: Connection) -> None:
    def quantized(asked: dict[str, Any]) -> dict[str, Any]:
        network = load_network(asked["key"], asked["folder"])
        if network is None or network.graph is None:
            raise WeightsError("The network to quantize cannot be read back. Is the disk full? Free some space.")
        pixels_NHWC = calibration_pixels(network.image_size_px)
        graph = quantize_graph(network.graph, pixels_NHWC, asked["folder"])
        with open(os.path.join(asked["folder"], "int8.onnx"), "wb") as file:
            file.write(graph)
        cosines = all_cosines(_features(graph, pixels_NHWC), tuple(_features(network.graph, pixels_NHWC)))
        return {"least": float(cosines.min()), "mean": float(cosines.mean()), "num_crops": len(pixels_NHWC)}

    answer(pipe, quantized)


def quantize_graph(graph: bytes, pixels_NHWC: np.ndarray, folder: str) -> bytes:
    """The graph with 8-bit weights and activations: ONNX with QuantizeLinear and DequantizeLinear.

    Args:
        pixels_NHWC: uint8 RGB [N, S, S, 3], to calibrate with.
        folder: for intermediate files.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, create_calibrator, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # it recommends a preprocessing that was done
    source, target = os.path.join(folder, "float32.onnx"), os.path.join(folder, "quantized.onnx")
    with open(source, "wb") as file:
        file.write(graph)
    calibrator = create_calibrator(
        source,
        list(QUANTIZED),
        augmented_model_path=os.path.join(folder, "calibration.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(_reader(pixels_NHWC))
    ranges = {name: one.range_value for name, one in calibrator.compute_data().items()}
    quantize_static(
        source,
        target,
        _reader(pixels_NHWC[:1]),  # its own ranges are overridden
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTIZED),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "TensorQuantOverrides": {
                name: [
                    {
                        "quant_type": QuantType.QUInt8,
                        "rmin": np.float32(rounded_up(min(0.0, float(np.min(lowest))))),
                        "rmax": np.float32(rounded_up(max(0.0, float(np.max(highest))))),
                    }
                ]
                for name, (lowest, highest) in ranges.items()
            }
        },
    )
    with open(target, "rb") as file:
        return file.read()


def _reader(pixels_NHWC: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(pixels_NHWC), BATCH_SIZE)
            self.batches = iter([pixels_NHWC[start : start + BATCH_SIZE] for start in starts])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch_NHWC = next(self.batches, None)
            return None if batch_NHWC is None else {PIXELS: batch_NHWC}

    return Reader()


def _features(graph: bytes, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
    forward = onnx_runtime.start(graph, None)
    parts = [forward(pixels_NHWC[at : at + BATCH_SIZE]) for at in range(0, len(pixels_NHWC), BATCH_SIZE)]
    return [np.concatenate(one) for one in zip(*parts, strict=True)]
