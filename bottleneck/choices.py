"""Check values against their `Literal` types, which Python does not enforce."""

import difflib
import functools
import typing
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from bottleneck.errors import UsageError


def check_choices(instance: object) -> None:
    """Check each field of a dataclass whose type is a `Literal`, an optional one, or a tuple of them.

    Call it first in `__post_init__`.

    Raises:
        UsageError: naming the field, its valid values and the value received.
    """
    dataclass: Any = type(instance)  # mypy takes no class for hashable
    for name, choices in _choices_of(dataclass).items():
        value = getattr(instance, name)
        for one in value if isinstance(value, tuple) else (value,):
            _check(name, one, choices)


def check_choice(name: str, value: Any, literal: Any) -> None:
    """Check an argument of a function against its `Literal` type. Raises UsageError."""
    _check(name, value, get_args(literal))


def _check(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    # By type too: True equals 1, and what cannot be hashed is no choice either.
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    shown = [str(choice) for choice in choices if choice is not None]
    close = difflib.get_close_matches(str(value), shown, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"`{name}` takes {' or '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))}. Received: {value!r}.{hint}"
    )


@functools.cache
def _choices_of(dataclass: type) -> dict[str, tuple[Any, ...]]:
    """The valid values of each field that has a list of them."""
    try:
        hints: dict[str, Any] = typing.get_type_hints(dataclass)
    except NameError:  # of a quoted name that is imported for type checkers only: those stay texts
        hints = dataclass.__annotations__
    found = {name: _choices(hint) for name, hint in hints.items()}
    return {name: choices for name, choices in found.items() if choices}


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) is tuple:
        return _choices(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        choices = [choice for one in get_args(hint) for choice in _choices(one)]
        return (*choices, None) if choices and type(None) in get_args(hint) else tuple(choices)
    return ()
