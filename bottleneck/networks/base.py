"""The frozen network: resolved from a request, and one compiled function from uint8 pixels to features.

Legend: N images of a batch, H x W pixels (the base's input size), C channels, D features of a layer.

Keras is imported inside the functions, on the backend KERAS_BACKEND names (tensorflow where it names none).
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bottleneck.catalog import find_network
from bottleneck.child import ChildDiedError, answer, ask
from bottleneck.errors import FeaturesError, FingerprintError, UsageError, WeightsError
from bottleneck.networks.build import import_keras, preprocess, to_bfloat16
from bottleneck.networks.layers import check_layers
from bottleneck.networks.weights import check_weights, load_network, sha256_weights
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision, canonical_layer, split_layer

CORES_PER_ACTOR = 8
"""A network on a CPU scales to about this many cores; more cores get more networks."""
CPU_BATCH_SIZE = 32
"""VGG16's largest activations are 0.4 GB (bfloat16: 0.2 GB) at 32; larger batches are no faster on a CPU."""
GPU_BATCH_SIZE = 256
NUM_BATCHES = 8
"""Of a shard, from where on the padding of its last one is little."""


def fitting_batch_size(most: int, shard_size: int | None) -> int:
    """The batch size that pads the shards of a plan least: they are divided evenly.

    Args:
        most: images of a batch that a network's device takes well.
        shard_size: of the plan; None where it is not known.
    """
    if shard_size is None or shard_size >= NUM_BATCHES * most:
        return most
    return -(-shard_size // -(-shard_size // most))


def requested_layers(request: FeatureRequest) -> tuple[str, ...]:
    """The full names of the layers a request asks for; the base's default layer where it names none."""
    network, _ = find_network(request.base)
    return tuple(canonical_layer(layer) for layer in request.layers) or (network.default_layer,)


def resolve(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """Load what a request names and return its spec. Imports Keras and takes seconds; `resolve_apart` keeps that away.

    Args:
        request: What the user asked for.
        precision: The concrete one, from `choose_precision`.

    Raises:
        UsageError: for an unknown base or layer, or a pooling that does not fit the layer.
        WeightsError: for weights that cannot be had or do not fit.
    """
    return _load(request, precision)[2]


def resolve_apart(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """`resolve` in a process of its own, so that the caller stays free of Keras' memory and start-up."""
    find_network(request.base)
    try:
        return FeatureSpec.from_json(ask(_resolve, {"request": asdict(request), "precision": precision}))
    except ChildDiedError:
        raise WeightsError(
            f"The process that loaded {request.base} with weights {request.weights} died: the file is damaged, or the "
            "memory is too small for this network."
        ) from None


def _resolve(pipe: Connection) -> None:
    def resolved(asked: dict[str, Any]) -> dict[str, Any]:
        request = asked["request"]
        return resolve(FeatureRequest(**{**request, "layers": tuple(request["layers"])}), asked["precision"]).to_json()

    answer(pipe, resolved)


def choose_precision(request: FeatureRequest, has_bfloat16: Callable[[], bool]) -> Precision:
    """The precision a plan records: the requested one, or for `auto` the fastest that is safe for the base.

    Args:
        has_bfloat16: asks a worker like those that will run; only called where the answer matters.
    """
    if request.precision != "auto":
        return request.precision
    return "bfloat16" if find_network(request.base)[0].bfloat16_is_safe and has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this machine has bfloat16 in hardware: a GPU from Ampere up, else a CPU with AMX or AVX512-BF16."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],  # noqa: S607  # where it is differs from system to system
            capture_output=True,
            text=True,
            timeout=10,
        )
        if found.returncode == 0 and found.stdout.strip():
            return min(float(line) for line in found.stdout.split()) >= 8.0
    except (OSError, ValueError, subprocess.TimeoutExpired):
        pass
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags


class Base:
    """A frozen network, compiled for one batch shape."""

    spec: FeatureSpec
    batch_size: int
    device: str
    """Backend and device, for the footers."""

    def __init__(self, spec: FeatureSpec, batch_size: int, num_threads: int | None = None) -> None:
        """Build the network, load its weights and compile it.

        Args:
            spec: What to compute; the weights found must have its sha256.
            batch_size: Images per call of the compiled function; a smaller last batch is padded.
            num_threads: CPU threads of the network (TensorFlow, torch and OpenVINO). Default: one a core.

        Raises:
            FingerprintError: if the weights are not the planned ones.
            WeightsError: if they cannot be had.
        """
        self._build(spec.request, spec.precision, batch_size, num_threads)
        self.check(spec)

    @classmethod
    def of(
        cls, request: FeatureRequest, precision: Precision, batch_size: int, num_threads: int | None = None
    ) -> "Base":
        """Build what a request names; `spec` says what that is."""
        base = cls.__new__(cls)
        base._build(request, precision, batch_size, num_threads)
        return base

    def check(self, spec: FeatureSpec) -> None:
        """Raise FingerprintError unless this base computes what a plan says."""
        if self.spec.fingerprint != spec.fingerprint:
            mine, planned = self.spec.to_json(), spec.to_json()
            differing = "; ".join(
                f"{name}: planned {planned[name]}, found {mine[name]}"
                for name in mine
                if mine[name] != planned[name] and name != "weights"
            )
            raise FingerprintError(
                f"The network is not the planned one. Differing: {differing}. Bring the old weights back, or give "
                "another output."
            )

    def _build(self, request: FeatureRequest, precision: Precision, batch_size: int, num_threads: int | None) -> None:
        check_weights(request.weights)  # before the seconds that Keras takes to start
        check_layers(request.base, request.layers)
        keras = import_keras(num_threads)
        network, model, self.spec = _load(request, precision)
        if precision == "bfloat16" and keras.backend.backend() != "openvino":  # which lowers the precision itself
            model = _feature_model(to_bfloat16(network), request.base, self.spec.layers)
        self.batch_size = batch_size
        self._forward = _compile(model, batch_size, precision, num_threads)
        self.device = _device(keras)

    def __call__(self, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        """Extract features.

        Args:
            pixels_NHWC: uint8 RGB in [0, 255], any N.

        Returns:
            One array [N, D] for each layer of the spec, in its stored dtype.

        Raises:
            FeaturesError: if a value is NaN, or too large for the stored dtype.
        """
        batches = [
            self._batch(pixels_NHWC[i : i + self.batch_size]) for i in range(0, len(pixels_NHWC), self.batch_size)
        ]
        features = []
        for layer, dim, *parts in zip(self.spec.layers, self.spec.dims, *batches, strict=True):
            with np.errstate(over="ignore"):
                features_ND = np.concatenate([np.empty((0, dim), np.float32), *parts]).astype(self.spec.dtype)
            if not np.isfinite(features_ND).all():
                raise FeaturesError(
                    f"Layer {layer} of {self.spec.base} gave NaN, or values too large for {self.spec.dtype}. Look at "
                    "the weights; where they are right, `dtype` float32 (and `precision` float32) hold more."
                )
            features.append(features_ND)
        return features

    def _batch(self, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        num_images = len(pixels_NHWC)
        if num_images < self.batch_size:
            padding = np.zeros((self.batch_size - num_images, *pixels_NHWC.shape[1:]), np.uint8)
            pixels_NHWC = np.concatenate([pixels_NHWC, padding])
        return [features_ND[:num_images] for features_ND in self._forward(pixels_NHWC)]


def _load(request: FeatureRequest, precision: Precision) -> tuple[Any, Any, FeatureSpec]:
    """The network with its weights, the model that takes its features (both float32), and what they are."""
    layers = requested_layers(request)
    network = load_network(request.base, request.weights, layers)
    model = _feature_model(network, request.base, layers)
    spec = FeatureSpec(
        base=request.base,
        weights=request.weights,
        weights_sha256=sha256_weights(network),
        layers=layers,
        dims=tuple(int(output.shape[-1]) for output in model.outputs),
        image_size_px=find_network(request.base)[0].image_size_px,
        resize=request.resize,
        interpolation=request.interpolation,
        exif=request.exif,
        decode=request.decode,
        precision=precision,
        dtype=request.dtype,
    )
    return network, model, spec


def _feature_model(network: Any, base: str, layers: tuple[str, ...]) -> Any:
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


def _compile(model: Any, batch_size: int, precision: Precision, num_threads: int | None) -> Any:
    """One compiled function of a fixed batch shape, from a NumPy array to a list of NumPy arrays."""
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


def count_gpus() -> int:
    """GPUs that Keras' backend has on this machine. Imports Keras."""
    keras = import_keras()
    if keras.backend.backend() == "torch":
        import torch

        return int(torch.cuda.device_count())
    if keras.backend.backend() == "openvino":
        return 0
    return sum("gpu" in name or "cuda" in name for name in keras.distribution.list_devices())


def _device(keras: Any) -> str:
    """What the network runs on, for the footer: backend and device."""
    backend: str = keras.backend.backend()
    if backend == "torch":  # for which Keras lists no devices
        import torch

        return f"torch {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}"
    if backend == "openvino":
        return "openvino cpu"
    return f"{backend} {keras.distribution.list_devices()[0]}"


if __name__ == "__main__":  # a machine is asked what Keras finds on it
    print(import_keras().backend.backend(), count_gpus())  # noqa: T201  # the answer
