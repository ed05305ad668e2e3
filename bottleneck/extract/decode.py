"""Decode an image into RGB pixels at the base's input size, or reject it with a reason.

Shapes: S x S pixels of the base's input, H x W pixels as stored, C = 3 channels in the order R, G, B.

Bytes from a bucket are not trusted. They meet no other reader than the nine named here, each chosen by the bytes it
is made for, and the size in the header is compared with the cap before a pixel is decoded. Memory peaks at 7 to 20
bytes a pixel as stored: at the default cap of 100 million pixels 0.7 GB for 16-bit PNG, 1.0 GB for progressive JPEG,
1.2 GB for AVIF, 1.6 GB for WebP and, on request, 2.0 GB for JPEG 2000 (measured).

Colours are taken as stored: ICC profiles are not applied, as Keras does not apply them either.
"""

import io
import threading
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from bottleneck.dataset.schema import Reason
from bottleneck.extract.convert import resize, to_rgb, upright
from bottleneck.extract.header_size import ends_as_jpeg2000, size_before_opening
from bottleneck.extract.open_damaged import draft, open_jpeg_without_its_end, open_png
from bottleneck.sources.image_format import is_other_image, reader_of
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureSpec

BYTES_A_PIXEL = 20
"""Peak memory of the hungriest decoder, in bytes per pixel."""
MIN_DECODE_BYTES = 50_000_000
"""Memory that must be free to decode the smallest image, or one of unknown size."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded image."""

    pixels_HWC: npt.NDArray[np.uint8]
    """uint8 [S, S, 3], RGB, values in the range [0, 255]."""
    width: int
    """Pixels as stored, before EXIF turns the image (TIFF and HEIC are turned by their readers on opening)."""
    height: int
    mode: str
    """Pillow's name for the pixels as stored: `RGB`, `L`, `P`, `CMYK`, `I;16`, ..."""


@dataclass(frozen=True)
class Rejected:
    """A rejected image; fields of the header are None if it could not be read."""

    reason: Reason
    width: int | None = None
    height: int | None = None
    mode: str | None = None


def decode(data: bytes, spec: FeatureSpec, limits: Limits) -> Decoded | Rejected:
    """Decode the first frame of an image, oriented as `spec.exif` says, as RGB, resized to a square.

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
    width, height = size_before_opening(data, plugin)
    if width * height > limits.max_pixels:
        return Rejected("too_many_pixels", width, height)
    header: tuple[int, int, str] | tuple[()] = ()
    with _PILLOW_IS_SILENT:
        try:
            image = open_png(data) if plugin is PngImageFile else plugin(io.BytesIO(data))
            header = (*image.size, image.mode)
            if image.width * image.height > limits.max_pixels:
                return Rejected("too_many_pixels", *header)
            draft(image, spec)
            if plugin is Jpeg2KImageFile and not ends_as_jpeg2000(data):
                return Rejected("truncated", *header)
            try:
                image.load()
            except OSError:
                if plugin is not JpegImageFile:
                    raise
                image = open_jpeg_without_its_end(data, spec)
        except MemoryError:
            raise
        except Image.DecompressionBombError:
            return Rejected("too_many_pixels", *header)
        except Exception as error:  # Pillow's readers raise a dozen kinds for damaged files
            if "out of memory" in str(error).lower() or _lacks_memory(*header[:2]):  # no property of the image
                raise MemoryError(str(error)) from error
            return Rejected("truncated", *header)
        turned = upright(image) if spec.exif == "apply" else image
        rgb = to_rgb(turned)
    if rgb is None:
        return Rejected("unsupported_format", *header)
    return Decoded(np.asarray(resize(rgb, spec)), *header)


def _lacks_memory(width: int = 0, height: int = 0) -> bool:
    """Whether memory is too small for an image of this size.

    Called when a decoder fails, as most report a lack of memory as broken data (progressive JPEG, WebP, AVIF). The
    memory is allocated but not touched, so this costs nothing.
    """
    try:
        np.empty(max(MIN_DECODE_BYTES, BYTES_A_PIXEL * width * height), np.uint8)
    except MemoryError:
        return True
    return False


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
