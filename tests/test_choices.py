"""Values whose type lists them: a typo is an error where it enters, not another kind of result."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import test_imports
import tiny

from bottleneck.choices import _choices_of, check_choice, check_choices
from bottleneck.errors import UsageError
from bottleneck.sources.reading import Reading
from bottleneck.spec import FeatureRequest

MADE_BY_US = {"Finding", "Status", "RunForecast", "CatalogEntry", "Rejected"}
"""Results and tables of the library, which nobody gives it."""
# `head` pulls in nothing heavy; jobs' modules import tyro alone.
CHOOSING = [
    one
    for name in map(test_imports.name_of, test_imports.MODULES)
    if name != "bottleneck" and "benchmark_" not in name
    for one in vars(importlib.import_module(name)).values()
    if isinstance(one, type) and one.__module__ == name and dataclasses.is_dataclass(one) and _choices_of(one)
]


@dataclass(frozen=True)
class Picked:
    colour: Literal["red", "green"] = "red"
    maybe: Literal["a", "b"] | None = None
    several: tuple[Literal["x", "y"], ...] = ()
    free: str = "anything"

    def __post_init__(self) -> None:
        check_choices(self)


def test_valid_values_are_accepted() -> None:
    Picked()
    Picked("green", "b", ("x", "y"), "else")
    check_choice("colour", "red", Literal["red", "green"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"colour": "Red"}, r"`colour` takes red or green. Received: 'Red'. Did you mean red\?"),
        ({"colour": None}, r"`colour` takes red or green. Received: None."),
        ({"colour": ["red"]}, r"`colour` takes red or green. Received: \['red'\]."),
        ({"maybe": "c"}, r"`maybe` takes a or b. Received: 'c'."),
        ({"several": ("x", "z")}, r"`several` takes x or y. Received: 'z'."),
    ],
)
def test_anything_else_is_refused_with_what_is_valid(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Picked(**wrong)


def test_what_used_to_be_taken_for_another_choice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`resize` takes squash, crop or pad. Received: 'crops'. Did you mean crop\?"):
        FeatureRequest(resize="crops")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"`interpolation` takes nearest, .* or lanczos. Received: 'cubic'"):
        tiny.spec(interpolation="cubic")
    with pytest.raises(UsageError, match=r"`labels` takes folder or none. Received: 'folders'"):
        Reading(labels="folders")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "of", [one for one in CHOOSING if one.__name__ not in MADE_BY_US], ids=lambda one: one.__name__
)
def test_every_dataclass_that_lists_choices_checks_them(of: Any) -> None:
    for name in _choices_of(of):
        made = object.__new__(of)
        for field in dataclasses.fields(of):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            object.__setattr__(made, field.name, next(iter(_choices_of(of).get(field.name, (default,)))))
        wrong = ("typo",) if typing.get_origin(typing.get_type_hints(of)[name]) is tuple else "typo"
        object.__setattr__(made, name, wrong)
        with pytest.raises(UsageError, match=f"^`{name}` takes .*'typo'"):
            made.__post_init__()


def test_the_dataclasses_that_are_asked_for_are_among_them() -> None:
    names = {one.__name__ for one in CHOOSING}
    assert {"FeatureRequest", "FeatureSpec", "PredictionSpec", "Reading", "HeadRequest", "Config"} <= names
