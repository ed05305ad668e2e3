"""Fit images that stay with their workers, by sums over all values of C and folds in one pass.

Legend: N images, D features, K classes, F folds, P problems.
"""

import time

import numpy as np

from bottleneck.heads.request import Arrays
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import Path, problem_shape, problems_of
from bottleneck.heads.solver.grid import FINAL_TOLERANCE, GRID_TOLERANCE, Grid, fill_grid, report_cell
from bottleneck.heads.solver.losses import SMALLEST_POWER, Problems
from bottleneck.heads.solver.newton import Coordinates, Optimum, minimize
from bottleneck.heads.solver.out_of_fold import LARGEST_POWER, OutOfFold, worthwhile
from bottleneck.heads.solver.protocol import Workers, total
from bottleneck.heads.solver.worker import Worker

MAX_ROTATED_DIM = 4096
"""More dimensions than this are not rotated; the optimum is the same, but takes longer."""


class SumsFit:
    """A fit by truncated Newton steps on the losses' sums."""

    def __init__(self, data: FitData) -> None:
        self.data = data

    def cross_validate(self, grid: Grid) -> None:
        """Fill the grid's rows of this scaling."""
        data = self.data
        data.workers.ask(Worker.objective, "float32")
        self._center_D, scale_D = data.scaling(-1)
        if data.kind != "svm" and not data.moments:
            self._center_D = data.sums().sum(axis=0) / data.totals_F.sum()
        self._rotated = self._rotation(self._center_D, scale_D)
        c = list(data.request.c)
        pairs = [(value, fold) for value in c for fold in range(data.num_folds)] if data.num_folds > 1 else []
        started = time.monotonic()
        self._starts: dict[float, np.ndarray] = {}
        if pairs:
            optimum, coordinates = self._minimize(pairs, self._center_D, *self._rotated, None, GRID_TOLERANCE)
            W, b = coordinates.raw(optimum.theta_JPK, np.arange(len(optimum.values_P)))
            fill_grid(grid, self._scored(pairs, W, b, optimum, time.monotonic() - started), data)
            theta = optimum.theta_JPK.reshape(data.dim + 1, len(c), data.num_folds, -1)
            self._starts = {value: theta[:, at].mean(axis=1) for at, value in enumerate(c)}

    def fit(self, grid: Grid) -> Arrays:
        """The arrays of the head with the best C; the grid gets what its folds say of the images they left out."""
        data, center_D, start = self.data, self._center_D, self._starts.get(grid.best_c)
        data.workers.ask(Worker.objective, "float32")  # they may have scaled their images otherwise in between
        scale_D = data.scaling(-1)[1]
        optimum, coordinates = self._minimize([(grid.best_c, -1)], center_D, *self._rotated, start, FINAL_TOLERANCE)
        W, b = coordinates.raw(optimum.theta_JPK, np.arange(len(optimum.values_P)))
        W, b = W.reshape(data.dim, -1), b.reshape(-1)
        if data.moments:  # the head scales by itself
            W, b = W * scale_D[:, None], b + center_D @ W
        arrays = {"coef": W.T.copy(), "intercept": b.copy()}
        if self._starts and data.kind != "labels":
            grid.out_of_fold = OutOfFold(models={fold: self._oof[grid.best_c, fold] for fold in range(data.num_folds)})
            arrays["temperature"] = np.array([self._temperature(grid.out_of_fold)])
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
        repeat, columns = problem_shape(data.kind, data.num_targets)
        weights = np.stack([data.class_weights(fold) for _, fold in pairs])
        problems = problems_of(
            data.kind, np.array([c for c, _ in pairs]), np.array([f for _, f in pairs]), weights, data.has_label_KL
        )
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
        name = f"theta {data.variant.kind} {data.variant.scale} {pairs}"
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
            squares = total(data.workers.ask(Worker.squares, data.num_folds, center_D[None]))[0].sum(axis=0)
            return None, squares / data.totals_F.sum() / scale_D**2
        covariance_DD = total(data.workers.ask(Worker.covariance, center_D, scale_D)) / len(data.class_indices_fit)
        variances_D, rotation_DD = np.linalg.eigh(covariance_DD)
        return rotation_DD, np.maximum(variances_D, 0)

    def _scored(
        self, pairs: list[tuple[float, int]], W: np.ndarray, b: np.ndarray, optimum: Optimum, seconds: float
    ) -> list[Path]:
        """Evaluate the folds' optima on the images they left out, as paths without scores."""
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
                counts = data.workers.ask(Worker.count_left_out, weights, intercept, fold)
                path.counts.append(sum(counts[1:], counts[0]))
                value = optimum.values_P[own]
                path.values.append(float(value.sum()))
                path.seconds.append(seconds / len(pairs))
                path.gaps.append(float((optimum.gaps_P[own] * value).sum() / value.sum()))
                report_cell(data, c, fold, path.counts[-1])
            paths.append(path)
        return paths

    def _temperature(self, out_of_fold: OutOfFold) -> float:
        """Like `best_temperature`, for images that stay with their workers: the best of ever finer grids."""

        def losses(factors: np.ndarray) -> np.ndarray:
            asked = [
                self.data.workers.ask(Worker.log_losses, weights, intercept, fold, factors)
                for fold, (weights, intercept) in out_of_fold.models.items()
            ]
            return total([one for answers in asked for one in answers])

        is_svm = self.data.kind == "svm"
        low, high = SMALLEST_POWER, 4.0 if is_svm else LARGEST_POWER
        for _ in range(4):
            grid = np.linspace(low, high, 33)
            best = int(losses(10.0**grid).argmin())
            low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        found = float(10 ** grid[best])
        return found if is_svm else worthwhile(found, *losses(np.array([1.0, found])).tolist())


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
