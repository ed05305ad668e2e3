"""The sentences of the README's guarantee, as checks of the model's states, steps and ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from model import SUCCESS, DataFile, Document, Ended, Plan, data_name, document_name, revisions_of, shards_of
from model_store import SOURCE


class Broken(Exception):
    """A sentence that does not hold, and the last steps that led there."""

    def __init__(self, sentence: str, steps: list[str]) -> None:
        super().__init__(sentence)
        self.sentence, self.steps = sentence, steps


ONE_ROW = "nothing appears twice, and every row is of an image in the plan"
NOTHING_LOST = "nothing is lost: what was written stays"
PLAN_STAYS = "a plan's documents are written once"
PARTS_FIRST = "a document's parts are there"
ONLY_REQUEUE = "only requeue replaces a file, by a higher revision"
SUCCESS_LAST = "_SUCCESS.json is there only with every file of the plan it speaks of"
READER = "a reader of a finished output gets every image of the plan once"
OLD_OR_NEW = "a reader sees the old file or the new one"
EXIT_CODE = "a run that ends well leaves no shard of its plan undone"
UNDISTURBED = "no run fails because of another"
RUN_AGAIN = "whatever is killed, one more run ends it"
RESTS = "a run that has nothing left to do writes nothing"
ALL = frozenset(
    (ONE_ROW, NOTHING_LOST, PLAN_STAYS, PARTS_FIRST, ONLY_REQUEUE, SUCCESS_LAST, READER, OLD_OR_NEW, EXIT_CODE)
) | {UNDISTURBED, RUN_AGAIN, RESTS}


def plan_in(objects: Mapping[str, Any]) -> Plan:
    plan: Plan = ()
    while (document := objects.get(document_name(len(plan)))) is not None:
        plan += (document,)
    return plan


def _has_all(objects: Mapping[str, Any], plan: Plan) -> bool:
    """Whether every shard of a plan has a file of its revision, or a later one."""
    revisions = revisions_of(plan)
    files = {shard: objects.get(data_name(shard)) for shard in shards_of(plan)}
    return all(file is not None and file.revision >= revisions.get(shard, 0) for shard, file in files.items())


def check_objects(objects: Mapping[str, Any], excused: frozenset[str]) -> None:
    """What holds at any time. Raises Broken."""
    plan = plan_in(objects)
    planned = {data_name(shard): keys for shard, keys in shards_of(plan).items()}
    files = {name: one for name, one in objects.items() if isinstance(one, DataFile)}
    images = Counter(key for keys in planned.values() for key in keys)
    _expect(ONE_ROW, all(file.keys == planned.get(name) for name, file in files.items()), excused)
    _expect(ONE_ROW, max(images.values(), default=1) == 1, excused)
    documents = [one for one in objects.values() if isinstance(one, Document)]
    _expect(PARTS_FIRST, all(one.part in objects for one in documents), excused)
    _expect(SUCCESS_LAST, SUCCESS not in objects or _has_all(objects, objects[SUCCESS].plan), excused)


def check_step(before: Mapping[str, Any], after: Mapping[str, Any], excused: frozenset[str]) -> None:
    """What one write may change. Raises Broken."""
    for name, was in before.items():
        now = after.get(name)
        _expect(NOTHING_LOST, now is not None, excused)
        if now == was or name in (SOURCE, SUCCESS):
            continue
        _expect(PLAN_STAYS, isinstance(was, DataFile), excused)
        _expect(ONLY_REQUEUE, now.revision > was.revision, excused)


def check_end(end: Ended, objects: Mapping[str, Any], excused: frozenset[str]) -> None:
    """What a process may end with. Raises Broken."""
    _expect(OLD_OR_NEW, end.outcome != "torn", excused)
    _expect(EXIT_CODE, end.outcome != "done" or _has_all(objects, end.plan), excused)
    _expect(UNDISTURBED, end.outcome not in ("failed", "incomplete"), excused)
    images = sorted(key for keys in shards_of(end.plan).values() for key in keys)
    _expect(READER, end.outcome != "read" or sorted(end.rows) == images, excused)


def _expect(sentence: str, holds: bool, excused: frozenset[str]) -> None:
    if not holds and sentence not in excused:
        raise Broken(sentence, [])


def is_whole(objects: Mapping[str, Any]) -> bool:
    """Whether an output is finished: every planned image has its row, and `_SUCCESS.json` speaks of the whole plan."""
    plan = plan_in(objects)
    return bool(plan) and _has_all(objects, plan) and objects.get(SUCCESS) is not None and objects[SUCCESS].plan == plan
