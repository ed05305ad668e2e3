"""What a feature is: the request, the spec it resolves to, and the spec's fingerprint.

`FeatureRequest` and `Limits` are the options of a plan (the command line is derived from them); `FeatureSpec` is what a
plan records. Whatever changes a feature's value is in the spec, whatever changes only speed is in `RunOptions`.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from bottleneck.catalog import ONNX_BASE, base_named, find_network
from bottleneck.choices import check_choices
from bottleneck.errors import UsageError
from bottleneck.pixels import Pixels, PixelsRequest

Pooling = Literal["avg", "max", "none"]
Precision = Literal["float32", "bfloat16", "int8"]
Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Exif = Literal["apply", "ignore"]
DecodeMode = Literal["exact", "draft"]
Dtype = Literal["float16", "float32"]
Proba = Literal["top", "all"]
RuntimeName = Literal["auto", "keras", "onnxruntime", "ncnn", "openvino"]
"""How a network is executed; not part of a spec, as every runtime gives the same features."""


QUANTIZATION = 1
"""The rule by which networks become int8; counts up where it gives other features."""


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """The features to extract: everything that decides a feature's value."""

    base: str = "vgg16"
    """The frozen network, any of keras.applications: `vgg16`, `inception_v3`, `resnet50`, `mobilenet_v2_0.35`, ...
    `bottleneck describe` lists all. Keras' class names (`VGG16`, `ResNet50V2`) work, too. `onnx` is the network of an
    ONNX file."""
    weights: str = "imagenet"
    """`imagenet` (Keras' cache or download), a file or URI of Keras weights (.h5), or `random:SEED`. For base `onnx`
    the file or URI of the network (.onnx)."""
    layers: tuple[str, ...] = ()
    """Layers to take features from, as LAYER:POOLING with pooling avg, max or none (the default). Several layers are
    computed in one pass. Default: the last layer before the top, averaged, as `block5_pool:avg`."""
    resize: Resize = "squash"
    """`squash` to the input size, as Keras' load_img does, `crop` the centre square first, or `pad` with black."""
    interpolation: Interpolation = "bilinear"
    """Pillow's resampling filter. All are antialiased except `nearest`, the default of Keras' load_img."""
    exif: Exif = "apply"
    """`apply` the EXIF orientation, or `ignore` it, as Keras does."""
    decode: DecodeMode = "exact"
    """`exact` decodes every pixel. `draft` decodes JPEGs at a half, quarter or eighth of their size if that is at least
    the input size: faster, with slightly different features."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Precision of the network. `auto` is bfloat16 if the workers support it in hardware and the base is safe in it,
    else float32. `int8` is faster than float32 on CPUs with VNNI, for networks that stay near it, such as VGG16."""
    dtype: Dtype = "float16"
    """How feature values are stored."""
    input: PixelsRequest = field(default_factory=PixelsRequest)

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "base", base_named(self.base))
        for layer in self.layers:
            split_layer(layer)
        self._check_onnx()
        if self.precision == "int8" and self.base in ("stub", ONNX_BASE):
            raise UsageError(
                f"`precision` int8 is for networks of the catalog. Received: base {self.base}. Leave `precision` out."
            )
        names = [canonical_layer(layer) for layer in self.layers]
        if len(set(names)) < len(names):
            raise UsageError(f"`layers` names a layer twice. Received: {' '.join(self.layers)}. Name each one once.")
        seed = self.weights.removeprefix("random:")
        path = os.path.abspath(os.path.expanduser(self.weights))
        if os.path.isfile(path):  # recorded by its whole path, so that it is found again from any folder
            object.__setattr__(self, "weights", path)
        if self.weights.startswith("random:") and not (seed.isascii() and seed.isdigit()):
            raise UsageError(
                f"`weights` random:SEED needs a whole number as its seed. Received: {self.weights}. Try random:0."
            )

    def _check_onnx(self) -> None:
        is_onnx = self.weights.endswith(".onnx")
        if (self.base == ONNX_BASE) != is_onnx:
            raise UsageError(
                f"`base` {ONNX_BASE} goes with `weights` FILE.onnx, and no other base does. Received: base "
                f"{self.base}, weights {self.weights}."
            )
        if self.input.has_values and not is_onnx:
            raise UsageError(
                f"`pixels` and what belongs to it describe the network of an ONNX file. Received: base {self.base}, "
                "which knows how it takes pixels: leave them out."
            )

    def resolved(
        self,
        precision: Precision,
        *,
        weights_sha256: str,
        layers: tuple[str, ...],
        dims: tuple[int, ...],
        image_size_px: int,
        pixels: Pixels | None = None,
    ) -> "FeatureSpec":
        """The spec of this request on a network of which the rest is known."""
        return FeatureSpec(
            base=self.base,
            weights=self.weights,
            weights_sha256=weights_sha256,
            layers=layers,
            dims=dims,
            image_size_px=image_size_px,
            resize=self.resize,
            interpolation=self.interpolation,
            exif=self.exif,
            decode=self.decode,
            precision=precision,
            dtype=self.dtype,
            pixels=pixels,
            quantization=QUANTIZATION if precision == "int8" else None,
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `dataclasses.asdict` wrote."""
        asked = {**value["input"], "mean": tuple(value["input"]["mean"]), "std": tuple(value["input"]["std"])}
        return cls(**{**value, "layers": tuple(value["layers"]), "input": PixelsRequest(**asked)})


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What the features of one output are, fully resolved. Made by `networks.resolve`."""

    base: str
    weights: str
    """What the user asked for; the fingerprint contains the sha256 instead."""
    weights_sha256: str
    """Of the weight arrays (names, shapes, float32 values), so the file they came in does not matter."""
    layers: tuple[str, ...]
    dims: tuple[int, ...]
    """D of each layer, after pooling."""
    image_size_px: int
    resize: Resize
    interpolation: Interpolation
    exif: Exif
    decode: DecodeMode
    precision: Precision
    dtype: Dtype
    pixels: Pixels | None = None
    """How the network of an ONNX file takes pixels; None for a base of the catalog, which knows."""
    quantization: int | None = None
    """The rule by which the network became int8; None in another precision."""

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of every field that changes a feature's value; 64 hex digits."""
        return sha256_json({key: value for key, value in self.to_json().items() if key != "weights"})

    @property
    def request(self) -> FeatureRequest:
        """The request that resolves to this spec."""
        shared = {one.name for one in fields(FeatureRequest)}
        size = None if find_network(self.base)[0].image_size_px == self.image_size_px else self.image_size_px
        asked = PixelsRequest(**(vars(self.pixels) if self.pixels else {}), image_size=size)
        return FeatureRequest(**{name: value for name, value in vars(self).items() if name in shared}, input=asked)

    @property
    def short_fingerprint(self) -> str:
        """The first eight digits of the fingerprint, as used in file names."""
        return self.fingerprint[:8]

    def differences(self, other: Self, own_name: str, other_name: str) -> list[str]:
        """The fields that change a feature's value and differ, each as `name: own_name value, other_name value`."""
        ours, others = self.to_json(), other.to_json()
        return [
            f"{name}: {own_name} {ours.get(name)}, {other_name} {others.get(name)}"
            for name in {**ours, **others}
            if ours.get(name) != others.get(name) and name != "weights"
        ]

    def dim_of(self, layer: str) -> int:
        """D of a layer, given by its full name, or of several side by side."""
        return sum(self.dims[self.layers.index(one)] for one in layers_in(layer))

    def described(self) -> dict[str, Any]:
        """What plans and footers record about these features."""
        return {"spec": self.to_json()}

    def to_json(self) -> dict[str, Any]:
        value = {**vars(self), "layers": list(self.layers), "dims": list(self.dims)}
        pixels = value.pop("pixels")
        if value["quantization"] is None:  # no part of the fingerprints of other precisions
            del value["quantization"]
        return value if pixels is None else {**value, "pixels": pixels.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        optional = {"pixels", "quantization"}
        known = {one.name for one in fields(cls)} - optional
        if set(value) - optional != known:
            odd = ", ".join(sorted((set(value) - optional) ^ known))
            raise UsageError(f"This output's feature spec was written by another version of bottleneck: fields {odd}.")
        kinds = dict.fromkeys(known, str) | {"layers": list, "dims": list, "image_size_px": int}
        for name, kind in kinds.items():
            if type(value[name]) is not kind:
                raise TypeError(f"{name} is {type(value[name]).__name__}, expected {kind.__name__}")
        pixels = Pixels.from_json(value["pixels"]) if "pixels" in value else None
        return cls(**{**value, "layers": tuple(value["layers"]), "dims": tuple(value["dims"]), "pixels": pixels})


@dataclass(frozen=True, kw_only=True)
class PredictionSpec:
    """What the predictions of one output are: one head, on one kind of features."""

    features: FeatureSpec
    head: str
    """Where the head was; the fingerprint contains the sha256 instead."""
    head_sha256: str
    top: int
    """Classes per row, the most probable first."""
    made_of: Literal["images", "features"]
    """What the source holds; it does not change predictions, so it is not in the fingerprint."""
    proba: Proba = "top"
    """`all` adds the column `probabilities`, with that of every class."""
    classes: tuple[str, ...] = ()
    """With `all` the head's classes, in the order of that column; the head's sha256 stands for them."""
    multi_label: bool = False
    """Whether `predicted` is a set of classes, as the head has it."""

    def __post_init__(self) -> None:
        check_choices(self)
        if (self.proba == "all") != bool(self.classes):
            raise TypeError(f"proba is {self.proba}, with {len(self.classes)} classes")
        if self.top < 1:
            raise UsageError(f"`top` takes a number of classes from 1 up. Received: {self.top}.")

    @property
    def fingerprint(self) -> str:
        """sha256 of all that changes a prediction; 64 hex digits."""
        decides = {"features": self.features.fingerprint, "head_sha256": self.head_sha256, "top": self.top}
        return sha256_json(decides if self.proba == "top" else {**decides, "proba": self.proba})

    @property
    def short_fingerprint(self) -> str:
        return self.fingerprint[:8]

    def described(self) -> dict[str, Any]:
        """What plans and footers record about these predictions."""
        return {"spec": self.features.to_json(), "predictions": self.to_json()}

    def to_json(self) -> dict[str, Any]:
        left_out = {"features", "classes"} if self.multi_label else {"features", "classes", "multi_label"}
        value = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**value, "classes": list(self.classes)} if self.classes else value

    @classmethod
    def from_json(cls, features: FeatureSpec, value: dict[str, Any]) -> Self:
        return cls(features=features, **{**value, "classes": tuple(value.get("classes", ()))})


OutputSpec = FeatureSpec | PredictionSpec
"""What the rows of an output contain besides the outcome of each image."""


def split_layer(layer: str) -> tuple[str, Pooling]:
    """`block5_pool:avg` -> (`block5_pool`, `avg`); without a pooling `none`. Raises UsageError for another pooling."""
    name, colon, pooling = layer.rpartition(":")
    if not colon or pooling.isdigit():  # TensorFlow's names of tensors end in `:0`
        return layer, "none"
    if pooling not in ("avg", "max", "none") or not name:
        raise UsageError(f"`layers` takes LAYER:POOLING with pooling avg, max or none. Received: {layer}.")
    return name, pooling  # type: ignore[return-value]


def canonical_layer(layer: str) -> str:
    """A layer's full name, which is also its column in the data files: `fc2` -> `fc2:none`."""
    return ":".join(split_layer(layer))


BESIDE = " + "
"""Between layers whose features are taken side by side."""


def layers_in(layer: str) -> list[str]:
    """The layers that are taken side by side, in order; one, as a rule."""
    return layer.split(BESIDE)


def sha256_json(value: Any) -> str:
    """sha256 of the canonical JSON of a value: keys sorted, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
