"""A folder as a source: links that lead out of it are not followed."""

import os
from collections.abc import Iterable

from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import Entry, ObjectGoneError, Wanted


class SourceFolder(FolderStore):
    """A folder as a source: read only; links may lead to given places only; skipped entries are reported."""

    lists_reasons = True

    def __init__(self, root: str, places: Iterable[str] | None) -> None:
        """
        Args:
            places: files and folders that links may lead to, and below; None follows them wherever they lead.
        """
        super().__init__(root)
        self.places = None if places is None else tuple(os.path.realpath(place).rstrip("/") for place in places)

    def _may_read(self, path: str) -> bool:
        if self.places is None:
            return True
        try:
            real = os.path.realpath(path)
        except ValueError:  # a name that no file can have
            return True
        return any(real == place or real.startswith(place + "/") for place in self.places)

    def leads_out(self, key: str) -> bool:
        """Whether a key is, or lies below, a link to a place that must not be read."""
        return not self._may_read(self._path(key))

    def get(self, wanted: Wanted) -> bytes:
        if self.leads_out(wanted.key):  # a link that was put there since the listing
            raise ObjectGoneError(wanted.key)
        return super().get(wanted)

    def stat(self, key: str) -> Entry | None:
        return None if self.leads_out(key) else super().stat(key)
