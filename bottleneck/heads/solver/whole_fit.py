"""Fit data that one worker holds: the Gram matrix of the images, or the images themselves.

Legend: N images, D features, K classes, F folds, P problems.
"""

from typing import Any

import numpy as np

from bottleneck.heads.request import Arrays, Grid
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import Path, accuracy
from bottleneck.heads.solver.grid import FINAL_TOLERANCE, GRID_TOLERANCE, fill_grid
from bottleneck.heads.solver.losses import svm_temperature
from bottleneck.heads.solver.worker import Worker


class WholeFit:
    """A fit whose folds are solved by one worker each, along growing C."""

    def __init__(self, data: FitData) -> None:
        self.data = data
        self._handles: dict[int, Any] = {}

    def fit(self, grid: Grid) -> Arrays:
        """Fill the grid, and return the arrays of the head with the best C."""
        data = self.data
        folds = list(range(data.num_folds)) if data.num_folds > 1 else []
        paths = self._solve(folds, sorted(data.request.c), GRID_TOLERANCE)
        fill_grid(grid, paths, data)
        c_values = [c for c in sorted(data.request.c) if c <= grid.best_c]
        path = self._solve([-1], c_values, FINAL_TOLERANCE)[0]
        grid.gap = path.gaps[-1]
        arrays = {"coef": data.expanded(path.weights[-1]).T.copy(), "intercept": path.intercepts[-1].copy()}
        if data.request.kind == "svm":
            arrays["temperature"] = np.ones(1)
        if data.request.kind == "svm" and paths:
            best = [
                (p.scores[p.c.index(grid.best_c)], data.class_indices_fit[data.folds_fit == p.left_out]) for p in paths
            ]
            arrays["temperature"][0] = svm_temperature(*map(np.concatenate, zip(*best, strict=True)))
        return arrays

    def _solve(self, folds: list[int], c_values: list[float], tolerance: float) -> list[Path]:
        """Solve one path per fold; the workers take turns."""
        data = self.data
        paths: list[Path] = []
        while len(paths) < len(folds):
            turn = folds[len(paths) : len(paths) + data.workers.size]
            name = f"paths {turn} {c_values} {tolerance}"
            found = data.workers.recall(name)
            if found is None:
                asked = [
                    (
                        self._handle(fold, turn),
                        data.solver,
                        data.class_indices_fit,
                        data.folds_fit,
                        fold,
                        data.kind,
                        c_values,
                        data.class_weights(fold),
                        tolerance,
                    )
                    for fold in turn
                ]
                found = data.workers.ask_each(Worker.solve, asked)
                data.workers.remember(name, found)
            paths += found
            for path in found:
                self._tell(path)
        return paths

    def _handle(self, fold: int, turn: list[int]) -> Any:
        """The handle with which workers read the matrix of a fold; one for all folds if they share their scaling."""
        data = self.data
        scaling = fold if data.moments else -1
        if scaling not in self._handles:
            # Matrices are as large as all images, so those of earlier turns are let go.
            self._handles = {other: handle for other, handle in self._handles.items() if other in turn}
            self._handles[scaling] = data.workers.publish(data.matrix(scaling))
        return self._handles[scaling]

    def _tell(self, path: Path) -> None:
        data = self.data
        if path.left_out >= 0:
            truth = data.class_indices_fit[data.folds_fit == path.left_out]
            for c, scores in zip(path.c, path.scores, strict=True):
                data.workers.report({"c": c, "fold": path.left_out, "accuracy": accuracy(scores, truth)})
