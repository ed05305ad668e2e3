"""Decode the bytes of one image into RGB pixels at the base's input size, or say why that cannot be done.

Shapes: S x S pixels of the base's input, H x W pixels as stored, C = 3 channels in the order R, G, B.

Bytes from a bucket are not trusted. They meet no other reader than the nine named here, each chosen by the bytes it
is made for, and the size in the header is compared with the cap before a pixel is decoded. Memory peaks at 7 to 20
bytes a pixel as stored: at the default cap of 100 million pixels 0.7 GB for 16-bit PNG, 1.0 GB for progressive JPEG,
1.2 GB for AVIF, 1.6 GB for WebP and, on request, 2.0 GB for JPEG 2000 (measured).

Colours are taken as stored: ICC profiles are not applied, as Keras does not apply them either.
"""

import io
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT
from PIL.WebPImagePlugin import WebPImageFile

from bottleneck.dataset.schema import Reason
from bottleneck.sources.image_format import PNG, is_other_image, reader_of
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureSpec

BYTES_A_PIXEL = 20
"""At the peak, of the hungriest decoder."""
MIN_DECODE_BYTES = 50_000_000
"""Left where the smallest image can be decoded, or one whose size is not known."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image the base can take."""

    pixels_HWC: npt.NDArray[np.uint8]
    """uint8 [S, S, 3], RGB, values in the range [0, 255]."""
    width: int
    """Pixels as stored, before EXIF turns the image (TIFF and HEIC are turned by their readers on opening)."""
    height: int
    mode: str
    """Pillow's name for the pixels as stored: `RGB`, `L`, `P`, `CMYK`, `I;16`, ..."""


@dataclass(frozen=True)
class Rejected:
    """An image the base cannot take; what its header says of it is None where that could not be read."""

    reason: Reason
    width: int | None = None
    height: int | None = None
    mode: str | None = None


def decode(data: bytes, spec: FeatureSpec, limits: Limits) -> Decoded | Rejected:
    """Decode one image: the first frame, turned as `spec.exif` says, as RGB, resized to a square.

    Reasons: `truncated` is an image in an accepted format that cannot be read whole, be it cut, damaged or of a kind
    its reader does not know. Only what is missing or damaged behind the pixels (later frames, end marks, metadata)
    is forgiven. PNG has checksums; in the other formats a changed byte inside the data may go unnoticed.
    `unsupported_format` is an image in a format outside the list, or one with pixels that have no colours (TIFF with
    floating point numbers).

    Args:
        data: the whole file.
        spec: `image_size_px`, `resize`, `interpolation`, `exif` and `decode` are used. With `squash` the pixels equal
            those of `keras.utils.load_img(target_size=(S, S))`, with `crop` those of the same with
            `keep_aspect_ratio=True`, for the same interpolation, `exif="ignore"`, `decode="exact"` and 8-bit images.
            With `draft` a JPEG's blocks of 8 x 8 are decoded as 4 x 4, 2 x 2 or 1 x 1 pixels where the result has at
            least S x S.
        limits: `max_bytes`, `max_pixels`, `formats`. Where `max_pixels` is above 179 million, that limit of Pillow's
            own still holds for WebP, TIFF, and GIF frames larger than their screen; no side of an AVIF or HEIC may be
            above 32,768.

    Returns:
        `Decoded` or `Rejected`; no bytes make it raise, only a lack of memory does.

    Raises:
        MemoryError: if there is too little of it for this image.
        UsageError: for an HEIC image, where `formats` has it and pillow-heif is not installed.
    """
    if not data:
        return Rejected("empty")
    if len(data) > limits.max_bytes:
        return Rejected("too_many_bytes")
    plugin = reader_of(data, limits)
    if plugin is None:
        return Rejected("unsupported_format" if is_other_image(data) else "not_an_image")
    width, height = _size_before_opening(data, plugin)
    if width * height > limits.max_pixels:
        return Rejected("too_many_pixels", width, height)
    header: tuple[int, int, str] | tuple[()] = ()
    with _PILLOW_IS_SILENT:
        try:
            image = _open_png(data) if plugin is PngImageFile else plugin(io.BytesIO(data))
            header = (*image.size, image.mode)
            if image.width * image.height > limits.max_pixels:
                return Rejected("too_many_pixels", *header)
            _draft(image, spec)
            if plugin is Jpeg2KImageFile and not _ends_as_jpeg2000(data):
                return Rejected("truncated", *header)
            try:
                image.load()
            except OSError:
                if plugin is not JpegImageFile:
                    raise
                image = _open_jpeg_without_its_end(data, spec)
        except MemoryError:
            raise
        except Image.DecompressionBombError:
            return Rejected("too_many_pixels", *header)
        except Exception as error:  # Pillow's readers raise a dozen kinds for damaged files
            if "out of memory" in str(error).lower() or _lacks_memory(*header[:2]):  # no property of the image
                raise MemoryError(str(error)) from error
            return Rejected("truncated", *header)
        upright = _upright(image) if spec.exif == "apply" else image
        rgb = _to_rgb(upright)
    if rgb is None:
        return Rejected("unsupported_format", *header)
    return Decoded(np.asarray(_resize(rgb, spec)), *header)


def _lacks_memory(width: int = 0, height: int = 0) -> bool:
    """Whether there is too little memory for an image of this size.

    Asked where a decoder failed: most of them then say that the data are broken (progressive JPEG, WebP, AVIF). The
    memory is asked for but not touched, so this costs nothing.
    """
    try:
        np.empty(max(MIN_DECODE_BYTES, BYTES_A_PIXEL * width * height), np.uint8)
    except MemoryError:
        return True
    return False


def _size_before_opening(data: bytes, plugin: type[ImageFile]) -> tuple[int, int]:
    """Width and height in the header, of formats whose readers reserve memory, or go by another header, afterwards.

    0, 0 for the others.
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
    """The largest size that an AVIF or HEIC says of any image in it, without what blocks of 64 pixels may add.

    It is that of the coded image, which may be cropped to what is shown.
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
    """Width and height as the code stream says, which is what is decoded, whatever the header before it says."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 24:
        return 0, 0
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    return max(0, right - left), max(0, bottom - top)


def _ends_as_jpeg2000(data: bytes) -> bool:
    """Whether the end mark of the code stream is there: without it, one that was cut between two tiles would do.

    Its two bytes are nowhere else in the coded data.
    """
    return data.rfind(b"\xff\xd9") > data.find(b"\xff\x93")


def _draft(image: ImageFile, spec: FeatureSpec) -> None:
    if spec.decode == "draft":  # a no-op for all but JPEG, and never smaller than asked for
        image.draft(None, (spec.image_size_px, spec.image_size_px))


def _open_jpeg_without_its_end(data: bytes, spec: FeatureSpec) -> ImageFile:
    """Decode a JPEG that has all its pixels and no end mark. Raises OSError where pixels are missing.

    The decoder looks ahead, so without the mark it never gives the last block. With one put in, it makes up what is
    missing, without a word. So two different ends are put in: where all pixels are there, neither changes any.
    """
    if not _has_all_scans(data):
        raise OSError("scans are missing")
    there = data.rstrip(b"\xff")  # the first half of a mark
    ends = []
    for filler in (b"\x00", b"\xaa"):
        image = JpegImageFile(io.BytesIO(there + filler * 64 + b"\xff\xd9"))
        _draft(image, spec)
        image.load()
        ends.append(image)
    if ends[0].tobytes() != ends[1].tobytes():
        raise OSError("pixels are missing")
    return ends[0]


def _has_all_scans(data: bytes) -> bool:
    """Whether a JPEG's scans so far bring every coefficient of every component at its full precision.

    False also where restart markers are used: behind one, whole rows can be missing without a trace.
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


def _open_png(data: bytes) -> ImageFile:
    """Open a PNG with nothing left of it but its pixels, up to the first damage, and its orientation.

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


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """Turn as `ImageOps.exif_transpose` does, without its copy where nothing turns; broken EXIF turns nothing.

    Done before the resize: that rounds between its two passes, so turning afterwards would change values.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image | None:
    """Convert as Keras' load_img does (alpha is dropped, palettes looked up), but scale deep greys where it clips.

    None where the pixels have no colours.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        return None
    if image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bits(image))
    try:
        return image.convert("RGB")
    except ValueError:
        return None


def _to_8_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The highest 8 of 16 bits (PNG), or of the 9 to 32 a TIFF says; what is below zero is black."""
    values_HW = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(BITSPERSAMPLE, (16,))[0])
    if tags.get(SAMPLEFORMAT, (1,))[0] == 2:  # signed: half of the range is below zero
        values_HW, bits = np.maximum(values_HW, 0), bits - 1
    elif image.mode == "I":  # Pillow's 32 bits are signed
        values_HW = values_HW.view(np.uint32)
    return np.asarray(values_HW >> (bits - 8), np.uint8)


def _resize(rgb: Image.Image, spec: FeatureSpec) -> Image.Image:
    """Resize to S x S in one call: the whole image, or with `crop` its centre square, cut at whole pixels.

    `reducing_gap` is not used: it is faster and changes values.
    """
    box = None
    if spec.resize == "crop":
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        box = (left, top, left + side, top + side)
    target = (spec.image_size_px, spec.image_size_px)
    return rgb.resize(target, Image.Resampling[spec.interpolation.upper()], box=box)


class _Silence:
    """Ignore Pillow's warnings while any thread decodes: a bad image is a row, not a warning.

    `warnings.catch_warnings` alone would not do: the filters are the process's, and of two threads that overlap the
    last one out would put back what the first one set. libtiff still writes to stderr, with `--formats tiff`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._caught.__exit__(None, None, None)


_PILLOW_IS_SILENT = _Silence()
