"""The store of the model: objects by name, and what each request of a call does to them.

A call is one of `bottleneck.storage.store.Store`. It is one atomic request, but for `create` and `replace` of a bucket,
which repeat a request whose answer was lost and then look at what is there: `Stage` says how far such a call is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

SOURCE = "the source"
"""The source's images, kept among the objects; no name of the output is like it."""
CHANGED = "changed"
"""The answer to a read of an object that is no longer the one that was listed."""

Verb = Literal[
    "read", "stat", "exists", "list", "footer", "range", "create", "replace", "delete", "choose", "add", "quiet"
]
WRITES = ("create", "replace", "delete")
Stage = Literal["", "lost", "refused"]
"""Of a call: at its first request; to be repeated, as its answer was lost; refused, so it looks at what is there."""


class Call(NamedTuple):
    """What a process asks next. `quiet` stands for all calls whose answer decides nothing; the value says which."""

    verb: Verb
    name: str = ""
    value: Any = None
    etag: Any = None
    """The object that is meant, by what it holds: two objects with the same bytes have the same ETag."""


class Outcome(NamedTuple):
    """One way a request can end: with an answer, or with a further request."""

    label: str
    objects: Mapping[str, Any]
    answer: Any = None
    stage: Stage = ""
    """Empty where the call has its answer."""
    lost: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of store."""

    loses_answers: bool
    """A request may be done without its answer arriving."""
    compares: bool = True
    """Whether it replaces only the object that is meant, in one step."""


BUCKET = Kind(loses_answers=True)
FOLDER = Kind(loses_answers=False)
GATEWAY = Kind(loses_answers=True, compares=False)
"""A bucket of a server that knows no If-Match."""


def outcomes(call: Call, stage: Stage, objects: Mapping[str, Any], kind: Kind) -> Iterator[Outcome]:
    """Every way in which the next request of a call can end."""
    there = objects.get(call.name)
    match call.verb:
        case "read" | "stat":
            yield Outcome(f"{call.verb} {call.name}", objects, there)
        case "exists":
            yield Outcome(f"look for {call.name}", objects, there is not None)
        case "list":
            listed = tuple((name, objects[name]) for name in sorted(objects) if name.startswith(call.name))
            yield Outcome(f"list {call.name}", objects, listed)
        case "footer":
            # Of an object that is read for the first time its newest version, of a known one the known.
            for answer in {there, call.etag} - {None}:
                yield Outcome(f"read the footer of {call.name}", objects, answer)
        case "range":
            same = call.etag is None or there == call.etag
            yield Outcome(f"read a range of {call.name}", objects, there if same else CHANGED)
        case "choose":
            for option in call.value:
                yield Outcome(f"take shard {option}", objects, option)
        case "add":
            yield Outcome(f"add {call.value} to the source", {**objects, SOURCE: (*there, call.value)})
        case "quiet":
            yield Outcome(f"{call.value} {call.name}", objects)
        case "delete":
            yield Outcome(f"delete {call.name}", {name: one for name, one in objects.items() if name != call.name})
        case "create":
            yield from _create(call, stage, objects, kind)
        case "replace":
            yield from _replace(call, stage, objects, kind)


def _create(call: Call, stage: Stage, objects: Mapping[str, Any], kind: Kind) -> Iterator[Outcome]:
    there = objects.get(call.name)
    if stage == "refused":
        yield Outcome(f"see who created {call.name}", objects, there == call.value)
    elif there is None:
        yield from _written(f"create {call.name}", call, objects, kind)
    elif kind.loses_answers:
        yield Outcome(f"create {call.name}: exists", objects, stage="refused")
    else:
        yield Outcome(f"create {call.name}: exists", objects, False)


def _replace(call: Call, stage: Stage, objects: Mapping[str, Any], kind: Kind) -> Iterator[Outcome]:
    there = objects.get(call.name)
    if stage == "refused":
        yield Outcome(f"see who replaced {call.name}", objects, there == call.value)
    elif call.etag is None or there == call.etag or not kind.compares:
        yield from _written(f"replace {call.name}", call, objects, kind)
    else:
        refused = Outcome(f"replace {call.name}: another one", objects, stage="refused")
        yield refused if kind.loses_answers else refused._replace(answer=False, stage="")


def _written(label: str, call: Call, objects: Mapping[str, Any], kind: Kind) -> Iterator[Outcome]:
    after = {**objects, call.name: call.value}
    yield Outcome(label, after, True)
    if kind.loses_answers:
        yield Outcome(f"{label}, answer lost", after, stage="lost", lost=True)
