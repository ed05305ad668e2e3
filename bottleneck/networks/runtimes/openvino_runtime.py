"""Run a network's graph with OpenVINO."""

import numpy as np

from bottleneck.networks.prepared import Forward
from bottleneck.spec import Precision

PRECISIONS: dict[Precision, str] = {"bfloat16": "bf16", "float32": "f32"}
"""OpenVINO's names. It lowers the precision of the float32 graph itself."""


def start(graph: bytes, shape: tuple[int, ...], precision: Precision, num_threads: int | None) -> Forward:
    """Compile a graph for one batch shape, and return the function that runs it."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch: batches come one after the other
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
    }
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = str(num_threads)
    core = openvino.Core()
    model = core.read_model(graph)
    model.reshape(list(shape))
    compiled = core.compile_model(model, "CPU", settings)
    return lambda pixels_NHWC: [np.array(output) for output in compiled(pixels_NHWC).to_tuple()]
