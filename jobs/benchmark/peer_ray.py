"""Extraction as Ray Data's documentation writes it.

    python -m jobs.benchmark.peer_ray IMAGES OUTPUT BASE

A program of its own, which `bottleneck benchmark --what peers` runs and takes the time of. Only a column is added to
what the documentation has, the time at which a batch came to the network, so that start-up can be told from work.
"""

import json
import os
import sys
import time
from typing import Any


class Network:
    """Keras' network with averaged features, as it comes: float32, and random weights, which take the same time."""

    def __init__(self, base: str) -> None:
        import keras

        from bottleneck.catalog import find_network

        row, width = find_network(base)
        options = {"weights": None, "include_top": False, "pooling": "avg"} | ({"alpha": width} if width else {})
        self.model = getattr(keras.applications, row.constructor)(**options)
        self.mode = row.preprocessing

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np
        from keras.applications.imagenet_utils import preprocess_input

        came = time.time()
        pixels_NHWC = batch["image"].astype(np.float32)
        if self.mode != "inside":
            pixels_NHWC = preprocess_input(pixels_NHWC, mode=self.mode)
        features_ND = self.model.predict(pixels_NHWC, verbose=0)
        return {"features": features_ND, "came": np.full(len(features_ND), came)}


def main(images: str, output: str, base: str) -> None:
    import pyarrow.dataset
    import ray

    from bottleneck.catalog import find_network
    from bottleneck.networks.base import CPU_BATCH_SIZE, GPU_BATCH_SIZE
    from bottleneck.networks.device import CORES_PER_ACTOR

    ray.init()
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    num_actors = num_gpus or max(1, int(ray.cluster_resources()["CPU"]) // CORES_PER_ACTOR)
    size_px = find_network(base)[0].image_size_px
    (
        ray.data.read_images(images, size=(size_px, size_px), mode="RGB")
        .map_batches(
            Network,
            fn_constructor_args=(base,),
            batch_size=GPU_BATCH_SIZE if num_gpus else CPU_BATCH_SIZE,
            num_gpus=1 if num_gpus else None,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
        )
        .write_parquet(output)
    )
    ended = time.time()
    came = pyarrow.dataset.dataset(output, format="parquet").to_table(columns=["came"])["came"].to_pylist()
    print(json.dumps({"images": len(came), "images_per_second": len(came) / (ended - min(came))}))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(*sys.argv[1:])
