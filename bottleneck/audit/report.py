"""The result of a verification."""

from dataclasses import asdict, dataclass
from typing import Any

_NUM_NAMES = 20
"""Missing files listed in the JSON line; the report has all."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings. If nothing is corrupt, planned = ok + sum(rejected) + missing."""

    level: str
    """`footers`, or `full`: every value of every row was read."""
    planned: int
    ok: int
    rejected: dict[str, int]
    """Images by reason."""
    skipped: dict[str, int]
    """What the plan counts besides images, by suffix; `(cut)` are truncated tars, whose lost part is not in the
    plan."""
    missing: int
    """Images of shards without a file; run the extraction again. A replanned shard counts as in its file."""
    missing_files: tuple[str, ...]
    foreign: tuple[str, ...]
    """Objects under the output that do not belong to the plan."""
    corrupt: tuple[tuple[str, str], ...]
    """(name, problem) of the objects that are not what they should be. Files with a wrong footer are not counted."""
    unused_parts: int
    """Harmless parts of a killed planning."""
    leftovers: int
    """Temporary files of killed writers: harmless, and removed by a later run."""
    unfinished: str
    """Why `finished` is false, in words; else empty."""

    @property
    def finished(self) -> bool:
        """There is a `_SUCCESS.json`, it is of the whole plan with its revisions, and it agrees with the files."""
        return not self.unfinished

    @property
    def exit_code(self) -> int:
        """0 good, 1 corrupt or foreign, 3 incomplete."""
        if self.corrupt or self.foreign:
            return 1
        return 0 if self.finished else 3

    def to_json(self) -> dict[str, Any]:
        """Give the JSON line, with the first of the missing files."""
        return {
            **asdict(self),
            "missing_files": self.missing_files[:_NUM_NAMES],
            "corrupt": [{"name": name, "problem": problem} for name, problem in self.corrupt],
            "finished": self.finished,
        }
