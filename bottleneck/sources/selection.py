"""Which images of a source are planned: patterns for their keys, the first ones, or a sample."""

import fnmatch
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from bottleneck.errors import UsageError
from bottleneck.sources.image import Image
from bottleneck.sources.sampling import sampled
from bottleneck.text import counted, shown

log = logging.getLogger(__name__)

NUM_NAMED = 3
"""Keys that an error shows."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images of the source are planned. Part of the plan: a resumed run has the same, an extension more."""

    include: tuple[str, ...] = ()
    """Plan only images whose keys match one of these patterns, such as `'cats/*'` or `'*.jpg'`. `*` also matches
    slashes."""
    exclude: tuple[str, ...] = ()
    """Leave out images whose keys match one of these patterns, such as `'*.seg.png'`."""
    limit: int | None = None
    """Plan only the first N images, by key. `extract --extend` adds the others, or with a larger `--limit` some of
    them."""
    sample: int | None = None
    """Plan only N random images. The order of the listing does not change them, and they are part of every larger
    sample, to which `extract --extend --sample` extends them."""
    seed: int | None = None
    """Any whole number; each gives another sample. Default: 0."""

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            globs = getattr(self, name)
            if not isinstance(globs, tuple) or not all(isinstance(glob, str) and glob for glob in globs):
                raise UsageError(f"`{name}` takes a tuple of patterns, none of them empty. Received: {globs!r}.")
            object.__setattr__(self, name, tuple(sorted(set(globs))))  # in any order they mean the same
        for name in ("limit", "sample"):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < 1):
                raise UsageError(f"`{name}` takes a number of images from 1 up. Received: {number!r}.")
        if self.limit is not None and self.sample is not None:
            raise UsageError(
                f"Expected either `limit`, for the first images, or `sample`, for random ones. Received both: "
                f"{self.limit:,} and {self.sample:,}."
            )
        if self.seed is not None and self.sample is None:
            raise UsageError(f"`seed` selects a sample, so it takes `sample` as well. Received: {self.seed} alone.")
        if self.seed is not None and type(self.seed) is not int:
            raise UsageError(f"`seed` takes a whole number. Received: {self.seed!r}.")

    @property
    def most(self) -> int | None:
        """The largest number of images; None for all."""
        return self.limit if self.sample is None else self.sample

    def resolved(self) -> Self:
        """The same with its seed, as a plan records it."""
        return replace(self, seed=0) if self.sample is not None and self.seed is None else self

    def grown(self, asked: Self) -> Self:
        """The selection of a plan with this one, once it is extended.

        Args:
            asked: a larger `limit` or `sample`; neither for all images that the patterns leave.

        Raises:
            UsageError: for what would not only add images.
        """
        planned, differing = self.to_json(), []
        for name, new in asked.asked().items():
            old = planned[name]
            is_larger = name in ("limit", "sample") and old is not None and new > old
            if new != old and not is_larger:
                was = "none" if old in (None, []) else shown(old)
                differing.append(f"{name}: planned {was}, requested {shown(new)}")
        if differing:
            raise UsageError(
                "Extending only adds images: up to a larger `limit` or `sample` of the same kind, or all of them where "
                f"neither is given. Differing: {'; '.join(differing)}. Correct that, or give another output."
            )
        return replace(self, limit=asked.limit, sample=asked.sample, seed=None if asked.sample is None else self.seed)

    def asked(self) -> dict[str, Any]:
        """The options that a plan must agree with; those left out are not there."""
        return {name: value for name, value in self.to_json().items() if value not in (None, [])}

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "include": list(self.include), "exclude": list(self.exclude)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**{**value, **{name: tuple(value.get(name, ())) for name in ("include", "exclude")}})

    def __str__(self) -> str:
        """The options, for people; empty if all images are planned."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self.asked().items())


class Selected:
    """The pass of a selection over a listing, and what it saw there."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.num_seen = self.num_matching = 0
        """Images that were listed, and those of them that the patterns leave."""
        self.is_at_end = False
        """Whether the listing was read to its end, which a limit need not do."""
        self._first_keys: list[str] = []
        self._unmatched = [
            (name, glob, _pattern([glob])) for name in ("include", "exclude") for glob in getattr(selection, name)
        ]

    def of(self, images: Iterator[Image], num_planned: int = 0) -> Iterator[Image]:
        """Yield the selected images in their order; no more are drawn from a listing than a limit needs.

        Args:
            num_planned: images that are planned already and count towards `limit` or `sample`.
        """
        matching = self._matching(images)
        if self.selection.most is None:
            yield from matching
            return
        wanted = self.selection.most - num_planned
        if wanted < 1:
            return
        if self.selection.sample is None:
            chosen: Iterator[Image] = itertools.islice(matching, wanted)
        else:
            chosen = sampled(matching, wanted, self.selection.seed or 0)
        num_chosen = 0
        for image in chosen:
            num_chosen += 1
            yield image
        if 0 < num_chosen < wanted:
            there = counted(num_planned + num_chosen, "image")
            log.info("%s: there are %s, and all of them are planned", self.selection, there)

    def _matching(self, images: Iterator[Image]) -> Iterator[Image]:
        include, exclude = _pattern(self.selection.include), _pattern(self.selection.exclude)
        for image in images:
            self.num_seen += 1
            if self.num_seen <= NUM_NAMED:
                self._first_keys.append(image.key)
            if self._unmatched:
                self._unmatched = [one for one in self._unmatched if not one[2].match(image.key)]
            is_included = not self.selection.include or include.match(image.key)
            if is_included and not (self.selection.exclude and exclude.match(image.key)):
                self.num_matching += 1
                yield image
        self.is_at_end = True

    def check(self, source: str) -> None:
        """Raise UsageError if a pattern matched nothing, or all left nothing, in a listing that was read to its end."""
        if not self.is_at_end or not self.num_seen:
            return
        looked_at = f"none of the {counted(self.num_seen, 'key')} looked at in {source}"
        keys = ", ".join(map(repr, self._first_keys)) + (", ..." if self.num_seen > NUM_NAMED else "")
        for name, glob, _ in self._unmatched:
            raise UsageError(
                f"`{name}` {glob!r} matches {looked_at}: {keys}. Expected a pattern for whole keys, such as 'cats/*' "
                "or '*.jpg', where * also stands for slashes. Nothing was planned."
            )
        if not self.num_matching:
            raise UsageError(
                f"`include` and `exclude` leave {looked_at}: {keys}. Expected patterns that leave some. Nothing was "
                "planned."
            )


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)))
