"""Match a relative name of a list with an object, by its possible spellings."""

import os
import posixpath
from collections.abc import Iterator
from urllib.parse import unquote

from bottleneck.sources.image import IMAGE_SUFFIXES
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import Store

MAX_NAME = 10_000
"""Longest name or label, in characters, so that enough of them fit in memory."""


WITH_SUFFIX, STRIPPED, SLASHED, BELOW_ROOTS = (
    "with the suffix of the one image of that name",
    "without the blanks around them",
    "with / for \\",
    "below --roots",
)
"""How a name was found, as reported."""


def spellings(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Possible spellings of a listed name, the likeliest first, and what was changed."""
    yield name, ()
    if (tidied := tidy(name)) != name:
        yield tidied, ()  # only then, as in a bucket ./a.jpg may be a name
    stripped = name.strip()
    if stripped != name:
        yield stripped, (STRIPPED,)
    if "\\" in stripped:
        yield tidy(stripped.replace("\\", "/")), (SLASHED,)


def tidy(name: str) -> str:
    """Normalise a name or URI: without ./ and //."""
    scheme, separator, rest = name.partition("://")
    if not separator:
        return posixpath.normpath(name)
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}{posixpath.normpath(slash + path.lstrip('/'))}" if path else name


def stems(names: Iterator[str]) -> dict[str, str | None]:
    """The images in a folder by name without suffix; None if several share one."""
    by_stem: dict[str, str | None] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and "/" not in name:
            by_stem[stem] = None if stem in by_stem else name
    return by_stem


def names_in(store: Store, folder: str) -> Iterator[str]:
    if isinstance(store, FolderStore):
        try:
            yield from os.listdir(f"{store.uri}/{folder}")
        except (OSError, ValueError):  # no such folder, or no name a folder can have
            return
    else:
        prefix = f"{folder}/" if folder else ""
        yield from (entry.key[len(prefix) :] for entry in store.list(prefix))


def leaves(root: str, path: str) -> bool:
    """Whether a path below a root leads out of it, by the path rules of its kind."""
    if root.startswith("s3://"):
        return False  # keys are names, sent as they are
    if "://" in root:  # a server may decode, more than once, before it walks
        while (decoded := unquote(path)) != path:
            path = decoded
        return not {".", ".."}.isdisjoint(path.replace("\\", "/").split("/"))
    path = os.path.normpath(path)
    return path == ".." or path.startswith("../")
