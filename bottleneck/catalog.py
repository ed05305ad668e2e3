"""The catalog of bases: every network of keras.applications under its name here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from bottleneck.errors import UsageError


@dataclass(frozen=True)
class CatalogEntry:
    """A row of the catalog."""

    constructor: str
    """In keras.applications; that of STUB is in `networks`."""
    preprocessing: Literal["caffe", "tf", "torch", "inside"]
    """Mode of keras.applications' preprocess_input: `caffe` is BGR minus the ImageNet mean, `tf` is [-1, 1], `torch` is
    RGB in [0, 1] minus mean over deviation. With `inside` the network's own first layers do it."""
    image_size_px: int
    """That of Keras' ImageNet weights."""
    default_layer: str
    """LAYER:POOLING of the last layer before the top."""
    top: str = "predictions"
    """The first layer of the top that has weights; layers before it need none of the top's."""
    classifier: str = "predictions"
    """The softmax over ImageNet's classes."""
    heavy_top: bool = False
    """Whether most weights are in the top, so that the body is built without it."""
    bfloat16_is_safe: bool = False
    """Whether bfloat16 features have a cosine of at least 0.9999 to float32 ones, measured on eight photos of flowers.

    Random weights show little of it where there is batch normalisation: MobileNet 0.75 has 0.99999 with them and 0.997
    with ImageNet's (0.987 over more photos), MobileNetV2 0.35 0.99997 and 0.995. So networks with it are not called
    safe, though with random weights most reach 0.9999; VGG, plain convolutions, is: 0.99999."""
    widths: tuple[float, ...] = ()
    """Values of `alpha`, for families that come in widths: those Keras has ImageNet weights of."""


def _convnext(size: str, constructor: str) -> CatalogEntry:
    # Keras' own body normalises the map, or with pooling="avg" the averaged map, as the whole network does.
    prefix = f"convnext_{size}_head"
    return CatalogEntry(
        constructor, "inside", 224, f"{prefix}_layernorm:none", top=f"{prefix}_dense", classifier=f"{prefix}_dense"
    )


NETWORKS = {
    "vgg16": CatalogEntry("VGG16", "caffe", 224, "block5_pool:avg", top="fc1", heavy_top=True, bfloat16_is_safe=True),
    "vgg19": CatalogEntry("VGG19", "caffe", 224, "block5_pool:avg", top="fc1", heavy_top=True, bfloat16_is_safe=True),
    "inception_v3": CatalogEntry("InceptionV3", "tf", 299, "avg_pool:none"),
    "inception_resnet_v2": CatalogEntry("InceptionResNetV2", "tf", 299, "conv_7b_ac:avg"),
    "xception": CatalogEntry("Xception", "tf", 299, "block14_sepconv2_act:avg"),
    "resnet50": CatalogEntry("ResNet50", "caffe", 224, "conv5_block3_out:avg"),
    "resnet101": CatalogEntry("ResNet101", "caffe", 224, "conv5_block3_out:avg"),
    "resnet152": CatalogEntry("ResNet152", "caffe", 224, "conv5_block3_out:avg"),
    "resnet50_v2": CatalogEntry("ResNet50V2", "tf", 224, "post_relu:avg"),
    "resnet101_v2": CatalogEntry("ResNet101V2", "tf", 224, "post_relu:avg"),
    "resnet152_v2": CatalogEntry("ResNet152V2", "tf", 224, "post_relu:avg"),
    "densenet121": CatalogEntry("DenseNet121", "torch", 224, "relu:avg"),
    "densenet169": CatalogEntry("DenseNet169", "torch", 224, "relu:avg"),
    "densenet201": CatalogEntry("DenseNet201", "torch", 224, "relu:avg"),
    "mobilenet": CatalogEntry(
        "MobileNet", "tf", 224, "conv_pw_13_relu:avg", top="conv_preds", widths=(0.25, 0.5, 0.75, 1.0)
    ),
    "mobilenet_v2": CatalogEntry("MobileNetV2", "tf", 224, "out_relu:avg", widths=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4)),
    "mobilenet_v3_small": CatalogEntry(
        "MobileNetV3Small", "inside", 224, "activation_17:avg", "conv_2", widths=(0.75, 1.0)
    ),
    "mobilenet_v3_large": CatalogEntry(
        "MobileNetV3Large", "inside", 224, "activation_19:avg", "conv_2", widths=(0.75, 1.0)
    ),
    "efficientnet_b0": CatalogEntry("EfficientNetB0", "inside", 224, "top_activation:avg"),
    "efficientnet_b1": CatalogEntry("EfficientNetB1", "inside", 240, "top_activation:avg"),
    "efficientnet_b2": CatalogEntry("EfficientNetB2", "inside", 260, "top_activation:avg"),
    "efficientnet_b3": CatalogEntry("EfficientNetB3", "inside", 300, "top_activation:avg"),
    "efficientnet_b4": CatalogEntry("EfficientNetB4", "inside", 380, "top_activation:avg"),
    "efficientnet_b5": CatalogEntry("EfficientNetB5", "inside", 456, "top_activation:avg"),
    "efficientnet_b6": CatalogEntry("EfficientNetB6", "inside", 528, "top_activation:avg"),
    "efficientnet_b7": CatalogEntry("EfficientNetB7", "inside", 600, "top_activation:avg"),
    "efficientnet_v2_b0": CatalogEntry("EfficientNetV2B0", "inside", 224, "top_activation:avg"),
    "efficientnet_v2_b1": CatalogEntry("EfficientNetV2B1", "inside", 240, "top_activation:avg"),
    "efficientnet_v2_b2": CatalogEntry("EfficientNetV2B2", "inside", 260, "top_activation:avg"),
    "efficientnet_v2_b3": CatalogEntry("EfficientNetV2B3", "inside", 300, "top_activation:avg"),
    "efficientnet_v2_s": CatalogEntry("EfficientNetV2S", "inside", 384, "top_activation:avg"),
    "efficientnet_v2_m": CatalogEntry("EfficientNetV2M", "inside", 480, "top_activation:avg"),
    "efficientnet_v2_l": CatalogEntry("EfficientNetV2L", "inside", 480, "top_activation:avg"),
    "convnext_tiny": _convnext("tiny", "ConvNeXtTiny"),
    "convnext_small": _convnext("small", "ConvNeXtSmall"),
    "convnext_base": _convnext("base", "ConvNeXtBase"),
    "convnext_large": _convnext("large", "ConvNeXtLarge"),
    "convnext_xlarge": _convnext("xlarge", "ConvNeXtXLarge"),
    "nasnet_mobile": CatalogEntry("NASNetMobile", "tf", 224, "activation_187:avg"),
    "nasnet_large": CatalogEntry("NASNetLarge", "tf", 331, "activation_259:avg"),
}

STUB = CatalogEntry("Stub", "inside", 32, "mean:none", heavy_top=True)
"""The base `stub`, for benchmarks of everything but the network: the mean colour of 32 x 32 pixels, without weights."""

ONNX_BASE = "onnx"
"""The base of any network in an ONNX file, which `weights` names."""
ONNX = CatalogEntry("", "inside", 0, "", heavy_top=True)
"""Its entry: size and layers are in the file."""


def base_names() -> list[str]:
    """The names of all bases."""
    return [name for family, row in NETWORKS.items() for name in ([f"{family}_{w}" for w in row.widths] or [family])]


def base_named(name: str) -> str:
    """The catalog's name of a base, given in its own or Keras' spelling: `ResNet50V2` is `resnet50_v2`.

    A family without a width has Keras' default, 1.0: `MobileNet` is `mobilenet_1.0`.

    Raises:
        UsageError: if there is none of that name; it has the nearest three.
    """
    wanted = _squeezed(name)
    for base in (*base_names(), "stub", ONNX_BASE):
        if wanted in (_squeezed(base), _squeezed(base.removesuffix("_1.0"))):
            return base
    names = {_squeezed(base): base for base in base_names()}
    near = get_close_matches(wanted, names, 3, cutoff=0.0)
    raise UsageError(
        f"Unknown base. Expected {', '.join(names[one] for one in near)} or another of the {len(names)} that "
        f"`bottleneck describe` lists. Received: {name}."
    )


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def find_network(base: str) -> tuple[CatalogEntry, float | None]:
    """`mobilenet_0.75` -> (its row, 0.75); `stub` and `onnx` are known too. Raises UsageError as `base_named` does."""
    base = base_named(base)
    if base in ("stub", ONNX_BASE):
        return STUB if base == "stub" else ONNX, None
    if base in NETWORKS:
        return NETWORKS[base], None
    family, _, width = base.rpartition("_")
    return NETWORKS[family], float(width)


def nearest(name: str, names: Sequence[str], count: int = 3) -> str:
    """The names most similar to the given one, the most similar first."""
    return ", ".join(get_close_matches(name, names, count, cutoff=0.0))
