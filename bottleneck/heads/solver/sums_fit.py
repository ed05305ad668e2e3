"""Fit images that stay with their workers, by sums over all values of C and folds in one pass.

Legend: N images, D features, K classes, F folds, P problems.
"""

import time

import numpy as np

from bottleneck.heads.request import Arrays, Grid
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import Path, problem_shape, problems_of
from bottleneck.heads.solver.grid import FINAL_TOLERANCE, GRID_TOLERANCE, fill_grid
from bottleneck.heads.solver.losses import Problems
from bottleneck.heads.solver.newton import Coordinates, Optimum, minimize
from bottleneck.heads.solver.protocol import Workers, total
from bottleneck.heads.solver.worker import Worker

MAX_ROTATED_DIM = 4096
"""More dimensions than this are not rotated; the optimum is the same, but takes longer."""


class SumsFit:
    """A fit by truncated Newton steps on the losses' sums."""

    def __init__(self, data: FitData) -> None:
        self.data = data

    def fit(self, grid: Grid) -> Arrays:
        """Fill the grid, and return the arrays of the head with the best C."""
        data = self.data
        data.workers.ask(Worker.objective, "float32")
        total = len(data.class_indices_fit)
        center_D, scale_D = data.scaling(-1)
        if data.request.kind == "logistic" and not data.moments:
            center_D = data.sums().sum(axis=0) / total
        rotation_DD, variances_D = self._rotation(center_D, scale_D)
        c = list(data.request.c)
        pairs = [(value, fold) for value in c for fold in range(data.num_folds)] if data.num_folds > 1 else []
        start, started = None, time.monotonic()
        if pairs:
            optimum, coordinates = self._minimize(pairs, center_D, rotation_DD, variances_D, None, GRID_TOLERANCE)
            W, b = coordinates.raw(optimum.theta_JPK, np.arange(len(optimum.values_P)))
            fill_grid(grid, self._scored(pairs, W, b, optimum, time.monotonic() - started), data)
            theta = optimum.theta_JPK.reshape(data.dim + 1, len(c), data.num_folds, -1)
            start = theta[:, c.index(grid.best_c)].mean(axis=1)
        optimum, coordinates = self._minimize(
            [(grid.best_c, -1)], center_D, rotation_DD, variances_D, start, FINAL_TOLERANCE
        )
        W, b = coordinates.raw(optimum.theta_JPK, np.arange(len(optimum.values_P)))
        W, b = W.reshape(data.dim, -1), b.reshape(-1)
        grid.gap = float((optimum.gaps_P * optimum.values_P).sum() / optimum.values_P.sum())
        if data.moments:  # the head scales by itself
            W, b = W * scale_D[:, None], b + center_D @ W
        arrays = {"coef": W.T.copy(), "intercept": b.copy()}
        if data.request.kind == "svm":
            arrays["temperature"] = np.array([self._temperature(grid.best_c) if pairs else 1.0])
        return arrays

    def _minimize(
        self,
        pairs: list[tuple[float, int]],
        center_D: np.ndarray,
        rotation_DD: np.ndarray | None,
        variances_D: np.ndarray,
        start: np.ndarray | None,
        tolerance: float,
    ) -> tuple[Optimum, Coordinates]:
        """Solve for pairs of C and fold at once; every step is remembered, in case a worker dies."""
        data = self.data
        repeat, columns = problem_shape(data.kind, data.num_classes)
        weights = np.stack([data.class_weights(fold) for _, fold in pairs])
        problems = problems_of(data.kind, np.array([c for c, _ in pairs]), np.array([f for _, f in pairs]), weights)
        scalings = [data.moments[fold] if data.moments else (center_D, np.ones(data.dim)) for _, fold in pairs]
        if data.kind == "svm" and not data.moments:
            scalings = [(np.zeros(data.dim), np.ones(data.dim))] * len(pairs)
        coordinates = Coordinates(
            np.repeat([one[0] for one in scalings], repeat, axis=0),
            np.repeat([one[1] for one in scalings], repeat, axis=0),
            rotation_DD,
            variances_D,
            1.0 if data.kind == "svm" else 0.0,
        )
        name = f"theta {pairs}"
        shape = (data.dim + 1, len(problems.c_P), columns)
        before = data.workers.recall(name)
        start = before if before is not None else (np.zeros(shape) if start is None else start.reshape(shape))

        def on_step(now: Optimum) -> None:
            data.workers.remember(name, now.theta_JPK)
            data.workers.report({"step": now.steps, "passes": now.products, "gap": float(now.gaps_P.max())})

        return minimize(WorkersObjective(data.workers), problems, coordinates, start, tolerance, on_step), coordinates

    def _rotation(self, center_D: np.ndarray, scale_D: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Coordinates in which the images' covariance is diagonal; only for speed."""
        data = self.data
        if data.kind == "svm" and not data.moments:
            center_D = np.zeros(data.dim)
        if data.dim > MAX_ROTATED_DIM:
            counts = len(data.class_indices_fit)
            squares = total(data.workers.ask(Worker.squares, data.num_folds, center_D[None]))[0].sum(axis=0)
            return None, squares / counts / scale_D**2
        covariance_DD = total(data.workers.ask(Worker.covariance, center_D, scale_D)) / len(data.class_indices_fit)
        variances_D, rotation_DD = np.linalg.eigh(covariance_DD)
        return rotation_DD, np.maximum(variances_D, 0)

    def _scored(
        self, pairs: list[tuple[float, int]], W: np.ndarray, b: np.ndarray, optimum: Optimum, seconds: float
    ) -> list[Path]:
        """Evaluate the folds' optima on the images they left out, as paths with accuracies instead of scores."""
        data = self.data
        paths = []
        repeat = len(optimum.values_P) // len(pairs)
        self._oof: dict[tuple[float, int], tuple[np.ndarray, np.ndarray]] = {}
        for fold in range(data.num_folds):
            path = Path(fold, sorted(data.request.c))
            for c in path.c:
                at = pairs.index((c, fold))
                own = slice(at * repeat, (at + 1) * repeat)
                weights, intercept = W[:, own].reshape(data.dim, -1), b[own].reshape(-1)
                self._oof[c, fold] = weights, intercept
                right, count = np.sum(data.workers.ask(Worker.right_left_out, weights, intercept, fold), axis=0)
                path.accuracies.append(float(right / count))
                value = optimum.values_P[own]
                path.values.append(float(value.sum()))
                path.seconds.append(seconds / len(pairs))
                path.gaps.append(float((optimum.gaps_P[own] * value).sum() / value.sum()))
                data.workers.report({"c": c, "fold": fold, "accuracy": path.accuracies[-1]})
            paths.append(path)
        return paths

    def _temperature(self, c: float) -> float:
        """Like `svm_temperature`, for images that stay with their workers: the best of ever finer grids."""
        low, high = -4.0, 4.0
        for _ in range(4):
            grid = np.linspace(low, high, 33)
            losses = np.zeros(len(grid))
            for fold in range(self.data.num_folds):
                weights, intercept = self._oof[c, fold]
                losses += sum(self.data.workers.ask(Worker.log_losses, weights, intercept, fold, 10.0**grid))
            best = int(losses.argmin())
            low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        return float(10 ** grid[best])


class WorkersObjective:
    """The losses' sums over all workers' images."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def evaluate(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> list[np.ndarray]:
        return self._sum(self.workers.ask(Worker.evaluate, W, b, problems))

    def fix(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> np.ndarray | None:
        pairs = [part for part in self.workers.ask(Worker.fix, W, b, problems) if part is not None]
        return total(pairs) if pairs else None

    def product(self, V: np.ndarray, v: np.ndarray, chosen_P: np.ndarray) -> list[np.ndarray]:
        return self._sum(self.workers.ask(Worker.product, V, v, chosen_P))

    def _sum(self, answers: list[list[np.ndarray]]) -> list[np.ndarray]:
        return [sum(parts[1:], parts[0]) for parts in zip(*answers, strict=True)]
