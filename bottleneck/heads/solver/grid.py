"""Fill the grid of a cross-validation and choose the best cell.

Legend: N images, D features, K classes, F folds, P problems.
"""

import numpy as np

from bottleneck.heads.request import Grid
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import Path
from bottleneck.heads.solver.metrics import Counts, best_of

GRID_TOLERANCE = 1e-9
FINAL_TOLERANCE = 1e-18
"""Largest relative gap of the objective; the error of the coefficients is its square root."""


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
                "scale": data.request.scale,
                "c": c,
                "accuracies": [path.counts[at].score("accuracy") for path in paths],
                "scores": scores,
                "mean": float(np.mean(scores)),
                "std": float(np.std(scores)),
                "objectives": [path.values[at] for path in paths],
                "gap": max(path.gaps[at] for path in paths),
                "seconds": sum(path.seconds[at] for path in paths),
            }
        )
    best = grid.rows[best_of([row["mean"] for row in grid.rows], metric)]
    grid.best_scale, grid.best_c = best["scale"], best["c"]


def report_cell(data: FitData, c: float, fold: int, counts: Counts) -> None:
    """Report the score of one C and fold."""
    score = counts.score(data.request.metric)
    data.workers.report({"scale": data.request.scale, "c": c, "fold": fold, "score": score})
