"""Split images into a held-out part and folds: stratified, deterministic, copies together.

Images are dealt in units that stay whole: byte-identical images, and those of one group. Units are dealt in the order
of their images' sha256, so neither the order of the files nor the number of workers nor chance decides.

Legend: N images, U units, K classes, P pairs of a unit and a class it has images of.
"""

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from bottleneck.dataset.schema import IMAGE_FIELDS
from bottleneck.errors import UsageError
from bottleneck.heads.dealing import HELD_OUT as HELD_OUT
from bottleneck.heads.dealing import Units, connected
from bottleneck.heads.label_sets import LabelSets
from bottleneck.text import counted

NUM_NAMED = 5
GROUP_COLUMNS = tuple(field.name for field in IMAGE_FIELDS if field.name not in ("key", "status", "reason", "sha256"))
"""Columns of a data file that may name the group of an image."""


class Traits(NamedTuple):
    """The properties of images that a split uses."""

    digests_N: np.ndarray
    """uint64, the first eight bytes of the sha256 of the image's bytes."""
    groups_N: np.ndarray
    """uint64, the first eight bytes of the sha256 of the group's name; of an image without a group its own digest."""
    tests_N: np.ndarray
    """Whether a glob of the rule matches the key."""
    num_matches: np.ndarray
    """Of each glob."""
    num_ungrouped: int
    """Images without a group."""


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """The rule that divides images. Stored in a head, so that its held-out images are known later."""

    test_fraction: float
    """Share of each class that is held out, from 0 (nothing is) to below 1; without `test_keys`."""
    num_folds: int
    """1 without cross-validation."""
    test_keys: tuple[str, ...] = ()
    """Globs; images whose keys match one are held out, and no others."""
    group_by: str | None = None
    """A column of GROUP_COLUMNS, or else a regular expression searched for in keys, whose groups name the group."""

    def columns(self) -> list[str]:
        """The columns to read of a data file."""
        return ["key", "sha256", *(name for name in GROUP_COLUMNS if name == self.group_by)]

    def traits(self, rows: pa.Table) -> Traits:
        """The traits of rows with these columns."""
        keys, digests_N = rows.column("key").to_pylist(), self.digests(rows)
        tests_N, num_matches = np.zeros(len(keys), bool), np.zeros(len(self.test_keys), int)
        for number, glob in enumerate(self.test_keys):
            match = re.compile(fnmatch.translate(glob)).match
            matches_N = np.array([match(key) is not None for key in keys], bool)
            tests_N |= matches_N
            num_matches[number] = matches_N.sum()
        if self.group_by is None:
            return Traits(digests_N, digests_N, tests_N, num_matches, 0)
        names = rows.column(self.group_by).to_pylist() if self.group_by in GROUP_COLUMNS else self._searched(keys)
        numbers = {name: _number(str(name)) for name in set(names) if name is not None}
        groups_N = np.array([numbers.get(name, own) for name, own in zip(names, digests_N, strict=True)], np.uint64)
        return Traits(digests_N, groups_N, tests_N, num_matches, names.count(None))

    @staticmethod
    def digests(rows: pa.Table) -> np.ndarray:
        """The digest of every image, as in `Traits`."""
        values = np.frombuffer(b"".join(value[:8] for value in rows.column("sha256").to_pylist()), ">u8")
        return values.astype(np.uint64)

    def no_traits(self) -> Traits:
        """The traits of no images."""
        none = np.empty(0, np.uint64)
        return Traits(none, none, np.empty(0, bool), np.zeros(len(self.test_keys), int), 0)

    def _searched(self, keys: list[str]) -> list[str | None]:
        found = map(re.compile(self.group_by or "").search, keys)
        return [one and ("\0".join(map(str, one.groups())) if one.re.groups else one[0]) for one in found]

    def check(self, traits: Traits) -> None:
        """Raise UsageError if the rule does not suit these images, all of them."""
        num_images = len(traits.digests_N)
        for glob, count in zip(self.test_keys, traits.num_matches.tolist(), strict=True):
            if not count:
                raise UsageError(
                    f"`test_keys` {glob} matches none of the {num_images:,} labelled images. Expected a pattern for "
                    "whole keys, such as 'test/*', where * also stands for slashes. Look at the keys in the features."
                )
        if self.test_keys and traits.tests_N.all():
            raise UsageError(
                f"`test_keys` {' '.join(self.test_keys)} matches all {num_images:,} labelled images, which leaves none "
                "to be fitted on. Expected a pattern for the test images alone."
            )
        if self.group_by is not None and traits.num_ungrouped == num_images:
            raise UsageError(
                "`group_by` takes a regular expression that is found in keys, or one of the columns "
                f"{', '.join(GROUP_COLUMNS)}. Received: {self.group_by}, which gives none of the {num_images:,} "
                "labelled images a group."
            )

    def split(
        self, class_indices_N: np.ndarray, traits: Traits, classes: Sequence[str], sets: LabelSets | None = None
    ) -> "Split":
        """Split the images. Raises UsageError if that is impossible.

        Args:
            sets: the names of the classes, where images have several.
        """
        self.check(traits)
        fraction, tests_N = (0.0, traits.tests_N) if self.test_keys else (self.test_fraction, None)
        groups_N = None if self.group_by is None else traits.groups_N
        return split(
            class_indices_N,
            traits.digests_N,
            classes,
            fraction,
            self.num_folds,
            groups_N=groups_N,
            tests_N=tests_N,
            sets=sets,
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "test_keys": list(self.test_keys)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        kinds = {"test_fraction": int | float, "num_folds": int, "test_keys": list, "group_by": str | None}
        for name, kind in kinds.items():
            if not isinstance(value[name], kind):
                raise TypeError(f"{name} is {type(value[name]).__name__}")
        return cls(**{**value, "test_keys": tuple(map(str, value["test_keys"]))})


@dataclass(frozen=True)
class Split:
    """The split of all images."""

    folds_N: np.ndarray
    """HELD_OUT, or 0 to the number of folds - 1 (all 0 without folds)."""
    copies: int
    """Images that are byte-identical to another."""
    conflicts: int
    """Sets of byte-identical images with different labels."""
    num_groups: int | None = None
    """Of the images, with groups."""
    num_moved: int = 0
    """Images held out though `tests_N` does not name them: copies of named ones, or of their groups."""


def all_traits(parts: Iterable[Traits]) -> Traits:
    """Concatenate the traits of parts."""
    digests, groups, tests, matches, ungrouped = zip(*parts, strict=True)
    return Traits(
        np.concatenate(digests), np.concatenate(groups), np.concatenate(tests), np.sum(matches, axis=0), sum(ungrouped)
    )


def held_out_sha256(held_out: np.ndarray) -> str:
    """The digest of a set of held-out images.

    Args:
        held_out: their digests.
    """
    return hashlib.sha256(np.sort(held_out).astype(">u8").tobytes()).hexdigest()


def split(
    class_indices_N: np.ndarray,
    digests_N: np.ndarray,
    classes: Sequence[str],
    test_fraction: float,
    num_folds: int,
    *,
    groups_N: np.ndarray | None = None,
    tests_N: np.ndarray | None = None,
    sets: LabelSets | None = None,
) -> Split:
    """Deal images to a held-out part and folds.

    Args:
        class_indices_N: the class of every image as a number.
        digests_N: uint64, the first eight bytes of every image's sha256.
        test_fraction: share of each class that is held out, from 0 (nothing is) to below 1.
        num_folds: 1 where there is no cross-validation.
        groups_N: numbers of groups that stay on one side as well.
        tests_N: which images are held out, in place of a fraction; those that are copies of one or of its group, too.
        sets: where classes are sets of names, these are dealt evenly instead.

    Raises:
        UsageError: if a class has too few different images or groups, or the folds are more than there are of these.
    """
    _, copies_N = np.unique(digests_N, return_inverse=True)
    units_N = copies_N if groups_N is None else connected(copies_N, groups_N)
    members_N, codes_N = np.arange(len(class_indices_N)), class_indices_N
    num_sets = len(classes)
    if sets is not None:
        members_N, codes_N = sets.entries(class_indices_N)
        classes = sets.names
    units = Units(units_N[members_N], codes_N, digests_N[members_N], len(classes))
    what = "different images" if groups_N is None else "groups of images"
    if tests_N is not None:
        units.hold_out(units_N[tests_N])
    few_of, needed = units.too_few(test_fraction, num_folds)
    if len(few_of):
        raise UsageError(_too_few(few_of, units, classes, needed, what, outside=tests_N is not None))
    units.deal(test_fraction, num_folds)
    if num_folds > 1:
        units.mend(num_folds)
        _check_folds(units, num_folds, classes, what)
    folds_N = units.folds_U[units_N]
    smallest, largest = np.full(copies_N.max() + 1, num_sets), np.full(copies_N.max() + 1, -1)
    np.minimum.at(smallest, copies_N, class_indices_N)
    np.maximum.at(largest, copies_N, class_indices_N)
    return Split(
        folds_N,
        copies=int((np.bincount(copies_N)[copies_N] > 1).sum()),
        conflicts=int((smallest != largest).sum()),
        num_groups=None if groups_N is None else len(np.unique(groups_N)),
        num_moved=0 if tests_N is None else int(((folds_N == HELD_OUT) & ~tests_N).sum()),
    )


def _too_few(few: np.ndarray, units: Units, classes: Sequence[str], needed: int, what: str, *, outside: bool) -> str:
    names = [f"{classes[code]} ({len(units.fitted(code))})" for code in few.tolist()]
    named = ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
    where = " outside `test_keys`" if outside else ""
    count = counted(len(few), "class", "classes")
    needs_less = "a single `c`" if outside else "`test_fraction` 0 with a single `c`"
    return (
        f"{count} with too few images to be split: {named}. Expected at least {needed} {what} of each class{where}. "
        f"Add images and extract with --extend, or leave the class out of the source; {needs_less} needs only one."
    )


def _check_folds(units: Units, num_folds: int, classes: Sequence[str], what: str) -> None:
    fitted_U = units.folds_U[units.folds_U >= 0]
    num_filled = len(np.unique(fitted_U))
    if num_filled < num_folds:
        raise UsageError(
            f"`folds` {num_folds} needs as many {what} to be fitted on, better many more. There are "
            f"{len(fitted_U):,}, which fill {num_filled} folds. Give fewer `folds`, add images, or give a single `c`."
        )
    if lonely := units.lonely():
        named = ", ".join(classes[code] for code in lonely[:NUM_NAMED]) + (", ..." if len(lonely) > NUM_NAMED else "")
        count = counted(len(lonely), "class", "classes")
        raise UsageError(
            f"{count} with all images in one fold, so that none is left to be fitted on without it: {named}. Expected "
            f"{what} that can be dealt to two folds. Give another `group_by`, or a single `c`."
        )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big")
