"""Run a network's graph with OpenVINO."""

import numpy as np

from bottleneck.networks.prepared import Forward
from bottleneck.spec import Precision

PRECISIONS: dict[Precision, str] = {"bfloat16": "bf16", "float32": "f32", "int8": "f32"}
"""OpenVINO's names. It lowers the precision of the float32 graph itself; a quantized graph says what is in int8."""
BLOCK = 8
"""Images at once: with 32 the activations of a MobileNet leave the cache, and 252 images/s become 298."""


def start(graph: bytes, shape: tuple[int, ...], precision: Precision, num_threads: int | None) -> Forward:
    """Compile a graph for blocks of a batch, and return the function that runs batches of any size."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one block: blocks come one after the other
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
    }
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = str(num_threads)
    core = openvino.Core()
    model = core.read_model(graph)
    block = min(BLOCK, shape[0])
    model.reshape([block, *shape[1:]])
    compiled = core.compile_model(model, "CPU", settings)

    def forward(pixels_NHWC: np.ndarray) -> list[np.ndarray]:
        num_images = len(pixels_NHWC)
        found = []
        for first in range(0, num_images, block):
            part_NHWC = pixels_NHWC[first : first + block]
            if len(part_NHWC) < block:
                part_NHWC = np.concatenate([part_NHWC, np.zeros((block - len(part_NHWC), *shape[1:]), np.uint8)])
            found.append([np.array(output) for output in compiled(part_NHWC).to_tuple()])
        return [np.concatenate(blocks)[:num_images] for blocks in zip(*found, strict=True)]

    return forward
