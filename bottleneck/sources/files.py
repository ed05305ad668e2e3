"""Images as objects of their own, labelled by their folders."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from bottleneck.sources.image import NO_MAGIC, Image, folder_label, names_image, no_image
from bottleneck.sources.image_format import MAGIC_BYTES, begins_as_image
from bottleneck.sources.reading import Reading
from bottleneck.storage.store import Entry, ObjectError, Store, Wanted

NUM_LOOKED_AT = 1000
"""Objects that decide whether images have suffixes: one page of a listing."""


class Files:
    """The images below a store's root, in key order."""

    def __init__(self, store: Store, reading: Reading) -> None:
        self.store, self.reading = store, reading

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        entries = self._named(skipped)
        window = list(itertools.islice(entries, NUM_LOOKED_AT))
        # Where no name says image, all may be: to look at each of a million would take as long as reading them.
        if any(names_image(entry.key) for entry in window):
            rest = iter(lambda: list(itertools.islice(entries, NUM_LOOKED_AT)), [])
            found = itertools.chain.from_iterable(
                self._looked_at(some, skipped) for some in itertools.chain([window], rest)
            )
        else:
            found = itertools.chain(window, entries)
        for entry in found:
            label = folder_label(entry.key, self.reading.label_names) if self.reading.labels == "folder" else None
            yield Image(entry.key, entry.size, entry.etag, label)

    def _named(self, skipped: Counter[str]) -> Iterator[Entry]:
        """Yield the objects that may be images by name."""
        for entry in self.store.list():
            reason = entry.reason or no_image(entry.key)
            if reason:
                skipped[reason] += 1
            else:
                yield entry

    def _looked_at(self, entries: list[Entry], skipped: Counter[str]) -> Iterator[Entry]:
        """Drop objects that are images neither by name nor by their first bytes."""
        unknown = [entry for entry in entries if not names_image(entry.key)]
        if not unknown:
            yield from entries
            return
        headers = self.store.get_many(
            [Wanted(key, size, etag, 0, min(size, MAGIC_BYTES)) for key, size, etag, _ in unknown if size]
        )
        for entry in entries:
            if names_image(entry.key):
                yield entry
                continue
            header = next(headers) if entry.size else b""
            # What is gone by now is planned, and ends as a row that says so.
            if isinstance(header, bytes) and not begins_as_image(header):
                skipped[NO_MAGIC] += 1
            else:
                yield entry

    def first(self, skipped: Counter[str]) -> Image | None:
        return next(self.images(skipped), None)

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        return self.store.get_many([image.wanted() for image in images])
