"""Read and check the JSON objects of an output field by field; `Wrong` says what is wrong.

With `audit_rows`, `audit_revisions` and `verify` a separate reader on purpose: fsspec, pyarrow and these four files,
none of the code that wrote the output, so that a mistake there cannot hide itself. What cannot be fetched is a
StoreError. Bytes that are none of ours may also raise what json and pyarrow raise; `verify` knows.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bottleneck.errors import StoreError

FORMAT = 3
REASONS = frozenset(
    (
        "empty",
        "not_an_image",
        "unsupported_format",
        "truncated",
        "too_many_pixels",
        "too_many_bytes",
        "decoder_crash",
        "decode_timeout",
        "missing",
        "changed",
        "archived",
    )
)
"""Why an image may be rejected."""
Fields = dict[type, str]
"""The required fields of a JSON object, by type."""
SUCCESS: Fields = {int: "format images ok", str: "fingerprint plan_sha256 finished", dict: "rejected", list: "shards"}
SUCCESS_SHARD: Fields = {int: "shard images ok bytes", dict: "rejected"}


class Wrong(Exception):
    """What is wrong with an object, in words."""


def expect(what: str, received: object, expected: object, but: str = "expected") -> None:
    """Compare two values, and raise Wrong with the words `what` and `but` if they differ."""
    if received != expected:
        raise Wrong(f"{what} {_short(received)}, {but} {_short(expected)}")


def check_fields(value: dict[str, Any], fields: Fields) -> None:
    """Raise TypeError unless every field exists with its type."""
    words = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}
    for kind, names in fields.items():
        for name in names.split():
            if type(value.get(name)) is not kind:
                raise TypeError(f"{name} is {_short(value.get(name))}, expected {words[kind]}")


def check_counts(counts: dict[str, Any], known: frozenset[str] = REASONS) -> Counter[str]:
    """Check that a JSON object holds numbers of images by outcome. Raises Wrong."""
    for outcome, number in counts.items():
        if outcome not in known or type(number) is not int or number < 0:
            raise Wrong(f"counts {number!r} as {outcome!r}, expected whole numbers of {', '.join(sorted(known))}")
    return +Counter(counts)


@dataclass(frozen=True)
class Objects:
    """The objects under an output."""

    fs: Any
    root: str
    sizes_bytes: dict[str, int]
    """By name under the output."""

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Fetch an object or a range of it. Raises StoreError, or Wrong if it was not listed."""
        if name not in self.sizes_bytes:
            raise Wrong("is not there")
        size = self.sizes_bytes[name]  # no more than was listed: a link may lead to a device without end
        path, start, end = f"{self.root}/{name}", start or 0, size if end is None else end
        try:
            if start >= end:  # a range S3 cannot be asked for; opening says whether it is there
                with self.fs.open(path) as file:
                    return bytes(file.read(0))
            return bytes(self.fs.cat_file(path, start=start, end=end))
        except Exception as error:  # stores have many kinds; none of them says that the object's content is wrong
            raise StoreError(
                f"{name} was listed but cannot be read: {type(error).__name__}: {error}. "
                "Check rights and network, and run verify again."
            ) from error

    def read_json(self, name: str) -> Any:
        """Fetch and parse a JSON document. Raises StoreError or Wrong."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise Wrong(f"is not JSON: {error}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "..."
