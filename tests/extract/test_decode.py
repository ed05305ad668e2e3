import csv
import io
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from assets import asset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bottleneck.errors import UsageError
from bottleneck.extract.decode import Decoded, Rejected, decode
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureSpec

ORIENTATION = 0x0112
ROOT = Path(__file__).resolve().parents[2]
ALL = Limits(formats=("tiff", "jpeg2000", "heic"))


def spec(**changes: Any) -> FeatureSpec:
    fields: dict[str, Any] = {
        "base": "vgg16",
        "weights": "random:0",
        "weights_sha256": "0" * 64,
        "layers": ("block5_pool:avg",),
        "dims": (512,),
        "image_size_px": 32,
        "resize": "squash",
        "interpolation": "bilinear",
        "exif": "apply",
        "decode": "exact",
        "precision": "float32",
        "dtype": "float16",
    }
    return FeatureSpec(**fields | changes)


KERAS = spec(interpolation="nearest", exif="ignore")
"""The choices that make decoding equal to Keras' load_img with its defaults."""


def pixels(data: bytes, spec: FeatureSpec = KERAS, limits: Limits = ALL) -> npt.NDArray[np.uint8]:
    decoded = decode(data, spec, limits)
    assert isinstance(decoded, Decoded), decoded
    return decoded.pixels_HWC


def reason(data: bytes, limits: Limits = ALL) -> str:
    rejected = decode(data, KERAS, limits)
    assert isinstance(rejected, Rejected)
    return rejected.reason


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def heic(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, **options)
    return file.getvalue()


def picture(width: int = 12, height: int = 10) -> Image.Image:
    """No two rows, columns or corners alike, so that any wrong turn or resize shows."""
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]
    slopes = np.stack([x * 200 // width, y * 200 // height, (x + y) * 200 // (width + height)], axis=-1)
    return Image.fromarray((slopes + noise).astype(np.uint8))


def grey16(values: list[int]) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint16))


def tiff(values: npt.NDArray[Any], bits: int, signed: bool, raw: bytes | None = None) -> bytes:
    """A grey ALL of one row, of the kinds Pillow reads but does not write."""
    raw = values.tobytes() if raw is None else raw
    tags = [(256, values.size), (257, 1), (258, bits), (259, 1), (262, 1), (273, 0), (277, 1), (278, 1)]
    tags += [(279, len(raw)), (339, 2 if signed else 1)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + struct.pack("<I", 0) + raw


def rle_bmp() -> bytes:
    """4 x 2 pixels of four colours, run-length encoded: red x 4 below green, blue, black, black."""
    palette = b"\0\0\xff\0" + b"\0\xff\0\0" + b"\xff\0\0\0" + b"\0\0\0\0"
    data = b"\4\0\0\0" + b"\0\4\1\2\3\3" + b"\0\0\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 1, len(data), 0, 0, 4, 4)
    start = 14 + len(info) + len(palette)
    return struct.pack("<2sIII", b"BM", start + len(data), 0, start) + info + palette + data


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], data[position : position + length + 12]
        position += length + 12


def small_files() -> dict[str, bytes]:
    """One small file of each kind that a different part of a decoder reads."""
    image, other = picture(), ImageOps.invert(picture())
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    frames = {"save_all": True, "append_images": [other], "duration": 100}
    return {
        "jpeg": saved(image, "JPEG"),
        "jpeg of quality 100": saved(image, "JPEG", quality=100, subsampling=0),
        "jpeg, progressive": saved(image, "JPEG", progressive=True),
        "jpeg, grey": saved(image.convert("L"), "JPEG"),
        "jpeg, cmyk": saved(image.convert("CMYK"), "JPEG"),
        "jpeg with restart markers": saved(image, "JPEG", restart_marker_blocks=1),
        "jpeg with exif": saved(image, "JPEG", exif=exif),
        "mpo": saved(image, "MPO", save_all=True, append_images=[other]),
        "png": saved(image, "PNG"),
        "png with exif": saved(image, "PNG", exif=exif),
        "png, palette": saved(image.quantize(16), "PNG"),
        "png, 16 bit": saved(grey16([0, 300, 65535]), "PNG"),
        "apng": saved(image, "PNG", **frames),
        "gif": saved(image, "GIF"),
        "gif, one colour": saved(Image.new("P", (12, 10), 1), "GIF"),
        "gif, not interlaced": saved(image, "GIF", interlace=0),
        "gif, animated": saved(image, "GIF", **frames),
        "webp": saved(image, "WEBP"),
        "webp, lossless": saved(image, "WEBP", lossless=True),
        "webp, alpha": saved(image.convert("RGBA"), "WEBP"),
        "webp with exif": saved(image, "WEBP", exif=exif),
        "webp, animated": saved(image, "WEBP", **frames),
        "bmp": saved(image, "BMP"),
        "bmp, palette": saved(image.quantize(16), "BMP"),
        "bmp, run-length": rle_bmp(),
        "tiff": saved(image, "TIFF"),
        "tiff, lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "avif": saved(image, "AVIF", speed=10),
        "avif of quality 100": saved(image, "AVIF", speed=10, quality=100, subsampling="4:4:4"),
        "avif, alpha": saved(Image.merge("RGBA", (*image.split(), other.getchannel(0))), "AVIF", speed=10),
        "avif with exif": saved(image, "AVIF", speed=10, exif=exif),
        "avif, animated": saved(image, "AVIF", speed=10, **frames),
        "jpeg 2000": saved(image, "JPEG2000"),
        "jpeg 2000, code stream": saved(image, "JPEG2000", no_jp2=True),
        "jpeg 2000, tiles": saved(image, "JPEG2000", tile_size=(8, 8)),
        "jpeg 2000, 16 bit": saved(grey16([0, 300, 65535]), "JPEG2000"),
        "heic": heic(image, quality=90),
        "heic, alpha": heic(Image.merge("RGBA", (*image.split(), other.getchannel(0)))),
        "heic with exif": heic(image, exif=exif.tobytes()),
    }


SMALL = small_files()
HAVE_MORE_BEHIND_THE_FIRST_FRAME = ("mpo", "apng", "gif, animated")

# -- colours -----------------------------------------------------------------------------------------------------------


def test_alpha_is_dropped_and_the_colours_below_it_stay() -> None:
    assert pixels(saved(Image.new("RGBA", (1, 1), (10, 20, 30, 0)), "PNG"))[0, 0].tolist() == [10, 20, 30]
    assert pixels(saved(Image.new("LA", (1, 1), (77, 0)), "PNG"))[0, 0].tolist() == [77, 77, 77]
    visible = saved(Image.new("RGBA", (1, 1), (10, 20, 30, 128)), "WEBP", lossless=True)
    assert pixels(visible)[0, 0].tolist() == [10, 20, 30]


def test_palettes_are_looked_up_and_their_transparency_is_dropped() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 250, 150, 50])
    image.putpixel((1, 0), 1)
    for data in (
        saved(image, "PNG"),
        saved(image, "PNG", transparency=1),
        saved(image, "PNG", transparency=b"\0\x80"),
        saved(image, "GIF"),
        saved(image, "GIF", transparency=1),
        saved(image, "BMP"),
    ):
        assert pixels(data, spec(image_size_px=2, interpolation="nearest"))[0].tolist() == [[1, 2, 3], [250, 150, 50]]


def test_a_run_length_encoded_bmp_is_read_bottom_up() -> None:
    red, green, blue, black = [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]
    rows = pixels(rle_bmp(), spec(image_size_px=4, interpolation="nearest"))
    assert rows[0].tolist() == [green, blue, black, black]
    assert rows[3].tolist() == [red] * 4


def test_grey_and_one_bit_images_are_spread_to_three_channels() -> None:
    assert pixels(saved(Image.new("L", (1, 1), 99), "PNG"))[0, 0].tolist() == [99] * 3
    one_bit = Image.fromarray(np.array([[False, True]]))
    assert pixels(saved(one_bit, "PNG"))[0, [0, -1]].tolist() == [[0] * 3, [255] * 3]
    assert pixels(saved(one_bit, "BMP"))[0, [0, -1]].tolist() == [[0] * 3, [255] * 3]


def first_row(data: bytes, width: int) -> list[int]:
    return [int(value) for value in pixels(data, spec(image_size_px=width, interpolation="nearest"))[0, :, 0]]


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    image = grey16([0, 255, 256, 0x7FFF, 0x8000, 0xFFFF])
    for data in (saved(image, "PNG"), saved(image, "TIFF")):
        assert first_row(data, 6) == [0, 0, 1, 127, 128, 255]


def test_deep_tiff_greys_are_scaled_from_the_bits_they_have() -> None:
    unsigned = np.array([0, 2**24, 2**31, 2**32 - 1], np.uint32)
    assert first_row(tiff(unsigned, 32, signed=False), 4) == [0, 1, 128, 255]
    signed = np.array([-5, 0, 2**30, 2**31 - 1], np.int32)
    assert first_row(tiff(signed, 32, signed=True), 4) == [0, 0, 128, 255]
    signed16 = np.array([-5, 0, 2**14, 2**15 - 1], np.int16)
    assert first_row(tiff(signed16, 16, signed=True), 4) == [0, 0, 128, 255]
    twelve = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10])  # 0x000, 0x800, 0xFFF, 0x010
    assert first_row(tiff(np.zeros(4), 12, signed=False, raw=twelve), 4) == [0, 128, 255, 1]


def test_sixteen_bit_colours_keep_their_high_byte() -> None:
    samples = struct.pack(">HHH", 0x1234, 0x80FF, 0xFF00)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    data = png(header, chunk(b"IDAT", zlib.compress(b"\0" + samples)), chunk(b"IEND", b""))
    assert pixels(data)[0, 0].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize("colour", [(200, 30, 90), (255, 255, 255), (0, 0, 0), (10, 240, 120)])
def test_cmyk_and_ycck_jpegs_have_the_colours_they_were_made_from(colour: tuple[int, int, int]) -> None:
    red, green, blue = (255 - value for value in colour)
    cmyk = Image.new("CMYK", (16, 16), (red, green, blue, 0))
    ycc = Image.new("RGB", (1, 1), (red, green, blue)).convert("YCbCr")
    luma, blueness, redness = (int(value) for value in np.asarray(ycc)[0, 0])
    stored = Image.new("CMYK", (16, 16), (255 - luma, 255 - blueness, 255 - redness, 0))
    ycck = bytearray(saved(stored, "JPEG", quality=100))
    ycck[ycck.index(b"Adobe") + 11] = 2  # the colour transform: YCCK
    for data in (saved(cmyk, "JPEG", quality=100), bytes(ycck)):
        decoded = decode(data, KERAS, Limits())
        assert isinstance(decoded, Decoded)
        assert decoded.mode == "CMYK"
        assert np.abs(decoded.pixels_HWC.astype(int) - colour).max() <= 3


def test_floating_point_pixels_have_no_colours_and_are_refused() -> None:
    data = saved(Image.fromarray(np.ones((2, 3), np.float32)), "TIFF")
    assert decode(data, KERAS, ALL) == Rejected("unsupported_format", 3, 2, "F")


def test_colour_profiles_change_nothing() -> None:
    assert np.array_equal(pixels(saved(picture(), "PNG", icc_profile=b"nonsense")), pixels(SMALL["png"]))


@pytest.mark.parametrize("kind", ["gif, animated", "webp, animated", "apng", "mpo", "avif, animated"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    first = pixels(SMALL["png"]).astype(int)
    assert np.abs(pixels(SMALL[kind]) - first).mean() < 15  # the second is its negative


def test_size_and_mode_are_told_as_stored() -> None:
    decoded = decode(SMALL["png with exif"], spec(), Limits())
    assert isinstance(decoded, Decoded)
    assert (decoded.width, decoded.height, decoded.mode) == (12, 10, "RGB")
    assert decoded.pixels_HWC.shape == (32, 32, 3)
    assert decoded.pixels_HWC.dtype == np.uint8


# -- resizing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_pixels_equal_those_of_keras_load_img(interpolation: str, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    images = [picture(37, 53), picture(50, 20).convert("L"), picture(40, 41).quantize(8), picture(32, 32)]
    for number, image in enumerate([*images, picture(30, 31).convert("CMYK"), picture(9, 7).convert("RGBA")]):
        path = tmp_path / str(number)
        path.write_bytes(saved(image, "JPEG" if image.mode == "CMYK" else "PNG"))
        for resize in ("squash", "crop"):
            keras_image = keras.utils.load_img(
                path, target_size=(32, 32), interpolation=interpolation, keep_aspect_ratio=resize == "crop"
            )
            ours = spec(interpolation=interpolation, exif="ignore", resize=resize)
            assert np.array_equal(pixels(path.read_bytes(), ours), np.asarray(keras_image))


def test_crop_takes_the_centre_square() -> None:
    array = np.asarray(picture(90, 30))
    data = saved(Image.fromarray(array), "PNG")
    assert np.array_equal(pixels(data, spec(image_size_px=30, resize="crop")), array[:, 30:60])
    assert not np.array_equal(pixels(data, spec(image_size_px=30)), array[:, 30:60])


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (31, 32), (32, 32), (100, 75)])
def test_padding_is_pillows_own(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    expected = ImageOps.pad(image, (32, 32), Image.Resampling.BILINEAR)
    found = pixels(saved(image, "PNG"), spec(resize="pad"))
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_any_shape_of_image_can_be_resized(size: tuple[int, int], resize: str) -> None:
    assert pixels(saved(Image.new("RGB", size, (1, 2, 3)), "PNG"), spec(resize=resize))[5, 7].tolist() == [1, 2, 3]


# -- draft -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(
    ("width", "height", "scale"), [(64, 64, 2), (65, 200, 2), (63, 400, 1), (128, 130, 4), (900, 600, 8)]
)
def test_a_draft_is_the_largest_reduction_that_is_no_smaller_than_the_input(
    width: int, height: int, scale: int, resize: str
) -> None:
    data = saved(picture(width, height), "JPEG")
    image = Image.open(io.BytesIO(data))
    image.draft(None, (width // scale, height // scale))
    reduced = saved(image.convert("RGB"), "PNG")
    draft = decode(data, spec(resize=resize, decode="draft"), Limits())
    assert isinstance(draft, Decoded)
    assert (draft.width, draft.height) == (width, height)
    assert np.array_equal(draft.pixels_HWC, pixels(reduced, spec(resize=resize)))
    exact = pixels(data, spec(resize=resize)).astype(int)
    assert np.array_equal(draft.pixels_HWC, exact) == (scale == 1)
    assert np.abs(draft.pixels_HWC - exact).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_formats_than_jpeg_have_no_draft(kind: str) -> None:
    data = saved(picture(128, 128), kind)
    assert np.array_equal(pixels(data, spec(decode="draft")), pixels(data, spec()))


def test_a_truncated_jpeg_is_rejected_as_a_draft_too() -> None:
    data = saved(picture(256, 256), "JPEG")
    rejected = decode(data[: len(data) // 2], spec(decode="draft"), Limits())
    assert rejected == Rejected("truncated", 256, 256, "RGB")


# -- orientation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF", "AVIF"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_exif_orientation_is_applied_before_the_resize(orientation: int, kind: str, resize: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(picture(50, 31), kind, exif=exif, **options)
    upright = saved(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), "PNG")
    assert np.array_equal(pixels(data, spec(resize=resize)), pixels(upright, spec(resize=resize, exif="ignore")))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_exif_orientation_can_be_ignored(kind: str) -> None:
    turned, plain = SMALL[f"{kind} with exif"], SMALL[kind]
    assert np.array_equal(pixels(turned, spec(exif="ignore")), pixels(plain, spec(exif="ignore")))
    assert not np.array_equal(pixels(turned, spec(exif="apply")), pixels(plain, spec(exif="apply")))


@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_in_all_eight_orientations_come_out_upright(shape: str, orientation: int) -> None:
    folder = asset("oddimages/exif-orientation")
    upright = pixels((folder / f"{shape}_0.jpg").read_bytes(), spec()).astype(int)
    turned = pixels((folder / f"{shape}_{orientation}.jpg").read_bytes(), spec())
    assert np.abs(turned - upright).mean() < 4


def test_the_orientation_of_a_png_is_found_wherever_programs_write_it() -> None:
    folder = asset("oddimages/pillow")
    for name in ("exif_imagemagick_orientation.png", "xmp_tags_orientation.png"):
        data = (folder / name).read_bytes()
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").resize((32, 32), 0)
        assert np.array_equal(pixels(data, spec(interpolation="nearest")), np.asarray(expected))
        assert not np.array_equal(pixels(data, spec(interpolation="nearest")), pixels(data))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0nonsense",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\xff\xff\xff\xff\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\5\0\0\0\1\0\0\0\x08",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("error")
def test_broken_exif_is_no_orientation_and_no_reason_to_reject(exif: bytes, kind: str) -> None:
    options: dict[str, Any] = {"exif": exif} if kind != "PNG" else {}
    data = saved(picture(), kind, **options)
    if kind == "PNG":
        data = data[:33] + chunk(b"eXIf", exif[6:]) + data[33:]
    assert np.array_equal(pixels(data, spec(), Limits()), pixels(data, spec(exif="ignore"), Limits()))


def test_broken_exif_text_in_a_png_is_no_reason_to_reject() -> None:
    plain = SMALL["png"]
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\0" * 10_000_000))
    for text in (
        bomb,
        chunk(b"zTXt", b"Raw profile type exif\0\0junk"),
        chunk(b"tEXt", b"Raw profile type exif\0\n\n\nxyz"),
    ):
        assert np.array_equal(pixels(plain[:33] + text + plain[33:], spec()), pixels(plain, spec()))


# -- what is not whole -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMALL)
def test_a_file_cut_anywhere_is_rejected_unless_all_its_pixels_are_there(kind: str) -> None:
    data = SMALL[kind]
    whole = pixels(data)
    for end in range(len(data)):
        result = decode(data[:end], KERAS, ALL)
        if isinstance(result, Decoded):
            assert np.array_equal(result.pixels_HWC, whole), f"cut at {end} of {len(data)}"
            assert len(data) - end <= 12 or kind in HAVE_MORE_BEHIND_THE_FIRST_FRAME, f"cut at {end} of {len(data)}"
        else:
            assert result.reason in ("truncated", "not_an_image", "empty"), f"cut at {end} of {len(data)}"


@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind.startswith("jpeg") and "2000" not in kind])
@pytest.mark.parametrize("decode_mode", ["exact", "draft"])
def test_a_jpeg_without_its_end_mark_has_all_its_pixels(kind: str, decode_mode: str) -> None:
    of_kind = spec(decode=decode_mode)
    for missing in (1, 2):
        result = decode(SMALL[kind][:-missing], of_kind, Limits())
        if kind == "jpeg with restart markers":
            assert result == Rejected("truncated", 12, 10, "RGB")
        else:
            assert isinstance(result, Decoded)
            assert np.array_equal(result.pixels_HWC, pixels(SMALL[kind], of_kind))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 98}, {"subsampling": 0, "quality": 30}])
def test_a_jpeg_that_lacks_pixels_is_never_taken_for_one_that_lacks_its_end_mark(options: dict[str, Any]) -> None:
    data = saved(picture(120, 90), "JPEG", **options)
    whole = pixels(data)
    for end in [*range(len(data) - 300, len(data)), *range(600, len(data), 37)]:
        result = decode(data[:end], KERAS, Limits())
        assert isinstance(result, Rejected) or np.array_equal(result.pixels_HWC, whole), end
    # Between two scans nothing is damaged, and much is missing.
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    for at in scans[1:]:
        assert reason(data[:at]) == "truncated"


def test_a_png_with_any_wrong_bit_in_its_pixels_is_rejected() -> None:
    data = SMALL["png, palette"]
    chunks = dict(png_chunks(data))
    for kind in (b"IHDR", b"PLTE", b"IDAT"):
        start = data.index(chunks[kind])
        for bit in range(start * 8, (start + len(chunks[kind])) * 8):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            assert isinstance(decode(bytes(damaged), KERAS, Limits()), Rejected), (kind, bit)


def test_a_png_with_damaged_or_hostile_metadata_is_taken() -> None:
    data = SMALL["png"]
    profile = bytearray(chunk(b"iCCP", b"name\0\1junk"))
    profile[-1] ^= 1
    bombs = [chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 2_000_000))] * 40
    assert np.array_equal(pixels(data[:33] + bytes(profile) + b"".join(bombs) + data[33:]), pixels(data))


def test_png_pixels_that_begin_again_after_something_else_are_not_used() -> None:
    parts = dict(png_chunks(SMALL["png"]))
    stream = parts[b"IDAT"][8:-4]
    halves = [chunk(b"IDAT", stream[:50]), chunk(b"IDAT", stream[50:])]
    between = chunk(b"tEXt", b"a\0b")
    assert np.array_equal(pixels(png(parts[b"IHDR"], *halves, parts[b"IEND"])), pixels(SMALL["png"]))
    assert reason(png(parts[b"IHDR"], halves[0], between, halves[1], parts[b"IEND"])) == "truncated"


def test_a_rejected_image_still_tells_what_its_header_says() -> None:
    assert decode(SMALL["jpeg"][:-20], KERAS, Limits()) == Rejected("truncated", 12, 10, "RGB")
    assert decode(SMALL["png"][:-40], KERAS, Limits()) == Rejected("truncated", 12, 10, "RGB")
    assert decode(SMALL["jpeg"][:20], KERAS, Limits()) == Rejected("truncated")


# -- what is no image, or none of ours ---------------------------------------------------------------------------------


def test_no_bytes_are_empty() -> None:
    assert decode(b"", KERAS, Limits()) == Rejected("empty")


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body><svg></svg></body></html>",
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        b"plain text",
        b"BMW and other cars that begin with the letters of a format",
        b"P. S. one more text",
        b"\0" * 100,
        b"\xff" * 100,
        b"PK\3\4 an archive",
        b"\x1f\x8b an archive",
        b"%PDF-1.7",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypmp42\0\0\0\0",
        b"\x89PN",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0000",
    ],
)
def test_other_files_are_no_images(data: bytes) -> None:
    assert decode(data, KERAS, ALL) == Rejected("not_an_image")


@pytest.mark.parametrize("kind", ["ICO", "JPEG2000", "PPM", "DDS", "ICNS", "TIFF"])
def test_images_in_other_formats_are_unsupported(kind: str) -> None:
    assert reason(saved(picture(32, 32), kind), Limits()) == "unsupported_format"


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1jpeg",
        SMALL["heic"],
        SMALL["jpeg 2000"],
        SMALL["jpeg 2000, code stream"],
        b"8BPS\0\1",
        b"MM\0*\0\0\0\x08",
        b"II+\0\x08\0\0\0",
        b"\xff\x0a\xfa\x1f",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made by hand -->\n<!DOCTYPE svg PUBLIC 'x'>\n<svg>",
    ],
)
def test_images_in_formats_pillow_cannot_write_are_unsupported(data: bytes) -> None:
    assert decode(data, KERAS, Limits()) == Rejected("unsupported_format")


def test_other_formats_are_options_of_their_own() -> None:
    kinds: dict[Any, str] = {"tiff": "tiff", "jpeg2000": "jpeg 2000", "heic": "heic"}
    for accepted in kinds:
        for other, kind in kinds.items():
            result = decode(SMALL[kind], KERAS, Limits(formats=(accepted,)))
            assert isinstance(result, Decoded) == (accepted == other)
    assert np.array_equal(pixels(SMALL["tiff"]), pixels(SMALL["png"]))


def quarters() -> Image.Image:
    """Red, green, blue and grey."""
    image = Image.new("RGB", (64, 48), (200, 30, 40))
    for place, colour in (((32, 0), (20, 180, 60)), ((0, 24), (30, 60, 210)), ((32, 24), (128, 128, 128))):
        image.paste(colour, (*place, place[0] + 32, place[1] + 24))
    return image


GOLDEN = {
    "TIFF": (saved(quarters(), "TIFF"), 0),
    "TIFF as JPEG": (saved(quarters(), "TIFF", compression="jpeg"), 6),
    "JPEG 2000": (saved(quarters(), "JPEG2000"), 0),
    "JPEG 2000, lossy": (saved(quarters(), "JPEG2000", irreversible=True, quality_layers=[8]), 12),
    "JPEG 2000, grey": (saved(quarters().convert("L"), "JPEG2000"), None),
    "AVIF": (saved(quarters(), "AVIF", quality=90), 6),
    "AVIF, grey": (saved(quarters().convert("L"), "AVIF", quality=90), None),
    "AVIF, 4:2:0": (saved(quarters(), "AVIF", quality=70, subsampling="4:2:0"), 10),
    "HEIC": (heic(quarters(), quality=90), 6),
    "HEIC, grey": (heic(quarters().convert("L"), quality=90), None),
    "HEIC, 4:4:4": (heic(quarters(), quality=100, chroma=444), 4),
}
"""The same picture in each format, and by how much a colour may differ; None where it is grey."""


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_picture_has_its_colours_and_corners_in_every_format(kind: str) -> None:
    data, tolerance = GOLDEN[kind]
    decoded = decode(data, KERAS, ALL)
    assert isinstance(decoded, Decoded)
    assert (decoded.width, decoded.height) == (64, 48)
    image = quarters() if tolerance is not None else quarters().convert("L").convert("RGB")
    inner = [(y, x) for y in (8, 24) for x in (8, 24)]  # of 32 x 32 pixels, away from the edges of the quarters
    expected = np.array([image.getpixel((2 * x, 3 * y // 2)) for y, x in inner], int)
    found = np.array([decoded.pixels_HWC[y, x] for y, x in inner], int)
    assert np.abs(found - expected).max() <= (6 if tolerance is None else tolerance), found


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_a_heic_is_turned_by_its_reader(exif: str) -> None:
    turn = Image.Exif()
    turn[ORIENTATION] = 6
    turned = pixels(heic(quarters(), quality=90, exif=turn.tobytes()), spec(interpolation="nearest", exif=exif))
    expected = quarters().transpose(Image.Transpose.ROTATE_270).resize((32, 32), 0)
    assert np.abs(turned.astype(int) - np.asarray(expected)).mean() < 4


def test_where_heic_cannot_be_decoded_it_is_no_reason_to_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UsageError, match="pillow-heif cannot be imported"):
        decode(SMALL["heic"], KERAS, ALL)
    assert reason(SMALL["heic"], Limits()) == "unsupported_format"


# -- caps --------------------------------------------------------------------------------------------------------------


def test_more_bytes_than_the_cap_are_not_looked_at() -> None:
    size = len(SMALL["png"])
    assert decode(SMALL["png"], KERAS, Limits(max_bytes=size - 1)) == Rejected("too_many_bytes")
    assert isinstance(decode(SMALL["png"], KERAS, Limits(max_bytes=size)), Decoded)


@pytest.mark.parametrize("kind", SMALL)
def test_more_pixels_than_the_cap_are_not_decoded(kind: str) -> None:
    whole = decode(SMALL[kind], KERAS, ALL)
    assert isinstance(whole, Decoded)
    num_pixels = whole.width * whole.height
    rejected = decode(SMALL[kind], KERAS, Limits(max_pixels=num_pixels - 1, formats=ALL.formats))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.width, rejected.height) == ("too_many_pixels", whole.width, whole.height)
    assert isinstance(decode(SMALL[kind], KERAS, Limits(max_pixels=num_pixels, formats=ALL.formats)), Decoded)


def test_the_cap_is_ours_alone_and_pillows_own_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("jpeg", "mpo", "png", "gif", "bmp"):
        assert isinstance(decode(SMALL[kind], KERAS, Limits()), Decoded)
    assert Image.MAX_IMAGE_PIXELS == 10


def bombs() -> dict[str, bytes]:
    vp8x = b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\xfe\x3f\0" * 2
    gif = b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\x44\1\0;"
    ispe, siz = b"ispe" + bytes(4) + struct.pack(">II", 12, 10), struct.pack(">IIII", 12, 10, 0, 0)
    coded = ispe[:8] + struct.pack(">II", 64, 64)  # of HEIC, cropped to what is shown
    jpeg2000 = SMALL["jpeg 2000"]
    return {
        "avif": SMALL["avif"].replace(ispe, ispe[:8] + struct.pack(">II", 20_000, 30_000)),
        "heic": SMALL["heic"].replace(coded, ispe[:8] + struct.pack(">II", 70_000, 70_000)),
        "jpeg 2000": jpeg2000.replace(siz, struct.pack(">IIII", 200_000, 300_000, 0, 0)),
        "png": png(png_header(100_000, 100_000), chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))),
        "webp": b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x,
        "gif": gif,
        "bmp": struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54, 0, 54, 40, 65535, 65535, 1, 24, 0, 0, 0, 0, 0, 0),
        "jpeg": SMALL["jpeg"].replace(b"\xff\xc0\0\x11\x08\0\x0a\0\x0c", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff"),
    }


@pytest.mark.parametrize("kind", bombs())
def test_headers_that_promise_gigapixels_are_rejected(kind: str) -> None:
    assert reason(bombs()[kind], ALL) == "too_many_pixels"


def test_bombs_odd_images_and_the_largest_image_stay_within_memory_and_time() -> None:
    folder = asset("oddimages/pillow")
    program = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
        import io
        from PIL import Image
        import time
        from test_decode import KERAS, ALL, bombs, decode, odd_images, reason
        from bottleneck.sources.reading import Limits
        assert reason(open({str(folder / "decompression_bomb.gif")!r}, "rb").read()) == "too_many_pixels"
        assert decode(open({str(folder / "png_decompression_dos.png")!r}, "rb").read(), KERAS, Limits()).width == 1
        for data in bombs().values():
            assert reason(data) == "too_many_pixels"
        file = io.BytesIO()
        Image.new("P", (10_000, 10_000)).save(file, "PNG", compress_level=1)
        assert decode(file.getvalue(), KERAS, Limits()).height == 10_000
        for name, data in odd_images():
            started = time.monotonic()
            decode(data, KERAS, ALL)
            assert time.monotonic() - started < 30, name
        # Not ru_maxrss, which begins with what the process had that started this one.
        print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/extract'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < 1_000_000  # kB


SCARCE = """
import io, resource, sys
import numpy as np
import tiny
from PIL import Image
from bottleneck.extract.decode import decode
from bottleneck.sources.reading import Limits

KERAS = tiny.spec()
image = Image.effect_noise((1500, 1000), 80).convert("RGB")
outcomes = []
for kind, options in (("JPEG", {"progressive": True}), ("WEBP", {}), ("PNG", {}), ("AVIF", {"speed": 10})):
    file = io.BytesIO()
    image.save(file, kind, **options)
    decode(file.getvalue(), KERAS, Limits())
    with open("/proc/self/statm") as statm:
        here = int(statm.read().split()[0]) * resource.getpagesize()
    for megabytes in (1, 4, 8, 16, 32, 64):
        resource.setrlimit(resource.RLIMIT_AS, (here + megabytes * 1_000_000, -1))
        try:
            outcome = decode(file.getvalue(), KERAS, Limits())
            print(kind, megabytes, getattr(outcome, "reason", "ok"))
        except MemoryError:
            print(kind, megabytes, "out of memory")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_no_image_is_rejected_because_memory_is_scarce() -> None:
    """Most decoders say that the data are broken then."""
    environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/extract'}"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "100000"  # so that what is free is given back
    told = subprocess.run([sys.executable, "-c", SCARCE], env=environment, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    outcomes = {line.partition(" ")[2].partition(" ")[2] for line in told.stdout.splitlines()}
    assert outcomes == {"ok", "out of memory"}, told.stdout


# -- it never fails, and says nothing ----------------------------------------------------------------------------------

FEW_PIXELS = Limits(max_pixels=1_000_000, formats=ALL.formats)
MAGIC = [data[:length] for data in SMALL.values() for length in (4, 12, 30)]


def check(data: bytes) -> None:
    result = decode(data, spec(), FEW_PIXELS)
    if isinstance(result, Decoded):
        assert result.pixels_HWC.shape == (32, 32, 3)
        assert 0 < result.width * result.height <= FEW_PIXELS.max_pixels


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([b"", *MAGIC]), st.binary(max_size=300))
def test_no_bytes_make_it_raise(magic: bytes, data: bytes) -> None:
    check(magic + data)


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from(list(SMALL.values())),
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 2]), st.binary(max_size=4)), min_size=1, max_size=6),
    st.booleans(),
)
def test_no_damaged_image_makes_it_raise(
    data: bytes, edits: list[tuple[float, int, bytes]], at_the_beginning: bool
) -> None:
    for place, kind, new in edits:
        position = int(place * (min(len(data), 64) if at_the_beginning else len(data)))
        num_removed = (len(new), 0, 8)[kind]  # overwrite, insert, cut out
        data = data[:position] + new + data[position + num_removed :]
    check(data)


def odd_images() -> list[tuple[str, bytes]]:
    folder = asset("oddimages")
    return [
        (path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()
    ]


@pytest.mark.filterwarnings("error")
def test_nothing_is_warned_of_or_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for _, data in odd_images():
        decode(data, spec(), Limits())
    assert capfd.readouterr() == ("", "")


def test_decoding_in_many_threads_leaves_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda data: decode(data, spec(), ALL), list(SMALL.values()) * 20))
    assert all(isinstance(result, Decoded) for result in results)
    assert warnings.filters == before


# -- the odd images ----------------------------------------------------------------------------------------------------


def outcome(data: bytes, limits: Limits) -> str:
    result = decode(data, spec(), limits)
    return "ok" if isinstance(result, Decoded) else result.reason


def test_every_odd_image_ends_as_the_table_says() -> None:
    with open(ROOT / "tests" / "oddimages.tsv", newline="") as file:
        expected = {row["file"]: (row["status"], row["with_tiff"]) for row in csv.DictReader(file, delimiter="\t")}
    assert {
        key: (outcome(data, Limits()), outcome(data, Limits(formats=("tiff",)))) for key, data in odd_images()
    } == expected


@pytest.mark.filterwarnings("ignore")
def test_every_odd_image_that_pillow_reads_has_the_same_pixels_here() -> None:
    num_compared = 0
    for key, data in odd_images():
        result = decode(data, KERAS, ALL)
        if isinstance(result, Rejected) or result.mode.startswith("I"):
            continue
        try:
            expected = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
        except (OSError, ValueError, SyntaxError):
            continue  # damaged metadata, which Pillow minds
        assert np.array_equal(result.pixels_HWC, np.asarray(expected)), key
        num_compared += 1
    assert num_compared > 240
