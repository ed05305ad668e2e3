"""Compare two outputs of the same images, for example before an upgrade.

    bottleneck diff features/ features-new/
    bottleneck diff features/ s3://bucket/features-float32 --top 20 --min-cosine 0.9999

Prints which settings and versions differ, which images are in only one output or have another outcome, and how far the
features of each common layer are apart, with the worst images. Exit code 0 if all common images have the same outcome
and a cosine of at least --min-cosine, else 1.
"""

import logging
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from bottleneck.console import Display, Progress
from bottleneck.dataset.features import open_features
from bottleneck.errors import CorruptError, UsageError
from bottleneck.inspect.diff import Diff, diff_features
from bottleneck.inspect.layer_diff import Group
from bottleneck.inspect.recompute import MIN_COSINE
from bottleneck.text import counted, printable
from jobs.results import answer, show

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """An output of `bottleneck extract`, such as the one in use."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Another output of the same images."""
    top: int = 10
    """Images to list per layer, the smallest cosine first."""
    min_cosine: float = MIN_COSINE
    """Images whose features have a smaller cosine count as different."""
    allow_incomplete: bool = False
    """Also compare unfinished outputs, with the shards that exist."""

    def __post_init__(self) -> None:
        if self.top < 0:
            raise UsageError(f"--top takes a number of images from 0 up. Received: {self.top}.")
        if not -1 <= self.min_cosine <= 1:
            raise UsageError(f"--min-cosine takes a number from -1 to 1. Received: {self.min_cosine}.")


def main(config: Config) -> int:
    a, b = (open_features(uri, allow_incomplete=config.allow_incomplete) for uri in (config.a, config.b))
    planned = a.plan.num_images + b.plan.num_images
    with Display("diff") as display:
        found = diff_features(
            a, b, config.top, config.min_cosine, lambda images: display.show(Progress(images, planned, 0, ""))
        )
    for line in told(found):
        show(line)
    exit_code = 0 if found.is_same else CorruptError.exit_code
    answer({**found.to_json(), "exit_code": exit_code})
    return exit_code


def told(found: Diff) -> list[str]:
    """The result for a person to read."""
    lines = [f"A: {found.a}", f"B: {found.b}", f"in both: {counted(found.num_images, 'image')}"]
    lines += [f"{name}: {a} in A, {b} in B" for name, (a, b) in found.settings.items()]
    lines += [f"{name}: {_joined(a)} in A, {_joined(b)} in B" for name, (a, b) in found.made_with.items()]
    lines += _group("only in A", found.only_a) + _group("only in B", found.only_b)
    for (a, b), group in found.outcomes.items():
        lines += _group(f"{a} in A, {b} in B", group)
    lines += _group("with another label", found.labels)
    names = ("layer", "equal", "minimum", "1 % below", "median", "mean", "largest difference")
    rows = [
        (
            name,
            f"{layer.equal:,} of {layer.images:,}",
            *(f"{value:.6f}" for value in (layer.min, layer.percentile(1), layer.percentile(50), layer.mean)),
            f"{layer.max_difference:.3g} ({layer.max_relative_difference:.2%})",
        )
        for name, layer in found.layers.items()
        if layer.images
    ]
    lines += ["", "cosine of the features in A to those in B:", *_columns([names, *rows])]
    for name, layer in found.layers.items():
        if layer.worst:
            lines += ["", f"least alike in {name}:"]
            lines += [f"  {cosine:9.6f}  {printable(key)}" for cosine, key in layer.worst]
    compared = max(layer.images for layer in found.layers.values())
    return [*lines, "", f"below a cosine of {found.min_cosine:g}: {found.num_below:,} of {counted(compared, 'image')}"]


def _group(words: str, group: Group) -> list[str]:
    if not group.images:
        return []
    more = ", ..." if group.images > len(group.keys) else ""
    return [f"{group.images:,} {words}: {', '.join(map(printable, group.keys))}{more}"]


def _columns(rows: list[tuple[Any, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [f"{row[0]:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _joined(values: list[str]) -> str:
    return " and ".join(values) or "none"
