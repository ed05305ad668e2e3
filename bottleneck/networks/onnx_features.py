"""Cut from a user's ONNX file the graph from uint8 pixels to features.

Legend: N images, C channels, H x W positions, T tokens, D values of a vector.
"""

from typing import Any

import numpy as np

from bottleneck.catalog import ONNX_BASE, nearest
from bottleneck.errors import UsageError, WeightsError
from bottleneck.networks.onnx_file import OnnxFile, open_onnx, sha256_onnx
from bottleneck.networks.prepared import (
    BATCH_AXIS,
    MAX_DIFFERENCE,
    PIXELS,
    PreparedNetwork,
    differences,
    reference_pixels,
)
from bottleneck.networks.runtimes.onnx_runtime import start
from bottleneck.pixels import Pixels, PixelsRequest
from bottleneck.spec import FeatureRequest, canonical_layer, split_layer

OTHERS_PREFIX = "network/"
"""Of all names in a file that has one of ours."""


def prepare_onnx(request: FeatureRequest, path: str, key: str) -> PreparedNetwork:
    """Prepare the network of a file; ONNX Runtime's features of it are the reference.

    Args:
        path: where the file is.
        key: of the prepared network.

    Raises:
        UsageError: for a tensor that is not there, or where it is not said how pixels are taken.
        WeightsError: if the file cannot be used.
    """
    file = open_onnx(path, request.weights, request.input.image_size)
    layers = tuple(map(canonical_layer, request.layers)) or (file.default_layer,)
    check_tensors(file, layers)
    pixels = pixels_of(file, request.input)
    graph = feature_graph(file, layers, pixels)
    try:
        forward = start(graph, None)
        together = forward(reference_pixels(file.image_size_px))
        alone = [forward(one_HWC[None]) for one_HWC in reference_pixels(file.image_size_px)]
    except Exception as error:  # ONNX Runtime's own
        raise WeightsError(
            f"ONNX Runtime cannot run this file: {str(error).strip()[:300]}. Received: {request.weights}. A network "
            "that was exported for one batch size only has to be exported again, with its first axis dynamic."
        ) from error
    singly = tuple(np.concatenate(parts) for parts in zip(*alone, strict=True))
    if [one.shape for one in together] != [one.shape for one in singly] or (
        not differences(together, singly) <= MAX_DIFFERENCE
    ):
        raise WeightsError(
            "This ONNX file mixes the images of a batch: two together give other features than one by one. Expected a "
            f"network whose first axis is the batch, exported with that axis dynamic. Received: {request.weights}."
        )
    return PreparedNetwork(
        key=key,
        base=ONNX_BASE,
        weights_sha256=sha256_onnx(path),
        layers=layers,
        dims=tuple(one_ND.shape[1] for one_ND in together),
        image_size_px=file.image_size_px,
        references=tuple(together),
        graph=graph,
        pixels=pixels,
    )


def feature_graph(file: OnnxFile, layers: tuple[str, ...], pixels: Pixels | None) -> bytes:
    """Cut the graph from uint8 pixels to features, with preprocessing before and pooling after it.

    Args:
        layers: as TENSOR:POOLING; checked by `check_tensors`.
        pixels: how the input is made; None where it takes uint8.
    """
    import onnx
    import onnx.compose
    from onnx import helper, numpy_helper

    names = [split_layer(layer)[0] for layer in layers]
    inferred = onnx.shape_inference.infer_shapes(file.model, data_prop=True)
    model = onnx.utils.Extractor(inferred).extract_model([file.input_name], list(dict.fromkeys(names)))
    prefix = ""
    if _has_our_names(model.graph):  # as an exported model of ours has
        prefix = OTHERS_PREFIX
        model = onnx.compose.add_prefix(model, prefix)
    graph = model.graph
    nodes: list[Any] = []
    arrays: dict[str, np.ndarray] = {}
    values = PIXELS

    def add(operator: str, *constants: str, **attributes: Any) -> None:
        nonlocal values
        result = f"bottleneck_{len(nodes)}"
        nodes.append(helper.make_node(operator, [values, *constants], [result], **attributes))
        values = result

    if pixels is not None:
        add("Cast", to=onnx.TensorProto.FLOAT)
        if pixels.channels == "bgr":
            arrays["bottleneck_bgr"] = np.array([2, 1, 0], np.int64)
            add("Gather", "bottleneck_bgr", axis=3)
        for operator, name, value in (
            ("Mul", "scale", pixels.scale),
            ("Sub", "mean", pixels.mean),
            ("Div", "std", pixels.std),
        ):
            arrays[f"bottleneck_{name}"] = np.array(value, np.float32)
            add(operator, f"bottleneck_{name}")
        if file.input_type == onnx.TensorProto.FLOAT16:
            add("Cast", to=onnx.TensorProto.FLOAT16)
    if file.is_channels_first:
        add("Transpose", perm=[0, 3, 1, 2])
    if not nodes:
        add("Identity")
    nodes[-1].output[0] = prefix + file.input_name
    before = list(nodes)
    nodes.clear()
    outputs = []
    for number, (layer, name) in enumerate(zip(layers, names, strict=True)):
        tensor, pooling, values = file.tensors[name], split_layer(layer)[1], prefix + name
        after = len(nodes)
        nodes.append(helper.make_node("Cast", [values], [f"features_cast_{number}"], to=onnx.TensorProto.FLOAT))
        values = f"features_cast_{number}"

        def then(operator: str, number: int = number, **attributes: Any) -> None:
            nonlocal values
            result = f"features_{number}_{len(nodes)}"
            nodes.append(helper.make_node(operator, [values], [result], **attributes))
            values = result

        if pooling != "none":
            if not tensor.is_channels_first:  # (H, W, C) or (T, D): pooling takes the channels first
                then("Transpose", perm=[0, 3, 1, 2] if len(tensor.shape) == 3 else [0, 2, 1])
            then("GlobalAveragePool" if pooling == "avg" else "GlobalMaxPool")
        elif tensor.is_channels_first:
            then("Transpose", perm=[0, 2, 3, 1])
        then("Flatten", axis=1)
        assert len(nodes) > after
        nodes[-1].output[0] = f"features_{number}"
        outputs.append(helper.make_tensor_value_info(f"features_{number}", onnx.TensorProto.FLOAT, [BATCH_AXIS, None]))
    kept = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*before, *kept, *nodes])
    size = file.image_size_px
    graph.input.append(helper.make_tensor_value_info(PIXELS, onnx.TensorProto.UINT8, [BATCH_AXIS, size, size, 3]))
    graph.output.extend(outputs)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
    data: bytes = model.SerializeToString()
    return data


def _has_our_names(graph: Any) -> bool:
    """Whether a graph has a tensor with a name that is used here."""
    names = {name for node in graph.node for name in node.output}
    names |= {one.name for one in (*graph.input, *graph.initializer)}
    return any(name == PIXELS or name.startswith(("bottleneck_", "features_")) for name in names)


def check_tensors(file: OnnxFile, layers: tuple[str, ...]) -> None:
    """Raise UsageError for a tensor that is not there or cannot be pooled, with the nearest there are."""
    for layer in layers:
        name, pooling = split_layer(layer)
        tensor = file.tensors.get(name)
        if tensor is None:
            near = ", ".join(
                f"{one} ({' x '.join(map(str, file.tensors[one].shape))})"
                for one in nearest(name, list(file.tensors)).split(", ")
            )
            raise UsageError(
                f"The ONNX file has no tensor of this name to take features from. Expected {near} or another of the "
                f"{len(file.tensors)} that `bottleneck describe onnx --weights FILE` lists. Received: {name}."
            )
        if pooling != "none" and tensor.pooled_dim is None:
            raise UsageError(
                f"Tensor {name} is a plain vector and cannot be pooled. Expected {name}. Received: {layer}."
            )


def pixels_of(file: OnnxFile, request: PixelsRequest) -> Pixels | None:
    """How the input is made from pixels; None if it takes them as they are."""
    import onnx

    return None if file.input_type == onnx.TensorProto.UINT8 and not request.has_values else request.resolved()
