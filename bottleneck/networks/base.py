"""The frozen network: one compiled function from uint8 pixels to features.

Legend: N images of a batch, H x W pixels (the base's input size), C channels, D features of a layer.

Keras is imported inside the functions, on the backend KERAS_BACKEND names (tensorflow where it names none).
"""

import numpy as np

from bottleneck.errors import FeaturesError, FingerprintError
from bottleneck.networks.build import to_bfloat16
from bottleneck.networks.compiled import compile_model, feature_model
from bottleneck.networks.device import count_gpus, device_name
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.layers import check_layers
from bottleneck.networks.resolve import load_feature_model
from bottleneck.networks.weights import check_weights
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision

CPU_BATCH_SIZE = 32
"""VGG16's largest activations are 0.4 GB (bfloat16: 0.2 GB) at 32; larger batches are no faster on a CPU."""
GPU_BATCH_SIZE = 256
NUM_BATCHES = 8
"""Batches per shard from which on padding the last one costs little."""


def fitting_batch_size(most: int, shard_size: int | None) -> int:
    """The batch size with the least padding: shards are divided evenly.

    Args:
        most: images of a batch that a network's device takes well.
        shard_size: of the plan; None where it is not known.
    """
    if shard_size is None or shard_size >= NUM_BATCHES * most:
        return most
    return -(-shard_size // -(-shard_size // most))


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
            WeightsError: if the weights are not available.
        """
        self._build(spec.request, spec.precision, batch_size, num_threads)
        self.check(spec)

    @classmethod
    def of(
        cls, request: FeatureRequest, precision: Precision, batch_size: int, num_threads: int | None = None
    ) -> "Base":
        """Build the network of a request; `spec` is the resolved spec."""
        base = cls.__new__(cls)
        base._build(request, precision, batch_size, num_threads)
        return base

    def check(self, spec: FeatureSpec) -> None:
        """Raise FingerprintError unless this base computes the features of a plan."""
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
        network, model, self.spec = load_feature_model(request, precision)
        if precision == "bfloat16" and keras.backend.backend() != "openvino":  # which lowers the precision itself
            model = feature_model(to_bfloat16(network), request.base, self.spec.layers)
        self.batch_size = batch_size
        self._forward = compile_model(model, batch_size, precision, num_threads)
        self.device = device_name(keras)

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


if __name__ == "__main__":  # a machine is asked what Keras finds on it
    print(import_keras().backend.backend(), count_gpus())  # noqa: T201  # the answer
