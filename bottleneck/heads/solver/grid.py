"""Fill the grid of a cross-validation and choose the best cell.

Legend: N images, D features, K classes, F folds, P problems.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bottleneck.heads.request import Variant
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import Path
from bottleneck.heads.solver.label_counts import AnyCounts, LabelCounts
from bottleneck.heads.solver.metrics import best_of
from bottleneck.heads.solver.out_of_fold import OutOfFold

GRID_TOLERANCE = 1e-9
FINAL_TOLERANCE = 1e-18
"""Largest relative gap of the objective; the error of the coefficients is its square root."""


PLAIN = Variant("logistic", "none")


@dataclass
class Grid:
    """The result of a cross-validation."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """For each kind, scaling and C: the score on every fold, the mean, and the relative gaps of the objectives."""
    best_c: float = 1.0
    best: Variant = PLAIN
    out_of_fold: OutOfFold | None = None
    """What the folds of the best C say of the images they left out; None without folds."""
    label_counts: LabelCounts | None = None
    """With several labels an image: what the folds of the best C predict for the images they left out."""
    gap: float | None = None
    """A bound of how far the head's own arrays are above the optimum, relative to its objective; None for an mlp."""

    @property
    def end(self) -> Literal["smallest", "largest"] | None:
        """The end at which the best C lies among those of its kind and scaling, beyond which others may be better; None
        if all are equal."""
        rows = [row for row in self.rows if (row["kind"], row["scale"]) == self.best]
        values = [row["c"] for row in rows]
        if len({row["mean"] for row in rows}) < 2 or min(values) < self.best_c < max(values):
            return None
        return "smallest" if self.best_c == min(values) else "largest"


def fill_grid(grid: Grid, paths: list[Path], data: FitData) -> None:
    """Add a row for each C, in the order of the request, and choose the best of all rows: the first of equals."""
    if not paths:
        return
    metric = data.request.metric
    for c in data.request.c:
        at = paths[0].c.index(c)
        scores = [path.counts[at].score(metric) for path in paths]
        grid.rows.append(
            {
                "kind": data.variant.kind,
                "scale": data.variant.scale,
                "c": c,
                "accuracies": scores
                if data.kind == "labels"
                else [path.counts[at].score("accuracy") for path in paths],
                "scores": scores,
                "mean": float(np.mean(scores)),
                "std": float(np.std(scores)),
                "objectives": [path.values[at] for path in paths],
                "gap": max(path.gaps[at] for path in paths),
                "seconds": sum(path.seconds[at] for path in paths),
            }
        )
    best = grid.rows[best_of([row["mean"] for row in grid.rows], metric)]
    grid.best, grid.best_c = Variant(best["kind"], best["scale"]), best["c"]
    if data.kind == "labels" and grid.best == data.variant:
        at = paths[0].c.index(grid.best_c)
        grid.label_counts = sum((path.counts[at] for path in paths[1:]), paths[0].counts[at])


def report_cell(data: FitData, c: float, fold: int, counts: AnyCounts) -> None:
    """Report the score of one C and fold."""
    score = counts.score(data.request.metric)
    data.workers.report({"variant": data.variant, "c": c, "fold": fold, "score": score})
