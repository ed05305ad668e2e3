"""Fit data that one worker holds: the Gram matrix of the images, or the images themselves.

Legend: N images, D features, K classes, F folds, P problems.
"""

from typing import Any

import numpy as np

from bottleneck.heads.request import Arrays
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import Path
from bottleneck.heads.solver.grid import FINAL_TOLERANCE, GRID_TOLERANCE, Grid, fill_grid, report_cell
from bottleneck.heads.solver.losses import best_temperature, log_loss
from bottleneck.heads.solver.out_of_fold import LARGEST_POWER, OutOfFold, worthwhile
from bottleneck.heads.solver.worker import Worker


class WholeFit:
    """A fit whose folds are solved by one worker each, along growing C."""

    def __init__(self, data: FitData) -> None:
        self.data = data
        self._handles: dict[int, Any] = {}
        self._paths: list[Path] = []

    def cross_validate(self, grid: Grid) -> None:
        """Fill the grid's rows of this scaling."""
        data = self.data
        folds = list(range(data.num_folds)) if data.num_folds > 1 else []
        self._paths = self._solve(folds, sorted(data.request.c), GRID_TOLERANCE)
        fill_grid(grid, self._paths, data)

    def fit(self, grid: Grid) -> Arrays:
        """The arrays of the head with the best C; the grid gets what its folds say of the images they left out."""
        data, paths = self.data, self._paths
        c_values = [c for c in sorted(data.request.c) if c <= grid.best_c]
        path = self._solve([-1], c_values, FINAL_TOLERANCE)[0]
        arrays = {"coef": data.expanded(path.weights[-1]).T.copy(), "intercept": path.intercepts[-1].copy()}
        if paths and data.kind != "labels":
            scores_NK = self._left_out(paths, grid.best_c)
            grid.out_of_fold = OutOfFold(scores_NK.astype(np.float32))
            arrays["temperature"] = np.array([self._temperature(scores_NK)])
        return arrays

    def _left_out(self, paths: list[Path], c: float) -> np.ndarray:
        """The scores [N, K] of the fitted images by the folds that left them out."""
        data = self.data
        scores_NK = np.empty((len(data.folds_fit), data.columns))
        for path in paths:
            scores_NK[data.folds_fit == path.left_out] = path.scores[path.c.index(c)]
        return scores_NK

    def _temperature(self, scores_NK: np.ndarray) -> float:
        """The temperature of the head, from scores of images by folds that left them out."""
        truth_N = self.data.class_indices_fit
        if self.data.kind == "svm":
            return best_temperature(scores_NK, truth_N)
        found = best_temperature(scores_NK, truth_N, LARGEST_POWER)
        return worthwhile(found, log_loss(scores_NK, truth_N), log_loss(scores_NK * found, truth_N))

    def _solve(self, folds: list[int], c_values: list[float], tolerance: float) -> list[Path]:
        """Solve one path per fold; the workers take turns."""
        data = self.data
        names = {fold: f"path {data.variant.kind} {data.variant.scale} {fold} {c_values} {tolerance}" for fold in folds}
        paths = {fold: path for fold in folds if (path := data.workers.recall(names[fold])) is not None}
        missing = [fold for fold in folds if fold not in paths]
        for path in paths.values():
            self._tell(path)
        for start in range(0, len(missing), data.workers.lanes):
            turn = missing[start : start + data.workers.lanes]
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
                    data.sample_weights_fit,
                    data.has_label_KL,
                )
                for fold in turn
            ]
            for fold, path in zip(turn, data.workers.ask_each(Worker.solve, asked), strict=True):
                data.workers.remember(names[fold], path)
                paths[fold] = path
                self._tell(path)
        return [paths[fold] for fold in folds]

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
        if path.left_out >= 0:
            for c, counts in zip(path.c, path.counts, strict=True):
                report_cell(self.data, c, path.left_out, counts)
