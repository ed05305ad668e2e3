"""Compare two outputs of the same images: settings, versions, outcomes and features.

Legend: N images of a step, D features of a layer.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from bottleneck.dataset.features import Features, vectors
from bottleneck.errors import UsageError
from bottleneck.inspect.join import JoinedRow, MadeWith, join_rows
from bottleneck.inspect.layer_diff import Group, LayerDiff
from bottleneck.inspect.recompute import MIN_COSINE


@dataclass
class Diff:
    """The result of a comparison; `a` and `b` are URIs."""

    a: str
    b: str
    min_cosine: float
    layers: dict[str, LayerDiff]
    """The common layers."""
    num_images: int = 0
    """Images in both outputs."""
    only_a: Group = field(default_factory=Group)
    only_b: Group = field(default_factory=Group)
    outcomes: dict[tuple[str, str], Group] = field(default_factory=lambda: defaultdict(Group))
    """Images whose outcome differs: `ok`, or the reason of a rejection."""
    labels: Group = field(default_factory=Group)
    """Images with another label."""
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Differences between the plans: spec fields and sources."""
    made_with: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    """Differing versions and devices, from the data files."""

    @property
    def num_below(self) -> int:
        """Images below the smallest allowed cosine, in the layer with the most of them."""
        return max(layer.below for layer in self.layers.values())

    @property
    def is_same(self) -> bool:
        """Whether all common images have the same outcome and no cosine is too small."""
        return not self.outcomes and not self.num_below

    def to_json(self) -> dict[str, Any]:
        pairs = sorted(self.outcomes.items(), key=lambda item: (-item[1].images, item[0]))
        return {
            "a": self.a,
            "b": self.b,
            "images": self.num_images,
            "only_a": vars(self.only_a),
            "only_b": vars(self.only_b),
            "outcomes": [{"a": a, "b": b, **vars(group)} for (a, b), group in pairs],
            "labels": vars(self.labels),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "settings": {name: {"a": a, "b": b} for name, (a, b) in self.settings.items()},
            "made_with": {name: {"a": a, "b": b} for name, (a, b) in self.made_with.items()},
            "min_cosine": self.min_cosine,
            "below": self.num_below,
        }


def diff_features(
    a: Features,
    b: Features,
    top: int = 10,
    min_cosine: float = MIN_COSINE,
    on_images: Callable[[int], None] = lambda images: None,
) -> Diff:
    """Compare two outputs image by image, with one data file per listing in memory.

    Args:
        top: worst images to name of each layer.
        min_cosine: images below it are counted.
        on_images: told how many rows have been read so far, of both together.

    Raises:
        UsageError: if they have no layer, or no image, in common.
        CorruptError: if a data file is damaged.
    """
    layers = _common_layers(a, b)
    result = Diff(a.plan.output, b.plan.output, min_cosine, {name: LayerDiff(top, min_cosine) for name in layers})
    result.settings = _settings(a, b)
    made_with = MadeWith(), MadeWith()
    num_seen = 0
    for step in join_rows(a, b, ["key", "label", "reason", *layers], made_with):
        result.only_a.add(step.only_a)
        result.only_b.add(step.only_b)
        _compare(result, step)
        num_seen += len(step.only_a) + len(step.only_b) + 2 * len(step.keys)
        on_images(num_seen)
    if not result.num_images:
        raise UsageError(f"{result.a} and {result.b} have no image in common. Expected outputs of the same source.")
    for name in sorted({*made_with[0], *made_with[1]}):
        ours, theirs = (sorted(made[name]) for made in made_with)
        if ours != theirs:
            result.made_with[name] = ours, theirs
    return result


def _common_layers(a: Features, b: Features) -> list[str]:
    dims_a, dims_b = (dict(zip(one.spec.layers, one.spec.dims, strict=True)) for one in (a, b))
    layers = [layer for layer, dim in dims_a.items() if dims_b.get(layer) == dim]
    if not layers:
        shown = ["; ".join(f"{layer} ({dim:,} values)" for layer, dim in dims.items()) for dims in (dims_a, dims_b)]
        raise UsageError(
            f"{a.plan.output} and {b.plan.output} have no layer in common. Expected features of the same layers. "
            f"Received: {shown[0]}, and {shown[1]}."
        )
    return layers


def _settings(a: Features, b: Features) -> dict[str, tuple[Any, Any]]:
    one, other = ({**plan.spec.to_json(), "source": plan.source} for plan in (a.plan, b.plan))
    if one["weights_sha256"] == other["weights_sha256"]:
        del one["weights"], other["weights"]  # the same ones, in another place
    names = dict.fromkeys([*one, *other])  # some settings are only there where they mean something
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _compare(result: Diff, step: JoinedRow) -> None:
    if not step.keys:
        return
    result.num_images += len(step.keys)
    labels_a, labels_b = (table.column("label").to_pylist() for table in (step.a, step.b))
    if labels_a != labels_b:
        result.labels.add([key for key, a, b in zip(step.keys, labels_a, labels_b, strict=True) if a != b])
    reasons_a, reasons_b = (table.column("reason").to_pylist() for table in (step.a, step.b))
    if reasons_a != reasons_b:
        for key, a, b in zip(step.keys, reasons_a, reasons_b, strict=True):
            if a != b:
                result.outcomes[a or "ok", b or "ok"].add([key])
    a, b, keys = step.a, step.b, step.keys
    if any(reasons_a) or any(reasons_b):
        both_ok = pc.and_(
            pc.is_null(a.column("reason").combine_chunks()), pc.is_null(b.column("reason").combine_chunks())
        )
        a, b = a.filter(both_ok), b.filter(both_ok)
        keys = a.column("key").to_pylist()
    for name, layer in result.layers.items():
        layer.add(keys, vectors(a.column(name)), vectors(b.column(name)))
