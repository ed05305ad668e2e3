"""Images in tar files, as WebDataset and img2dataset write them: `000012.jpg` beside `000012.cls`, `.json`, `.txt`.

A tar is indexed when it is planned (name, offset, size of every member), so that each image is accounted for and a
shard is read as contiguous ranges. Members are only ever looked at: nothing is unpacked to disk, and no name, type or
content of one (a pickle, a path that leads out, a link) makes anything else happen.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bottleneck.containers import ContainerFile, containers, look_into, while_planning
from bottleneck.errors import UsageError
from bottleneck.images import Image, folder_label, no_image
from bottleneck.objects import Entry, ObjectChangedError, ObjectGoneError, Store, Wanted
from bottleneck.spec import Reading

SUFFIXES = (".tar",)
RANGE_BYTES = 16_000_000
"""Of one read: long enough to be as fast as a store gives, short enough that decoding need not wait for it."""
GAP_BYTES = 1_000_000
"""Read and thrown away rather than asked for around: what lies between images, captions for the most part."""
LABEL_BYTES = 1_000_000
"""Larger files beside an image are no label."""


class WebDataset:
    """The images in the tars of a source; a key is TAR/MEMBER."""

    def __init__(self, store: Store, only: str | None, reading: Reading) -> None:
        self.store, self.only, self.reading = store, only, reading

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        tars = containers(self.store, self.only, SUFFIXES, skipped)
        for images, others in look_into(tars, self._index):
            skipped.update(others)
            yield from images

    def first(self, skipped: Counter[str]) -> Image | None:
        for entry in containers(self.store, self.only, SUFFIXES, skipped):
            images, others = self._index(entry)
            skipped.update(others)
            if images:
                return images[0]
        return None

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectGoneError | ObjectChangedError]:
        """Each image's bytes, in order: the members of one tar by as few ranges as there can be."""
        ranges, place = _ranges(images)
        fetched = self.store.get_many(ranges)
        held: dict[int, bytes | ObjectGoneError | ObjectChangedError] = {}
        left = Counter(place)
        for image, number in zip(images, place, strict=True):
            if number is None:
                yield b""
                continue
            while number not in held:
                held[len(held)] = next(fetched)
            data = held[number]
            if isinstance(data, bytes):
                start = (image.offset or 0) - (ranges[number].offset or 0)
                yield data[start : start + (image.length or 0)]
            else:
                yield data
            left[number] -= 1
            if not left[number]:
                held[number] = b""  # its place is kept, as `held` counts

    def _index(self, entry: Entry) -> tuple[list[Image], Counter[str]]:
        """The images of one tar in key order, and its other members by suffix."""
        try:
            return self._read_index(entry)
        except (ObjectGoneError, ObjectChangedError) as error:
            raise while_planning(self.store, entry, error) from None

    def _read_index(self, entry: Entry) -> tuple[list[Image], Counter[str]]:
        file = ContainerFile(self.store, entry)
        members: list[tuple[str, int, int]] = []
        others: Counter[str] = Counter()
        labels: dict[str, tuple[int, str]] = {}
        for member in _members(file, f"{self.store.uri}/{entry.key}"):
            reason = _no_member(member)
            if not reason:
                # A tar that was cut has less of its last member than it says: what is there is judged by the decoder.
                length = max(0, min(member.size, entry.size - member.offset_data))
                members.append((member.name, member.offset_data, length))
                continue
            others[reason] += 1
            found = self._label(file, member) if self.reading.labels == "folder" and member.isreg() else None
            if found is not None:
                sample = _sample(member.name)
                labels[sample] = max(labels.get(sample, found), found)
        images, names = [], Counter[str]()
        for name, offset, length in members:
            names[name] += 1
            key = f"{entry.key}/{name}" + (f"#{names[name]}" if names[name] > 1 else "")
            label = labels[_sample(name)][1] if _sample(name) in labels else None
            if label is None and self.reading.labels == "folder":
                label = folder_label(name)
            images.append(Image(key, length, entry.etag, label, offset, length, entry.key))
        return sorted(images, key=lambda image: image.key.encode()), others

    def _label(self, file: ContainerFile, member: tarfile.TarInfo) -> tuple[int, str] | None:
        """What a file beside an image says of its label, and how much that counts: .cls before .json."""
        suffix = member.name.rpartition(".")[2].lower()
        column = self.reading.label_column
        if suffix not in ("cls", "txt", "json") or member.size > LABEL_BYTES:
            return None
        if suffix != "json" and suffix != (column or "cls"):
            return None
        if suffix == "json" and column in ("cls", "txt"):
            return None
        file.seek(member.offset_data)
        text = file.read(member.size).decode(errors="replace").strip()
        if suffix != "json":
            return (2, text) if text else None
        try:
            value: Any = json.loads(text)[column or "label"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return (1, str(value)) if isinstance(value, str | int) and str(value) else None


def _members(file: ContainerFile, name: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar. Raises UsageError where it is none, or damaged before its end."""
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            end = tar.offset
    except tarfile.TarError as error:
        if "truncated header" in str(error) or "unexpected end of data" in str(error):
            return  # cut inside a header: no member begins there
        raise UsageError(
            f"{name} is no tar file that can be read: {error}. Expected an uncompressed tar. Mend or remove it."
        ) from error
    file.seek(end)
    header = file.read(512)
    if len(header) == 512 and header.strip(b"\0"):
        raise UsageError(
            f"{name} is damaged at byte {end}: what follows is no tar header, so its images cannot be counted. "
            "Mend or remove it."
        )


def _no_member(member: tarfile.TarInfo) -> str:
    """Why a member is no image, as a suffix to count it under; empty for an image."""
    if member.isdir():
        return "(directory marker)"
    if not member.isreg() or member.issparse():
        return "(link or special file)"
    return no_image(member.name)


def _sample(name: str) -> str:
    """What the files of one sample share: the name up to the first dot of its last part."""
    folder, slash, rest = name.rpartition("/")
    return folder + slash + rest.partition(".")[0]


def _ranges(images: Sequence[Image]) -> tuple[list[Wanted], list[int | None]]:
    """The ranges to read for these images, and which of them holds each one; None for images without a byte."""
    ranges: list[Wanted] = []
    place: list[int | None] = [None] * len(images)
    order = sorted(range(len(images)), key=lambda n: (images[n].object or "", images[n].offset or 0))
    for number in order:
        image = images[number]
        start, length = image.offset or 0, image.length or 0
        if not length:
            continue
        last = ranges[-1] if ranges else None
        if last and last.key == image.object and last.etag == image.etag:
            first, old = last.offset or 0, last.length or 0
            if start - first - old <= GAP_BYTES and start + length - first <= RANGE_BYTES:
                length = max(old, start + length - first)
                ranges[-1] = Wanted(last.key, length, last.etag, first, length)
                place[number] = len(ranges) - 1
                continue
        ranges.append(Wanted(image.object or "", length, image.etag, start, length))
        place[number] = len(ranges) - 1
    return ranges, place
