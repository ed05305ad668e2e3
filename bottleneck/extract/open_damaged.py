"""Open JPEGs and PNGs whose pixels are complete although something behind them is damaged."""

import io
import struct
import zlib

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from bottleneck.sources.image_format import PNG
from bottleneck.spec import FeatureSpec


def draft(image: ImageFile, spec: FeatureSpec) -> None:
    if spec.decode == "draft":  # a no-op for all but JPEG, and never smaller than asked for
        image.draft(None, (spec.image_size_px, spec.image_size_px))


def open_jpeg_without_its_end(data: bytes, spec: FeatureSpec) -> ImageFile:
    """Decode a JPEG that has all its pixels but no end mark. Raises OSError if pixels are missing.

    The decoder reads ahead, so it never returns the last block without the mark; with an added mark it silently invents
    what is missing. So two different ends are added: if all pixels are there, the results are equal.
    """
    if not _has_all_scans(data):
        raise OSError("scans are missing")
    there = data.rstrip(b"\xff")  # the first half of a mark
    ends = []
    for filler in (b"\x00", b"\xaa"):
        image = JpegImageFile(io.BytesIO(there + filler * 64 + b"\xff\xd9"))
        draft(image, spec)
        image.load()
        ends.append(image)
    if ends[0].tobytes() != ends[1].tobytes():
        raise OSError("pixels are missing")
    return ends[0]


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG contain every coefficient of every component at full precision.

    Also False with restart markers, behind which whole rows can be missing without a trace.
    """
    components: set[int] = set()
    known: set[tuple[int, int]] = set()
    at, marker = 2, 0
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        if data[at + 1] in (0x00, 0xFF):  # a byte of the pixels, or filler
            at += 2 if data[at + 1] == 0 else 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        if marker == 0xDD or 0xD0 <= marker <= 0xD9:
            return False
        if marker in (0xC0, 0xC1, 0xC2):
            components = set(segment[6::3])
        if marker == 0xDA and segment:
            count = segment[0]
            first, last, precision = segment[1 + 2 * count : 4 + 2 * count] or (0, 0, 1)
            if precision & 0x0F == 0:
                known |= {(one, k) for one in segment[1 : 1 + 2 * count : 2] for k in range(first, min(last, 63) + 1)}
        at += 2 + length
    # What stands behind another mark than that of a scan is never reached.
    return marker == 0xDA and bool(components) and known >= {(one, k) for one in components for k in range(64)}


_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT")
_PNG_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def open_png(data: bytes) -> ImageFile:
    """Open a PNG reduced to its pixels, up to the first damage, and its orientation.

    Pillow by itself shows pixel data whose checksum is wrong; and it refuses whole pictures for a damaged colour
    profile or a text that unpacks to gigabytes, of which nothing is needed here. Where pixels are missing, it says so
    on loading.
    """
    pixels: list[memoryview] = []
    orientation: list[memoryview] = []
    position, kinds = len(PNG), [b""]
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = memoryview(data)[position : position + length + 12]
        whole = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper():  # needed, says the standard, which also wants all IDAT in one row
            if kind not in _PNG_PIXELS or not whole or (kind in kinds and kind != kinds[-1]):
                break
            pixels.append(chunk)
        elif whole and (kind == b"eXIf" or bytes(chunk[8:40]).startswith(_PNG_ORIENTATION)):
            orientation.append(chunk)
        position += length + 12
        kinds.append(kind)
    if pixels and len(pixels[0]) > 17 and pixels[0][17] == 3 and b"PLTE" not in kinds:
        raise OSError("the palette is missing, for which Pillow would take black")
    if orientation:
        try:
            return PngImageFile(io.BytesIO(b"".join([PNG, *pixels[:1], *orientation, *pixels[1:], _PNG_END])))
        except (ValueError, SyntaxError):
            pass  # the text that may hold an orientation is broken: then there is none
    return PngImageFile(io.BytesIO(b"".join([PNG, *pixels, _PNG_END])))
