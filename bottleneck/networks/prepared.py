"""A prepared network: what a request resolves to, and the ONNX graph from uint8 pixels to features.

Legend: N images of a batch, R = 2 reference images, S x S pixels of the input, C channels, D features of a layer.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np

from bottleneck.pixels import Pixels
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision

PIXELS, BATCH_AXIS = "pixels", "batch"
"""Names in the graph: its input, uint8 RGB [N, S, S, 3], and the axis N."""
MAX_DIFFERENCE = 1e-4
"""Largest difference of a float32 feature from the reference, relative to the largest value of the layer."""
MIN_COSINES = {"bfloat16": 0.9999, "int8": 0.98}
"""Smallest cosine of features in other precisions to the float32 reference."""

Forward = Callable[[np.ndarray], list[np.ndarray]]
"""uint8 pixels [N, S, S, 3] -> one float32 array [N, D] for each layer."""


@runtime_checkable
class StreamingForward(Protocol):
    """A `Forward` that does more in the same time where it is given batches one after the other."""

    def __call__(self, pixels_NHWC: np.ndarray) -> list[np.ndarray]: ...

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Yield what a call gives for each batch, in order; a batch's arrays come when the next one has begun."""
        ...


@dataclass(frozen=True, eq=False)
class PreparedNetwork:
    """A network as every runtime takes it, prepared once per machine."""

    key: str
    """Name in the cache: the sha256 of what it was made from."""
    base: str
    weights_sha256: str
    layers: tuple[str, ...]
    dims: tuple[int, ...]
    image_size_px: int
    references: tuple[np.ndarray, ...]
    """float32 [R, D] for each layer: the features of `reference_pixels`, which every runtime has to reproduce."""
    graph: bytes | None
    """ONNX, float32, with preprocessing and pooling inside; one output per layer. None if only Keras can run it."""
    pixels: Pixels | None = None
    """How a user's ONNX file takes pixels."""

    def spec(self, request: FeatureRequest, precision: Precision) -> FeatureSpec:
        """What a request resolves to on this network."""
        return request.resolved(
            precision,
            weights_sha256=self.weights_sha256,
            layers=self.layers,
            dims=self.dims,
            image_size_px=self.image_size_px,
            pixels=self.pixels,
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the graph."""
        texts = [base64.b64encode(np.ascontiguousarray(one, "<f4").tobytes()).decode() for one in self.references]
        return {
            **{name: value for name, value in vars(self).items() if name not in ("graph", "references")},
            "pixels": self.pixels and self.pixels.to_json(),
            "layers": list(self.layers),
            "dims": list(self.dims),
            "references": texts,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], graph: bytes | None) -> Self:
        arrays = [
            np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, dim)
            for text, dim in zip(value["references"], value["dims"], strict=True)
        ]
        pixels = value["pixels"] and Pixels.from_json(value["pixels"])
        tuples = {"layers": tuple(value["layers"]), "dims": tuple(value["dims"]), "references": tuple(arrays)}
        return cls(**{**value, **tuples, "graph": graph, "pixels": pixels})


def reference_pixels(size_px: int) -> np.ndarray:
    """The images on which runtimes are compared: uint8 [R, S, S, 3], one of coloured blocks, one of noise.

    From PCG64's raw stream, which NumPy keeps stable for good.
    """
    stream = np.random.PCG64(0)

    def random(side_px: int) -> np.ndarray:
        count = side_px * side_px * 3
        raw = cast(np.ndarray, stream.random_raw(count))
        return (raw >> np.uint64(56)).astype(np.uint8).reshape(side_px, side_px, 3)

    num_blocks = 12
    index = np.arange(size_px) * num_blocks // size_px
    return np.stack([random(num_blocks)[index][:, index], random(size_px)])


def differences(found: list[np.ndarray], references: tuple[np.ndarray, ...]) -> float:
    """The largest difference over all layers, each relative to its largest value."""
    largest = 0.0
    for found_RD, expected_RD in zip(found, references, strict=True):
        difference = float(np.abs(found_RD - expected_RD).max())
        largest = max(largest, difference / max(float(np.abs(expected_RD).max()), 1e-30))
    return largest if np.isfinite(largest) else float("inf")


def least_cosine(found: list[np.ndarray], references: tuple[np.ndarray, ...]) -> float:
    """The smallest cosine of an image's features to their reference, over all layers."""
    return min(1.0, float(all_cosines(found, references).min()))


def all_cosines(found: list[np.ndarray], references: tuple[np.ndarray, ...]) -> np.ndarray:
    """The cosines of every image's features to their reference, layer after layer."""
    cosines = []
    for found_RD, expected_RD in zip(found, references, strict=True):
        norms = np.linalg.norm(found_RD, axis=1) * np.linalg.norm(expected_RD, axis=1)
        cosines.append(np.where(norms > 0, (found_RD * expected_RD).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0))
    return np.concatenate(cosines)
