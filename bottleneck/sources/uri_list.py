"""Images named by a list, by URI or relative name.

Each object is looked at, as a plan knows size and etag of its images; then the list is sorted, on disk, as it may be
longer than the memory is large.
"""

import contextlib
import heapq
import itertools
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bottleneck.errors import UsageError
from bottleneck.sources.containers import ContainerFile, while_planning
from bottleneck.sources.image import IMAGE_SUFFIXES, Image, folder_label
from bottleneck.sources.labels import LabelError, as_label, unusable
from bottleneck.sources.list_names import BELOW_ROOTS, MAX_NAME, WITH_SUFFIX, leaves, names_in, spellings, stems, tidy
from bottleneck.sources.list_order import Found, Line, line_order, sorted_runs
from bottleneck.sources.list_report import ListReport
from bottleneck.sources.list_rows import EXPECTED, ListFile, ListRow, open_list
from bottleneck.sources.places import open_place
from bottleneck.sources.reading import Reading
from bottleneck.storage.s3 import BucketStore
from bottleneck.storage.source_folder import SourceFolder
from bottleneck.storage.store import Entry, ObjectError, Store, normal_uri

NUM_LOOKED_AT = 1024
"""Objects looked up ahead, 32 at a time."""
NUM_FOLDERS_HELD = 16
"""Folders whose names are kept in memory for lists without suffixes."""


class UriList:
    """The images of a list; keys are names below the list's folder, or whole URIs elsewhere."""

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
            report = ListReport(self.name, self.reading)
            runs = sorted_runs(self._found(pool, skipped, report), folder)
            report.check(max_missing)
            report.tell()
            for line in self._once(heapq.merge(*runs, key=line_order), skipped):
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
        """The root and key of a planned image. Raises UsageError for one outside the roots."""
        return self._places(uri)[0]

    def _places(self, uri: str) -> list[tuple[str, str]]:
        """Possible roots and keys of a name. Raises UsageError for one outside the roots."""
        if "://" not in uri and not uri.startswith("/"):
            if found := [
                (root, uri if "://" in root else os.path.normpath(uri)) for root in self.roots if not leaves(root, uri)
            ]:
                return found
        else:
            is_local = "://" not in uri or uri.startswith("file://")
            full = os.path.normpath(uri.removeprefix("file://")) if is_local else uri
            for root in self.roots:
                inside = full.removeprefix(root.rstrip("/") + "/")
                if inside != full and not leaves(root, inside):
                    return [(root, inside)]
        raise UsageError(
            f"The list {self.only} names {uri!r}, outside the places it may name: {', '.join(self.roots)}. Where that "
            "is meant, give `roots` with the folder or prefix that holds it; nothing was planned."
        )

    def _key(self, root: str, name: str) -> str:
        """The key of an object, whatever its spelling in the list."""
        if root != self.store.uri:  # an object below another root may be below the list's own place as well
            root, name = self._place(f"{root.rstrip('/')}/{name}")
        is_relative = root == self.store.uri and "://" not in name and not name.startswith("/")
        return name if is_relative else f"{root.rstrip('/')}/{name}"

    def _look(self, row: ListRow, opened: ListFile) -> Found:
        listed = row.name or ""
        for name, how in spellings(listed):
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
        root, key = self._places(tidy(listed))[0]
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
        """The only image with this name apart from its suffix; None if there is none, or several."""
        folder, _, stem = key.rpartition("/")
        if not stem or os.path.splitext(stem)[1].lower() in IMAGE_SUFFIXES:
            return None
        store = self.stores[root]
        if isinstance(store, BucketStore):  # a request, where a listing of the folder could be a million keys
            names = (entry.key[len(folder) + bool(folder) :] for entry in itertools.islice(store.list(f"{key}."), 100))
            found = stems(names).get(stem)
        else:
            found = self._stems_in(root, folder).get(stem)
        return self._stat(root, f"{folder}/{found}" if folder else found) if found else None

    def _stems_in(self, root: str, folder: str) -> dict[str, str | None]:
        with self.lock:
            if (root, folder) not in self.by_stem:
                if len(self.by_stem) >= NUM_FOLDERS_HELD:
                    del self.by_stem[next(iter(self.by_stem))]
                self.by_stem[root, folder] = stems(names_in(self.stores[root], folder))
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

    def _found(self, pool: ThreadPoolExecutor, skipped: Counter[str], report: "ListReport") -> Iterator[Line]:
        """Yield the lines of the list in its order, each with its image."""
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
        """Yield each key once. Raises UsageError for a key with two labels."""
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
