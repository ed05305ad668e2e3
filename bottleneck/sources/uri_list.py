"""Images that a list names, by URIs of objects in places the user named, with labels or without.

Each object is looked at, as a plan knows size and etag of its images; then the list is sorted, on disk, as it may be
longer than the memory is large.
"""

import contextlib
import heapq
import itertools
import logging
import os
import posixpath
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from bottleneck.errors import UsageError
from bottleneck.sources.containers import ContainerFile, while_planning
from bottleneck.sources.image import IMAGE_SUFFIXES, Image, folder_label
from bottleneck.sources.labels import LabelError, as_label, likely_columns, unusable
from bottleneck.sources.list_rows import EXPECTED, ListFile, ListRow, open_list
from bottleneck.sources.places import open_place
from bottleneck.sources.reading import Reading
from bottleneck.storage.local import FolderStore, SourceFolder
from bottleneck.storage.s3 import BucketStore
from bottleneck.storage.store import Entry, ObjectError, Store, normal_uri
from bottleneck.text import counted

log = logging.getLogger(__name__)

MAX_NAME = 10_000
"""Characters of a name or label; of long ones too few would fit the memory."""
ROWS_SORTED_AT_ONCE = 150_000
"""About 100 MB while they are."""
NUM_LOOKED_AT = 1024
"""Objects asked for ahead of what is planned, 32 at a time."""
NUM_FOLDERS_HELD = 16
"""Whose names are in memory, where a list leaves out suffixes."""
NUM_NAMED = 3
"""Missing images a refusal names."""
WITH_SUFFIX, STRIPPED, SLASHED, BELOW_ROOTS = (
    "with the suffix of the one image of that name",
    "without the blanks around them",
    "with / for \\",
    "below --roots",
)
"""How a name was found, as it is told."""


class Line(NamedTuple):
    """What is kept of a row: enough for an image of the plan."""

    key: bytes
    """In UTF-8, by which lines are sorted."""
    label: str | None
    size: int
    etag: str


class Found(NamedTuple):
    """What looking for the image of a row found."""

    line: Line
    how: tuple[str, ...]
    """Of those above, where the name had to be read otherwise than it stands."""
    listed: str
    looked_for: str
    """Where the image would be; of a missing one."""
    is_missing: bool


class UriList:
    """The images a list names; a key is the name below the list's own place, or the whole URI elsewhere."""

    def __init__(self, store: Store, only: str, reading: Reading) -> None:
        self.store, self.only, self.reading = store, only, reading
        self.name = f"{store.uri}/{only}"
        self.roots = [store.uri, *map(normal_uri, reading.roots)]
        self.stores = {root: open_place(root, reading, store.uri) for root in self.roots}
        self.lock = threading.Lock()
        self.by_stem: dict[tuple[str, str], dict[str, str | None]] = {}

    def images(self, skipped: Counter[str], max_missing: float = 1.0) -> Iterator[Image]:
        with (
            tempfile.TemporaryDirectory(prefix="bottleneck-list-") as folder,
            ThreadPoolExecutor(32) as pool,
        ):
            report = _Report(self.name, self.reading)
            runs = _runs(self._found(pool, skipped, report), folder)
            report.check(max_missing)
            report.tell()
            for line in self._once(heapq.merge(*runs, key=_order), skipped):
                yield Image(line.key.decode(), line.size, line.etag, line.label)

    def first(self, skipped: Counter[str]) -> Image | None:
        with self._open() as opened:
            for row in self._rows(opened, skipped):
                line = self._look(row, opened).line
                return Image(line.key.decode(), line.size, line.etag, line.label)
        return None

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        places = [self._place(image.key) for image in images]
        wanted: dict[str, list[Any]] = {}
        for image, (root, key) in zip(images, places, strict=True):
            wanted.setdefault(root, []).append(image.wanted()._replace(key=key))
        fetched = {root: self.stores[root].get_many(some) for root, some in wanted.items()}
        for root, _ in places:
            yield next(fetched[root])

    def _place(self, uri: str) -> tuple[str, str]:
        """The root and the key in it of an image of the plan. Raises UsageError for one outside the roots."""
        return self._places(uri)[0]

    def _places(self, uri: str) -> list[tuple[str, str]]:
        """Where a name may mean an object: roots and keys in them. Raises UsageError for one outside the roots."""
        if "://" not in uri and not uri.startswith("/"):
            if found := [
                (root, uri if "://" in root else os.path.normpath(uri)) for root in self.roots if not _leaves(root, uri)
            ]:
                return found
        else:
            is_local = "://" not in uri or uri.startswith("file://")
            full = os.path.normpath(uri.removeprefix("file://")) if is_local else uri
            for root in self.roots:
                inside = full.removeprefix(root.rstrip("/") + "/")
                if inside != full and not _leaves(root, inside):
                    return [(root, inside)]
        raise UsageError(
            f"The list {self.only} names {uri!r}, outside the places it may name: {', '.join(self.roots)}. Where that "
            "is meant, give `roots` with the folder or prefix that holds it; nothing was planned."
        )

    def _key(self, root: str, name: str) -> str:
        """The one key of an object, however a list spells it."""
        if root != self.store.uri:  # an object below another root may be below the list's own place as well
            root, name = self._place(f"{root.rstrip('/')}/{name}")
        is_relative = root == self.store.uri and "://" not in name and not name.startswith("/")
        return name if is_relative else f"{root.rstrip('/')}/{name}"

    def _look(self, row: ListRow, opened: ListFile) -> Found:
        listed = row.name or ""
        for name, how in _spellings(listed):
            places = self._places(name)
            for add_suffix in (False, True):
                for root, key in places:
                    entry = self._with_suffix(root, key) if add_suffix else self._stat(root, key)
                    if entry is None:
                        continue
                    is_below = root != self.store.uri and "://" not in name and not name.startswith("/")
                    ways = (*how, *[WITH_SUFFIX] * add_suffix, *[BELOW_ROOTS] * is_below)
                    line = self._line(row, opened, self._key(root, entry.key), entry)
                    return Found(line, ways, listed, "", is_missing=False)
        root, key = self._places(_tidy(listed))[0]
        # One that is not there is planned all the same, so that it ends in a row: rejected as missing.
        line = self._line(row, opened, self._key(root, key), None)
        return Found(line, (), listed, f"{root.rstrip('/')}/{key}", is_missing=True)

    def _line(self, row: ListRow, opened: ListFile, key: str, entry: Entry | None) -> Line:
        label = None
        if opened.label:
            try:
                label = as_label(row.label, opened.label_names)
            except LabelError as error:
                raise unusable(f"{self.name}, {opened.unit} {row.number}", error) from None
        elif self.reading.labels == "folder":
            # Neither a bucket nor a server is a folder of images.
            path = key.partition("://")[2].partition("/")[2] if "://" in key else key
            label = folder_label(path, self.reading.label_names)
        if max(len(key), len(label or "")) > MAX_NAME:
            raise ValueError(f"a name or label is longer than {MAX_NAME:,} characters")
        return Line(key.encode(), label, entry.size if entry else 0, entry.etag if entry else "")

    def _stat(self, root: str, key: str) -> Entry | None:
        store = self.stores[root]
        if isinstance(store, SourceFolder) and store.leads_out(key):
            raise UsageError(
                f"The list {self.only} names {key!r}, a link that leads out of the places it may name: "
                f"{', '.join(self.roots)}. Where that is meant, give `roots` with the folder it leads to, or "
                "`follow_links`; nothing was planned."
            )
        return store.stat(key)

    def _with_suffix(self, root: str, key: str) -> Entry | None:
        """The one image that is called like this but for its suffix; None where there is none, or several."""
        folder, _, stem = key.rpartition("/")
        if not stem or os.path.splitext(stem)[1].lower() in IMAGE_SUFFIXES:
            return None
        store = self.stores[root]
        if isinstance(store, BucketStore):  # a request, where a listing of the folder could be a million keys
            names = (entry.key[len(folder) + bool(folder) :] for entry in itertools.islice(store.list(f"{key}."), 100))
            found = _stems(names).get(stem)
        else:
            found = self._stems_in(root, folder).get(stem)
        return self._stat(root, f"{folder}/{found}" if folder else found) if found else None

    def _stems_in(self, root: str, folder: str) -> dict[str, str | None]:
        with self.lock:
            if (root, folder) not in self.by_stem:
                if len(self.by_stem) >= NUM_FOLDERS_HELD:
                    del self.by_stem[next(iter(self.by_stem))]
                self.by_stem[root, folder] = _stems(_names_in(self.stores[root], folder))
            return self.by_stem[root, folder]

    @contextlib.contextmanager
    def _open(self) -> Iterator[ListFile]:
        entry = self.store.stat(self.only)
        if entry is None:
            raise UsageError(f"There is no list {self.name}. {EXPECTED}.")
        try:
            with open_list(ContainerFile(self.store, entry), self.reading, self.name) as opened:
                yield opened
        except ObjectError as error:
            raise while_planning(self.store, entry, error) from None

    def _found(self, pool: ThreadPoolExecutor, skipped: Counter[str], report: "_Report") -> Iterator[Line]:
        """The lines of the list in its own order, each with what there is of its image."""
        with self._open() as opened:
            report.columns = opened
            rows = self._rows(opened, skipped)
            while batch := list(itertools.islice(rows, NUM_LOOKED_AT)):
                for found in pool.map(lambda row: self._look(row, opened), batch):
                    report.add(found)
                    yield found.line

    def _rows(self, opened: ListFile, skipped: Counter[str]) -> Iterator[ListRow]:
        for row in opened.rows:
            if not row.name or not row.name.strip():
                skipped["(no name)"] += 1
            elif len(row.name) > MAX_NAME:
                raise ValueError(f"a name is longer than {MAX_NAME:,} characters")
            else:
                yield row

    def _once(self, lines: Iterator[Line], skipped: Counter[str]) -> Iterator[Line]:
        """Each key once. Raises UsageError where a key is listed with two labels."""
        last: Line | None = None
        for line in lines:
            if last is None or line.key != last.key:
                yield line
                last = line
            elif line.label == last.label:
                skipped["(listed again)"] += 1
            else:
                raise UsageError(
                    f"The list {self.only} gives {line.key.decode()!r} two labels: {last.label!r} and {line.label!r}. "
                    "Expected one; correct the list."
                )


class _Report:
    """What became of the names of a list, for a person to read."""

    def __init__(self, name: str, reading: Reading) -> None:
        self.name, self.reading = name, reading
        self.columns: ListFile | None = None
        self.total = self.missing = 0
        self.looked_for: list[str] = []
        self.how: Counter[str] = Counter()
        self.example: dict[str, tuple[str, str]] = {}

    def add(self, found: Found) -> None:
        self.total += 1
        for way in found.how:
            self.how[way] += 1
            self.example.setdefault(way, (found.listed, found.line.key.decode()))
        if found.is_missing:
            self.missing += 1
            self.looked_for += [found.looked_for] if len(self.looked_for) < NUM_NAMED else []

    def check(self, max_missing: float) -> None:
        """Raise UsageError where more of the list is missing than may be."""
        if not self.columns or self.missing <= max_missing * self.total:
            return
        others = [column for column in self.columns.columns if column not in (self.columns.image, self.columns.label)]
        remedies = [
            f"`image_column`, if a column other than {self.columns.image!r} names the images ({', '.join(others[:20])})"
            if others
            else "",
            f"{'other ' if self.reading.roots else ''}`roots`, if the images are elsewhere",
            "`max_rejected` 1, to plan the list as it is and reject what is missing",
        ]
        looked_for = ", ".join(map(repr, self.looked_for)) + (", ..." if self.missing > NUM_NAMED else "")
        elsewhere = ", and for the same below the `roots`" if self.reading.roots else ""
        raise UsageError(
            f"{self.missing:,} of {counted(self.total, 'image')} named in {self.name} not found; `max_rejected` allows "
            f"a share of {max_missing:g}. Looked for {looked_for}{elsewhere}. Nothing was planned. Give "
            f"{'; '.join(filter(None, remedies))}."
        )

    def tell(self) -> None:
        for way, count in self.how.items():
            names = counted(self.total, "name")
            log.info("%s of %s in %s found %s: %r is %r", f"{count:,}", names, self.name, way, *self.example[way])
        if self.missing:
            log.warning(
                "%s of %s in %s not found: %r and the like; rejected as missing",
                f"{self.missing:,}",
                counted(self.total, "name"),
                self.name,
                self.looked_for[0],
            )
        columns = self.columns
        if columns and columns.label is None and self.reading.labels == "folder":
            likely = likely_columns([one for one in columns.columns if one != columns.image])
            log.info(
                "%s has no column called label: an image's label is the name of its folder.%s",
                self.name,
                f" Give `label_column` for labels from another: {', '.join(likely)}." if likely else "",
            )


def _spellings(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names that a listed one may mean, the likeliest first, and what was done to it."""
    yield name, ()
    if (tidy := _tidy(name)) != name:
        yield tidy, ()  # only then, as in a bucket ./a.jpg may be a name
    stripped = name.strip()
    if stripped != name:
        yield stripped, (STRIPPED,)
    if "\\" in stripped:
        yield _tidy(stripped.replace("\\", "/")), (SLASHED,)


def _tidy(name: str) -> str:
    """A name or URI as a folder takes it: without ./ and //."""
    scheme, separator, rest = name.partition("://")
    if not separator:
        return posixpath.normpath(name)
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}{posixpath.normpath(slash + path.lstrip('/'))}" if path else name


def _stems(names: Iterator[str]) -> dict[str, str | None]:
    """The images in a folder by their names without suffix; None where several share one."""
    by_stem: dict[str, str | None] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and "/" not in name:
            by_stem[stem] = None if stem in by_stem else name
    return by_stem


def _names_in(store: Store, folder: str) -> Iterator[str]:
    if isinstance(store, FolderStore):
        try:
            yield from os.listdir(f"{store.uri}/{folder}")
        except (OSError, ValueError):  # no such folder, or no name a folder can have
            return
    else:
        prefix = f"{folder}/" if folder else ""
        yield from (entry.key[len(prefix) :] for entry in store.list(prefix))


def _leaves(root: str, path: str) -> bool:
    """Whether a path below a root leads out of it, read as the root's kind of place reads paths."""
    if root.startswith("s3://"):
        return False  # keys are names, sent as they are
    if "://" in root:  # a server may decode, more than once, before it walks
        while (decoded := unquote(path)) != path:
            path = decoded
        return not {".", ".."}.isdisjoint(path.replace("\\", "/").split("/"))
    path = os.path.normpath(path)
    return path == ".." or path.startswith("../")


def _order(line: Line) -> tuple[bytes, str]:
    return line.key, line.label or ""


def _runs(lines: Iterator[Line], folder: str) -> list[Iterator[Line]]:
    """Lines as sorted runs: one in memory if they are few, else each in a file of its own."""
    runs: list[Iterator[Line]] = []
    while batch := sorted(itertools.islice(lines, ROWS_SORTED_AT_ONCE), key=_order):
        if not runs and len(batch) < ROWS_SORTED_AT_ONCE:
            return [iter(batch)]
        path = os.path.join(folder, f"{len(runs):06d}.arrow")
        kinds = (pa.binary(), pa.string(), pa.int64(), pa.string())
        columns = [pa.array(column, kind) for column, kind in zip(zip(*batch, strict=True), kinds, strict=True)]
        table = pa.table(columns, names=list(Line._fields))
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4096)
        runs.append(_run(path))
    return runs


def _run(path: str) -> Iterator[Line]:
    with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            columns = [column.to_pylist() for column in reader.get_batch(number).columns]
            yield from itertools.starmap(Line, zip(*columns, strict=True))
