"""Whether the recorded calls of real jobs are a path of the model: of each process by itself, and of all on one store.

Calls on different data files may come in another order than the model's, which does one shard after the other: a run
prepares the next shard while it extracts one, and reads many footers at once. What was read of an object under an ETag
may be known from then on, as the library keeps footers.
"""

from __future__ import annotations

from typing import Any

from explorer import answered, ask
from model import DataFile, Ended, Process
from model_store import CHANGED, FOLDER, SOURCE, Call, outcomes
from recorder import Event

READS_OF_PARTS = ("footer", "range")
ANSWERED = ("read", "range", "stat", "exists", "list", "create", "replace")
DATA = "data/"


class NotOfTheModel(AssertionError):
    """A recorded call that the model does not make there, or the other way round."""


def end_of(process: Process, events: list[Event], source: tuple[str, ...]) -> Ended:
    """How the model's process ends if it is given the answers that were recorded. Raises NotOfTheModel."""
    left, known = list(events), set[tuple[str, Any]]()
    now: Process | Ended = process
    while isinstance(now, Process):
        call = ask(now)
        now = answered(now, _answer(call, left, known, source)) if isinstance(call, Call) else call
    if left:
        raise NotOfTheModel(f"the model has ended with {now.outcome!r}, and then there was {left[0]}")
    return now


def _answer(call: Call, left: list[Event], known: set[tuple[str, Any]], source: tuple[str, ...]) -> Any:
    if call.verb == "choose":
        return next(int(one.name.removeprefix(DATA)) for one in left if one.name.startswith(DATA))
    if call.name == SOURCE:
        return source
    verb = str(call.value if call.verb == "quiet" else call.verb)
    if verb in READS_OF_PARTS:
        return _read_of_part(call, left, known)
    event = _take(verb, call.name, left)
    written = (_content(event.value), event.etag) == (_content(call.value), call.etag)
    if call.verb in ("create", "replace") and not written:
        raise NotOfTheModel(f"the model asks {call}, and there was {event}")
    return event.answer


def _read_of_part(call: Call, left: list[Event], known: set[tuple[str, Any]]) -> Any:
    """Read ranges of a file, one or more, or none if what they hold is known."""
    read = None
    while (following := _first_on(call.name, left)) and following.verb == "get":
        read = _take("get", call.name, left)
        known.add((call.name, read.answer))
        if read.answer == CHANGED and call.verb != "range":
            _take("stat", call.name, left)
    if read is not None:
        return read.answer
    if (call.name, call.etag) not in known:
        raise NotOfTheModel(f"the model asks {call}, and there was {left[:1]}")
    return call.etag


def _take(verb: str, name: str, left: list[Event]) -> Event:
    event = _first_on(name, left)
    if event is None or event.verb != verb:
        raise NotOfTheModel(f"the model asks to {verb} {name!r}, and there was {left[:1]}")
    left.remove(event)
    return event


def _first_on(name: str, left: list[Event]) -> Event | None:
    """The next call on an object, before which there may be others on other data files only."""
    for event in left:
        if event.name == name:
            return event
        if not (name.startswith(DATA) and event.name.startswith(DATA) and DATA not in (name, event.name)):
            return None
    return None


def _content(value: Any) -> Any:
    return value._replace(writer="") if isinstance(value, DataFile) else value


def check_store(events: list[Event]) -> dict[str, Any]:
    """Whether the model's store answers as the real one did, all processes taken together. Returns its objects."""
    objects: dict[str, Any] = {}
    for event in events:
        verb = "range" if event.verb == "get" else event.verb
        by_size = event.answer == CHANGED and event.etag is None  # which the model knows nothing of
        if verb in ANSWERED and event.name and not by_size:
            call = Call(verb, event.name, event.value, event.etag)  # type: ignore[arg-type]
            [outcome] = outcomes(call, "", objects, FOLDER)
            if outcome.answer != event.answer:
                raise NotOfTheModel(f"the model's store answers {outcome.answer}, and there was {event}")
            objects = dict(outcome.objects)
    return objects
