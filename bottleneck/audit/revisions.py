"""Check a revision: it may replan the images of its shards, but no others.

A part of the separate reader, as `audit` is.
"""

from collections import Counter

import pyarrow as pa

from bottleneck.audit.objects import Objects, Wrong, expect
from bottleneck.audit.plan import AuditedPlan


class Before:
    """The shards of a revision as they were planned before it."""

    def __init__(self, plan: AuditedPlan, objects: Objects, number: int) -> None:
        self.plan, self.objects, self.number = plan, objects, number
        self.num_bytes = 0
        self.labels = Counter[str]()
        self.is_whole = True
        self.names = list(plan.documents)
        self.parts: dict[str, dict[int, pa.Table]] = {}
        """Of each document the part that was read last: the shards of a revision are in order."""

    def check(self, shard: int, images: pa.Table) -> None:
        """Compare a shard's keys with those it had, and count what it had. Raises Wrong."""
        earlier = [number for number in self.plan.planned_in[shard] if number < self.number][-1]
        names = [self.names[earlier]] if earlier else [n for n in self.names if "revised" not in self.plan.documents[n]]
        before = next((table for table in (self._read(name, shard) for name in names) if table is not None), None)
        if before is None:
            self.is_whole = False  # its part is named as corrupt already
            return
        self.num_bytes += sum(before["size"].to_pylist())
        self.labels += Counter(label for label in before["label"].to_pylist() if label is not None)
        expect(f"shard {shard}: keys are", images["key"].to_pylist(), before["key"].to_pylist(), "but before it has")

    def _read(self, name: str, shard: int) -> pa.Table | None:
        if shard not in self.parts.get(name, {}):
            parts = self.plan.documents[name]["parts"]
            part = next((part for part in parts if shard in self.plan.shards_of(name, part)), None)
            if part is None:
                return None
            try:
                self.parts[name] = dict(self.plan.read_part(self.objects, name, part, ""))
            except (Wrong, ValueError, OSError, pa.ArrowException):
                return None
        return self.parts[name].get(shard)
