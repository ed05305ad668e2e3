"""Images in tars, as WebDataset and img2dataset write them.

A tar is indexed when it is planned (name, offset, size of every member), so that each image is accounted for and a
shard is read as contiguous ranges. Members are only ever looked at: nothing is unpacked to disk, and no name, type or
content of one (a pickle, a path that leads out, a link) makes anything else happen.
"""

import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bottleneck.errors import UsageError
from bottleneck.sources.containers import ContainerFile, containers, look_into, while_planning
from bottleneck.sources.image import NO_MAGIC, Image, folder_label, names_image
from bottleneck.sources.image_format import MAGIC_BYTES, begins_as_image
from bottleneck.sources.labels import LabelError, as_label, unusable
from bottleneck.sources.reading import Reading
from bottleneck.sources.tar_index import CutError, no_member, tar_members
from bottleneck.storage.store import ObjectError, Store, Wanted

log = logging.getLogger(__name__)


SUFFIXES = (".tar",)
CUT = "(cut)"
"""The entry under which truncated tars are counted, among the suffixes of non-images."""
RANGE_BYTES = 16_000_000
"""Bytes of one read: long enough for full throughput, short enough that decoding does not wait."""
GAP_BYTES = 100_000
"""Bytes between images, mostly captions, that are read and dropped rather than skipped."""
WINDOW = 128
"""Images whose ranges are planned together; in an unsorted tar this many may wait."""
LABEL_BYTES = 1_000_000
"""Larger files beside an image are not labels."""


class _Index(NamedTuple):
    """The index of one tar."""

    images: list[Image]
    """In key order."""
    others: Counter[str]
    """Non-image members, by suffix."""
    cut: str
    """The warning about a truncated tar; else empty."""


class WebDataset:
    """The images in the tars of a source; a key is TAR/MEMBER."""

    def __init__(self, store: Store, only: str | None, reading: Reading) -> None:
        self.store, self.only, self.reading = store, only, reading

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        tars = containers(self.store, self.only, SUFFIXES, skipped)
        for index in look_into(self.store, tars, self._index):
            skipped.update(index.others)
            if index.cut:
                log.warning("%s", index.cut)
            yield from index.images

    def first(self, skipped: Counter[str]) -> Image | None:
        for entry in containers(self.store, self.only, SUFFIXES, skipped):
            index = self._index(ContainerFile(self.store, entry))
            skipped.update(index.others)
            if index.images:
                return index.images[0]
        return None

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        """Yield each image's bytes, in order; members of one tar are read in as few ranges as possible."""
        windows = [images[start : start + WINDOW] for start in range(0, len(images), WINDOW)]
        divided = [_ranges(window) for window in windows]
        fetched = self.store.get_many([one for ranges in divided for one, _ in ranges])
        for window, ranges in zip(windows, divided, strict=True):
            held: dict[int, bytes | ObjectError] = {}
            waiting = iter(ranges)
            for number, image in enumerate(window):
                while number not in held and image.length:
                    asked, members = next(waiting)
                    data = next(fetched)
                    for member in members:
                        held[member] = _slice(data, asked, window[member])
                yield held.pop(number, b"")

    def _index(self, file: ContainerFile) -> _Index:
        try:
            return self._read_index(file)
        except ObjectError as error:
            raise while_planning(self.store, file.entry, error) from None

    def _read_index(self, file: ContainerFile) -> _Index:
        entry, where = file.entry, f"{self.store.uri}/{file.entry.key}"
        members: list[tuple[str, int, int]] = []
        unlike: set[int] = set()
        others: Counter[str] = Counter()
        labels = _TarLabels(where)
        cut = ""
        try:
            for member in tar_members(file, where):
                reason = no_member(member)
                is_whole = member.offset_data + member.size <= entry.size
                if not reason:
                    # Of the member at the cut there is less than it says: what is there is judged by the decoder.
                    length = member.size if is_whole else max(0, entry.size - member.offset_data)
                    members.append((member.name, member.offset_data, length))
                    if not names_image(member.name):
                        file.seek(member.offset_data)
                        if not begins_as_image(file.read(min(length, MAGIC_BYTES))):
                            unlike.add(member.offset_data)
                    continue
                others[reason] += 1
                if self.reading.labels == "folder" and member.isreg() and is_whole:
                    labels.add(member.name, self._label(file, member, where))
        except CutError as error:
            if not self.reading.accept_cut:
                raise UsageError(
                    f"{error} Expected a whole tar. Fetch or write it again, or give `accept_cut` to take what is "
                    "there."
                ) from None
            others[CUT] += 1
            cut = str(error)
        if any(names_image(name) for name, _, _ in members):
            members = [member for member in members if member[1] not in unlike]
            others.update([NO_MAGIC] * len(unlike))
        images: dict[str, Image] = {}
        num_of_name: Counter[str] = Counter()
        for name, offset, length in members:
            key = f"{entry.key}/{name}"
            while key in images:
                num_of_name[name] = max(2, num_of_name[name] + 1)
                key = f"{entry.key}/{name}#{num_of_name[name]}"
            label = labels.of(name)
            if self.reading.labels == "folder" and not labels.are_beside:
                label = folder_label(name, self.reading.label_names)
            images[key] = Image(key, length, entry.etag, label, offset, length, entry.key)
        return _Index(sorted(images.values(), key=lambda image: image.key.encode()), others, cut)

    def _label(self, file: ContainerFile, member: tarfile.TarInfo, where: str) -> tuple[int, str | None] | None:
        """The label in a file beside an image, and its priority: .cls before .json.

        Raises:
            UsageError: for a value that is there and cannot be a label.
        """
        suffix = member.name.rpartition(".")[2].lower()
        column = self.reading.label_column
        if suffix not in ("cls", "txt", "json") or member.size > LABEL_BYTES:
            return None
        if suffix != "json" and suffix != (column or "cls"):
            return None
        if suffix == "json" and column in ("cls", "txt"):
            return None
        file.seek(member.offset_data)
        value: Any = file.read(member.size)
        if suffix == "json":
            try:
                value = json.loads(value)[column or "label"]
            except (ValueError, KeyError, TypeError, RecursionError):  # no JSON, or not in it
                return None
        try:
            return (1 if suffix == "json" else 2), as_label(value, self.reading.label_names)
        except LabelError as error:
            raise unusable(f"{where}/{member.name}", error) from None


class _TarLabels:
    """The labels beside images, by their common names."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.by_stem: dict[str, tuple[int, str]] = {}
        """By the name up to its last dot, which is the closest."""
        self.by_sample: dict[str, tuple[int, str | None]] = {}
        """By the name up to the first dot of its last part, which is what WebDataset calls a sample: what counts most;
        None in place of several labels that count as much."""
        self.are_beside = False
        """Whether any file says a label, or that there is none: then the folders of images are none."""

    def add(self, name: str, said: tuple[int, str | None] | None) -> None:
        if said is None:
            return
        self.are_beside = True
        if said[1] is None:
            return
        label = said[0], said[1]
        stem = name.rpartition(".")[0]
        known = self.by_stem.get(stem, label)
        if known[0] == label[0] and known != label:
            raise UsageError(
                f"{self.where} has two labels for {stem}: {known[1]!r} and {label[1]!r}. Expected one: names of its "
                "members repeat. Write the tar anew, or plan with `labels` none."
            )
        self.by_stem[stem] = max(known, label)
        sample = _sample(name)
        rank, text = self.by_sample.get(sample, label)
        if label[0] >= rank:
            self.by_sample[sample] = label if label[0] > rank or label[1] == text else (rank, None)

    def of(self, name: str) -> str | None:
        """The label of an image; None if there is none, or if several are equally close."""
        if found := self.by_stem.get(name.rpartition(".")[0]):
            return found[1]
        return self.by_sample.get(_sample(name), (0, None))[1]


def _sample(name: str) -> str:
    """The common name of a sample: up to the first dot of its last part."""
    folder, slash, rest = name.rpartition("/")
    return folder + slash + rest.partition(".")[0]


def _ranges(images: Sequence[Image]) -> list[tuple[Wanted, list[int]]]:
    """The ranges to read for these images, each with its images, the first image first."""
    ranges: list[tuple[Wanted, list[int]]] = []
    order = sorted(range(len(images)), key=lambda n: (images[n].object or "", images[n].offset or 0))
    for number in order:
        image = images[number]
        start, length = image.offset or 0, image.length or 0
        if not length:
            continue
        last = ranges[-1][0] if ranges else None
        if last and (last.key, last.etag) == (image.object, image.etag):
            first, old = last.offset or 0, last.length or 0
            if start - first - old <= GAP_BYTES and start + length - first <= RANGE_BYTES:
                length = max(old, start + length - first)
                ranges[-1] = Wanted(last.key, length, last.etag, first, length), [*ranges[-1][1], number]
                continue
        ranges.append((Wanted(image.object or "", length, image.etag, start, length), [number]))
    return sorted(ranges, key=lambda one: min(one[1]))


def _slice(data: bytes | ObjectError, asked: Wanted, image: Image) -> bytes | ObjectError:
    if not isinstance(data, bytes):
        return data
    start = (image.offset or 0) - (asked.offset or 0)
    return data[start : start + (image.length or 0)]
