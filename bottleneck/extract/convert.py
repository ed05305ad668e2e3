"""Rotate, convert to RGB and resize a decoded image."""

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT

from bottleneck.spec import FeatureSpec

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Rotate like `ImageOps.exif_transpose`, without its copy if nothing is rotated; broken EXIF is ignored.

    Done before the resize, which rounds between its two passes: rotating afterwards would change values.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image | None:
    """Convert like Keras' load_img (drop alpha, look up palettes), but scale deep greys, which it clips.

    None if the pixels have no colours.
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
    """Keep the highest 8 of 16 bits (PNG), or of the 9 to 32 bits of a TIFF; negative values become black."""
    values_HW = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(BITSPERSAMPLE, (16,))[0])
    if tags.get(SAMPLEFORMAT, (1,))[0] == 2:  # signed: half of the range is below zero
        values_HW, bits = np.maximum(values_HW, 0), bits - 1
    elif image.mode == "I":  # Pillow's 32 bits are signed
        values_HW = values_HW.view(np.uint32)
    return np.asarray(values_HW >> (bits - 8), np.uint8)


def resize(rgb: Image.Image, spec: FeatureSpec) -> Image.Image:
    """Resize to S x S in one call: the whole image, or with `crop` its centre square, cut at whole pixels; with `pad`
    the longer side to S, in the middle of black.

    `reducing_gap` is not used: it is faster and changes values.
    """
    box, size = None, spec.image_size_px
    method = Image.Resampling[spec.interpolation.upper()]
    if spec.resize == "pad":
        width, height = (max(1, round(side * size / max(rgb.size))) for side in rgb.size)
        square = Image.new("RGB", (size, size))
        square.paste(rgb.resize((width, height), method), ((size - width) // 2, (size - height) // 2))
        return square
    if spec.resize == "crop":
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        box = (left, top, left + side, top + side)
    return rgb.resize((size, size), method, box=box)
