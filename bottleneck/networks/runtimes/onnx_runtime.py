"""Run a network's graph with ONNX Runtime."""

from typing import Any

import numpy as np

from bottleneck.cores import count_cores
from bottleneck.networks.prepared import PIXELS, Forward

ERRORS_ONLY = 3
"""ONNX Runtime's log level."""


def start(graph: bytes, num_threads: int | None) -> Forward:
    """Load a graph, and return the function that runs it on any number of images."""
    session = open_session(graph, num_threads)
    return lambda pixels_NHWC: list(session.run(None, {PIXELS: pixels_NHWC}))


def open_session(graph: bytes, num_threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or count_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Threads that wait for the next batch would take the cores from those who decode it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_graph(graph: bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a graph once."""
    return list(open_session(graph, None).run(None, inputs))
