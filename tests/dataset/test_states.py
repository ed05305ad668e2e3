"""Any order of planning, extracting, dying, extending, requeueing, tampering and changing the source: verify always
says what a model of a few dictionaries says.

Runs are steps here: some shards, by a plan as it is now or by one that somebody loaded long ago and still works with.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import tiny
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_requeue import SPEC, MeanBase, extract

from bottleneck.audit.verify import verify
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan, data_name, load_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.requeue import requeue_plan
from bottleneck.dataset.success import finish
from bottleneck.storage.store import open_store

SHARD_SIZE = 3
KEYS = [f"{number:02d}.jpg" for number in range(12)]
KINDS = {"ok": b"", "empty": b"", "not_an_image": b"<html>"}
TAMPERINGS = ("delete", "truncate", "swap", "foreign")


@dataclass
class Source:
    """key -> (version, kind); no version is ever used twice."""

    images: dict[str, tuple[int, str]] = field(default_factory=dict)
    versions: int = 0


@dataclass
class Shard:
    """What is planned of a shard, and what its file holds."""

    planned: dict[str, int]
    """key -> version."""
    revision: int = 0
    file_revision: int | None = None
    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    """key -> (status or reason, version that was planned then)."""

    @property
    def is_done(self) -> bool:
        return self.file_revision == self.revision


class Outputs(RuleBasedStateMachine):
    """An output on disk beside its model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="bottleneck-states-"))
        self.photos, self.output = self.folder / "photos", str(self.folder / "features")
        self.source = Source()
        self.shards: list[Shard] = []
        self.num_documents = 0
        self.finished_with = 0
        """Documents of the plan that `_SUCCESS.json` speaks of; 0 without one."""
        self.old_plans: list[tuple[Plan, list[tuple[int, dict[str, int]]]]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # The source

    @initialize(keys=st.sets(st.sampled_from(KEYS), min_size=1))
    def first_images(self, keys: set[str]) -> None:
        for key in sorted(keys):
            self.put(key, "ok")

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(sorted(KINDS)))
    def put(self, key: str, kind: str) -> None:
        """Add an image, or replace it."""
        self.source.versions += 1
        version = self.source.versions
        path = tiny.write_files(self.photos, {key: tiny.jpeg(version) if kind == "ok" else KINDS[kind]}) / key
        os.utime(path, ns=(version, version))  # as its etag, which must be another one however fast we are
        self.source.images[key] = version, kind

    @precondition(lambda self: len(self.source.images) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.source.images)))
        (self.photos / key).unlink()
        del self.source.images[key]

    # The plan

    @property
    def plan(self) -> Plan:
        plan = load_plan(self.output)
        assert plan is not None
        return plan

    @precondition(lambda self: not self.shards)
    @rule()
    def make_plan(self) -> None:
        make_plan(str(self.photos), self.output, SPEC, shard_size=SHARD_SIZE)
        self._planned(sorted(self.source.images))
        self.num_documents = 1

    @precondition(lambda self: self.shards)
    @rule()
    def extend(self) -> None:
        known = {key for shard in self.shards for key in shard.planned}
        new = sorted(self.source.images.keys() - known)
        assert extend_plan(self.plan)[1].added == len(new)
        self._planned(new)
        self.num_documents += bool(new)

    @precondition(lambda self: self.shards)
    @rule(reasons=st.sets(st.sampled_from(["missing", "changed", "empty"])), changed=st.booleans())
    def requeue(self, reasons: set[str], changed: bool) -> None:
        if not reasons and not changed:
            return
        requeue_plan(self.plan, sorted(reasons), changed=changed)
        revised = False
        for shard in self.shards:
            again = {}
            for key, planned in shard.planned.items():
                found = self.source.images.get(key)
                is_other = found is not None and found[0] != planned
                is_named = shard.file_revision is not None and shard.rows[key][0] in reasons
                in_queue = shard.revision > 0 and not shard.is_done
                if (is_other and changed) or (is_named and (is_other or not in_queue)):
                    again[key] = found[0] if found else planned
            if again:
                shard.planned |= again
                shard.revision = self.num_documents
                revised = True
        self.num_documents += revised

    def _planned(self, keys: list[str]) -> None:
        for start in range(0, len(keys), SHARD_SIZE):
            self.shards.append(Shard({key: self.source.images[key][0] for key in keys[start : start + SHARD_SIZE]}))

    # Runs

    @precondition(lambda self: self.shards)
    @rule()
    def somebody_loads_the_plan(self) -> None:
        self.old_plans.append((self.plan, [(shard.revision, dict(shard.planned)) for shard in self.shards]))

    @precondition(lambda self: self.shards)
    @rule(data=st.data())
    def extract(self, data: st.DataObject) -> None:
        """A run that ends after one shard, done or not."""
        number = data.draw(st.integers(0, len(self.shards) - 1))
        self._extract(self.plan, number, self.shards[number].revision, self.shards[number].planned)

    @precondition(lambda self: self.old_plans)
    @rule(data=st.data())
    def extract_by_an_old_plan(self, data: st.DataObject) -> None:
        """What a worker does that was thought dead, or a run that was started before."""
        plan, shards = data.draw(st.sampled_from(self.old_plans))
        number = data.draw(st.integers(0, len(shards) - 1))
        self._extract(plan, number, *shards[number])

    def _extract(self, plan: Plan, number: int, revision: int, planned: dict[str, int]) -> None:
        shard = self.shards[number]
        created = extract(plan, number, MeanBase(SPEC))
        expected = shard.file_revision is None or shard.file_revision < revision
        assert created == expected
        if not created:
            return
        rows = {}
        for key, version in planned.items():
            before = shard.rows.get(key)
            found = self.source.images.get(key)
            if revision and before == ("ok", version):
                rows[key] = before
            elif found is None:
                rows[key] = "missing", version
            else:
                rows[key] = (found[1] if found[0] == version else "changed"), version
        shard.rows, shard.file_revision = rows, revision

    @precondition(lambda self: self.shards)
    @rule()
    def run(self) -> None:
        """A run that nothing happens to."""
        for number, shard in enumerate(self.shards):
            if not shard.is_done:
                self._extract(self.plan, number, shard.revision, shard.planned)
        finish(self.plan)
        self.finished_with = self.num_documents

    # What verify says

    @invariant()
    def verify_agrees(self) -> None:
        if not self.shards:
            return
        report = verify(self.output, full=True)
        rows = [row for shard in self.shards for row in shard.rows.values()]
        counts = Counter(status for status, _ in rows)
        assert (report.corrupt, report.foreign) == ((), ())
        assert report.planned == sum(len(shard.planned) for shard in self.shards)
        assert report.ok == counts.pop("ok", 0)
        assert report.rejected == dict(counts)
        assert report.missing == sum(len(shard.planned) for shard in self.shards if shard.file_revision is None)
        is_whole = all(shard.is_done for shard in self.shards) and self.finished_with == self.num_documents
        assert report.finished == is_whole
        assert report.exit_code == (0 if is_whole else 3)
        plan, store = self.plan, open_store(self.output)
        planned = [list(shard.planned) for shard in self.shards]
        assert [[image.key for image in read_images(store, shard)] for shard in plan.shards()] == planned

    @precondition(lambda self: any(shard.rows for shard in self.shards))
    @rule(data=st.data(), how=st.sampled_from(TAMPERINGS))
    def tamper(self, data: st.DataObject, how: str) -> None:
        """Something else touches the output; it is found, and put back for the rules that follow."""
        number = data.draw(st.sampled_from([n for n, shard in enumerate(self.shards) if shard.rows]))
        path = Path(self.output) / data_name(SPEC, number)
        before = path.read_bytes()
        if how == "delete":
            path.unlink()
        elif how == "truncate":
            path.write_bytes(before[: data.draw(st.integers(0, len(before) - 1))])
        elif how == "swap":
            position = data.draw(st.integers(4, len(before) - 1))
            path.write_bytes(before[:position] + bytes([before[position] ^ 0xFF]) + before[position + 1 :])
        else:
            (path.parent / "notes.txt").write_text("mine")
        report = verify(self.output, full=True)
        if how == "delete":
            assert report.missing_files.count(data_name(SPEC, number)) == 1
            assert not report.finished
        elif how == "foreign":
            assert report.foreign == ("data/notes.txt",)
            (path.parent / "notes.txt").unlink()
        else:
            assert data_name(SPEC, number) in {name for name, _ in report.corrupt}
        assert report.exit_code in ((3, 1) if how == "delete" else (1,))
        path.write_bytes(before)


TestOutputs = Outputs.TestCase
TestOutputs.settings = settings(
    max_examples=int(os.environ.get("BOTTLENECK_TEST_EXAMPLES", "15")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
