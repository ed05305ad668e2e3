"""Run plain chains of convolutions, such as VGG16, with ncnn's Winograd kernels.

Winograd's algorithm (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks") needs fewer
multiplications for 3 x 3 kernels than the sum they stand for, so that a network of them runs faster than the matrix
rate of the processor allows. ncnn has it for CPUs. Only the chain of convolutions goes to ncnn; what is before and
after it (preprocessing, pooling, dense layers) stays with ONNX Runtime.

Legend: N images, C channels, H x W positions.
"""

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.cores import count_cores
from bottleneck.networks.prepared import PIXELS, Forward
from bottleneck.networks.runtimes.onnx_runtime import open_session

CHAIN_OPERATIONS = ("Conv", "Relu", "MaxPool")
MIN_WINOGRAD = 0.75
"""Share of the convolutions that have 3 x 3 kernels and stride 1, from which on Winograd decides the speed."""
PARAM_MAGIC = "7767517"
"""The first line of ncnn's text format for layers."""


@dataclass(frozen=True)
class Chain:
    """A linear chain of a graph's nodes, starting with its first convolution."""

    nodes: list[Any]
    outputs: list[str]
    """Tensors of the chain that the rest of the graph uses."""

    @property
    def input(self) -> str:
        return str(self.nodes[0].input[0])


def takes(graph: bytes) -> bool:
    """Whether ncnn can run a graph and may be the fastest to do so."""
    import onnx

    return find_chain(onnx.load_from_string(graph).graph) is not None


def find_chain(graph: Any) -> Chain | None:
    """The chain of all convolutions of a graph; None if they form none, or if Winograd does not apply to most."""
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    if not convolutions or not all(map(_is_plain, convolutions)):
        return None
    wide = [_attributes(node) for node in convolutions]
    winograd = sum(one["kernel_shape"] == [3, 3] and one.get("strides", [1, 1]) == [1, 1] for one in wide)
    if winograd < MIN_WINOGRAD * len(convolutions):
        return None
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    results = {port.name for port in graph.output}
    nodes, outputs, node = [], [], convolutions[0]
    while node is not None:
        nodes.append(node)
        [tensor] = node.output
        following = [one for one in consumers.get(tensor, []) if one.op_type in CHAIN_OPERATIONS and _is_plain(one)]
        if len(following) > 1:
            return None
        if len(consumers.get(tensor, [])) > len(following) or tensor in results or not following:
            outputs.append(tensor)
        node = following[0] if following else None
    is_whole = sum(one.op_type == "Conv" for one in nodes) == len(convolutions)
    return Chain(nodes, outputs) if is_whole else None


def _is_plain(node: Any) -> bool:
    """Whether ncnn's layer means the same as this node."""
    given = _attributes(node)
    if node.op_type == "Conv":
        flat = len(given.get("kernel_shape", ())) == 2 and given.get("dilations", [1, 1]) == [1, 1]
        return flat and given.get("group", 1) == 1 and given.get("auto_pad", b"NOTSET") == b"NOTSET"
    if node.op_type == "MaxPool":
        flat = len(given.get("kernel_shape", ())) == 2 and given.get("dilations", [1, 1]) == [1, 1]
        exact = not given.get("ceil_mode", 0) and given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        return flat and exact and len(node.output) == 1 and not any(given.get("pads", [0]))
    return True


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def start(graph: bytes, num_threads: int | None) -> Forward:
    """Load a graph for which `takes` is true, and return the function that runs it."""
    import ncnn
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    chain = find_chain(model.graph)
    if chain is None:
        raise ValueError("this network is no chain of convolutions")
    cut = onnx.utils.Extractor(model)
    results = [port.name for port in model.graph.output]
    before = open_session(cut.extract_model([PIXELS], [chain.input]).SerializeToString(), num_threads)
    after = open_session(cut.extract_model(chain.outputs, results).SerializeToString(), num_threads)
    net = ncnn.Net()
    net.opt.num_threads = num_threads or count_cores()
    for name in ("use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, name, False)
    net.opt.use_bf16_storage = False
    layers, values = _ncnn_files(chain, model.graph)
    with tempfile.TemporaryDirectory(prefix="bottleneck-ncnn-") as folder:
        path = os.path.join(folder, "weights.bin")
        with open(path, "wb") as file:
            file.writelines(values)
        if net.load_param_mem(layers) or net.load_model(path):
            raise ValueError("ncnn did not load the network")

    def forward(pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        [values_NCHW] = before.run(None, {PIXELS: pixels_NHWC})
        images = [_run(net, chain, values_CHW) for values_CHW in values_NCHW]
        maps = [np.stack(one_a_tensor) for one_a_tensor in zip(*images, strict=True)]
        return list(after.run(None, dict(zip(chain.outputs, maps, strict=True))))

    return forward


def _run(net: Any, chain: Chain, values_CHW: np.ndarray) -> list[np.ndarray]:
    import ncnn

    extractor = net.create_extractor()
    extractor.set_light_mode(len(chain.outputs) == 1)  # otherwise a second tensor would be computed from the start
    extractor.input("input", ncnn.Mat(np.ascontiguousarray(values_CHW)))
    return [np.array(extractor.extract(_blob(name, chain))[1]) for name in chain.outputs]


def _blob(tensor: str, chain: Chain) -> str:
    """ncnn's name of a tensor; its text format has no names with spaces."""
    number = next(number for number, node in enumerate(chain.nodes) if tensor == node.output[0])
    return f"tensor{number}"


def _ncnn_files(chain: Chain, graph: Any) -> tuple[str, list[bytes]]:
    """ncnn's description of the layers, and their weights (https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure)."""
    from onnx import numpy_helper

    arrays = {one.name: one for one in graph.initializer}
    lines, values, blob = ["Input input 0 1 input"], [], "input"
    for number, node in enumerate(chain.nodes):
        given, name = _attributes(node), f"tensor{number}"
        if node.op_type == "Conv":
            kernel_OIHW = numpy_helper.to_array(arrays[node.input[1]]).astype(np.float32)
            num_outputs, _, height, width = kernel_OIHW.shape
            bias_O = numpy_helper.to_array(arrays[node.input[2]]) if len(node.input) > 2 else np.zeros(num_outputs)
            top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
            vertical, horizontal = given.get("strides", [1, 1])
            options = (
                f"0={num_outputs} 1={width} 11={height} 3={horizontal} 13={vertical} 4={left} 15={right} 14={top} "
                f"16={bottom} 5=1 6={kernel_OIHW.size}"
            )
            line = f"Convolution layer{number} 1 1 {blob} {name} {options}"
            values += [b"\0\0\0\0", kernel_OIHW.tobytes(), bias_O.astype(np.float32).tobytes()]  # 0: float32
        elif node.op_type == "MaxPool":
            height, width = given["kernel_shape"]
            vertical, horizontal = given.get("strides", [1, 1])
            line = f"Pooling layer{number} 1 1 {blob} {name} 0=0 1={width} 11={height} 2={horizontal} 12={vertical} 5=1"
        else:
            line = f"ReLU layer{number} 1 1 {blob} {name}"
        lines.append(line)
        blob = name
    return "\n".join([PARAM_MAGIC, f"{len(lines)} {len(lines)}", *lines]) + "\n", values
