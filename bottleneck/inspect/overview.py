"""Show a features dataset before any head: counts, sizes, gallery, map, near copies, outliers.

Every row is counted. Pictures, map and outliers are of a sample, evenly along the plan, so that a page stays a few
megabytes and its time is bounded.

Legend: N images of the sample, D features.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow.compute as pc

from bottleneck.dataset.features import Features, rows_of, vectors
from bottleneck.dataset.schema import ok_rows
from bottleneck.errors import UsageError
from bottleneck.inspect.duplicate_groups import DuplicateGroup, grouped
from bottleneck.inspect.duplicates import near_duplicates
from bottleneck.inspect.html import page
from bottleneck.inspect.report import rejections_of, thumbnails_of
from bottleneck.inspect.report_sections import Rejections, Thumbnails
from bottleneck.sources.labels import numbered
from bottleneck.text import counted

SAMPLE_VALUES = 4_000_000
"""Features of the sample, 16 MB in float32: 2,000 images of 2,000 dimensions."""
MAX_SAMPLE = 2_000
NUM_ON_MAP = 400
"""Pictures on the map, 1.5 kB each."""
NUM_CLASSES = 50
"""Classes with a gallery, the largest ones."""
NUM_OF_CLASS = 6
NUM_OUTLIERS = 18
NUM_NEIGHBOURS = 5
NUM_GROUPS, NUM_OF_GROUP = 8, 5
MIN_COSINE = 0.99
"""Of near copies."""
MAX_OPERATIONS = 2e12
"""Of comparing all pairs, some ten seconds on two cores; beyond, only the sample is compared."""
SMALL_PX, LARGE_PX = 48, 128
"""Sides of the pictures on the map and in galleries."""
SIZES_PX = (64, 128, 256, 512, 1024, 2048, 4096)
"""Bounds of the longer side by which images are counted."""


@dataclass
class Overview:
    """What a page shows of a dataset."""

    labels: Counter[str | None] = field(default_factory=Counter)
    """Ok images by label."""
    sizes: Counter[int] = field(default_factory=Counter)
    """Ok images by the number of bounds in SIZES_PX that their longer side reaches."""
    modes: Counter[str] = field(default_factory=Counter)
    first_keys: dict[str | None, list[str]] = field(default_factory=dict)
    """The first keys of each label."""
    rejected: dict[str, Rejections] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    """Of the sample."""
    sample_labels: list[str | None] = field(default_factory=list)
    points_N2: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    """The sample on the map, each coordinate from 0 to 1."""
    explained: float = 0.0
    """Share of the sample's variance that the map shows."""
    outliers: list[tuple[str, str | None, float]] = field(default_factory=list)
    """Key, label and mean cosine to the nearest images of the sample, the least alike first."""
    copies: list[DuplicateGroup] = field(default_factory=list)
    num_copies: int = 0
    """Groups of near copies."""
    copies_of: str = ""
    """What was compared for near copies."""

    @property
    def num_ok(self) -> int:
        return self.labels.total()


def overview_of(features: Features, layer: str, on_images: Callable[[int], None] = lambda images: None) -> Overview:
    """Collect what a page shows.

    Args:
        layer: the column of the map, near copies and outliers.
        on_images: told how far the work is, as a number of images.

    Raises:
        UsageError: if there is no ok image.
    """
    found = Overview(rejected=rejections_of(features))
    num_images, dim = sum(rows_of(features)[name] for name in features.files), features.spec.dim_of(layer)
    if not num_images:
        raise UsageError(f"{features.plan.output} has no ok image, so there is nothing to show.")
    size = min(MAX_SAMPLE, max(NUM_NEIGHBOURS + 1, SAMPLE_VALUES // dim), num_images)
    wanted = np.unique(np.linspace(0, num_images - 1, size).round().astype(np.int64))
    rows, seen = [], 0
    for name in features.files:
        ok = ok_rows(features.table(name, ["key", "label", "status", "width", "height", "mode"])).combine_chunks()
        keys, labels = ok.column("key").to_pylist(), ok.column("label").to_pylist()
        _count(found, keys, labels, ok)
        own = wanted[(wanted >= seen) & (wanted < seen + len(ok))] - seen
        if len(own):
            values = ok_rows(features.table(name, ["status", layer])).column(layer)
            rows.append(vectors(values)[own].astype(np.float32))
            found.keys += [keys[at] for at in own.tolist()]
            found.sample_labels += [labels[at] for at in own.tolist()]
        seen += len(ok)
        on_images(seen)
    sample_ND = np.concatenate(rows)
    lengths_N = np.linalg.norm(sample_ND, axis=1)
    units_ND = sample_ND / np.where(lengths_N == 0, 1, lengths_N)[:, None]
    found.points_N2, found.explained = _mapped(units_ND)
    found.outliers = _outliers(units_ND, found)
    _find_copies(found, features, layer, units_ND, num_images * num_images * dim)
    return found


def _count(found: Overview, keys: list[str], labels: list[str | None], ok: Any) -> None:
    found.labels.update(labels)
    for key, label in zip(keys, labels, strict=True):
        if len(kept := found.first_keys.setdefault(label, [])) < NUM_OF_CLASS:
            kept.append(key)
    longest = pc.max_element_wise(ok.column("width"), ok.column("height")).to_numpy(zero_copy_only=False)
    found.sizes.update(np.searchsorted(SIZES_PX, longest, side="right").tolist())
    found.modes.update(ok.column("mode").to_pylist())


def _mapped(units_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal components, scaled to 0 to 1, and the share of the variance they have."""
    from sklearn.decomposition import PCA

    if len(units_ND) < 2:
        return np.full((len(units_ND), 2), 0.5), 0.0
    num_components = min(2, *units_ND.shape)
    model = PCA(num_components, svd_solver="full" if min(units_ND.shape) < 50 else "randomized", random_state=0)
    points = model.fit_transform(units_ND)
    points_N2 = np.zeros((len(units_ND), 2))
    points_N2[:, :num_components] = points
    low_2, high_2 = points_N2.min(axis=0), points_N2.max(axis=0)
    share = float(np.nan_to_num(model.explained_variance_ratio_).sum())
    return (points_N2 - low_2) / np.where(high_2 > low_2, high_2 - low_2, 1), share


def _outliers(units_ND: np.ndarray, found: Overview) -> list[tuple[str, str | None, float]]:
    count = min(NUM_NEIGHBOURS, len(units_ND) - 1)
    if not count:
        return []
    cosines_NN = units_ND @ units_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)
    nearest_N = np.partition(cosines_NN, -count, axis=1)[:, -count:].mean(axis=1)
    order = np.argsort(nearest_N, kind="stable")[:NUM_OUTLIERS].tolist()
    return [(found.keys[at], found.sample_labels[at], float(nearest_N[at])) for at in order]


def _find_copies(found: Overview, features: Features, layer: str, units_ND: np.ndarray, operations: float) -> None:
    if operations <= MAX_OPERATIONS:
        groups = grouped(features, near_duplicates(features, MIN_COSINE, layer))
        found.copies, found.num_copies = groups.largest(NUM_GROUPS, NUM_OF_GROUP), groups.num_groups
        found.copies_of = f"all {counted(found.num_ok, 'image')}"
        return
    found.copies_of = f"the {counted(len(units_ND), 'image')} of the sample"
    from scipy.sparse.csgraph import connected_components

    cosines_NN = units_ND @ units_ND.T
    is_alike_NN = (cosines_NN >= MIN_COSINE) & ~np.eye(len(units_ND), dtype=bool)
    groups_N = connected_components(is_alike_NN, directed=False)[1]
    sizes = np.bincount(groups_N)
    found.num_copies = int((sizes > 1).sum())
    for group in np.argsort(-sizes, kind="stable")[: min(NUM_GROUPS, found.num_copies)].tolist():
        members = np.flatnonzero(groups_N == group)
        inner_NN = cosines_NN[np.ix_(members, members)]
        least = float(inner_NN[is_alike_NN[np.ix_(members, members)]].min())
        keys = tuple(found.keys[at] for at in members[:NUM_OF_GROUP].tolist())
        found.copies.append(DuplicateGroup(keys, len(members), least))


def overview_html(features: Features, layer: str, found: Overview) -> str:
    """The page as text; pictures come from the source, as far as it is still there."""
    shown = [label for label, _ in found.labels.most_common(NUM_CLASSES)]
    named = [*numbered([label for label in shown if label is not None]), *([None] if None in shown else [])]
    on_map = np.unique(np.linspace(0, len(found.keys) - 1, min(NUM_ON_MAP, len(found.keys))).round().astype(int))
    large = [key for label in named for key in found.first_keys[label]]
    large += [key for key, _, _ in found.outliers] + [key for group in found.copies for key in group.keys]
    pictures = thumbnails_of(features.plan, list(dict.fromkeys(large)), LARGE_PX)
    small = thumbnails_of(features.plan, [found.keys[at] for at in on_map.tolist()], SMALL_PX)
    sections = [
        ("summary", "Summary"),
        ("labels", "Labels"),
        ("sizes", "Sizes"),
        ("gallery", "Gallery"),
        ("map", "Map"),
        ("copies", "Near copies"),
        ("outliers", "Unlike all others"),
        ("rejected", "Rejected images"),
        ("made", "How it was made"),
    ]
    spec, plan = features.spec, features.plan
    made = {name: value for name, value in spec.to_json().items() if name not in ("layers", "dims")}
    details = {"source": plan.source, "output": plan.output, "layer": layer, **made, "fingerprint": spec.fingerprint}
    hues = {label: round(137.5 * at) % 360 for at, label in enumerate(numbered(set(filter(None, found.labels))))}
    return page(
        "overview",
        plan.output.rstrip("/").rpartition("/")[2],
        f"{counted(plan.num_images, 'image')} of {plan.source}",
        sections,
        found=found,
        numbers=_numbers(features, found),
        largest=max(found.labels.values()),
        labels=[
            *numbered([label for label in found.labels if label is not None]),
            *([None] if None in found.labels else []),
        ],
        gallery=named,
        sizes=_sizes(found),
        min_cosine=MIN_COSINE,
        points=[_point(found, at, hues, small) for at in on_map.tolist()],
        pictures=Thumbnails(pictures.images, pictures.missing or small.missing),
        rejected=found.rejected,
        details=details,
    )


def _point(found: Overview, at: int, hues: dict[str, int], small: Thumbnails) -> dict[str, Any]:
    label, (x, y) = found.sample_labels[at], found.points_N2[at]
    return {
        "key": found.keys[at],
        "label": label,
        "left": f"{100 * x:.2f}",
        "top": f"{100 * (1 - y):.2f}",
        "hue": hues.get(label or "", 0),
        "image": small.images.get(found.keys[at]),
    }


def _numbers(features: Features, found: Overview) -> list[tuple[str, str, str]]:
    num_rejected = sum(one.images for one in found.rejected.values())
    done = "finished" if features.success else "not finished yet"
    labels = [label for label in found.labels if label is not None]
    return [
        ("Images", f"{found.num_ok:,}", f"with features; {done}"),
        ("Rejected", f"{num_rejected:,}", counted(len(found.rejected), "reason")),
        ("Labels", f"{len(labels):,}", f"{found.labels[None]:,} images without one"),
        ("Near copies", f"{found.num_copies:,}", f"groups at a cosine of {MIN_COSINE:g}"),
    ]


def _sizes(found: Overview) -> list[tuple[str, int, float]]:
    names = [f"below {SIZES_PX[0]}", *(f"{a} to {b - 1}" for a, b in pairwise(SIZES_PX))]
    names.append(f"{SIZES_PX[-1]} and more")
    return [(name, found.sizes[at], found.sizes[at] / found.num_ok) for at, name in enumerate(names) if found.sizes[at]]
