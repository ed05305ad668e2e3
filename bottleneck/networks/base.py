"""The frozen network: one compiled function from uint8 pixels to features.

Legend: N images of a batch, H x W pixels (the base's input size), C channels, D features of a layer.

Keras is imported only where it runs the network, on the backend KERAS_BACKEND names (tensorflow where it names none).
"""

from collections.abc import Iterator
from typing import TypedDict, Unpack

import numpy as np

from bottleneck.choices import check_choice
from bottleneck.console import quiet_start
from bottleneck.errors import FeaturesError, FingerprintError
from bottleneck.networks.device import count_gpus
from bottleneck.networks.keras_import import import_keras
from bottleneck.networks.layers import check_layers
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import PreparedNetwork, StreamingForward
from bottleneck.networks.quantize import check_int8
from bottleneck.networks.resolve import wants_keras
from bottleneck.networks.runtimes import keras_runtime
from bottleneck.networks.runtimes.choose import choose_runtime
from bottleneck.networks.runtimes.table import RUNTIMES
from bottleneck.networks.weights import check_weights
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision, RuntimeName

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


class Execution(TypedDict, total=False):
    """How a network is executed, beside the batch size; none of it changes a feature."""

    num_threads: int | None
    """CPU threads of the network. Default: one a core."""
    runtime: RuntimeName
    """What executes the network; `auto`, the default, is the fastest here."""
    network: PreparedNetwork | None
    """The prepared network, if the caller has it. Default: from the cache, or prepared now."""
    num_images: int
    """How many are to come, to tell whether measuring the runtimes pays."""


class Base:
    """A frozen network, compiled for one batch shape."""

    spec: FeatureSpec
    batch_size: int
    device: str
    """Runtime and device, for the footers."""

    def __init__(self, spec: FeatureSpec, batch_size: int, **execution: Unpack[Execution]) -> None:
        """Prepare the network, choose its runtime and start it.

        Args:
            spec: What to compute; the weights found must have its sha256.
            batch_size: Images per call of the network; a smaller last batch is padded where the runtime needs it.
            execution: `num_threads`, `runtime`, `network` and `num_images`, see `Execution`.

        Raises:
            FingerprintError: if the weights are not the planned ones.
            UsageError: if the runtime is not installed, or does not take this network.
            WeightsError: if the weights are not available.
        """
        self._start(spec.request, spec.precision, batch_size, **execution)
        self.check(spec)

    @classmethod
    def of(
        cls, request: FeatureRequest, precision: Precision, batch_size: int, **execution: Unpack[Execution]
    ) -> "Base":
        """Start the network of a request; `spec` is the resolved spec."""
        base = cls.__new__(cls)
        base._start(request, precision, batch_size, **execution)
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

    def _start(
        self,
        request: FeatureRequest,
        precision: Precision,
        batch_size: int,
        *,
        num_threads: int | None = None,
        runtime: RuntimeName = "auto",
        network: PreparedNetwork | None = None,
        num_images: int = 0,
    ) -> None:
        check_choice("runtime", runtime, RuntimeName)
        check_weights(request.weights)  # before the seconds that Keras takes to start
        check_layers(request.base, request.layers)
        if precision == "int8":
            check_int8(runtime)
        self.batch_size = batch_size
        self.is_fixed = True
        chosen = "keras"
        if not wants_keras(request.base, runtime, precision):
            network = network or prepare_network(request, precision)
            chosen = choose_runtime(runtime, network, precision, num_threads, num_images)
        if chosen == "keras" or network is None or network.graph is None:
            self._forward, self.spec, self.device = keras_runtime.start(request, precision, batch_size, num_threads)
            return
        self.spec, self.device, self.is_fixed = network.spec(request, precision), f"{chosen} cpu", False
        shape = (batch_size, network.image_size_px, network.image_size_px, 3)
        with quiet_start():
            self._forward = RUNTIMES[chosen].start(network.graph, shape, precision, num_threads)

    def __call__(self, pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        """Extract features.

        Args:
            pixels_NHWC: uint8 RGB in [0, 255], any N.

        Returns:
            One array [N, D] for each layer of the spec, in its stored dtype.

        Raises:
            FeaturesError: if a value is NaN, or too large for the stored dtype.
        """
        batches = list(self.stream(pixels_NHWC))
        return [
            np.concatenate([np.empty((0, dim), self.spec.dtype), *parts])
            for dim, *parts in zip(self.spec.dims, *batches, strict=True)
        ]

    def stream(self, pixels_NHWC: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Yield what a call gives for each batch, in order; where copies take time, beside computing the next one.

        Raises:
            FeaturesError: if a value is NaN, or too large for the stored dtype.
        """
        starts = range(0, len(pixels_NHWC), self.batch_size)
        batches = (self._padded(pixels_NHWC[start : start + self.batch_size]) for start in starts)
        forward = self._forward
        outputs = forward.stream(batches) if isinstance(forward, StreamingForward) else map(forward, batches)
        for start, features in zip(starts, outputs, strict=True):
            num_images = min(self.batch_size, len(pixels_NHWC) - start)
            yield [
                self._stored(layer, features_ND[:num_images])
                for layer, features_ND in zip(self.spec.layers, features, strict=True)
            ]

    def _padded(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        missing = self.batch_size - len(pixels_NHWC)
        if not self.is_fixed or not missing:
            return pixels_NHWC
        return np.concatenate([pixels_NHWC, np.zeros((missing, *pixels_NHWC.shape[1:]), np.uint8)])

    def _stored(self, layer: str, features_ND: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            features_ND = features_ND.astype(self.spec.dtype)
        if not np.isfinite(features_ND).all():
            raise FeaturesError(
                f"Layer {layer} of {self.spec.base} gave NaN, or values too large for {self.spec.dtype}. Look at "
                "the weights; where they are right, `dtype` float32 (and `precision` float32) hold more."
            )
        return features_ND


if __name__ == "__main__":  # a machine is asked what Keras finds on it
    print(import_keras().backend.backend(), count_gpus())  # noqa: T201  # the answer
