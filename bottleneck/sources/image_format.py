"""Detect the format of an image from its first bytes, and choose its only reader."""

import re

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from bottleneck.errors import UsageError
from bottleneck.sources.reading import Limits

PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51")
_BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)

_OTHER_IMAGES = (
    *_TIFF,
    *(b"\0\0\1\0", b"\0\0\2\0"),  # ICO, CUR
    *_JPEG2000,
    *(b"\0\0\0\x0cJXL \r\n", b"\xff\x0a"),  # JPEG XL
    *(b"II\xbc\1", b"8BPS", b"gimp xcf", b"qoif", b"icns", b"DDS ", b"v/1\1", b"#?RADIANCE", b"\x8aMNG", b"AT&TFORM"),
    *(b"IIRO", b"IIRS", b"IIU\0", b"FUJIFILMCCD-RAW"),  # cameras' raw files; most others are TIFF
)
_OTHER_PATTERNS = re.compile(
    rb"....ftyp(avi[fs]|he[iv][cxms]|mif[12]|msf1|crx )"  # AVIF, HEIC, others of the family, CR3
    rb"|P[1-7]\s[\s#]*\d"  # PBM, PGM, PPM
    rb"|(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--[^>]*-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]",
    re.DOTALL,
)


def reader_of(data: bytes, limits: Limits) -> type[ImageFile] | None:
    """The only Pillow class that may read these bytes.

    Called directly, because Image.open applies its own size limit. An MPO is read as the JPEG it begins with, which is
    its first frame.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(PNG):
        return PngImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    # Two letters may also begin a text, so the next thing known of a BMP must be there too.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return BmpImageFile
    if "tiff" in limits.formats and data.startswith(_TIFF):
        return TiffImageFile
    if data.startswith(_JPEG2000):
        return Jpeg2KImageFile if "jpeg2000" in limits.formats else None
    family = _heif_brand(data)
    if family == "avif":
        return AvifImageFile
    return _heic_plugin() if family == "heic" and "heic" in limits.formats else None


def _heic_plugin() -> type[ImageFile]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise UsageError(
            f"This image is HEIC, which the plan accepts, but pillow-heif cannot be imported here: {error}. Install it "
            "wherever images are decoded: pip install 'bottleneck-features[heic]'."
        ) from error
    plugin: type[ImageFile] = HeifImageFile
    return plugin


_HEIF_BRANDS = {"avif": (b"avif", b"avis"), "heic": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")}


def _heif_brand(data: bytes) -> str | None:
    """Which format in a HEIF container this is, by the brands in its first box.

    https://nokiatech.github.io/heif/technical.html
    """
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 1024)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]  # the major one counts most
    return next((name for brand in brands for name, own in _HEIF_BRANDS.items() if brand in own), None)


MAGIC_BYTES = 1024
"""First bytes needed to detect every format; an SVG may begin with a comment."""


def begins_as_image(data: bytes) -> bool:
    """Whether the first MAGIC_BYTES begin like an image of any format, accepted or not."""
    return reader_of(data, Limits()) is not None or is_other_image(data)


def is_other_image(data: bytes) -> bool:
    return data.startswith(_OTHER_IMAGES) or _OTHER_PATTERNS.match(data[:MAGIC_BYTES]) is not None
