"""What real jobs ask of a real folder is a path of the model, also where one comes in the middle of another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from invariants import check_objects, is_whole
from model import SUCCESS, Actor, Process, open_features, requeue, start
from recorder import RecordedFolder, Recorder
from replay import NotOfTheModel, check_store, end_of

import bottleneck
from bottleneck.dataset.footer import revision_in
from bottleneck.errors import IncompleteError
from bottleneck.spec import FeatureRequest
from bottleneck.storage.store import cached_store
from jobs import extract as extract_job
from jobs import requeue as requeue_job

KEYS = ("00.jpg", "02.jpg", "04.jpg")
BAD, LATER = "02.jpg", "03.jpg"


class Jobs:
    """Jobs on one small source, image by image in shards of their own, of which 02 is no image."""

    def __init__(self, folder: Path) -> None:
        self.photos = folder / "photos"
        self.recorder = Recorder(str(folder / "features"))
        self.sources: dict[str, tuple[str, ...]] = {}
        for number, key in enumerate(KEYS):
            self.put(key, b"<html>" if key == BAD else tiny.jpeg(number))

    def put(self, key: str, data: bytes) -> None:
        tiny.write_files(self.photos, {key: data})

    def extract(self, run: str, *, extend: bool = False) -> None:
        with self._recording(run):
            extract_job.extract(
                extract_job.Config(
                    source=str(self.photos),
                    output=self.recorder.output,
                    features=FeatureRequest(base="stub", weights="random:0"),
                    shard_size=1,
                    max_rejected=1.0,
                    local=True,
                    extend=extend,
                )
            )

    def requeue(self, run: str) -> None:
        with self._recording(run):
            requeue_job.main(requeue_job.Config(output=self.recorder.output, reason=("not_an_image",)))

    def read(self, run: str) -> list[str]:
        with self._recording(run):
            tables = bottleneck.open_features(self.recorder.output).tables(["key"])
            return [key for table in tables for key in table.column("key").to_pylist()]

    @contextlib.contextmanager
    def _recording(self, run: str) -> Iterator[None]:
        """Let a job begin as a process of its own would: it knows no footers."""
        revision_in.cache_clear()
        self.sources[run] = tuple(sorted(path.name for path in self.photos.iterdir()))
        with self.recorder.recording(run):
            yield

    def end(self, run: str, process: str) -> str:
        """How the model's process ends when it is given the answers that a run was given."""
        phase = {"extract": start, "extend": start, "requeue": requeue, "read": open_features}[process]
        one = Actor(run, extends=process == "extend", shard=KEYS.index(BAD))
        return end_of(Process(phase, (one,)), self.recorder.of(run), self.sources[run]).outcome

    def check(self) -> None:
        """The store answered as the model's, and the output is whole."""
        objects = check_store(self.recorder.events)
        check_objects(objects, frozenset())
        assert is_whole(objects)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setattr("bottleneck.storage.local.FolderStore", RecordedFolder)
    cached_store.cache_clear()
    jobs = Jobs(tmp_path)
    monkeypatch.setattr(RecordedFolder, "recorder", jobs.recorder)
    yield jobs
    cached_store.cache_clear()


def test_jobs_one_after_another_are_paths_of_the_model(jobs: Jobs) -> None:
    jobs.extract("first")
    assert jobs.end("first", "extract") == "done"
    jobs.extract("idle")
    assert jobs.end("idle", "extract") == "done"
    jobs.put(LATER, tiny.jpeg(3))
    jobs.extract("extension", extend=True)
    assert jobs.end("extension", "extend") == "done"
    jobs.requeue("requeue")
    assert jobs.end("requeue", "requeue") == "requeued"
    with pytest.raises(IncompleteError):
        jobs.read("early")
    assert jobs.end("early", "read") == "refused"
    jobs.extract("revision")
    assert jobs.end("revision", "extract") == "done"
    assert sorted(jobs.read("reader")) == sorted((*KEYS, LATER))
    assert jobs.end("reader", "read") == "read"
    jobs.check()


Place = tuple[str, str]
"""A call and the beginning of a name: before the first such call the other job comes."""

MEANWHILE: dict[str, tuple[list[str], str, Place, list[str]]] = {
    "another plan": ([], "extract", ("create", "plan.json"), ["extract"]),
    "another run": ([], "extract", ("create", "data/"), ["extract"]),
    "an extension before the end": ([], "extract", ("replace", SUCCESS), ["grow", "extend"]),
    "an extension before its listing": ([], "extract", ("list", "data/"), ["grow", "extend"]),
    "another revision": (["extract", "requeue"], "extract", ("replace", "data/"), ["extract"]),
    "a later revision": (["extract", "requeue"], "extract", ("replace", "data/"), ["extract", "requeue", "extract"]),
    "a smaller file": (["extract", "grow"], "extend", ("create", "data/"), ["mend", "requeue", "extract"]),
    "another extension": (["extract", "grow"], "extend", ("create", "plan/extension"), ["extend"]),
    "an extension, by a requeue": (["extract", "grow"], "requeue", ("create", "plan/extension"), ["extend"]),
    "a new file, by a requeue": (["extract"], "requeue", ("get", "data/"), ["requeue", "extract"]),
    "a new file, by a reader": (["extract"], "read", ("read", "data/"), ["requeue", "extract"]),
}
"""By what comes in between: the jobs before, the job, where, and the jobs that come there."""


@pytest.mark.parametrize("name", MEANWHILE)
def test_a_job_in_the_middle_of_another_is_a_path_of_the_model(name: str, jobs: Jobs) -> None:
    before, outer, place, inner = MEANWHILE[name]
    kinds: dict[str, str] = {}

    def do(kind: str) -> None:
        if kind in ("mend", "grow"):
            jobs.put(BAD if kind == "mend" else LATER, tiny.jpeg(2))
            return
        run = f"{len(kinds)} {kind}"
        kinds[run] = kind
        if kind == "read":
            jobs.read(run)
        elif kind == "requeue":
            jobs.requeue(run)
        else:
            jobs.extract(run, extend=kind == "extend")

    for kind in before:
        do(kind)
    come: list[bool] = []

    def meanwhile(verb: str, key: str) -> None:
        if verb == place[0] and key.startswith(place[1]) and not come:
            come.append(True)
            for kind in inner:
                do(kind)

    jobs.recorder.before = meanwhile
    do(outer)
    assert come
    do("extract")
    ends = {run: jobs.end(run, kind) for run, kind in kinds.items()}
    print(ends)
    assert set(ends.values()) <= {"done", "requeued", "read"}
    jobs.check()


def test_calls_that_are_not_the_models_are_noticed(jobs: Jobs) -> None:
    jobs.extract("run")
    events = list(jobs.recorder.events)
    assert jobs.end("run", "extract") == "done"
    writes = [at for at, event in enumerate(events) if event.verb in ("create", "replace")]
    assert len(writes) == len(("part", "plan.json", *KEYS, SUCCESS))
    for at in writes:
        jobs.recorder.events = [*events[:at], *events[at + 1 :]]
        with pytest.raises(NotOfTheModel):
            jobs.end("run", "extract")
    first = [*events[: writes[2]], events[-2], *events[writes[2] : -2], events[-1]]
    assert events[-2].name == SUCCESS
    jobs.recorder.events = first
    with pytest.raises(NotOfTheModel):
        jobs.end("run", "extract")
    jobs.recorder.events = [replace(event, answer=False) if event.verb == "create" else event for event in events]
    with pytest.raises(NotOfTheModel):
        check_store(jobs.recorder.events)
