"""An image as a plan records it, and which names are images."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from bottleneck.sources.labels import LabelError, as_label, unusable
from bottleneck.storage.store import Wanted

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
        ".hif",
        ".avif",
        ".jp2",
        ".j2k",
        ".j2c",
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
"""Image suffixes, including formats that are rejected later, so that such files are accounted for."""

SYSTEM_FOLDERS = frozenset(
    ["__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"]
)
"""System folders, in lower case; folders whose names begin with a dot are hidden."""

NO_UTF8 = "(name is not UTF-8)"
NO_MAGIC = "(no suffix, no image)"
"""Of what neither its name nor its first bytes call an image, among others whose names do: LICENSE, _SUCCESS."""
HIDDEN = "(in a hidden folder)"
SYSTEM = "(in a system folder)"
RESOURCE_FORK = "._*"
"""What macOS leaves beside photos on other systems' disks, and in archives."""
OWN = "(part of an output)"
"""Of this program: it may lie in the source, also while that is listed."""
_OWN_NAME = re.compile(r"(?:^|/)(?:data/s\d{8}-[0-9a-f]{8}|plan/[0-9a-f]{8}-\d{8}-[0-9a-f]{8})\.parquet")
NEVER = frozenset([NO_UTF8, HIDDEN, SYSTEM, RESOURCE_FORK, OWN])
"""Why an object is skipped whatever its suffix."""


class Image(NamedTuple):
    """One image of a plan: its key in the source and its listing entry."""

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
    """The object that contains it, if not the image itself."""

    def wanted(self) -> Wanted:
        """The read request for a store."""
        return Wanted(self.object or self.key, self.size, self.etag, self.offset, self.length)


def no_image(key: str) -> str:
    """The suffix under which a non-image is counted; empty for an image or a name without suffix."""
    name = key.rpartition("/")[2]
    if not name:
        return "(directory marker)"
    try:
        key.encode()
    except UnicodeEncodeError:
        return NO_UTF8
    if reason := _no_folder_of_images(key.rpartition("/")[0]):
        return reason
    if name.startswith("._"):
        return RESOURCE_FORK
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        return ""
    if not stem:
        return name.lower()
    suffix = "." + suffix.lower()
    if suffix == ".parquet" and _OWN_NAME.search(key):
        return OWN
    # Hashes and numbers after a dot ("photo.2019", "a.b c") are part of a name, not a kind of file.
    known = suffix in IMAGE_SUFFIXES or len(suffix) > 11 or not suffix[1:].isalnum() or suffix[1:].isdigit()
    return "" if known else suffix


def names_image(key: str) -> bool:
    """Whether a key has the suffix of an image."""
    name = key.rpartition("/")[2].lower()
    return "." + name.rpartition(".")[2] in IMAGE_SUFFIXES and not name.startswith("._")


def folder_label(key: str, names: Sequence[str] = ()) -> str | None:
    """The label from the folder of an image; None directly under the source, or in a system folder.

    Args:
        names: of the classes, where folders are their numbers.

    Raises:
        UsageError: if there are names, and none for this folder.
    """
    # `.` and an empty name are ways to write a path, not folders: `tar cf x.tar .` begins every name with `./`.
    folders = [one for one in key.split("/")[:-1] if one not in ("", ".")]
    if not folders or folders[-1] == ".." or _reserved(folders[-1]):
        return None
    try:
        return as_label(folders[-1], names)
    except LabelError as error:
        raise unusable(f"The folder of {key!r}", error) from None


@functools.lru_cache(maxsize=1024)
def _no_folder_of_images(folder: str) -> str:
    """Why the content of a folder is not planned; empty if it is."""
    return next((reason for name in folder.split("/") if (reason := _reserved(name))), "")


def _reserved(name: str) -> str:
    """The owner of a system folder of this name; empty for a user's."""
    if name.lower() in SYSTEM_FOLDERS:
        return SYSTEM
    return HIDDEN if name.startswith(".") and name not in (".", "..") else ""
