"""Read a user's ONNX file and check it.

ONNX files hold no code, but they come from elsewhere: what they declare is compared with what they have before anything
is allocated, their operators are the standard's own, and files they name stay inside their folder.

Legend: N images, C channels, H x W positions, T tokens, D values of a vector.
"""

import contextlib
import hashlib
import math
import os
from dataclasses import dataclass
from typing import Any

from bottleneck.errors import UsageError, WeightsError
from bottleneck.networks.prepared import BATCH_AXIS
from bottleneck.pixels import MAX_SIZE_PX

MAX_FILE_BYTES = 2_000_000_000
"""What Protocol Buffers take; larger networks keep their weights in files beside."""
MAX_VALUES = 2**29
"""Of one tensor for one image: 2 GB. A map of ResNet50 has 0.8 million."""
MIN_OPSET = 9
DOMAINS = ("", "ai.onnx")
NAMED = 3
"""Names listed in a message."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph from which features can be taken."""

    name: str
    operator: str
    shape: tuple[int, ...]
    """Without the batch; channels last: (H, W, C), (T, D) or (D,)."""
    is_channels_first: bool
    """Whether the graph has it as (C, H, W)."""
    is_output: bool
    num_parameters: int
    """Of the node that makes it."""

    @property
    def dim(self) -> int:
        return math.prod(self.shape)

    @property
    def pooled_dim(self) -> int | None:
        """Values after :avg or :max; None for a plain vector."""
        return self.shape[-1] if len(self.shape) > 1 else None


@dataclass(frozen=True)
class OnnxFile:
    """A checked file, with the shapes of its tensors."""

    model: Any
    input_name: str
    input_type: int
    """ONNX's number for the type of its values."""
    image_size_px: int
    is_channels_first: bool
    tensors: dict[str, Tensor]

    @property
    def default_layer(self) -> str:
        """The first output of the graph, averaged if it is a map."""
        first = next((one for one in self.tensors.values() if one.is_output), None)
        if first is None:
            raise WeightsError("No output of the ONNX file is a map or a vector of numbers. Name one by `layers`.")
        return f"{first.name}:{'none' if first.pooled_dim is None else 'avg'}"


def open_onnx(path: str, name: str, image_size: int | None = None) -> OnnxFile:
    """Read and check a file.

    Args:
        name: what the user calls it.
        image_size: side of the input in pixels, where the file leaves it open.

    Raises:
        WeightsError: if it is no ONNX file, is damaged, or has what is not supported.
        UsageError: if the size is missing, or is not the file's.
    """
    import onnx

    def refused(why: str) -> WeightsError:
        return WeightsError(f"This ONNX file cannot be used: {why}. Received: {name}.")

    size_bytes = os.path.getsize(path)
    if size_bytes > MAX_FILE_BYTES:
        raise refused(f"it has {size_bytes:,} bytes, at most {MAX_FILE_BYTES:,} can be read")
    try:
        model = onnx.load(path, load_external_data=False)
        _check_values(model, path)
        onnx.load_external_data_for_model(model, os.path.dirname(os.path.abspath(path)))
        onnx.checker.check_model(model)
    except WeightsError:
        raise
    except Exception as error:  # of protobuf, onnx and its checker
        raise refused(f"it is damaged, or no ONNX file ({_first_line(error)})") from error
    others = sorted({node.domain for node in _nodes(model.graph) if node.domain not in DOMAINS})
    if others or model.functions:
        used = sorted({node.op_type for node in _nodes(model.graph) if node.domain in others})
        raise refused(
            f"it uses operators outside the ONNX standard ({', '.join(used[:NAMED]) or 'functions of its own'} of "
            f"{', '.join(others) or 'its own'}). Export it with standard operators only"
        )
    opset = max((one.version for one in model.opset_import if one.domain in DOMAINS), default=0)
    if opset < MIN_OPSET:
        raise refused(f"it has opset {opset}, at least {MIN_OPSET} is needed. Export it again")
    given = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in given]
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs[:NAMED])
        raise refused(f"it has {len(inputs)} inputs ({names}), expected one, the image")
    [port] = inputs
    axes = [axis.dim_value or 0 for axis in port.type.tensor_type.shape.dim]
    if len(axes) != 4 or 3 not in (axes[1], axes[3]):
        shape = " x ".join(str(axis or "?") for axis in axes)
        raise refused(f"its input {port.name} is {shape}, expected N x 3 x H x W or N x H x W x 3")
    element = port.type.tensor_type.elem_type
    if element not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8):
        raise refused(f"its input {port.name} is of type {element}, expected float32, float16 or uint8")
    is_first = axes[1] == 3
    size = _size(axes[2:] if is_first else axes[1:3], image_size, name)
    for axis, value in zip(
        port.type.tensor_type.shape.dim, (0, 3, size, size) if is_first else (0, size, size, 3), strict=True
    ):
        axis.Clear()
        if value:
            axis.dim_value = value
        else:
            axis.dim_param = BATCH_AXIS
    for result in model.graph.output:
        if result.type.tensor_type.shape.dim:
            result.type.tensor_type.shape.dim[0].Clear()
            result.type.tensor_type.shape.dim[0].dim_param = BATCH_AXIS
    tensors = _tensors(model, size, is_first, refused)
    return OnnxFile(model, port.name, element, size, is_first, tensors)


def sha256_onnx(path: str) -> str:
    """Of a file and of the files beside it that hold its weights; what is no ONNX file counts as it is."""
    import onnx

    files = [path]
    with contextlib.suppress(Exception):  # opening it says what is wrong
        files += _check_values(onnx.load(path, load_external_data=False), path)
    digest = hashlib.sha256()
    for one in files:
        with open(one, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _nodes(graph: Any) -> list[Any]:
    """The nodes of a graph and of the graphs inside them."""
    found = []
    for node in graph.node:
        found.append(node)
        for one in node.attribute:
            for inner in [*([one.g] if one.HasField("g") else []), *one.graphs]:
                found += _nodes(inner)
    return found


def _check_values(model: Any, path: str) -> list[str]:
    """Compare what weights declare with what there is; return the files beside that hold some."""
    import onnx

    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    files: dict[str, int] = {}
    left = MAX_FILE_BYTES * 4
    for one in model.graph.initializer:
        if any(size < 0 for size in one.dims):
            raise WeightsError(f"This ONNX file cannot be used: {one.name} has a negative size. Received: {path}.")
        num_bytes = math.prod(one.dims) * max(1, onnx.helper.tensor_dtype_to_np_dtype(one.data_type).itemsize)
        left -= num_bytes
        if one.data_location == onnx.TensorProto.EXTERNAL:
            given = {entry.key: entry.value for entry in one.external_data}
            beside = os.path.realpath(os.path.join(folder, given.get("location", "")))
            if os.path.commonpath([folder, beside]) != folder or not os.path.isfile(beside):
                raise WeightsError(
                    f"This ONNX file cannot be used: the values of {one.name} are in {given.get('location')!r}, which "
                    f"is no file inside its folder. Bring it there, or save the network as one file. Received: {path}."
                )
            files.setdefault(beside, os.path.getsize(beside))
            end = int(given.get("offset", 0)) + int(given.get("length", num_bytes))
            if end > files[beside] or int(given.get("length", num_bytes)) != num_bytes:
                left = -1
        elif one.HasField("raw_data") and len(one.raw_data) != num_bytes:
            left = -1
        if left < 0:
            raise WeightsError(
                f"This ONNX file cannot be used: {one.name} declares {' x '.join(map(str, one.dims))} values, which it "
                f"does not have. Received: {path}."
            )
    return sorted(files)


def _size(axes: list[int], image_size: int | None, name: str) -> int:
    fixed = [axis for axis in axes if axis]
    if image_size is None and not fixed:
        raise UsageError(
            f"The ONNX file leaves the size of its input open. Expected `image_size`, as 224. Received: {name}."
        )
    size = image_size or fixed[0]
    if any(axis != size for axis in fixed) or not 1 <= size <= MAX_SIZE_PX:
        shape = " x ".join(str(axis or "?") for axis in axes)
        raise UsageError(
            f"The input of the ONNX file is {shape} pixels. Expected a square of at most {MAX_SIZE_PX}, and no other "
            f"`image_size`. Received: {name}{'' if image_size is None else f', image_size {image_size}'}."
        )
    return size


def _tensors(model: Any, size: int, is_first: bool, refused: Any) -> dict[str, Tensor]:
    """Shapes of all tensors, with the batch left open."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:
        raise refused(f"its shapes do not fit together: {_first_line(error)}") from error
    results = {port.name for port in inferred.output}
    shapes = {port.name: port.type.tensor_type for port in (*inferred.value_info, *inferred.output)}
    found = {}
    sizes = {one.name: math.prod(one.dims) for one in inferred.initializer}
    for node in inferred.node:
        for tensor in node.output:
            if tensor not in shapes or not shapes[tensor].HasField("shape"):
                continue
            axes = [axis.dim_value or 0 for axis in shapes[tensor].shape.dim]
            if math.prod(axis or 1 for axis in axes) > MAX_VALUES:
                raise refused(f"tensor {tensor} has {' x '.join(map(str, axes[1:]))} values for one image")
            floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
            if shapes[tensor].elem_type not in floats or len(axes) not in (2, 3, 4) or not all(axes[1:]):
                continue
            back = node.op_type == "Transpose" and [list(one.ints) for one in node.attribute] == [[0, 2, 3, 1]]
            # Inside a graph maps have their channels first, whatever its input has; converters turn them at its ends.
            first = len(axes) == 4 and not back
            shape = (axes[2], axes[3], axes[1]) if first else tuple(axes[1:])
            found[tensor] = Tensor(
                tensor, node.op_type, shape, first, tensor in results, sum(sizes.get(name, 0) for name in node.input)
            )
    return found


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return text[:200] or type(error).__name__
