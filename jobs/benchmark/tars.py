"""Synthetic tars with very many images.

The number stands in a comment of the JPEG file, so that all images have as many bytes and no two the same: copies in a
shard would be extracted only once.
"""

import io
import os
import shutil
import tarfile

import numpy as np

from bottleneck.errors import UsageError

TAR_IMAGES = 10_000
"""As many as img2dataset writes into one."""
IMAGE_SIZE_PX = 64
BLOCK_BYTES = 512
"""Of a tar: a member is a header of one block and its bytes in whole blocks."""
OUTPUT_BYTES = 400
"""Room for an image's rows in plan and features, generously."""


def write_source(folder: str, num_images: int, smaller: str | None = None) -> None:
    """Make a folder of tars.

    Args:
        smaller: a folder made so before; its full tars are the first ones of the new folder too, as hard links.
    """
    os.mkdir(folder)
    image = picture()
    for start in range(0, num_images, TAR_IMAGES):
        end = min(start + TAR_IMAGES, num_images)
        name = f"{start // TAR_IMAGES:05d}.tar"
        # As whether one is full can be told by its size: all members are equally long.
        old = os.path.join(smaller, name) if smaller else ""
        if old and os.path.exists(old) and os.path.getsize(old) == tar_bytes(len(image), end - start):
            os.link(old, os.path.join(folder, name))
        else:
            _write_tar(os.path.join(folder, name), range(start, end), image)


def _write_tar(path: str, numbers: range, image: bytes) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            data = numbered(image, number)
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def tar_bytes(image_bytes: int, num_images: int) -> int:
    """The size of a tar of images of a size before they were numbered."""
    image_bytes = len(numbered(bytes(image_bytes), 0))
    num_blocks = num_images * (1 + -(-image_bytes // BLOCK_BYTES)) + 2
    return -(-num_blocks * BLOCK_BYTES // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def picture() -> bytes:
    """Soft blots of colour as a JPEG file."""
    from PIL import Image

    blots = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8))
    file = io.BytesIO()
    blots.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def numbered(image: bytes, number: int) -> bytes:
    """The same JPEG file with a number in a comment, which follows the two bytes every such file begins with."""
    comment = f"{number:09d}".encode()
    return image[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + image[2:]


def check_room(folder: str, sizes: list[int]) -> None:
    """Refuse what will not fit on the disk, before anything is written. Raises UsageError."""
    image_bytes = len(picture())
    needed = sum(tar_bytes(image_bytes, size % TAR_IMAGES) for size in sizes)
    needed += tar_bytes(image_bytes, max(sizes)) + max(sizes) * OUTPUT_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"{max(sizes):,} made-up images do not fit on the disk. Expected {needed / 1e9:,.1f} GB free in {folder}. "
            f"Received: {free / 1e9:,.1f} GB. Give fewer --num-images, or a folder with more room in TMPDIR."
        )
