"""The commit protocol keeps the README's guarantee in every interleaving of a few processes; broken ones do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from explorer import Explorer, Scenario, Violation, finished_output
from invariants import (
    ALL,
    EXIT_CODE,
    NOTHING_LOST,
    OLD_OR_NEW,
    ONE_ROW,
    ONLY_REQUEUE,
    PARTS_FIRST,
    PLAN_STAYS,
    READER,
    RESTS,
    RUN_AGAIN,
    SUCCESS_LAST,
    UNDISTURBED,
)
from model import Actor, Process, Rules, add_image, open_features, requeue, start
from model_store import BUCKET, FOLDER, GATEWAY, SOURCE, Kind

NEW = {SOURCE: ("a", "c", "e")}
DONE = finished_output("a", "c")
GROWN = {**DONE, SOURCE: ("a", "b", "c")}
"""A finished output, and a new image that sorts between those that it has."""


def process(name: str, kind: str) -> Process:
    if kind == "add":
        return Process(add_image, ("b",))
    phase = {"run": start, "extend": start, "requeue": requeue, "reader": open_features}[kind.split()[0]]
    return Process(phase, (Actor(name, extends=kind == "extend", shard=int(kind.endswith("1"))),))


def scenario(objects: dict[str, Any], store: Kind = BUCKET, kills: int = 0, lost: int = 0, **kinds: str) -> Scenario:
    """Processes by name: `run`, `extend` (a run with --extend), `requeue` or `requeue 1`, `reader` or `add`."""
    return Scenario(store, objects, {name: process(name, kind) for name, kind in kinds.items()}, kills, lost)


NEW_TWO = {SOURCE: ("a", "c")}
SCENARIOS = {
    "two new runs": scenario(NEW, kills=1, lost=1, a="run", b="run"),
    "two new runs and a reader": scenario(NEW, a="run", b="run", reader="reader"),
    "new runs, a reader and a new image": scenario(NEW_TWO, a="run", b="extend", reader="reader", image="add"),
    "two extensions and a reader": scenario(GROWN, kills=1, lost=1, a="extend", b="extend", reader="reader"),
    "an extension, a requeue and a run": scenario(GROWN, lost=1, a="extend", b="run", again="requeue"),
    "two requeues of one shard and two runs": scenario(DONE, a="run", b="run", again="requeue", more="requeue"),
    "a requeue, a run and a reader": scenario(DONE, kills=2, lost=1, a="run", again="requeue 1", reader="reader"),
}
LARGER = {
    **{f"{name}, in a folder": replace(one, kind=FOLDER, kills=1, lost=0) for name, one in SCENARIOS.items()},
    "two kills and two lost answers": scenario(NEW, kills=2, lost=2, a="run", b="run"),
    "a kill": scenario(GROWN, kills=1, lost=1, a="extend", b="run", again="requeue"),
    "a lost answer": scenario(DONE, lost=1, a="run", b="run", again="requeue", more="requeue"),
    "from nothing to a revision": scenario(NEW_TWO, a="run", b="extend", again="requeue", image="add"),
}
REQUEUED, READ = {"no plan", "requeued", "nothing to do"}, {"no plan", "refused", "read"}
ENDS = {"a": {"done"}, "b": {"done"}, "again": REQUEUED, "more": REQUEUED, "reader": READ, "image": {"added"}}
WELL = {"done", "requeued", "read", "added"}
"""How a process of each name may end, and the ends that every one is to reach somewhere."""


@pytest.mark.parametrize(
    "one",
    [
        *(pytest.param(one, id=name) for name, one in SCENARIOS.items()),
        *(pytest.param(one, id=name, marks=pytest.mark.faults) for name, one in LARGER.items()),
    ],
)
def test_no_interleaving_breaks_the_guarantee(one: Scenario) -> None:
    explorer = Explorer(one)
    explorer.explore()
    ends = explorer.outcomes()
    print(f"{explorer.num_states:,} states: {ends}")
    assert explorer.num_states > 1_000
    assert all(of_one <= ENDS[name] and of_one & WELL for name, of_one in ends.items())


BROKEN = {
    "creates_only_once": (ONLY_REQUEUE, scenario(NEW, a="run", b="run")),
    "numbers_documents_once": (PLAN_STAYS, scenario(GROWN, a="extend", again="requeue")),
    "replaces_what_it_saw": (ONLY_REQUEUE, scenario(DONE, a="run", b="run", again="requeue")),
    "writes_parts_first": (PARTS_FIRST, scenario(NEW, a="run")),
    "appends_shards": (ONE_ROW, scenario(GROWN, a="extend")),
    "counts_its_own_shards": (UNDISTURBED, scenario(GROWN, a="run", b="extend")),
    "finishes_last": (SUCCESS_LAST, scenario(NEW, a="run")),
    "replaces_in_one_write": (NOTHING_LOST, scenario(DONE, a="run", again="requeue")),
    "compares_the_plan": (READER, scenario(GROWN, a="extend", reader="reader")),
    "looks_for_every_shard": (EXIT_CODE, scenario(GROWN, a="extend")),
    "reads_one_version": (OLD_OR_NEW, scenario(DONE, a="run", again="requeue", more="requeue")),
    "takes_what_is_left": (RUN_AGAIN, scenario(NEW, a="run")),
    "rests_when_finished": (RESTS, scenario(NEW, a="run")),
}
"""By the rule that is broken: what no longer holds, and where that is seen."""


@pytest.mark.parametrize("rule", Rules._fields)
def test_a_broken_rule_is_noticed(rule: str) -> None:
    sentence, one = BROKEN[rule]
    rules = Rules(**{rule: False})
    broken = {
        name: process._replace(arguments=(process.arguments[0]._replace(rules=rules),))
        for name, process in one.processes.items()
    }
    with pytest.raises(Violation) as caught:
        Explorer(Scenario(one.kind, one.objects, broken, rules=rules)).explore()
    print(caught.value)
    assert caught.value.broken == sentence
    assert str(caught.value).startswith(f"{sentence}\n  1. ")
    Explorer(one).explore()


def test_every_sentence_can_be_broken() -> None:
    assert {sentence for sentence, _ in BROKEN.values()} == ALL


def test_without_if_match_nothing_is_lost_and_the_next_run_mends_the_rest() -> None:
    """Where two revisions of a shard meet, the older one may win; then the shard is pending again."""
    one = scenario(DONE, GATEWAY, kills=1, lost=1, a="run", b="run", again="requeue")
    excused = frozenset((ONLY_REQUEUE, SUCCESS_LAST, EXIT_CODE, UNDISTURBED))
    Explorer(replace(one, excused=excused)).explore()
    for sentence in excused:
        with pytest.raises(Violation, match=sentence):
            Explorer(replace(one, excused=excused - {sentence})).explore()


def test_an_end_that_only_a_kill_leads_to_is_told_with_it() -> None:
    one = scenario(DONE, FOLDER, kills=1, again="requeue")
    explorer = Explorer(one)
    explorer.explore()
    assert explorer.outcomes() == {"again": {"requeued", "nothing to do"}}
    steps = explorer.way_to("again", "nothing to do")
    assert steps.index("again: create plan/extension-1") < steps.index("again is killed and started again")
    assert not any("killed" in step for step in explorer.way_to("again", "requeued"))


@pytest.mark.parametrize("name", ["rests_when_finished", "compares_the_plan", "replaces_in_one_write"])
def test_what_is_done_at_once_could_be_done_at_any_time(name: str) -> None:
    """The explorer's short cut leaves out orders of steps, and no objects and no ends."""
    one = BROKEN[name][1]
    short, long = Explorer(one), Explorer(one, at_once=False)
    short.explore()
    long.explore()
    assert short.num_states < long.num_states
    assert short.outcomes() == long.outcomes()
    assert short.all_objects() == long.all_objects()
