"""Which images a source holds and how they are read, whatever form it has: four kinds behind two verbs."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from bottleneck import listrows, lists, tables, webdataset
from bottleneck.errors import UsageError
from bottleneck.files import Files
from bottleneck.images import IMAGE_SUFFIXES, Image
from bottleneck.objects import ObjectError, Store
from bottleneck.spec import Reading, SourceFormat
from bottleneck.store import normal_uri, open_store

ARCHIVES = (
    *(".zip", ".7z", ".rar", ".tgz", ".tbz2", ".txz"),
    *(f".tar.{suffix}" for suffix in ("gz", "bz2", "xz", "zst", "lz4", "z")),
)
ARCHIVE_KINDS = {f".{name.rpartition('.')[2]}" for name in ARCHIVES}
"""As what is skipped is counted."""
NO_ARCHIVES = (
    "Images in archives and compressed tars cannot be read one by one. Expected files, or tars that are not "
    "compressed: unpack them (unzip, tar -xf), or write them anew as .tar."
)
NUM_LOOKED_AT = 1000
"""Objects of a prefix that decide what kind of source it is: a page of a listing."""


class Source(Protocol):
    """Where the images of a plan come from. Both verbs may raise StoreError."""

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        """Yield the images in the order of their keys' UTF-8 bytes; count what is none in `skipped`, by kind."""

    def first(self, skipped: Counter[str]) -> Image | None:
        """Some image, at little cost; None where there is none."""

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        """Read images, which are in the plan's order, with several requests in flight."""


def open_source(uri: str, reading: Reading) -> Source:
    """Open a source as a plan says it is read.

    Raises:
        UsageError: for a source of another form than `reading.source_format`.
    """
    return _open_source(normal_uri(uri), reading)  # a relative name means another folder after os.chdir


@functools.lru_cache(maxsize=4)
def _open_source(uri: str, reading: Reading) -> Source:
    form = resolve_reading(uri, reading).source_format
    store, only = _open(uri, form)
    if form == "webdataset":
        return webdataset.WebDataset(store, only, reading)
    if form == "parquet":
        return tables.Table(store, only, reading)
    if form == "list":
        if only is None:
            raise UsageError(f"A list is one file. {listrows.EXPECTED}. Received a folder, prefix or nothing: {uri}.")
        return lists.UriList(store, only, reading)
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
    return source.images(skipped, max_missing) if isinstance(source, lists.UriList) else source.images(skipped)


def resolve_reading(uri: str, reading: Reading) -> Reading:
    """What a plan records: `auto` made concrete by the name of the source, or by the first objects it holds."""
    if reading.source_format != "auto":
        return reading
    store, only = _open(uri)
    if only is not None:
        return replace(reading, source_format=_form_of_file(store, only, reading))
    kinds = Counter(entry.key.lower().rpartition(".")[2] for entry in itertools.islice(store.list(), NUM_LOOKED_AT))
    if not any(f".{kind}" in IMAGE_SUFFIXES for kind in kinds):
        if kinds["tar"]:
            return replace(reading, source_format="webdataset")
        if kinds["parquet"] + kinds["pq"]:
            return replace(reading, source_format="parquet")
    return replace(reading, source_format="files")


def _form_of_file(store: Store, only: str, reading: Reading) -> SourceFormat:
    name = only.lower()
    if name.endswith(webdataset.SUFFIXES):
        return "webdataset"
    if name.endswith(tables.SUFFIXES):
        return "parquet" if tables.holds_images(store, only, reading) else "list"
    return "list" if name.endswith(lists.SUFFIXES) else "files"


def _open(uri: str, form: SourceFormat = "auto") -> tuple[Store, str | None]:
    """The store of a source; where the source is one object, the store that holds it, and its key there.

    Raises:
        UsageError: for an archive, which none of the forms reads.
    """
    uri = normal_uri(uri)
    is_archive = uri.lower().endswith(ARCHIVES)
    if form == "list" or is_archive or uri.lower().endswith((*webdataset.SUFFIXES, *lists.SUFFIXES)):
        folder, _, name = uri.rpartition("/")
        store = open_store(folder or "/")
        if store.stat(name) is not None:
            if is_archive:
                raise UsageError(f"{uri} is an archive. {NO_ARCHIVES}")
            return store, name
    return open_store(uri), None
