"""Which images a source holds: a folder or prefix, its images in key order, labelled by the folders that hold them."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from bottleneck.objects import Store

Labels = Literal["folder", "none"]

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


class Image(NamedTuple):
    """One image of a plan: its key in the source and what the listing said of it."""

    key: str
    size: int
    """Bytes."""
    etag: str
    label: str | None
    offset: int | None = None
    """Where it begins, for a slice of a container."""
    length: int | None = None


def list_images(store: Store, labels: Labels, skipped: Counter[str]) -> Iterator[Image]:
    """Yield the images below a store's root in key order; count in `skipped`, by suffix, what is none by its name."""
    for entry in store.list():
        reason = no_image(entry.key)
        if reason:
            skipped[reason] += 1
        else:
            yield Image(entry.key, entry.size, entry.etag, folder_label(entry.key) if labels == "folder" else None)


def no_image(key: str) -> str:
    """Why a key is no image by its name, as a suffix to count it under; empty for an image or a name without suffix."""
    name = key.rpartition("/")[2]
    if not name:
        return "(directory marker)"
    try:
        key.encode()
    except UnicodeEncodeError:
        return "(name is not UTF-8)"
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


def folder_label(key: str) -> str | None:
    """The name of the folder that holds an image; None directly under the source."""
    return key.rpartition("/")[0].rpartition("/")[2] or None
