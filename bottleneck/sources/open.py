"""Detect the kind of a source and open it: list its images, read them."""

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from bottleneck.errors import UsageError
from bottleneck.sources import list_rows, parquet, uri_list, webdataset
from bottleneck.sources.containers import IMAGES_BESIDE, OTHERS_BESIDE
from bottleneck.sources.files import Files
from bottleneck.sources.image import NEVER, Image, names_image, no_image
from bottleneck.sources.labels import parse_label_names
from bottleneck.sources.places import open_place
from bottleneck.sources.reading import Reading, SourceFormat
from bottleneck.storage.store import ObjectError, ObjectGoneError, Store, normal_uri, open_store
from bottleneck.text import counted

log = logging.getLogger(__name__)

ARCHIVES = (
    *(".zip", ".7z", ".rar", ".tgz", ".tbz2", ".txz"),
    *(f".tar.{suffix}" for suffix in ("gz", "bz2", "xz", "zst", "lz4", "z")),
)
ARCHIVE_KINDS = {f".{name.rpartition('.')[2]}" for name in ARCHIVES}
"""The suffixes under which skipped objects are counted."""
NO_ARCHIVES = (
    "Images in archives and compressed tars cannot be read one by one. Expected files, or tars that are not "
    "compressed: unpack them (unzip, tar -xf), or write them anew as .tar."
)
CLASSES = "classes.txt"
"""File beside tars with the class names for numeric labels, one per line."""
NUM_LOOKED_AT = 1000
"""Objects that decide the kind of a source: one page of a listing."""
KINDS: dict[SourceFormat, str] = {"files": "image files", "webdataset": "tars", "parquet": "Parquet files"}


class Source(Protocol):
    """Where the images of a plan come from. Both verbs may raise StoreError."""

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        """Yield the images in the order of their keys' UTF-8 bytes; count other objects in `skipped`, by kind."""

    def first(self, skipped: Counter[str]) -> Image | None:
        """Find any image cheaply; None if there is none."""

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        """Read images, given in the plan's order, with several requests in flight."""


def open_source(uri: str, reading: Reading) -> Source:
    """Open a source with the reading options of a plan.

    Raises:
        UsageError: for a source of another form than `reading.source_format`.
    """
    return _open_source(normal_uri(uri), reading)  # a relative name means another folder after os.chdir


@functools.lru_cache(maxsize=4)
def _open_source(uri: str, reading: Reading) -> Source:
    form = resolve_reading(uri, reading).source_format
    store, only = _open(uri, reading, form)
    if form == "webdataset":
        return webdataset.WebDataset(store, only, reading)
    if form == "parquet":
        return parquet.Table(store, only, reading)
    if form == "list":
        if only is None:
            raise UsageError(f"A list is one file. {list_rows.EXPECTED}. Received a folder, prefix or nothing: {uri}.")
        return uri_list.UriList(store, only, reading)
    if only is not None:
        raise UsageError(
            f"Expected a folder or prefix with images, a .tar, a .parquet or a list (.csv, .tsv, .jsonl). Received a "
            f"file: {uri}."
        )
    return Files(store, reading)


def images_to_plan(uri: str, reading: Reading, skipped: Counter[str], max_missing: float) -> Iterator[Image]:
    """Yield the images of a source, as `Source.images` does.

    Args:
        max_missing: share of the images that a list names that may not be there.

    Raises:
        UsageError: before the first image, if more are not.
    """
    source = open_source(uri, reading)
    # Only a list knows images that are not there; what stores list is.
    return source.images(skipped, max_missing) if isinstance(source, uri_list.UriList) else source.images(skipped)


def resolve_reading(uri: str, reading: Reading) -> Reading:
    """Resolve `auto` by the name of the source, or by its first objects.

    Raises:
        UsageError: where these are of several kinds.
    """
    if reading.source_format != "auto":
        return reading
    store, only = _open(uri, reading)
    if only is not None:
        return replace(reading, source_format=_form_of_file(store, only, reading))
    kinds: Counter[SourceFormat] = Counter()
    for entry in itertools.islice(store.list(), NUM_LOOKED_AT):
        if (form := None if entry.reason else _form_by_name(entry.key)) is not None:
            kinds[form] += 1
    if len(kinds) > 1:
        found = {form: f"{KINDS[form]} ({count:,}" for form, count in kinds.items()}
        raise _mixed(uri, found, f"among the first {NUM_LOOKED_AT:,} objects of ")
    return replace(reading, source_format=next(iter(kinds), "files"))


def with_class_names(uri: str, reading: Reading) -> Reading:
    """Take class names from a file beside the tars, if none are given.

    Args:
        reading: as it was resolved.

    Raises:
        UsageError: for a file that does not name classes, a line each.
    """
    is_named = reading.label_names or reading.label_column == "txt" or reading.labels == "none"
    if reading.source_format != "webdataset" or is_named:
        return reading
    store, _ = _open(uri, reading, reading.source_format)
    try:
        text = store.read(CLASSES).decode("utf-8-sig")
    except ObjectGoneError:
        return reading
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{store.uri}/{CLASSES} is no text in UTF-8: {error}. Give `label_names`, or move it."
        ) from None
    names = parse_label_names(text, f"{store.uri}/{CLASSES} (which `label_names` replaces)")
    log.info("%s/%s names %s", store.uri, CLASSES, counted(len(names), "class", "classes"))
    return replace(reading, label_names=names)


def check_one_kind(uri: str, reading: Reading, num_images: int, skipped: Counter[str]) -> None:
    """Raise UsageError for a source of several kinds, once all is listed, unless one was requested.

    Args:
        reading: as it was resolved.
        num_images: that were found.
        skipped: what is not planned, as `Source.images` counts it.

    Raises:
        UsageError: with both counts.
    """
    form = reading.source_format
    others: dict[SourceFormat, int] = {"files": skipped[IMAGES_BESIDE]}
    if form == "files":
        others = {"webdataset": skipped[".tar"], "parquet": skipped[".parquet"] + skipped[".pq"]}
    elif form in ("webdataset", "parquet"):
        others["parquet" if form == "webdataset" else "webdataset"] = skipped[OTHERS_BESIDE]
    if any(others.values()):
        found = {form: f"{KINDS[form]} ({num_images:,}{'' if form == 'files' else ' images'}"}
        found |= {other: f"{KINDS[other]} ({count:,}" for other, count in others.items() if count}
        raise _mixed(uri, found, "in ")


def _mixed(uri: str, found: Mapping[SourceFormat, str], where: str) -> UsageError:
    named = " and ".join(f"{found[form]}; `source_format` {form})" for form in KINDS if form in found)
    return UsageError(
        f"There are several kinds of sources {where}{normal_uri(uri)}: {named}. Expected one: give `source_format` for "
        "the kind that is meant, and the others are counted but not planned; or move them elsewhere."
    )


def _form_by_name(key: str) -> SourceFormat | None:
    name = key.lower()
    if no_image(key) in NEVER:
        return None
    if name.endswith(webdataset.SUFFIXES):
        return "webdataset"
    if name.endswith(parquet.SUFFIXES):
        return "parquet"
    return "files" if names_image(key) else None


def _form_of_file(store: Store, only: str, reading: Reading) -> SourceFormat:
    name = only.lower()
    if name.endswith(webdataset.SUFFIXES):
        return "webdataset"
    if name.endswith(parquet.SUFFIXES):
        return "parquet" if parquet.holds_images(store, only, reading) else "list"
    return "list" if name.endswith(list_rows.SUFFIXES) else "files"


def _open(uri: str, reading: Reading, form: SourceFormat = "auto") -> tuple[Store, str | None]:
    """The store of a source; for a single object, the store that contains it and its key.

    Raises:
        UsageError: for an archive, which none of the forms reads.
    """
    uri = normal_uri(uri)
    is_archive = uri.lower().endswith(ARCHIVES)
    if form == "list" or is_archive or uri.lower().endswith((*webdataset.SUFFIXES, *list_rows.SUFFIXES)):
        folder, _, name = uri.rpartition("/")
        if open_store(folder or "/").stat(name) is not None:
            if is_archive:
                raise UsageError(f"{uri} is an archive. {NO_ARCHIVES}")
            return open_place(folder or "/", reading, uri), name
    return open_place(uri, reading), None
