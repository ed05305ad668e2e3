"""Report how the names of a list were found, and which are missing."""

import logging
from collections import Counter

from bottleneck.errors import UsageError
from bottleneck.sources.labels import likely_columns
from bottleneck.sources.list_order import Found
from bottleneck.sources.list_rows import ListFile
from bottleneck.sources.reading import Reading
from bottleneck.text import counted

log = logging.getLogger(__name__)


NUM_NAMED = 3
"""Missing images that an error names."""


class ListReport:
    """Collect how the names of a list were found, and report it."""

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
        """Raise UsageError if too much of the list is missing."""
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
