"""Extraction with a plain loop over ONNX Runtime.

    python -m jobs.benchmark.peer_onnx IMAGES OUTPUT GRAPH

A program of its own, which `bottleneck benchmark --what peers` runs and times: Pillow decodes a batch, ONNX Runtime
runs it with its default settings, NumPy keeps the features.

Legend: N images, H x W pixels, C channels, D features.
"""

import json
import os
import sys
import time

import numpy as np

BATCH_SIZE = 32


def main(folder: str, output: str, graph: str) -> None:
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    [port] = session.get_inputs()
    size_px = port.shape[1]
    paths = sorted(entry.path for entry in os.scandir(folder))

    def read(path: str) -> np.ndarray:
        with Image.open(path) as photo:
            return np.asarray(photo.convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR))

    session.run(None, {port.name: np.zeros((BATCH_SIZE, size_px, size_px, 3), np.uint8)})
    parts, started = [], time.perf_counter()
    for start in range(0, len(paths), BATCH_SIZE):
        pixels_NHWC = np.stack([read(path) for path in paths[start : start + BATCH_SIZE]])
        parts.append(session.run(None, {port.name: pixels_NHWC})[0])
    features_ND = np.concatenate(parts).astype(np.float16)
    np.save(output, features_ND)
    seconds = time.perf_counter() - started
    print(json.dumps({"images": len(features_ND), "images_per_second": len(paths) / seconds, "device": "cpu"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
