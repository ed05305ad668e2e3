"""Format text for people: escape names, count nouns, shorten lists."""

from typing import Any

NUM_SHOWN = 10
"""Entries of a long list that a message shows."""


def printable(text: str) -> str:
    r"""Escape what a terminal would obey instead of show, as `repr` does: `\x1b`, `\n`, marks of writing direction.

    Text that is escaped already stays as it is, so that both a table, which needs the widths of its cells, and the
    place where the table is printed can call this.

    Args:
        text: an image's key, a label, a message with any of these in it.

    Returns:
        One line, of which every character is printable (`str.isprintable`).
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def counted(count: int, noun: str, plural: str = "") -> str:
    """1, image -> `1 image`; 1200, image -> `1,200 images`; 2, class, classes -> `2 classes`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def size(num_bytes: float) -> str:
    """29,869 -> `29.9 kB`, 1,500,000 -> `1.5 MB`."""
    if num_bytes < 1_000:
        return counted(round(num_bytes), "byte")
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes < 100_000 else f"{num_bytes / 1e6:,.1f} MB"


def shown(value: Any) -> str:
    """Format a setting for a message; of a long list only the first entries."""
    if not isinstance(value, list | tuple):
        return str(value)
    more = [f"... ({len(value):,} in all)"] if len(value) > NUM_SHOWN else []
    return " ".join([*map(str, value[:NUM_SHOWN]), *more])
