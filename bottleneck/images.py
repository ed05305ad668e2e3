"""What an image is by its name, and what a plan knows of one."""

from collections.abc import Sequence
from typing import NamedTuple

from bottleneck.labels import LabelError, as_label, unusable
from bottleneck.objects import Wanted

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jxl",
        ".ico",
        ".psd",
        ".svg",
        ".tga",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".raw",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
    ]
)
"""Names that say image, also of formats that are rejected later: such a file is accounted for, not passed over."""


NO_UTF8 = "(name is not UTF-8)"


class Image(NamedTuple):
    """One image of a plan: its key in the source and what the listing said of it."""

    key: str
    size: int
    """Bytes; of a row of a Parquet file the mean of its row group, as only reading it would tell."""
    etag: str
    label: str | None
    offset: int | None = None
    """Where it begins in `object`: a byte of a tar, a row of a Parquet file."""
    length: int | None = None
    """Bytes of a slice."""
    object: str | None = None
    """The object that holds it, where that is not the image itself."""

    def wanted(self) -> Wanted:
        """What to ask a store for."""
        return Wanted(self.object or self.key, self.size, self.etag, self.offset, self.length)


def no_image(key: str) -> str:
    """Why a key is no image by its name, as a suffix to count it under; empty for an image or a name without suffix."""
    name = key.rpartition("/")[2]
    if not name:
        return "(directory marker)"
    try:
        key.encode()
    except UnicodeEncodeError:
        return NO_UTF8
    if name.startswith("._"):
        return "._*"  # the resource forks macOS leaves beside photos
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        return ""
    if not stem:
        return name.lower()
    suffix = "." + suffix.lower()
    # Hashes and numbers after a dot ("photo.2019", "a.b c") are part of a name, not a kind of file.
    known = suffix in IMAGE_SUFFIXES or len(suffix) > 11 or not suffix[1:].isalnum() or suffix[1:].isdigit()
    return "" if known else suffix


def folder_label(key: str, names: Sequence[str] = ()) -> str | None:
    """The label that the folder of an image means; None directly under the source.

    Args:
        names: of the classes, where folders are their numbers.

    Raises:
        UsageError: if there are names, and none for this folder.
    """
    folders = [one for one in key.split("/")[:-1] if one not in ("", ".")]
    if not folders or folders[-1] == "..":
        return None
    try:
        return as_label(folders[-1], names)
    except LabelError as error:
        raise unusable(f"The folder of {key!r}", error) from None
