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
from bottleneck.objects import ObjectError, Store, Wanted
from bottleneck.spec import Reading

SUFFIXES = (".tar",)
RANGE_BYTES = 16_000_000
"""Of one read: long enough to be as fast as a store gives, short enough that decoding need not wait for it."""
GAP_BYTES = 100_000
"""Read and thrown away rather than asked for around: what lies between images, captions for the most part."""
WINDOW = 128
"""Images whose ranges are made together: where a tar is not in the order of its names, so many wait for their turn."""
HEADER_BYTES = 10_000_000
"""Read at once of a tar's headers, which may say that a name takes terabytes."""
PADDING_BYTES = 65_536
"""Looked at behind the end mark, where writers fill up their last block."""
LABEL_BYTES = 1_000_000
"""Larger files beside an image are no label."""


class WebDataset:
    """The images in the tars of a source; a key is TAR/MEMBER."""

    def __init__(self, store: Store, only: str | None, reading: Reading) -> None:
        self.store, self.only, self.reading = store, only, reading

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        tars = containers(self.store, self.only, SUFFIXES, skipped)
        for images, others in look_into(self.store, tars, self._index):
            skipped.update(others)
            yield from images

    def first(self, skipped: Counter[str]) -> Image | None:
        for entry in containers(self.store, self.only, SUFFIXES, skipped):
            images, others = self._index(ContainerFile(self.store, entry))
            skipped.update(others)
            if images:
                return images[0]
        return None

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        """Each image's bytes, in order: the members of one tar by as few ranges as there can be."""
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

    def _index(self, file: ContainerFile) -> tuple[list[Image], Counter[str]]:
        """The images of one tar in key order, and its other members by suffix."""
        try:
            return self._read_index(file)
        except ObjectError as error:
            raise while_planning(self.store, file.entry, error) from None

    def _read_index(self, file: ContainerFile) -> tuple[list[Image], Counter[str]]:
        entry, where = file.entry, f"{self.store.uri}/{file.entry.key}"
        members: list[tuple[str, int, int]] = []
        others: Counter[str] = Counter()
        labels = _Labels(where)
        for member in _members(file, where):
            reason = _no_member(member)
            if not reason:
                # A tar that was cut has less of its last member than it says: what is there is judged by the decoder.
                length = max(0, min(member.size, entry.size - member.offset_data))
                members.append((member.name, member.offset_data, length))
                continue
            others[reason] += 1
            if self.reading.labels == "folder" and member.isreg():
                labels.add(member.name, self._label(file, member))
        images: dict[str, Image] = {}
        for name, offset, length in members:
            key, again = f"{entry.key}/{name}", 1
            while key in images:
                again += 1
                key = f"{entry.key}/{name}#{again}"
            label = labels.of(name)
            if label is None and self.reading.labels == "folder":
                label = folder_label(name)
            images[key] = Image(key, length, entry.etag, label, offset, length, entry.key)
        return sorted(images.values(), key=lambda image: image.key.encode()), others

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
            label = str(value) if isinstance(value, str | int) else ""
            label.encode()
        except (ValueError, KeyError, TypeError, RecursionError):  # no JSON, not in it, or half a surrogate pair
            return None
        return (1, label) if label else None


class _Labels:
    """The labels that stand beside images, by the names they share with them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.by_stem: dict[str, tuple[int, str]] = {}
        """By the name up to its last dot, which is the closest."""
        self.by_sample: dict[str, set[tuple[int, str]]] = {}
        """By the name up to the first dot of its last part, which is what WebDataset calls a sample."""

    def add(self, name: str, label: tuple[int, str] | None) -> None:
        if label is None:
            return
        stem = name.rpartition(".")[0]
        known = self.by_stem.get(stem, label)
        if known[0] == label[0] and known != label:
            raise UsageError(
                f"{self.where} has two labels for {stem}: {known[1]!r} and {label[1]!r}. Expected one: names of its "
                "members repeat. Write the tar anew, or plan with --labels none."
            )
        self.by_stem[stem] = max(known, label)
        self.by_sample.setdefault(_sample(name), set()).add(label)

    def of(self, name: str) -> str | None:
        """The label of an image; None where there is none, or none of several is closer than the others."""
        if found := self.by_stem.get(name.rpartition(".")[0]):
            return found[1]
        found_here = self.by_sample.get(_sample(name), set())
        best = {label for label in found_here if label[0] == max(found_here)[0]}
        return best.pop()[1] if len(best) == 1 else None


def _members(file: ContainerFile, name: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar. Raises UsageError where it is none, or damaged before its end."""
    end = 0
    file.longest_bytes = HEADER_BYTES
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= end:
                    raise _damaged(name, end)  # read on, it would be met for ever
                end = tar.offset
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if "truncated header" in str(error) or "unexpected end of data" in str(error):
            return  # cut inside a header: no member begins there
        raise UsageError(
            f"{name} is no tar file that can be read: {error}. Expected an uncompressed tar. Mend or remove it."
        ) from error
    file.seek(end)
    header = file.read(512)
    if len(header) == 512 and header.strip(b"\0"):
        raise _damaged(name, end)
    if file.read(PADDING_BYTES).strip(b"\0"):
        raise UsageError(
            f"{name} goes on behind its end mark at byte {end}: is it several tars in one file? What follows would not "
            "be counted. Expected one tar a file; unpack and write it anew."
        )


def _damaged(name: str, offset: int) -> UsageError:
    return UsageError(
        f"{name} is damaged at byte {offset}: what follows is no tar header, so its images cannot be counted. "
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


def _ranges(images: Sequence[Image]) -> list[tuple[Wanted, list[int]]]:
    """The ranges to read for these images, in an order that serves the first image first, each with its images."""
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
