"""Convert a Keras model into an ONNX graph from uint8 pixels to features."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from bottleneck.networks.prepared import BATCH_AXIS, PIXELS

OPSET = 17


def to_onnx(model: Any) -> Any:
    """The ONNX model of a Keras model on TensorFlow: `pixels` [batch, S, S, 3] -> one [batch, D] per output.

    Args:
        model: takes uint8 pixels; built on Keras' TensorFlow backend.
    """
    import tensorflow as tf
    import tf2onnx
    from onnx import numpy_helper

    shape = (None, *model.input_shape[1:])
    function = tf.function(
        lambda pixels: model(pixels, training=False),
        input_signature=[tf.TensorSpec(shape, tf.uint8, name=PIXELS)],
        autograph=False,
    )
    with quiet_converter():
        proto, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    graph = proto.graph
    # Constants that Keras made before the function was traced (means to subtract) arrive as further inputs.
    captured = {inner.name: outer for outer, inner in function.get_concrete_function().graph.captures}
    for extra in list(graph.input)[1:]:
        graph.initializer.append(numpy_helper.from_array(np.asarray(captured[extra.name]), extra.name))
        graph.input.remove(extra)
    used = {name for node in graph.node for name in node.input}
    for unused in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(unused)
    name_ports(graph, [PIXELS], [f"features_{number}" for number in range(len(graph.output))])
    return proto


def name_ports(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    """Name a graph's inputs and outputs, and their first axis; the converter names these after nothing."""
    for ports, names in ((graph.input, inputs), (graph.output, outputs)):
        for port, name in zip(ports, names, strict=True):
            old, port.name = port.name, name
            for node in graph.node:
                node.input[:] = [name if one == old else one for one in node.input]
                node.output[:] = [name if one == old else one for one in node.output]
            port.type.tensor_type.shape.dim[0].dim_param = BATCH_AXIS


@contextlib.contextmanager
def quiet_converter() -> Iterator[None]:
    """The converter prints its steps on stdout, which belongs to a job's result, and in its log."""
    logger = logging.getLogger("tf2onnx")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)
