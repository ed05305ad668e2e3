"""Every interleaving of a few processes on one store, breadth first, with lost answers and kills.

Processes and the objects of the store are numbered, so that a state is a few integers, and what a process can do to the
objects is worked out once. A process that is killed is started again from the beginning; one that is not is the same as
one that never gets its next turn, which every state stands for. A call whose answer decides nothing, or reads an object
that is never changed again, is made at once: it could be made at any time without a difference to anybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from invariants import RESTS, RUN_AGAIN, UNDISTURBED, Broken, check_end, check_objects, check_step, is_whole
from model import KEEPING, Actor, Ended, Process, Rules, start
from model_store import FOLDER, SOURCE, WRITES, Call, Kind, Stage, outcomes

State = tuple[int, ...]
"""The number of the objects, kills left, lost answers left, and the number of each process."""
MOST_STEPS = 500
"""Of a run that nobody disturbs; one over three shards takes some 30."""
WRITTEN_ONCE = "plan"
"""How the names of objects begin that are never written again."""


@dataclass(frozen=True)
class Scenario:
    """Processes that start on some objects, and what may happen to them."""

    kind: Kind
    objects: Mapping[str, Any]
    processes: dict[str, Process]
    kills: int = 0
    lost: int = 0
    rules: Rules = KEEPING
    """Of the run that is started when all others are dead."""
    excused: frozenset[str] = frozenset()
    """Invariants that do not hold on this kind of store."""


class Step(NamedTuple):
    """What one request of a process makes of the objects and of the process."""

    label: str
    objects: int
    process: int
    lost: bool
    writes: bool


class Violation(AssertionError):
    """An invariant does not hold; the message has the shortest way there."""

    def __init__(self, broken: str, trace: list[str]) -> None:
        self.broken, self.trace = broken, trace
        lines = [f"{number:3d}. {line}" for number, line in enumerate(trace, start=1)]
        super().__init__("\n".join([broken, *lines]))


@cache
def ask(process: Process) -> Call | Process | Ended:
    """The next call of a process, or what follows its phase."""
    program = process.phase(*process.arguments)
    try:
        call = next(program)
        for answer in process.answers:
            call = program.send(answer)
    except StopIteration as end:
        following: Process | Ended = end.value
        return following
    return call


def answered(process: Process, answer: Any) -> Process:
    return Process(process.phase, process.arguments, (*process.answers, answer))


class Explorer:
    """The states that a scenario can reach."""

    def __init__(self, scenario: Scenario, *, at_once: bool = True) -> None:
        """Args: at_once: whether calls without a difference to anybody are made at once."""
        self.scenario, self.at_once = scenario, at_once
        self.names = list(scenario.processes)
        self._objects: list[dict[str, Any]] = []
        self._object_numbers: dict[tuple[tuple[str, Any], ...], int] = {}
        self._processes: list[Process | Ended] = []
        self._process_numbers: dict[Process | Ended, int] = {}
        self._steps: dict[tuple[int, int], list[Step]] = {}
        self._seen: dict[State, State | None] = {}
        self._rerun: set[int] = set()
        objects = self._number_of_objects(dict(scenario.objects))
        self._first = [self._settled(one, objects) for one in scenario.processes.values()]
        self._start: State = (objects, scenario.kills, scenario.lost, *self._first)

    @property
    def num_states(self) -> int:
        return len(self._seen)

    def objects(self, number: int) -> dict[str, Any]:
        return self._objects[number]

    def explore(self, most_states: int = 5_000_000) -> None:
        """Visit every state. Raises Violation at the first that breaks an invariant."""
        self._seen = {self._start: None}
        queue = deque([self._start])
        while queue:
            state = queue.popleft()
            try:
                for successor in self._successors(state):
                    if successor not in self._seen:
                        self._seen[successor] = state
                        queue.append(successor)
                self._check_rerun(state[0])
            except Broken as broken:
                raise Violation(broken.sentence, [*self._trace(state), *broken.steps]) from None
            assert len(self._seen) <= most_states, "the scenario is too large"

    def outcomes(self) -> dict[str, set[str]]:
        """How each process can end."""
        ends: dict[str, set[str]] = {name: set() for name in self.names}
        for _, _, _, *processes in self._seen:
            for name, number in zip(self.names, processes, strict=True):
                if isinstance(process := self._processes[number], Ended):
                    ends[name].add(process.outcome)
        return ends

    def all_objects(self) -> list[dict[str, Any]]:
        """Every set of objects that was met, in an order of its own."""
        return sorted((self._objects[number] for number in {state[0] for state in self._seen}), key=repr)

    def way_to(self, name: str, outcome: str) -> list[str]:
        """The shortest way to an end of a process."""
        at = 3 + self.names.index(name)
        return next(self._trace(state) for state in self._seen if self._processes[state[at]] == Ended(outcome))

    def _successors(self, state: State) -> list[State]:
        objects, kills, lost, *processes = state
        found: list[State] = []
        for at, number in enumerate(processes):
            for step in self._steps_of(number, objects, self.names[at]):
                if lost >= step.lost:
                    changed = (*processes[:at], step.process, *processes[at + 1 :])
                    found.append((step.objects, kills, lost - step.lost, *changed))
            if kills and number != self._first[at] and not isinstance(self._processes[number], Ended):
                found.append((objects, kills - 1, lost, *processes[:at], self._first[at], *processes[at + 1 :]))
        return found

    def _steps_of(self, number: int, objects: int, name: str) -> list[Step]:
        if (number, objects) in self._steps:
            return self._steps[number, objects]
        process, before = self._processes[number], self._objects[objects]
        steps = self._steps[number, objects] = []
        if isinstance(process, Ended):
            return steps
        call = ask(process)
        assert isinstance(call, Call)
        stage: Stage = process.stage  # type: ignore[assignment]
        for one in outcomes(call, stage, before, self.scenario.kind):
            label = f"{name}: {one.label}"
            following = process._replace(stage=one.stage) if one.stage else answered(process, one.answer)
            try:
                after = objects if one.objects is before else self._written(before, one.objects)
                settled = self._settled(following, after)
            except Broken as broken:
                raise Broken(broken.sentence, [label]) from None
            steps.append(Step(label, after, settled, one.lost, call.verb in WRITES))
        return steps

    def _written(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
        check_step(before, after, self.scenario.excused)
        check_objects(after, self.scenario.excused)
        return self._number_of_objects(dict(after))

    def _settled(self, process: Process, objects: int) -> int:
        """The number of a process that has gone through all that it can do without a difference to anybody."""
        there = self._objects[objects]
        now: Process | Ended = process
        while isinstance(now, Process) and not now.stage:
            call = ask(now)
            if not isinstance(call, Call):
                now = call
            elif not self.at_once:
                break
            elif call.verb == "quiet":
                now = answered(now, None)
            elif call.verb == "read" and call.name.startswith(WRITTEN_ONCE) and call.name in there:
                now = answered(now, there[call.name])
            elif call.verb == "choose" and len(call.value) == 1:
                now = answered(now, call.value[0])
            else:
                break
        if isinstance(now, Ended):
            check_end(now, there, self.scenario.excused)
            now = Ended(now.outcome)
        if now not in self._process_numbers:
            self._process_numbers[now] = len(self._processes)
            self._processes.append(now)
        return self._process_numbers[now]

    def _number_of_objects(self, objects: dict[str, Any]) -> int:
        key = tuple(sorted(objects.items()))
        if key not in self._object_numbers:
            self._object_numbers[key] = len(self._objects)
            self._objects.append(objects)
        return self._object_numbers[key]

    # Killed anywhere, run again

    def rerun(self, objects: int, steps: list[Step]) -> int:
        """What one more run makes of these objects by itself. Appends its steps."""
        process = self._settled(Process(start, (Actor("again", self.scenario.rules),)), objects)
        while not isinstance(self._processes[process], Ended):
            steps.append(self._steps_of(process, objects, "again")[0])
            objects, process = steps[-1].objects, steps[-1].process
            assert len(steps) < MOST_STEPS
        return objects

    def _check_rerun(self, objects: int) -> None:
        if objects in self._rerun:
            return
        self._rerun.add(objects)
        steps: list[Step] = []
        try:
            after = self.rerun(objects, steps)
        except Broken as broken:
            labels = ["all are killed", *(step.label for step in steps), *broken.steps]
            raise Broken(RUN_AGAIN if broken.sentence == UNDISTURBED else broken.sentence, labels) from None
        if not is_whole(self._objects[after]):
            raise Broken(RUN_AGAIN, ["all are killed", *(step.label for step in steps)])
        num_before = len(steps)
        self.rerun(after, steps)
        if any(step.writes for step in steps[num_before:]):
            raise Broken(RESTS, ["all are killed", *(step.label for step in steps)])

    def _trace(self, state: State) -> list[str]:
        """The steps from the start to a state."""
        lines: list[str] = []
        while (before := self._seen[state]) is not None:
            lines.append(self._label(before, state))
            state = before
        return lines[::-1]

    def _label(self, before: State, after: State) -> str:
        for at, number in enumerate(before[3:]):
            if after[1] < before[1] and after[3 + at] == self._first[at] != number:
                return f"{self.names[at]} is killed and started again"
            for step in self._steps_of(number, before[0], self.names[at]):
                changed = (*before[3 : 3 + at], step.process, *before[4 + at :])
                if (step.objects, before[1], before[2] - step.lost, *changed) == after:
                    return step.label
        raise AssertionError("there is no such step")


def finished_output(*keys: str) -> dict[str, Any]:
    """The objects after one run on a source of these images."""
    explorer = Explorer(Scenario(FOLDER, {SOURCE: keys}, {}))
    return explorer.objects(explorer.rerun(0, []))
