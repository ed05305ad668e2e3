"""The commit protocol as small programs: what a run, a requeue and a reader ask of the store, call by call.

Each follows one function of the library, named in its docstring. A program is a chain of phases; a phase is a generator
that yields calls, is sent their answers, and returns the next phase. So all that a process knows is its phase, the
phase's arguments and the answers since: two processes that agree in these do the same from then on.

What is left out: images, rows and features (a data file is its keys and revision), the bytes of the plan's parts, which
are named by their content, sizes of files (taken to be equal always, the worst case) and time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple

from model_store import CHANGED, SOURCE, Call

SUCCESS = "_SUCCESS.json"

Keys = tuple[str, ...]


class Document(NamedTuple):
    """`plan.json`, an extension or a revision: the keys of its shards."""

    shards: tuple[tuple[int, Keys], ...]
    part: str
    is_revision: bool = False


class DataFile(NamedTuple):
    """A data file; whoever wrote it is part of its bytes."""

    keys: Keys
    revision: int
    writer: str


class Success(NamedTuple):
    """`_SUCCESS.json`: the plan it speaks of, by its digest."""

    plan: tuple[Document, ...]


Plan = tuple[Document, ...]
End = Literal[
    "done", "failed", "incomplete", "no plan", "requeued", "nothing to do", "refused", "read", "torn", "added"
]


class Ended(NamedTuple):
    """How a process ended, and the plan it had; of a reader the keys of the rows."""

    outcome: End
    plan: Plan = ()
    rows: Keys = ()


class Rules(NamedTuple):
    """What the protocol insists on; each rule is broken once by a test, to show that it would be noticed."""

    creates_only_once: bool = True
    numbers_documents_once: bool = True
    replaces_what_it_saw: bool = True
    writes_parts_first: bool = True
    appends_shards: bool = True
    counts_its_own_shards: bool = True
    finishes_last: bool = True
    replaces_in_one_write: bool = True
    compares_the_plan: bool = True
    looks_for_every_shard: bool = True
    reads_one_version: bool = True
    takes_what_is_left: bool = True
    rests_when_finished: bool = True


KEEPING = Rules()


class Actor(NamedTuple):
    """Who runs a program, and its options."""

    name: str
    rules: Rules = KEEPING
    extends: bool = False
    shard: int = 0
    """The one whose images a requeue names."""


class Process(NamedTuple):
    """A program under way."""

    phase: Callable[..., Program]
    arguments: tuple[Any, ...]
    answers: tuple[Any, ...] = ()
    stage: str = ""


Program = Generator[Call, Any, "Process | Ended"]


def document_name(number: int) -> str:
    return f"plan/extension-{number}" if number else "plan.json"


def data_name(shard: int) -> str:
    return f"data/{shard}"


def shards_of(plan: Plan) -> dict[int, Keys]:
    return {number: keys for document in plan if not document.is_revision for number, keys in document.shards}


def revisions_of(plan: Plan) -> dict[int, int]:
    """The latest revision of each shard that has one."""
    return {shard: number for number, one in enumerate(plan) if one.is_revision for shard, _ in one.shards}


# The plan


def load_plan() -> Generator[Call, Any, Plan]:
    """dataset.plan.load_plan"""
    plan: Plan = ()
    while (document := (yield Call("read", document_name(len(plan))))) is not None:
        plan += (document,)
    return plan


def _write_document(one: Actor, number: int, document: Document) -> Generator[Call, Any, bool]:
    """dataset.plan_parts.write_part, then make_plan.commit_plan or extend.append"""
    verb = "create" if one.rules.numbers_documents_once else "replace"
    part, name = Call("create", document.part, document.part), document_name(number)
    if one.rules.writes_parts_first:
        yield part
    if not number:
        yield Call("quiet", document.part, "creates_once")
    created: bool = yield Call(verb, name, document)
    if not one.rules.writes_parts_first:
        yield part
    return created


def _frozen(keys: Keys, first_shard: int, *, is_revision: bool = False) -> Document:
    """dataset.plan_parts.freeze, with shards of one image"""
    shards = tuple((first_shard + at, (key,)) for at, key in enumerate(sorted(keys)))
    return Document(shards, f"plan/part-{first_shard}-{'-'.join(sorted(keys))}", is_revision)


def start(one: Actor) -> Program:
    """The start of jobs.extract"""
    there = yield from load_plan()
    return Process(open_plan, (one, bool(there)))


def open_plan(one: Actor, was_there: bool) -> Program:
    """extract.open_plan.open_or_make_plan"""
    plan = yield from load_plan()
    if not plan:
        return Process(make_plan, (one,))
    return Process(extend if one.extends and was_there else look, (one, plan))


def make_plan(one: Actor) -> Program:
    """dataset.make_plan.Survey.make_plan"""
    yield Call("quiet", "", "list")
    keys: Keys = yield Call("read", SOURCE)
    yield from _write_document(one, 0, _frozen(keys, 0))
    return Process(look, (one, (yield from load_plan())))


def extend(one: Actor, plan: Plan) -> Program:
    """dataset.extend.extend_plan"""
    keys: Keys = yield Call("read", SOURCE)
    planned = shards_of(plan)
    new = tuple(sorted(set(keys) - {key for of_shard in planned.values() for key in of_shard}))
    if not new:
        return Process(look, (one, plan))
    document = _frozen(new, len(planned)) if one.rules.appends_shards else _frozen(keys, 0)
    created = yield from _write_document(one, len(plan), document)
    newer = yield from load_plan()
    return Process(look if created else extend, (one, newer))


# A run


def committed(one: Actor, plan: Plan) -> Generator[Call, Any, frozenset[int]]:
    """dataset.plan.Plan.committed"""
    listed = dict((yield Call("list", "data/")))
    done = {int(name.removeprefix("data/")) for name in listed}
    if one.rules.counts_its_own_shards:  # not those of an extension that it has not read
        done &= shards_of(plan).keys()
    for shard, revision in sorted(revisions_of(plan).items()):
        if shard in done:
            file: DataFile = yield Call("footer", data_name(shard), etag=listed[data_name(shard)])
            done -= {shard} if file.revision < revision else set()
    return frozenset(done)


def look(one: Actor, plan: Plan) -> Program:
    """The start of extract.local.extract_here and of distributed.run.Run.extract"""
    if not one.rules.looks_for_every_shard and (yield Call("read", SUCCESS)) is not None:
        return Ended("done", plan)
    done = yield from committed(one, plan)
    if done - shards_of(plan).keys():
        return Ended("failed")
    pending = tuple(sorted(shards_of(plan).keys() - done))
    return Process(work, (one, plan, done, pending, frozenset()))


def work(one: Actor, plan: Plan, done: frozenset[int], pending: tuple[int, ...], ours: frozenset[int]) -> Program:
    """One shard of extract_here, or a worker's task: Work.is_committed, prepare_shard, dataset.write.write_shard"""
    if not pending or not one.rules.finishes_last:
        return Process(finish, (one, plan, done, ours))
    shard: int = yield Call("choose", value=pending)
    left = tuple(number for number in pending if number != shard)
    # As with a lease: what is somebody's is not taken by anybody else.
    if not one.rules.takes_what_is_left and not (yield Call("create", f"plan/lease-{shard}", one.name)):
        return Process(work, (one, plan, done, left, ours))
    if revision := revisions_of(plan).get(shard, 0):
        created = yield from _replace_shard(one, shard, DataFile(shards_of(plan)[shard], revision, one.name))
    else:
        created = yield from _create_shard(one, shard, DataFile(shards_of(plan)[shard], 0, one.name))
    return Process(work, (one, plan, done, left, ours | {shard} if created else ours))


def _create_shard(one: Actor, shard: int, file: DataFile) -> Generator[Call, Any, bool]:
    name = data_name(shard)
    if (yield Call("exists", name)):
        return False
    created: bool = yield Call("create" if one.rules.creates_only_once else "replace", name, file)
    return created


def _replace_shard(one: Actor, shard: int, file: DataFile) -> Generator[Call, Any, bool]:
    name = data_name(shard)
    there = yield Call("stat", name)
    if there is not None and (yield Call("footer", name, etag=there)).revision >= file.revision:
        return False
    if (yield Call("exists", name)):
        yield Call("quiet", name, "read")  # the rows that stay
    while True:  # dataset.write._commit
        there = yield Call("stat", name)
        if there is None:
            if (yield Call("create", name, file)):
                return True
            continue
        if (yield Call("footer", name, etag=there)).revision >= file.revision:
            return False
        if not one.rules.replaces_in_one_write:
            yield Call("delete", name)
            continue
        if (yield Call("replace", name, file, there if one.rules.replaces_what_it_saw else None)):
            return True


def finish(one: Actor, plan: Plan, done: frozenset[int], ours: frozenset[int]) -> Program:
    """extract.summary.summarize, with dataset.success.finished and finish"""
    shards, revisions = shards_of(plan), revisions_of(plan)
    success = yield Call("read", SUCCESS)
    if success == Success(plan) and done | ours == shards.keys() and one.rules.rests_when_finished:
        yield Call("quiet", "", "sweep")
        return Ended("done", plan)
    for shard in sorted(shards):
        name, revision = data_name(shard), revisions.get(shard, 0)
        if shard in ours and not revision:
            continue
        there = True if shard in done else (yield Call("stat", name))
        if there is None and one.rules.finishes_last:
            return Ended("incomplete", plan)
        if revision:
            file: DataFile = yield Call("footer", name, etag=None if there is True else there)
            if file.revision < revision:
                return Ended("incomplete", plan)
        else:
            yield Call("quiet", name, "footer")  # for the totals
    yield Call("replace", SUCCESS, Success(plan))
    yield Call("quiet", "", "sweep")
    return Ended("done", plan)


# Requeue


def requeue(one: Actor) -> Program:
    """jobs.requeue, for an image of one shard that is rejected and stays so"""
    plan = yield from load_plan()
    return Process(revise, (one, plan)) if plan else Ended("no plan")


def revise(one: Actor, plan: Plan) -> Program:
    """dataset.requeue.requeue_plan"""
    name = data_name(one.shard)
    listed = dict((yield Call("list", "data/")))
    success = yield Call("read", SUCCESS)
    finished = success == Success(plan) and (yield from committed(one, plan)) == shards_of(plan).keys()
    if not finished:
        for file in listed:
            yield Call("quiet", file, "footer")
    if name in listed:
        first, second = yield from _two_ranges(one, name, listed[name])
        if first != second:
            return Ended("torn")
    done = yield from committed(one, plan)
    is_queued = one.shard in revisions_of(plan) and one.shard not in done
    if name not in listed or is_queued:
        return Ended("nothing to do")
    keys = shards_of(plan)[one.shard]
    document = _frozen(keys, one.shard, is_revision=True)
    created = yield from _write_document(one, len(plan), document)
    newer = yield from load_plan()
    return Ended("requeued") if created else Process(revise, (one, newer))


def _two_ranges(one: Actor, name: str, entry: DataFile) -> Generator[Call, Any, tuple[DataFile, DataFile]]:
    """dataset.requeue._rejected_rows, whose reader of Parquet asks for several ranges of one file"""
    while True:
        etag = entry if one.rules.reads_one_version else None
        first = yield Call("range", name, etag=etag)
        second = CHANGED if first == CHANGED else (yield Call("range", name, etag=etag))
        if CHANGED not in (first, second):
            return first, second
        entry = yield Call("stat", name)


# Reading


def open_features(one: Actor) -> Program:
    """dataset.features.open_features, which refuses what is not finished"""
    plan = yield from load_plan()
    if not plan:
        return Ended("no plan")
    done = yield from committed(one, plan)
    success = yield Call("read", SUCCESS)
    of_plan = success == Success(plan) if one.rules.compares_the_plan else success is not None
    if not of_plan or (one.rules.compares_the_plan and done != shards_of(plan).keys()):
        return Ended("refused")
    return Process(read_rows, (plan, tuple(sorted(done)), ()))


def read_rows(plan: Plan, shards: tuple[int, ...], rows: Keys) -> Program:
    """dataset.features.Features.table, a file at a time"""
    if not shards:
        return Ended("read", plan, rows)
    file: DataFile = yield Call("read", data_name(shards[0]))
    return Process(read_rows, (plan, shards[1:], rows + file.keys))


def add_image(key: str) -> Program:
    """Somebody puts an image into the source."""
    yield Call("add", SOURCE, key)
    return Ended("added")
