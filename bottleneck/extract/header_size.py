"""Read an image's size from its header, before a decoder reserves memory for it."""

import struct

from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.WebPImagePlugin import WebPImageFile


def size_before_opening(data: bytes, plugin: type[ImageFile]) -> tuple[int, int]:
    """Width and height in the header, for formats whose readers reserve memory before they report it.

    0, 0 for other formats.
    """
    if plugin is WebPImageFile:
        return _webp_size(data)
    if plugin is Jpeg2KImageFile:
        return _jpeg2000_size(data)
    return _heif_size(data) if data[4:8] == b"ftyp" else (0, 0)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP's header; Pillow's reader reserves memory for all pixels when it opens one.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


_HEIF_HEADER_BYTES = 1_000_000


def _heif_size(data: bytes) -> tuple[int, int]:
    """The largest size of any image in an AVIF or HEIC, without the padding of 64-pixel blocks.

    This is the coded size, which may be cropped for display.
    """
    sizes = [(0, 0)]
    at = data.find(b"ispe", 0, _HEIF_HEADER_BYTES)
    while 0 <= at <= len(data) - 16:
        if data[at - 4 : at] == b"\0\0\0\x14":  # the length of such a box
            width, height = struct.unpack_from(">II", data, at + 8)
            sizes.append((max(0, width - 63), max(0, height - 63)))
        at = data.find(b"ispe", at + 4, _HEIF_HEADER_BYTES)
    return max(sizes, key=lambda size: size[0] * size[1])


def _jpeg2000_size(data: bytes) -> tuple[int, int]:
    """Width and height in the code stream, which is what is decoded, not those of the container."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 24:
        return 0, 0
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    return max(0, right - left), max(0, bottom - top)


def ends_as_jpeg2000(data: bytes) -> bool:
    """Whether the code stream has its end mark; without it, a file cut between two tiles would pass.

    Its two bytes cannot occur in coded data.
    """
    return data.rfind(b"\xff\xd9") > data.find(b"\xff\x93")
