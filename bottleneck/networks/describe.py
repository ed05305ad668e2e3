"""Describe a network's layers and the features they give, without weights.

Legend: H x W positions of a map, C channels.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

from bottleneck.catalog import ONNX_BASE, base_names, find_network
from bottleneck.errors import UsageError
from bottleneck.networks.build import build_network, layer_names
from bottleneck.networks.onnx_file import open_onnx
from bottleneck.networks.weights import check_weights, local_copy
from bottleneck.spec import split_layer

PLAIN_KINDS = {
    "Conv2D": "convolution",
    "DepthwiseConv2D": "depthwise convolution",
    "SeparableConv2D": "separable convolution",
    "MaxPooling2D": "pooling",
    "AveragePooling2D": "pooling",
    "GlobalAveragePooling2D": "pooling",
    "Dense": "dense",
}
"""Layers that a plot shows; others (normalisation, activation, padding) belong to one of these."""
COLOURS = {
    "convolution": "#2f6fc4",
    "depthwise convolution": "#4aa3a2",
    "separable convolution": "#5d8f3f",
    "pooling": "#d1702a",
    "activation": "#6b7280",
    "dense": "#7a55b0",
}


@dataclass(frozen=True)
class Layer:
    """A layer in a network's summary."""

    name: str
    kind: str
    """Keras' class."""
    shape: tuple[int, ...]
    """Shape of its output without the batch: (H, W, C) or (C,)."""
    num_parameters: int
    in_top: bool
    """Whether its features need weights with the top."""
    is_default: bool
    """Whether it is the default layer."""

    @property
    def dim(self) -> int:
        """Values of a feature taken with `:none`."""
        dim = 1
        for size in self.shape:
            dim *= size
        return dim

    @property
    def pooled_dim(self) -> int | None:
        """Values of a feature taken with `:avg` or `:max`; None for a plain vector, which cannot be pooled."""
        return self.shape[-1] if len(self.shape) > 1 else None


@dataclass(frozen=True)
class Description:
    """A network, layer by layer, in the order of computation."""

    base: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    default_layer: str
    """LAYER:POOLING of the features that `extract` takes unless told otherwise."""

    @property
    def num_parameters(self) -> int:
        """Of the whole network."""
        return sum(layer.num_parameters for layer in self.layers)

    @property
    def num_body_parameters(self) -> int:
        """Without the top."""
        return sum(layer.num_parameters for layer in self.layers if not layer.in_top)

    @property
    def default(self) -> Layer:
        return next(layer for layer in self.layers if layer.is_default)

    @property
    def default_dim(self) -> int:
        """Values of the default features."""
        return self.default.pooled_dim or self.default.dim


def describe(base: str) -> Description:
    """Build a network without weights and describe it. Raises UsageError for an unknown name."""
    row, _ = find_network(base)
    default = split_layer(row.default_layer)[0]
    network = build_network(base, with_top=True)
    layers = []
    in_top = False
    for layer in network.layers[1:]:  # the first is the input
        in_top = in_top or layer.name == row.top
        shape = tuple(int(size) for size in layer.output.shape[1:])
        num_parameters = int(layer.count_params())
        layers.append(
            Layer(layer.name, type(layer).__name__, shape, num_parameters, in_top, is_default=layer.name == default)
        )
    return Description(base, tuple(int(size) for size in network.input_shape[1:]), tuple(layers), row.default_layer)


def describe_onnx(weights: str, image_size: int | None = None) -> Description:
    """Describe the network of an ONNX file: the tensors from which features can be taken.

    Args:
        weights: file or URI.
        image_size: side of the input in pixels, where the file leaves it open.

    Raises:
        UsageError: if the size is missing.
        WeightsError: if the file cannot be used.
    """
    check_weights(weights)
    with local_copy(weights) as path:
        file = open_onnx(path, weights, image_size)
    default = split_layer(file.default_layer)[0]
    layers = [
        Layer(one.name, one.operator, one.shape, one.num_parameters, in_top=False, is_default=one.name == default)
        for one in file.tensors.values()
    ]
    size = file.image_size_px
    return Description(ONNX_BASE, (size, size, 3), tuple(layers), file.default_layer)


def layer_shape(base: str, layer: str, image_size: int | None = None) -> tuple[int, ...]:
    """The shape of a layer's output without the batch: (H, W, C), or (D,). Builds the network, with its top if needed.

    Args:
        image_size: side of the input in pixels; default the base's own.

    Raises:
        UsageError: for a base or layer that is not there.
    """
    for with_top in (False, True):
        network = build_network(base, with_top, image_size)
        if layer in layer_names(network):
            return tuple(int(size) for size in network.get_layer(layer).output.shape[1:])
    raise UsageError(f"{base} has no layer {layer}. `bottleneck describe {base}` lists them.")


def table(description: Description) -> str:
    """The summary as text: a line a layer, the totals below."""
    header = ("layer", "kind", "output", "parameters", ":avg :max", ":none")
    rows: list[tuple[str, ...]] = [header]
    for layer in description.layers:
        name = layer.name + (" *" if layer.is_default else " +" if layer.in_top else "")
        pooled = "-" if layer.pooled_dim is None else f"{layer.pooled_dim:,}"
        shape = " x ".join(map(str, layer.shape))
        rows.append((name, layer.kind, shape, f"{layer.num_parameters:,}", pooled, f"{layer.dim:,}"))
    lines = _aligned(rows, num_left=3)
    top = description.num_parameters - description.num_body_parameters
    lines += [
        "",
        f"{description.num_parameters:,} parameters: {description.num_body_parameters:,} and {top:,} of the top",
        "The last two columns are the values of a feature taken from the layer, as LAYER:avg, LAYER:max or LAYER:none.",
        f"*  where features are taken by default ({description.default_layer})",
    ]
    if top:
        lines.append("+  of the top: needs weights that have one")
    return "\n".join(lines)


def bases() -> list[dict[str, Any]]:
    """Every base, without building it: name, input size, default layer, and what `--precision auto` may choose."""
    found = []
    for base in base_names():
        row, _ = find_network(base)
        precisions = ["float32", "bfloat16"] if row.bfloat16_is_safe else ["float32"]
        values = (base, row.image_size_px, row.default_layer, precisions)
        found.append(dict(zip(("base", "image_size_px", "default_layer", "precisions"), values, strict=True)))
    return found


def table_of_bases() -> str:
    """Every base as text: a line each."""
    rows: list[tuple[str, ...]] = [("base", "default layer", "safe in", "pixels")]
    for row in bases():
        rows.append((row["base"], row["default_layer"], ", ".join(row["precisions"]), str(row["image_size_px"])))
    return "\n".join(_aligned(rows, num_left=3))


def _aligned(rows: list[tuple[str, ...]], num_left: int) -> list[str]:
    """Columns side by side: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        left = [f"{cell:{width}}" for cell, width in zip(row[:num_left], widths[:num_left], strict=True)]
        right = [f"{cell:>{width}}" for cell, width in zip(row[num_left:], widths[num_left:], strict=True)]
        lines.append("  ".join([*left, *right]))
    return lines


def draw_network(description: Description, file_format: str) -> bytes:
    """The network from left to right as PNG or SVG: a block a layer, as high as its map, wider with more channels."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [layer for layer in description.layers if layer.kind in PLAIN_KINDS or layer.is_default]
    figure: Any = Figure(figsize=(max(9.0, 0.62 * len(shown) + 1.5), 6.2), facecolor="white", layout="constrained")
    axes = figure.subplots()
    position, edges = 0.0, []
    for layer in shown:
        width, height = _block(layer)
        kind = PLAIN_KINDS.get(layer.kind, "activation")
        axes.bar(position + width / 2, height, width=width, bottom=-height / 2, color=COLOURS[kind])
        middle = position + width / 2
        size = f"{layer.shape[0]} x {layer.shape[1]} x {layer.shape[2]}" if len(layer.shape) == 3 else f"{layer.dim:,}"
        axes.text(middle, height / 2 + 0.15, size, rotation=90, ha="center", va="bottom", fontsize=8)
        weight = "bold" if layer.is_default else "normal"
        axes.text(middle, -height / 2 - 0.15, layer.name, rotation=90, ha="center", va="top", fontsize=8, weight=weight)
        if layer.is_default:
            _mark_default(axes, middle, height, description)
        edges.append(kind)
        position += width + 0.55
    axes.set(xlim=(-0.6, position), ylim=(-9.0, 9.0))
    axes.axis("off")
    total = f"{description.num_parameters:,} parameters, {description.num_body_parameters:,} without the top"
    axes.set_title(f"{description.base}: {total}", fontsize=12)
    handles = [Patch(color=COLOURS[kind], label=kind) for kind in COLOURS if kind in edges]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "bottleneck"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = {"Date": None, "Creator": None} if file_format == "svg" else {"Software": None}
        figure.savefig(file, format=file_format, dpi=130, metadata=metadata)
    return file.getvalue()


def _block(layer: Layer) -> tuple[float, float]:
    """Width and height of a layer's block. Roots, as maps shrink 32-fold and channels grow 170-fold."""
    channels = layer.shape[-1]
    height = 0.6 * layer.shape[0] ** 0.5 if len(layer.shape) == 3 else 1.2
    return 0.12 * channels**0.25 + 0.1, height


def _mark_default(axes: Any, middle: float, height: float, description: Description) -> None:
    axes.annotate(
        f"features: {description.default_layer}, {description.default_dim:,} values",
        xy=(middle, height / 2 + 2.6),
        xytext=(middle, 6.2),
        ha="center",
        fontsize=10,
        arrowprops={"arrowstyle": "->", "color": "#1b2230"},
    )
