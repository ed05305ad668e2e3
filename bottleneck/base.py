"""The frozen network: one table of bases, its weights by fingerprint, and one compiled function from uint8 to features.

Legend: N images of a batch, H x W pixels (the base's input size), C channels, D features of a layer.

Keras is imported inside the functions, on the backend KERAS_BACKEND names (tensorflow where it names none).
"""

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

import numpy as np

from bottleneck.errors import FeaturesError, FingerprintError, UsageError, WeightsError
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision, canonical_layer, split_layer


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
    names = [
        name for family, row in NETWORKS.items() for name in ([f"{family}_{w}" for w in row.widths] or [family])
    ]
    raise UsageError(f"Unknown base. Expected one of {_nearest_first(base, names)}. Received: {base}.")


def requested_layers(request: FeatureRequest) -> tuple[str, ...]:
    """The full names of the layers a request asks for; the base's default layer, averaged, where it names none."""
    network, _ = find_network(request.base)
    return tuple(canonical_layer(layer) for layer in request.layers) or (f"{network.default_layer}:avg",)


def resolve(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """Load what a request names and return its spec. Imports Keras and takes seconds; `resolve_apart` keeps that away.

    Args:
        request: What the user asked for.
        precision: The concrete one, from `choose_precision`.

    Raises:
        UsageError: for an unknown base or layer, or a pooling that does not fit the layer.
        WeightsError: for weights that cannot be had or do not fit.
    """
    layers = requested_layers(request)
    network = _load_network(request.base, request.weights, layers)
    model = _feature_model(network, request.base, layers)
    return FeatureSpec(
        base=request.base,
        weights=request.weights,
        weights_sha256=_sha256_weights(network),
        layers=layers,
        dims=tuple(int(shape[-1]) for shape in _output_shapes(model)),
        image_size_px=find_network(request.base)[0].image_size_px,
        resize=request.resize,
        interpolation=request.interpolation,
        exif=request.exif,
        precision=precision,
        dtype=request.dtype,
    )


def resolve_apart(request: FeatureRequest, precision: Precision) -> FeatureSpec:
    """`resolve` in a process of its own, so that the caller stays free of Keras' memory and start-up."""
    find_network(request.base)
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Keras reports a download on stdout, which belongs to a job's result: in that process it is stderr.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.dup2, (2, 1)) as pool:
        try:
            return pool.submit(resolve, request, precision).result()
        except BrokenProcessPool:
            raise WeightsError(
                f"The process that loaded {request.base} with weights {request.weights} died: the file is damaged, "
                "or the memory is too small for this network."
            ) from None


def choose_precision(request: FeatureRequest, *, has_bfloat16: bool) -> Precision:
    """The precision a plan records: the requested one, or for `auto` the fastest that is safe for the base."""
    if request.precision != "auto":
        return request.precision
    return "bfloat16" if has_bfloat16 and find_network(request.base)[0].bfloat16_is_safe else "float32"


def has_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware: a GPU from Ampere up, else a CPU with AMX or AVX512-BF16."""
    try:
        found = subprocess.run(  # noqa: S603
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],  # noqa: S607
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

    def __init__(self, spec: FeatureSpec, batch_size: int, num_threads: int | None = None) -> None:
        """Build the network, load its weights and compile it.

        Args:
            spec: What to compute; the weights found must have its sha256.
            batch_size: Images per call of the compiled function; a smaller last batch is padded.
            num_threads: CPU threads of the network (TensorFlow and torch). Default: one a core.

        Raises:
            FingerprintError: if the weights are not the planned ones.
            WeightsError: if they cannot be had.
        """
        self.spec = spec
        self.batch_size = batch_size
        keras = _keras(num_threads)
        network = _load_network(spec.base, spec.weights, spec.layers)
        found = _sha256_weights(network)
        if found != spec.weights_sha256:
            raise FingerprintError(
                f"weights_sha256 differs: the plan was made with {spec.weights_sha256}, and the weights "
                f"{spec.weights} have {found} now. Bring the old weights back, or give another output."
            )
        if spec.precision == "bfloat16":
            values = network.get_weights()
            network = _build_network(spec.base, _has_top(network, spec.base), dtype="bfloat16")
            network.set_weights(values)
        self._forward = _compile(_feature_model(network, spec.base, spec.layers), batch_size)
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
        batches = [self._batch(pixels_NHWC[i : i + self.batch_size]) for i in range(0, len(pixels_NHWC), self.batch_size)]
        features = []
        for layer, dim, *parts in zip(self.spec.layers, self.spec.dims, *batches, strict=True):
            with np.errstate(over="ignore"):
                features_ND = np.concatenate([np.empty((0, dim), np.float32), *parts]).astype(self.spec.dtype)
            if not np.isfinite(features_ND).all():
                raise FeaturesError(
                    f"Layer {layer} of {self.spec.base} gave NaN, or values too large for {self.spec.dtype}. Look at "
                    "the weights; where they are right, --dtype float32 (and --precision float32) hold more."
                )
            features.append(features_ND)
        return features

    def _batch(self, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        num_images = len(pixels_NHWC)
        if num_images < self.batch_size:
            padding = np.zeros((self.batch_size - num_images, *pixels_NHWC.shape[1:]), np.uint8)
            pixels_NHWC = np.concatenate([pixels_NHWC, padding])
        return [features_ND[:num_images] for features_ND in self._forward(pixels_NHWC)]


def _keras(num_threads: int | None = None) -> Any:
    """Import Keras, quietly, and set its backend's threads; later calls find both done."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    backend = os.environ["KERAS_BACKEND"]
    try:
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


def _build_network(base: str, with_top: bool, dtype: str = "float32") -> Any:
    """The network in code, with Keras' own initial weights (which are always replaced)."""
    keras = _keras()
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


def _load_network(base: str, weights: str, layers: tuple[str, ...]) -> Any:
    """The network with its weights in float32, with its top only where a layer or the weights' file needs it."""
    names = [split_layer(layer)[0] for layer in layers]
    network = _build_network(base, with_top=False)
    body = _layer_names(network)
    needs_top = not set(names) <= set(body)
    if needs_top:
        network = _build_network(base, with_top=True)
        for name in names:
            if name not in _layer_names(network):
                raise UsageError(
                    f"{base} has no layer of this name. Expected one of {_nearest_first(name, _layer_names(network))}. "
                    f"Received: {name}."
                )
    if weights.startswith("random:"):
        _set_random(network, int(weights.removeprefix("random:")))
        return network
    if weights == "imagenet":
        return _load_imagenet(base, needs_top)
    with _local_copy(weights) as path:
        whole = needs_top or _file_has_top(path, network)
        loaded = _build_network(base, with_top=True) if whole and not needs_top else network
        _load_file(loaded, base, weights, path, needs_top)
    if loaded is not network:  # the top is dropped, so that files with and without it give one fingerprint
        for layer in network.layers:
            layer.set_weights(loaded.get_layer(layer.name).get_weights())
    return network


def _load_imagenet(base: str, with_top: bool) -> Any:
    keras = _keras()
    network, width = find_network(base)
    size = network.image_size_px
    arguments: dict[str, Any] = {"include_top": with_top, "input_shape": (size, size, 3)}
    if width is not None:
        arguments["alpha"] = width
    try:
        return getattr(getattr(keras.applications, network.module), network.constructor)(
            weights="imagenet", **arguments
        )
    except Exception as error:  # Keras raises a bare Exception where the download fails
        raise WeightsError(
            f"The ImageNet weights of {base} are not in Keras' cache (~/.keras/models) and cannot be downloaded: "
            f"{error}. Put Keras' file there, or give --weights FILE; --weights random:0 tries the job without them."
        ) from error


def _load_file(network: Any, base: str, weights: str, path: str, needs_top: bool) -> None:
    try:
        network.load_weights(path)
    except Exception as error:
        top = "with" if needs_top else "with or without"
        raise WeightsError(
            f"These weights do not fit {base} {top} its top. Expected a Keras weights file (.h5 or .weights.h5) of "
            f"this network. Received: {weights}: {error}."
        ) from error


class _local_copy:
    """The path of a weights file; one from a store is copied to a temporary file first."""

    def __init__(self, weights: str) -> None:
        self.weights = weights
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> str:
        suffix = ".weights.h5" if self.weights.endswith(".weights.h5") else ".h5"
        if "://" not in self.weights:
            path = os.path.abspath(os.path.expanduser(self.weights))
            if not os.path.isfile(path):
                raise WeightsError(
                    f"No such weights. Expected imagenet, random:SEED, or a file or URI. Received: {self.weights}."
                )
            if not path.endswith(".h5"):
                raise WeightsError(f"Expected a Keras weights file ending in .h5. Received: {self.weights}.")
            return path
        from bottleneck.store import ObjectGoneError, Wanted, open_store

        prefix, _, name = self.weights.rpartition("/")
        try:
            data = open_store(prefix).get(Wanted(name, 0, ""))
        except ObjectGoneError:
            raise WeightsError(f"No such weights. Expected an object. Received: {self.weights}.") from None
        self.folder = tempfile.TemporaryDirectory(prefix="bottleneck-weights-")
        path = os.path.join(self.folder.name, "network" + suffix)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            self.folder.cleanup()


def _file_has_top(path: str, body: Any) -> bool:
    """Whether a Keras HDF5 file holds layers with weights that the network without its top lacks."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("model_weights", file)
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs["layer_names"]]
            held = {name for name in names if len(group[name].attrs["weight_names"])}
    except (OSError, KeyError, AttributeError):
        return False  # no HDF5 of this layout: loading it says what is wrong with it
    return not held <= {layer.name for layer in body.layers}


def _has_top(network: Any, base: str) -> bool:
    return bool(network.layers[-1].name != find_network(base)[0].default_layer)


def _set_random(network: Any, seed: int) -> None:
    """Weights by He's rule (uniform, variance 2 / fan-in) from PCG64's raw stream, which NumPy keeps stable for good.

    The same seed gives the same weights on every Keras version, backend and machine.
    """
    stream = np.random.PCG64(seed)
    values = []
    for variable in network.weights:
        shape = tuple(variable.shape)
        if len(shape) >= 2:
            count = int(np.prod(shape))
            raw = cast(np.ndarray, stream.random_raw((count + 1) // 2)).view(np.uint32)[:count]
            uniform = (raw >> np.uint32(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
            fan_in = int(np.prod(shape[:-1])) if "depthwise" not in variable.path else int(np.prod(shape[:2]))
            values.append((uniform * np.float32(np.sqrt(6 / fan_in))).reshape(shape))
        elif variable.name in ("gamma", "moving_variance"):
            values.append(np.ones(shape, np.float32))
        else:
            values.append(np.zeros(shape, np.float32))
    network.set_weights(values)


def _sha256_weights(network: Any) -> str:
    """Of every weight's path, shape and float32 values, in the network's order."""
    digest = hashlib.sha256()
    for variable, value in zip(network.weights, network.get_weights(), strict=True):
        # Keras numbers repeated names ("vgg16_1/..."): only the part inside the layer is the network's own.
        name = "/".join(variable.path.split("/")[-2:])
        digest.update(f"{name} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value, np.float32))
    return digest.hexdigest()


def _layer_names(network: Any) -> list[str]:
    return [layer.name for layer in network.layers[1:]]  # the first is the input


def _nearest_first(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=5, cutoff=0.3)
    return ", ".join(near + [other for other in names if other not in near])


def _feature_model(network: Any, base: str, layers: tuple[str, ...]) -> Any:
    """uint8 [N, H, W, C] -> one float32 [N, D] for each layer; preprocessing happens here and nowhere else."""
    keras = _keras()
    row, _ = find_network(base)
    taken = keras.Model(network.input, [network.get_layer(split_layer(layer)[0]).output for layer in layers])
    pixels = keras.Input((row.image_size_px, row.image_size_px, 3), dtype="uint8")
    scaled = keras.applications.imagenet_utils.preprocess_input(
        keras.ops.cast(pixels, "float32"), data_format="channels_last", mode=row.preprocessing
    )
    outputs = taken(keras.ops.cast(scaled, network.compute_dtype), training=False)
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


def _output_shapes(model: Any) -> list[tuple[int | None, ...]]:
    return [tuple(output.shape) for output in model.outputs]


def _compile(model: Any, batch_size: int) -> Any:
    """One compiled function of a fixed batch shape, from a NumPy array to a list of NumPy arrays."""
    import keras

    backend = keras.backend.backend()
    shape = (batch_size, *model.input_shape[1:])
    if backend == "tensorflow":
        import tensorflow as tf

        # XLA was 8 times slower than TensorFlow's own kernels on CPUs, so the graph stays a graph.
        function = tf.function(
            lambda pixels: model(pixels, training=False), input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False
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

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def forward(pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(np.ascontiguousarray(pixels_NHWC)).to(device), training=False)
            return [output.cpu().numpy() for output in _as_list(outputs)]

    return forward


def _as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _device(keras: Any) -> str:
    """What the network runs on, for the footer: backend and device names."""
    backend = keras.backend.backend()
    devices = keras.distribution.list_devices()
    return f"{backend} {devices[0]}" if devices else backend
