"""The options of how a source is read and which images are accepted."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal, Self

from bottleneck.choices import check_choices
from bottleneck.errors import UsageError
from bottleneck.sources.labels import resolve_label_names

SourceFormat = Literal["auto", "files", "webdataset", "parquet", "list"]
ImageFormat = Literal["tiff", "jpeg2000", "heic"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the source is read. Part of the plan: an extension reads it the same way."""

    labels: Literal["folder", "none"] = "folder"
    """`folder`: the label of an image is the name of its folder, unless its tar, table or list has labels. `none`: no
    labels from folders."""
    source_format: SourceFormat = "auto"
    """`files`: each image is an object. `webdataset`: images in tars. `parquet`: images in a column of Parquet files.
    `list`: a CSV, JSON Lines or Parquet file that names them. `auto`: detected."""
    image_column: str | None = None
    """Column with the images' bytes in Parquet files, or with their names in a list. Default: detected."""
    label_column: str | None = None
    """Column with labels in Parquet files and lists (default: `label`); in tars `cls`, `txt` or a field of the
    `.json`."""
    label_names: tuple[str, ...] = ()
    """Class names for labels that are numbers: a text file with one name per line, the first for label 0, or the names
    themselves."""
    roots: tuple[str, ...] = ()
    """Further folders and prefixes whose objects a list may name, and folders that links in the source may lead to."""
    follow_links: bool = False
    """Follow symbolic links everywhere, not only to targets in the source and the roots."""
    accept_cut: bool = False
    """Plan the readable part of truncated tars, with a warning. By default a truncated tar stops the plan."""

    def __post_init__(self) -> None:
        check_choices(self)
        # Recorded by name: the file may be another when the plan is extended.
        object.__setattr__(self, "label_names", resolve_label_names(self.label_names))
        # Recorded by their whole paths, so that workers find them from any folder.
        roots = (root if "://" in root else os.path.abspath(os.path.expanduser(root)) for root in self.roots)
        object.__setattr__(self, "roots", tuple(root.rstrip("/") or "/" for root in roots))

    def asked(self) -> dict[str, Any]:
        """The options that a plan must agree with; detected ones are left out."""
        return {name: value for name, value in self.to_json().items() if value not in ("auto", None, [])}

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "label_names": list(self.label_names), "roots": list(self.roots)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        # What a plan does not have was added later than it, and has the default.
        return cls(**{**value, **{name: tuple(value.get(name, ())) for name in ("label_names", "roots")}})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which images are accepted. Part of the plan: a resumed run rejects the same ones."""

    max_bytes: int = 100_000_000
    """Reject images with more bytes as `too_many_bytes`, without fetching them."""
    max_pixels: int = 100_000_000
    """Reject images with more pixels in their header as `too_many_pixels`, without decoding them."""
    formats: tuple[ImageFormat, ...] = ()
    """Formats to accept in addition to JPEG, PNG, WebP, GIF, BMP and AVIF. `heic` needs the package pillow-heif. Their
    decoders widen the attack surface for hostile files."""

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "formats", tuple(sorted(set(self.formats))))  # in any order they mean the same
        for name in ("max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` takes a number from 1 up. Received: {getattr(self, name)}.")

    def check_installed(self) -> None:
        """Raise UsageError if the decoder of a format is not installed."""
        if "heic" in self.formats and importlib.util.find_spec("pillow_heif") is None:
            raise UsageError(
                "`formats` heic takes the package pillow-heif, which is not installed. Install it wherever images are "
                "decoded: pip install 'bottleneck-features[heic]'."
            )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "formats": list(self.formats)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read limits, including those of older plans, which have `tiff` instead of `formats`."""
        given = dict(value)
        formats = ["tiff"] if given.pop("tiff", False) else []
        return cls(**{**given, "formats": tuple(given.get("formats", formats))})
