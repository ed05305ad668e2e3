"""Extraction with a PyTorch DataLoader and VGG16, in bfloat16 where the machine is fast in it.

    python -m jobs.benchmark.peer_torch IMAGES OUTPUT

A program of its own, which `bottleneck benchmark --what peers` runs and takes the time of. The network is VGG16's
convolutions with random weights in torch's fastest memory format for them, its answers averaged.

Legend: N images, C channels, H x W pixels, D features.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np

from bottleneck.cores import count_cores
from bottleneck.networks.base import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from bottleneck.networks.device import has_bfloat16

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Convolutions of each block of VGG16 and their channels."""
SIZE_PX = 224
MEANS = np.array([103.939, 116.779, 123.68], np.float32)
"""Of ImageNet's BGR, which VGG16 is given less these."""


class Photos:
    """A data set as torch wants it: decoded and resized by Pillow."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(entry.path for entry in os.scandir(folder))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        from PIL import Image

        with Image.open(self.paths[number]) as photo:
            resized = photo.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
        pixels_HWC = np.asarray(resized, np.float32)[:, :, ::-1] - MEANS
        return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))


def network() -> Any:
    import torch

    layers, channels = [], 3
    for num_convolutions, width in BLOCKS:
        for _ in range(num_convolutions):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
            channels = width
        layers.append(torch.nn.MaxPool2d(2))
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def main(folder: str, output: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    device, cores = "cuda" if torch.cuda.is_available() else "cpu", count_cores()
    torch.set_num_threads(cores)
    precision = torch.bfloat16 if has_bfloat16() else torch.float32
    batch_size = GPU_BATCH_SIZE if device == "cuda" else CPU_BATCH_SIZE
    model = network().to(device, precision, memory_format=torch.channels_last).eval()
    # Without `iter` starting its processes first, they would inherit the threads of the network.
    batches = iter(torch.utils.data.DataLoader(Photos(folder), batch_size, num_workers=cores))

    def extract(pixels_NCHW: Any) -> np.ndarray:
        pixels_NCHW = pixels_NCHW.to(device, precision, memory_format=torch.channels_last)
        features_ND: np.ndarray = model(pixels_NCHW).float().cpu().numpy()
        return features_ND

    with torch.inference_mode():
        extract(torch.zeros(batch_size, 3, SIZE_PX, SIZE_PX))
        done, started = 0, time.perf_counter()
        writer = None
        for pixels_NCHW in batches:
            features_ND = extract(pixels_NCHW)
            column = pa.FixedSizeListArray.from_arrays(pa.array(features_ND.astype(np.float16).reshape(-1)), 512)
            batch = pa.table({"features": column})
            writer = writer or pq.ParquetWriter(output, batch.schema)
            writer.write_table(batch)
            done += len(features_ND)
        if writer:
            writer.close()
    seconds = time.perf_counter() - started
    print(json.dumps({"images": done, "images_per_second": done / seconds, "device": device}))


if __name__ == "__main__":
    main(*sys.argv[1:])
