"""Labels: one notion for folders, tables, lists and tars.

A label is text. A missing, blank, NaN or negative value is no label; a whole number is written without a fraction;
class names replace numbers where the data or `--label-names` have them. A list of labels is one label, a set of names
separated by `;`, for `fit --multi-label`. Whatever else is found is an error.
"""

import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from bottleneck.errors import UsageError
from bottleneck.text import counted

SEPARATOR = ";"
"""Between the names of a label that is a set of them; alone, of an image that has none of the names."""
NUM_SHOWN = 5
"""Groups of similar labels that a warning shows."""
LIKELY_COLUMNS = (
    *("class", "classes", "labels", "class_name", "class_id", "label_name", "label_id", "fine_label", "coarse_label"),
    *("breed", "species", "category", "target"),
)
"""Columns to suggest, but never use, if none is named and none is called `label`."""
_NUMBERED = re.compile(r"([0-9]{1,9})[,;\t](.+)")
_WHOLE = re.compile(r"(0|[1-9][0-9]*)\.0+")
_NEGATIVE = re.compile(r"-[0-9]*[1-9][0-9]*(\.[0-9]+)?|-0*\.[0-9]*[1-9][0-9]*")


class LabelError(ValueError):
    """A value that cannot be a label; the message does not say where it is."""


def as_label(value: Any, names: Sequence[str] = ()) -> str | None:
    """Convert a value of a folder, column or file to a label.

    Args:
        value: text, UTF-8 bytes, a number, a truth value, None or a list of these, as a reader found it.
        names: of the classes, in the order of their numbers, which begin at 0; empty where labels stay as they are.

    Returns:
        The label, without blanks at its ends; None for no value, a blank one, NaN or a negative number. Of a list the
        labels in it, sorted, with SEPARATOR between them.

    Raises:
        LabelError: for a value of another kind, or one that the names do not have; for a label in a list that has the
            separator in it.
    """
    if isinstance(value, list | tuple):
        return _joined(as_label(one, names) for one in value)
    text = _text(value)
    if text is None or not names:
        return text
    if text.isascii() and text.isdigit():
        if int(text) < len(names):
            return names[int(text)]
        raise LabelError(f"label {text} has no name: there are {len(names):,}, for the numbers 0 to {len(names) - 1:,}")
    if text not in _known(tuple(names)):
        raise LabelError(f"label {_shown(text)} is neither a number nor one of the {len(names):,} class names")
    return text


def _joined(labels: Iterable[str | None]) -> str:
    found = sorted({label for label in labels if label is not None})
    if odd := [label for label in found if SEPARATOR in label]:
        raise LabelError(f"label {_shown(odd[0])} is in a list and has {SEPARATOR} in it, which separates such labels")
    return SEPARATOR.join(found) or SEPARATOR


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise LabelError(f"label {_shown(value)} is not UTF-8") from None
    if isinstance(value, str):
        text = value.strip()
        try:
            text.encode()
        except UnicodeEncodeError:
            raise LabelError(f"label {_shown(text)} is not Unicode text") from None
        # A list in CSV writes numbers as text: they mean what the same numbers in Parquet mean. 007 is a name.
        if text in ("", "nan", "NaN") or _NEGATIVE.fullmatch(text):
            return None
        whole = _WHOLE.fullmatch(text)
        return whole[1] if whole else text
    if value is None or isinstance(value, bool):
        return None if value is None else str(value)
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise LabelError(f"label {_shown(value)} is not a finite number")
    if isinstance(value, int | float | Decimal):
        if value < 0:
            return None
        return str(int(value)) if value == int(value) else str(value)
    raise LabelError(f"label {_shown(value)} is of type {type(value).__name__}; expected text or a number")


@lru_cache(maxsize=4)
def _known(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_label_names(path: str) -> tuple[str, ...]:
    """Read class names from a file, in any form of `parse_label_names`. Raises UsageError for a file that cannot be
    read, or what that refuses."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`label_names` {path} cannot be read: {error}. Expected a UTF-8 text file with a class name a line, the "
            "first for label 0, or JSON."
        ) from None
    return parse_label_names(text, path)


def parse_label_names(text: str, where: str) -> tuple[str, ...]:
    """Parse class names from text: one a line, the first for label 0; lines of `NUMBER,NAME`; a JSON list; or a JSON
    object of numbers and names, either way round, or with lists of names, of which the last counts, as Keras'
    imagenet_class_index.json has (names that are there twice get the first in parentheses).

    Raises:
        UsageError: for fewer than two, numbers that are not 0, 1, 2, ..., or what `check_label_names` refuses.
    """
    names = check_label_names(_named(text.rstrip(), where), where)
    if len(names) < 2:
        raise UsageError(f"{where} holds {counted(len(names), 'class name')}. Expected two at least, a line each.")
    return names


def _named(text: str, where: str) -> list[str]:
    if text.lstrip().startswith(("[", "{")):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} begins like JSON and is none: {error}.") from None
        pairs = list(found.items() if isinstance(found, dict) else enumerate(found))
        numbered = [_pair(key, value) for key, value in pairs]
        times = Counter(name for _, name in numbered)
        numbered = [  # ImageNet has two cranes
            (number, f"{name} ({value[0]})" if times[name] > 1 and isinstance(value, list) else name)
            for (number, name), (_, value) in zip(numbered, pairs, strict=True)
        ]
    else:
        lines = text.splitlines()
        matches = [_NUMBERED.fullmatch(line) for line in lines]
        if not (lines and all(matches)):
            return lines
        numbered = [(int(match[1]), match[2].strip()) for match in matches if match]
    by_number = {number: name for number, name in numbered if name is not None}
    if sorted(by_number) != list(range(len(numbered))):
        raise UsageError(
            f"{where} does not number its {counted(len(numbered), 'class', 'classes')} from 0 on, each once. Expected "
            'a name a line, lines of NUMBER,NAME, a JSON list of names, or a JSON object such as {"0": "daisy"}.'
        )
    return [by_number[number] for number in range(len(numbered))]


def _pair(key: Any, value: Any) -> tuple[int, str | None]:
    """The number and the name in an entry of JSON; -1 where there is none."""
    if isinstance(value, list) and value:  # ["n02124075", "Egyptian_cat"]
        value = value[-1]
    if isinstance(value, int) and isinstance(key, str) and not isinstance(value, bool):
        key, value = value, key
    if not isinstance(value, str) or not str(key).isdecimal():
        return -1, None
    return int(key), value


def check_label_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Strip class names. Raises UsageError for a blank or repeated name.

    Args:
        where: the file or field that the names are from.
    """
    stripped = tuple(name.strip() for name in names)
    places: dict[str, int] = {}
    for number, name in enumerate(stripped):
        if not name or places.setdefault(name, number) != number:
            what = "no name" if not name else f"the name {name!r}, as class {places[name]} has"
            raise UsageError(
                f"Class {number} has {what}, in {where}. Expected a name of its own for every class, the first for "
                "label 0."
            )
    return stripped


def resolve_label_names(names: Sequence[str]) -> tuple[str, ...]:
    """Resolve `--label-names`: a single value is a file with names, several values are the names."""
    if len(names) == 1:
        return read_label_names(os.path.expanduser(names[0]))
    return check_label_names(names, "`label_names`") if names else ()


def find_label_column(columns: Sequence[str], asked: str | None, where: str) -> str | None:
    """The label column: the requested one, else `label` in any case, else None.

    Raises:
        UsageError: if the column that is asked for is not there.
    """
    if asked is None:
        return next((one for one in columns if one.lower() == "label"), None)
    if asked not in columns:
        raise UsageError(
            f"{where} has no column {asked!r}. Expected `label_column` to name one of: {_listed(columns)}."
        )
    return asked


def likely_columns(columns: Sequence[str]) -> list[str]:
    """Columns that may hold labels, as suggestions."""
    return [one for one in columns if one.lower() in LIKELY_COLUMNS]


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns[:50])) + (", ..." if len(columns) > 50 else "")


def unusable(where: str, error: LabelError) -> UsageError:
    """The error for a label that cannot be used.

    Args:
        where: names file and row.
    """
    return UsageError(f"{where}: {error}. Correct it, give another `label_column` or `label_names`, or `labels` none.")


def numbered(labels: Iterable[str]) -> list[str]:
    """Labels in order: by number if all are numbers, else by text."""
    ordered = sorted(labels)
    return sorted(ordered, key=int) if are_numbers(ordered) else ordered


def are_numbers(labels: Iterable[str]) -> bool:
    """Whether all labels are whole numbers, so that 10 follows 9."""
    return all(label.isascii() and label.isdigit() for label in labels)


def look_alikes(labels: Iterable[str]) -> list[list[str]]:
    """Labels that differ only in case, blanks or Unicode form, together; each group and their order sorted."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
        # Format characters (zero-width spaces, marks of direction) print as nothing.
        kept = "".join(one for one in folded if not one.isspace() and unicodedata.category(one) != "Cf")
        groups.setdefault(kept, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def look_alike_warning(label_counts: Mapping[str, int]) -> str:
    """The warning about labels that look alike; empty if there are none."""
    groups = look_alikes(label_counts)
    if not groups:
        return ""
    shown = "; ".join(
        " and ".join(f"{label!a} ({label_counts[label]:,})" for label in group) for group in groups[:NUM_SHOWN]
    )
    return (
        f"Labels that differ only in case, blanks or Unicode form are different classes: {shown}"
        f"{'; ...' if len(groups) > NUM_SHOWN else ''}. If they are meant to be one, rename them in the source and "
        "plan a new output."
    )


def label_names(schema: pa.Schema, column: str | None, where: str) -> tuple[str, ...]:
    """The class names of a column with class numbers, from the metadata of Hugging Face datasets.

    Args:
        where: the file, for the error.

    Returns:
        The names in the order of the numbers; empty where there are none.

    Raises:
        UsageError: if two classes have one name.
    """
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    if not isinstance(names, list):
        return ()
    return check_label_names(map(str, names), f"the metadata of {where} (give `label_names`, or `labels` none)")
