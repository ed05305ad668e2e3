"""Draw a uniform sample of images by a hash of their keys, in one pass and bounded memory.

An image is drawn if its hash is one of the smallest. So the sample depends on keys and seed alone, whatever the order
of the listing, and a smaller sample is part of every larger one.
"""

import contextlib
import hashlib
import itertools
import os
import tempfile
from array import array
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bottleneck.sources.image import Image

NUM_HELD = 50_000
"""Images that wait in memory, about 20 MB; more wait in a temporary file. Of all others 8 to 16 bytes each are held."""
LARGEST = 2**64 - 1
_SCHEMA = pa.schema(
    [
        pa.field("hash", pa.uint64()),
        pa.field("key", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("label", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("object", pa.string()),
    ]
)

_Hashed = tuple[int, Image]


def sampled(images: Iterator[Image], num_images: int, seed: int) -> Iterator[Image]:
    """Yield a sample in the order of the images, once all of them are read.

    Args:
        num_images: of the sample, from 1 up; all are yielded where there are not as many.
        seed: any number; each gives another sample.
    """
    smallest = _Smallest(num_images)
    with tempfile.TemporaryDirectory(prefix="bottleneck-sample-") as folder:
        path = os.path.join(folder, "images.arrow")
        held: list[_Hashed] = []
        with contextlib.ExitStack() as stack:
            writer: pa.ipc.RecordBatchStreamWriter | None = None
            for image in images:
                number = _hash(seed, image.key)
                if not smallest.add(number):
                    continue
                held.append((number, image))
                if len(held) < NUM_HELD:
                    continue
                held = [one for one in held if one[0] <= smallest.threshold]
                if len(held) > NUM_HELD // 2:
                    writer = writer or stack.enter_context(pa.ipc.new_stream(path, _SCHEMA))
                    writer.write_batch(_batch(held))
                    held = []
        threshold = smallest.shrink()
        waiting = itertools.chain(_read(path) if writer else (), held)
        drawn = (image for number, image in waiting if number <= threshold)
        yield from itertools.islice(drawn, num_images)  # two keys may have the hash at the threshold


class _Smallest:
    """The smallest of the numbers that are added."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.numbers = array("Q")
        self.threshold = LARGEST
        """What is larger is none of them."""

    def add(self, number: int) -> bool:
        """Whether the number may be one of them, as far as is known."""
        if number > self.threshold:
            return False
        self.numbers.append(number)
        if len(self.numbers) >= 2 * self.count + 1024:
            self.shrink()
        return True

    def shrink(self) -> int:
        """Keep the smallest, and return the threshold."""
        if len(self.numbers) > self.count:
            kept = np.partition(np.frombuffer(self.numbers, np.uint64), self.count - 1)[: self.count]
            self.numbers = array("Q", kept.tobytes())
            self.threshold = int(kept.max())
        return self.threshold


def _hash(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:8])


def _batch(held: list[_Hashed]) -> pa.RecordBatch:
    columns = zip(*((number, *image) for number, image in held), strict=True)
    arrays = [pa.array(column, one.type) for column, one in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _read(path: str) -> Iterator[_Hashed]:
    with pa.ipc.open_stream(path) as reader:
        for batch in reader:
            numbers, *columns = (column.to_pylist() for column in batch.columns)
            yield from zip(numbers, itertools.starmap(Image, zip(*columns, strict=True)), strict=True)
