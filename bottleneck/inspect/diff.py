"""Two outputs of the same images side by side: other precision, versions or hardware, and what it did to the features.

Legend: N images of a step, D features of a layer.
"""

import bisect
import heapq
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.dataset.features import Features, vectors
from bottleneck.errors import CorruptError, UsageError
from bottleneck.inspect.recompute import MIN_COSINE

NUM_NAMED = 5
"""Keys named of each group of images; all are counted."""
# Cosines of features that should be equal crowd below 1, so bins are of their distance from it, each 1.5 % wider than
# the one before: from 1e-12 to 2 in 1,904 of them. Nearer to 1 than that is the first bin.
_EDGES = np.concatenate([[0.0], np.geomspace(1e-12, 2.0, 1904)])


@dataclass
class Group:
    """Images that have something in common."""

    images: int = 0
    keys: list[str] = field(default_factory=list)
    """The first of them."""

    def add(self, keys: list[str]) -> None:
        self.images += len(keys)
        self.keys += keys[: NUM_NAMED - len(self.keys)]


class LayerDiff:
    """What became of one layer's features."""

    def __init__(self, top: int, min_cosine: float) -> None:
        self.top, self.min_cosine = top, min_cosine
        self.images = self.equal = self.below = 0
        self.min, self._sum = 1.0, 0.0
        self.max_difference = self.max_relative_difference = 0.0
        self.worst: list[tuple[float, str]] = []
        """Cosine and key, smallest cosine first; not of images whose features are equal."""
        self._counts = np.zeros(len(_EDGES), np.int64)

    def add(self, keys: list[str], a_ND: np.ndarray, b_ND: np.ndarray) -> None:
        """Compare the features of some images.

        Args:
            a_ND, b_ND: float16 or float32, of the same images in the same order.
        """
        if not keys:
            return
        a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
        differences_N = np.abs(a_ND - b_ND).max(axis=1)
        equal_N = differences_N == 0
        squares_N = np.vecdot(a_ND, a_ND) * np.vecdot(b_ND, b_ND)
        cosines_N = np.vecdot(a_ND, b_ND) / np.sqrt(np.where(squares_N > 0, squares_N, np.inf))
        cosines_N = np.where(equal_N, 1.0, np.clip(cosines_N, -1, 1))
        largest_N = np.maximum(np.abs(a_ND).max(axis=1), np.abs(b_ND).max(axis=1))
        relative_N = differences_N / np.where(largest_N > 0, largest_N, 1.0)
        self.images += len(keys)
        self.equal += int(equal_N.sum())
        self.below += int((cosines_N < self.min_cosine).sum())
        self.min = min(self.min, float(cosines_N.min()))
        self._sum += float(cosines_N.sum())
        self.max_difference = max(self.max_difference, float(differences_N.max()))
        self.max_relative_difference = max(self.max_relative_difference, float(relative_N.max()))
        self._counts += np.bincount(np.searchsorted(_EDGES, 1 - cosines_N), minlength=len(_EDGES))
        differing = [(float(cosines_N[row]), keys[row]) for row in np.flatnonzero(~equal_N).tolist()]
        self.worst = heapq.nsmallest(self.top, [*self.worst, *differing])

    @property
    def mean(self) -> float:
        return self._sum / self.images

    def percentile(self, percent: float) -> float:
        """The cosine that this share of images is below; its distance from 1 is known to 1.5 %."""
        # The largest distances are the smallest cosines, so counting starts at the far end.
        from_below = np.cumsum(self._counts[::-1])
        place = int(np.searchsorted(from_below, percent / 100 * self.images, side="right"))
        return max(self.min, 1.0 - float(_EDGES[len(_EDGES) - 1 - min(place, len(_EDGES) - 1)]))

    def to_json(self) -> dict[str, Any]:
        counts = {"images": self.images, "equal": self.equal, "below": self.below}
        if not self.images:  # all are rejected
            return counts
        return {
            **counts,
            "min": self.min,
            "percentile_1": self.percentile(1),
            "median": self.percentile(50),
            "mean": self.mean,
            "max_difference": self.max_difference,
            "max_relative_difference": self.max_relative_difference,
            "worst": [{"key": key, "cosine": cosine} for cosine, key in self.worst],
        }


@dataclass
class Diff:
    """What comparing two outputs found; `a` and `b` are their URIs."""

    a: str
    b: str
    min_cosine: float
    layers: dict[str, LayerDiff]
    """Of the layers both have."""
    num_images: int = 0
    """In both."""
    only_a: Group = field(default_factory=Group)
    only_b: Group = field(default_factory=Group)
    outcomes: dict[tuple[str, str], Group] = field(default_factory=lambda: defaultdict(Group))
    """Images with another outcome in A than in B: `ok`, or the reason of a rejection."""
    labels: Group = field(default_factory=Group)
    """Images with another label."""
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What differs between the plans: the fields of their specs, their sources."""
    made_with: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    """Versions and devices that differ, as the data files name them."""

    @property
    def num_below(self) -> int:
        """Images below the smallest cosine, in the layer that has most of them."""
        return max(layer.below for layer in self.layers.values())

    @property
    def is_same(self) -> bool:
        """Whether every image that is in both came to the same outcome and no cosine is too small."""
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
    """Compare two outputs image by image; a data file of every listing of each is in memory.

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
    made_with = _Made(), _Made()
    num_seen = 0
    for step in _join(a, b, ["key", "label", "reason", *layers], made_with):
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
        del one["weights"]  # the same ones, in another place
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


class _Made(defaultdict[str, set[str]]):
    """What the footers of data files say they were made with: name -> values."""

    def __init__(self) -> None:
        super().__init__(set)

    def add(self, table: pa.Table) -> None:
        footer = json.loads((table.schema.metadata or {}).get(b"bottleneck", b"{}"))
        for name, version in {**footer.get("versions", {}), "device": footer.get("device", "")}.items():
            self[name].add(str(version))


class _Step(NamedTuple):
    """A run of keys, complete on both sides."""

    only_a: list[str]
    only_b: list[str]
    keys: list[str]
    """In both; the rows of the two tables are theirs, in this order."""
    a: pa.Table
    b: pa.Table


class _Listing:
    """The rows of one listing in the order of their keys, a data file at a time."""

    def __init__(self, features: Features, names: list[str], columns: list[str], made: _Made) -> None:
        self._tables = (features.table(name, columns) for name in names)
        self._output, self._made = features.plan.output, made
        self.keys: list[bytes] = []
        """Of the rows that are not yet taken; empty when there are no more."""
        self._read()

    def _read(self) -> None:
        while not self.keys:
            table = next(self._tables, None)
            if table is None:
                return
            self._made.add(table)
            self._table = table
            self.keys = table.column("key").cast(pa.binary()).to_pylist()
            if self.keys != sorted(self.keys):
                raise CorruptError(f"{self._output} holds rows out of order. Look at it with `bottleneck verify`.")

    def take(self, last: bytes) -> pa.Table:
        """The rows up to a key."""
        end = bisect.bisect_right(self.keys, last)
        taken, self._table, self.keys = self._table.slice(0, end), self._table.slice(end), self.keys[end:]
        self._read()
        return taken


def _join(a: Features, b: Features, columns: list[str], made: tuple[_Made, _Made]) -> Iterator[_Step]:
    """Rows of both by key, whatever their shards: as far as the key that every listing has been read up to."""
    sides = [_listings(one, columns, own) for one, own in zip((a, b), made, strict=True)]
    while waiting := [listing for side in sides for listing in side if listing.keys]:
        last = min(listing.keys[-1] for listing in waiting)
        taken_a, taken_b = (_in_order([one.take(last) for one in side if one.keys]) for side in sides)
        keys_a, keys_b = (taken.column("key").to_pylist() if taken else [] for taken in (taken_a, taken_b))
        rows_a, rows_b = ({key: row for row, key in enumerate(keys)} for keys in (keys_a, keys_b))
        keys = [key for key in keys_a if key in rows_b]
        yield _Step(
            [key for key in keys_a if key not in rows_b],
            [key for key in keys_b if key not in rows_a],
            keys,
            _rows(taken_a, [rows_a[key] for key in keys]),
            _rows(taken_b, [rows_b[key] for key in keys]),
        )


def _rows(table: pa.Table | None, rows: list[int]) -> pa.Table:
    """These rows of a table; all of them, which is the rule, as they are."""
    return table if table is None or len(rows) == table.num_rows else table.take(pa.array(rows, pa.int64()))


def _listings(features: Features, columns: list[str], made: _Made) -> list[_Listing]:
    there, first, found = set(features.files), 0, []
    for listing in features.plan.grown:
        names = [features.plan.data_name(shard) for shard in range(first, first + listing.shards)]
        found.append(_Listing(features, [name for name in names if name in there], columns, made))
        first += listing.shards
    return found


def _in_order(tables: list[pa.Table]) -> pa.Table | None:
    tables = [table for table in tables if table.num_rows]
    if len(tables) < 2:
        return tables[0] if tables else None
    together = pa.concat_tables(tables)
    keys = together.column("key").cast(pa.binary()).to_pylist()
    return together.take(sorted(range(len(keys)), key=keys.__getitem__))


def _compare(result: Diff, step: _Step) -> None:
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
