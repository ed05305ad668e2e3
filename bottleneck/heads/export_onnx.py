"""Join a head to its network's graph, as one ONNX file: uint8 images in, probabilities out.

Legend: N images, D features of a layer, K classes, H hidden units.
"""

import json
from typing import Any

import numpy as np

from bottleneck.heads.head import Head
from bottleneck.networks.prepared import BATCH_AXIS

OUTPUT = "probabilities"
FEATURES = "features"
PREFIX = "head_"
"""Of the names of tensors that the head adds."""


def softmax_weights(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K, D or H] and intercepts [K] whose softmax, or with several labels sigmoid, is what the head says."""
    coef_KD, intercept_K = head.coef_, head.intercept_
    if len(coef_KD) == 1:  # the log odds of the second class: those of the first are 0
        coef_KD, intercept_K = np.vstack([np.zeros_like(coef_KD), coef_KD]), np.append(0.0, intercept_K)
    return coef_KD * head.temperature_, intercept_K * head.temperature_


def plain_onnx(graph: bytes, facts: dict[str, Any]) -> bytes:
    """The graph of one layer, with the facts as the file's metadata; its output is called FEATURES."""
    import onnx
    from onnx import helper

    model = onnx.load_from_string(graph)
    [port] = model.graph.output
    before = port.name
    for node in model.graph.node:
        node.output[:] = [FEATURES if name == before else name for name in node.output]
        node.input[:] = [FEATURES if name == before else name for name in node.input]
    port.name = FEATURES
    model.graph.name = "bottleneck_features"
    helper.set_model_props(model, _metadata(facts))
    data: bytes = model.SerializeToString()
    return data


def _metadata(facts: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def fused_onnx(head: Head, graph: bytes, facts: dict[str, Any]) -> bytes:
    """Append a head to the graph of its one layer.

    Args:
        graph: of a prepared network with the head's layer alone.
        facts: kept as the file's metadata.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(graph)
    nodes, arrays = model.graph.node, model.graph.initializer
    [values] = [port.name for port in model.graph.output]

    def add(operator: str, *constants: np.ndarray, to: str = "", **attributes: Any) -> None:
        nonlocal values
        names = []
        for array in constants:
            names.append(f"{PREFIX}constant_{len(arrays)}")
            kept = array if array.dtype == np.int64 else array.astype(np.float32)
            arrays.append(numpy_helper.from_array(np.ascontiguousarray(kept), names[-1]))
        result = to or f"{PREFIX}{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, [values, *names], [result], **attributes))
        values = result

    if head.scale == "standard":
        # Subtracting first, as the head does: folded into the weights, large means would cancel in float32.
        add("Sub", np.asarray(head.mean_))
        add("Div", np.asarray(head.scale_))
    elif head.scale == "l2":
        add("LpNormalization", axis=1, p=2)
    if head.kind == "mlp":
        add("MatMul", head.hidden_coef_.T)
        add("Add", head.hidden_intercept_)
        add("Relu")
    coef_KD, intercept_K = softmax_weights(head)
    add("MatMul", coef_KD.T)
    add("Add", intercept_K)
    if head.multi_label:
        add("Sigmoid", to=OUTPUT)
    else:
        add("Softmax", to=OUTPUT, axis=1)
    del model.graph.output[:]
    port = helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, [BATCH_AXIS, len(head.classes_)])
    model.graph.output.append(port)
    model.graph.name = "bottleneck_head"
    helper.set_model_props(model, _metadata(facts))
    data: bytes = model.SerializeToString()
    return data
