"""Fill the grid of a cross-validation and choose the best C.

Legend: N images, D features, K classes, F folds, P problems.
"""

import numpy as np

from bottleneck.heads.request import Grid
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import Path, accuracy

GRID_TOLERANCE = 1e-9
FINAL_TOLERANCE = 1e-18
"""Largest relative gap of the objective; the error of the coefficients is its square root."""


def fill_grid(grid: Grid, paths: list[Path], data: FitData) -> None:
    """Fill the grid's rows in the order of the request, and choose the best C: the first of equals, as GridSearchCV."""
    if not paths:
        return
    for c in data.request.c:
        at = paths[0].c.index(c)
        accuracies = [
            path.accuracies[at]
            if path.accuracies
            else accuracy(path.scores[at], data.class_indices_fit[data.folds_fit == path.left_out])
            for path in paths
        ]
        grid.rows.append(
            {
                "c": c,
                "accuracies": accuracies,
                "mean": float(np.mean(accuracies)),
                "std": float(np.std(accuracies)),
                "objectives": [path.values[at] for path in paths],
                "gap": max(path.gaps[at] for path in paths),
                "seconds": sum(path.seconds[at] for path in paths),
            }
        )
    best = int(np.argmax([row["mean"] for row in grid.rows]))
    grid.best_c = grid.rows[best]["c"]
