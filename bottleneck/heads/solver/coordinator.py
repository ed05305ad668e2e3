"""The optimum of one fit, found by a leader who asks the members who own the images; wherever they run.

Three ways to the same optimum, by size: products of images where they are fewer than dimensions, the images themselves
where they fit one worker, else sums over images that stay where they are, for all values of C and folds in one pass.

Legend: N images, D features, K classes, F folds, P problems.
"""

import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from bottleneck.heads.request import Arrays, Grid, HeadRequest, Team
from bottleneck.heads.solver import mlp
from bottleneck.heads.solver.gram import Path, accuracy, basis_of_products, basis_of_rows, problem_shape, problems_of
from bottleneck.heads.solver.losses import Problems, svm_temperature
from bottleneck.heads.solver.newton import Coordinates, Optimum, minimize

MAX_PRODUCT_IMAGES = 8192
"""More images than this are not rotated: their eigenvectors would take minutes."""
MAX_COMPACT_VALUES = 32_000_000
"""Images times dimensions that one worker solves by itself: 256 MB in float64."""
MAX_ROTATED_DIM = 4096
"""More dimensions than this are not rotated either; the optimum is the same, the way there longer."""
GRID_TOLERANCE = 1e-9
FINAL_TOLERANCE = 1e-18
"""Of the objective above its optimum, relative: the square root of it is that of the coefficients."""


class Leader:
    """One fit, once everybody knows the classes and sides of the images."""

    way = "sums"
    """Which of the three ways the optimum was come by."""

    def __init__(
        self,
        team: Team,
        counts: list[int],
        codes_N: np.ndarray,
        folds_N: np.ndarray,
        num_classes: int,
        request: HeadRequest,
        num_folds: int,
        weights_K: np.ndarray | None = None,
    ) -> None:
        """Take the images' classes and folds, in the order of the members, of whom each has so many.

        Args:
            num_folds: 1 where there is no cross-validation.
            weights_K: of the classes, in place of those of the request.
        """
        self.weights_K = weights_K
        self.team, self.request, self.num_classes = team, request, num_classes
        self.codes_N, self.folds_N = codes_N, folds_N
        self.bounds = np.cumsum([0, *counts])
        self.num_folds = num_folds
        self._handles: dict[int, Any] = {}
        self.kind = request.kind if request.kind != "logistic" else ("logistic" if num_classes == 2 else "softmax")
        self.columns = 1 if num_classes == 2 else num_classes
        self.team.ask_each(
            "place", [(codes, folds, request.scale) for codes, folds in self._by_member(codes_N, folds_N)]
        )

    def fit(self, dim: int) -> tuple[Arrays, Grid]:
        """The arrays of the head, and the grid it was chosen from."""
        fitted_N = self.folds_N >= 0
        self.codes_fit, self.folds_fit = self.codes_N[fitted_N], self.folds_N[fitted_N]
        num_images = len(self.codes_fit)
        if num_images < dim and num_images <= MAX_PRODUCT_IMAGES:
            self.way = "products"
        elif num_images * dim <= MAX_COMPACT_VALUES:
            self.way = "images"
        self.dim = dim
        self.moments = self._moments() if self.request.scale == "standard" else {}
        grid = Grid(best_c=self.request.c[0])
        if self.request.kind == "mlp":
            arrays = self._fit_mlp()
        elif self.way == "sums":
            arrays = self._fit_by_sums(grid)
        else:
            arrays = self._fit_compact(grid)
        if self.kind == "softmax":  # what all classes' scores have in common means nothing; scikit-learn's sum to zero
            arrays["intercept"] = arrays["intercept"] - arrays["intercept"].mean()
        if self.moments:
            arrays["mean"], arrays["scale"] = self.moments[-1]
        return arrays, grid

    # Where one worker can hold all that matters

    def _fit_compact(self, grid: Grid) -> Arrays:
        folds = list(range(self.num_folds)) if self.num_folds > 1 else []
        paths = self._solve(folds, sorted(self.request.c), GRID_TOLERANCE)
        self._fill(grid, paths)
        c_values = [c for c in sorted(self.request.c) if c <= grid.best_c]
        path = self._solve([-1], c_values, FINAL_TOLERANCE)[0]
        arrays = {"coef": self.expanded(path.weights[-1]).T.copy(), "intercept": path.intercepts[-1].copy()}
        if self.request.kind == "svm":
            arrays["temperature"] = np.ones(1)
        if self.request.kind == "svm" and paths:
            best = [(p.scores[p.c.index(grid.best_c)], self.codes_fit[self.folds_fit == p.left_out]) for p in paths]
            arrays["temperature"][0] = svm_temperature(*map(np.concatenate, zip(*best, strict=True)))
        return arrays

    def _solve(self, folds: list[int], c_values: list[float], tolerance: float) -> list[Path]:
        """One path for each fold, the members taking folds in turns."""
        paths: list[Path] = []
        while len(paths) < len(folds):
            turn = folds[len(paths) : len(paths) + self.team.size]
            name = f"paths {turn} {c_values} {tolerance}"
            found = self.team.recall(name)
            if found is None:
                data = (self.way, self.codes_fit, self.folds_fit)
                asked: list[tuple[Any, ...]] = [
                    (self._handle(fold, turn), *data, fold, self.kind, c_values, self.class_weights(fold), tolerance)
                    for fold in turn
                ]
                found = self.team.ask_each("solve", asked + [()] * (self.team.size - len(asked)))[: len(turn)]
                self.team.remember(name, found)
            paths += found
            for path in found:
                self._tell(path)
        return paths

    def _handle(self, fold: int, turn: list[int]) -> Any:
        """By which members read the matrix of a fold; one for all folds where they share their scaling."""
        scaling = fold if self.moments else -1
        if scaling not in self._handles:
            # Matrices are as large as all images, so those of earlier turns are let go.
            self._handles = {other: handle for other, handle in self._handles.items() if other in turn}
            self._handles[scaling] = self.team.publish(self.matrix(scaling))
        return self._handles[scaling]

    def _tell(self, path: Path) -> None:
        if path.left_out >= 0:
            truth = self.codes_fit[self.folds_fit == path.left_out]
            for c, scores in zip(path.c, path.scores, strict=True):
                self.team.report({"c": c, "fold": path.left_out, "accuracy": accuracy(scores, truth)})

    def matrix(self, scaling: int) -> np.ndarray:
        """All fitted images, or their inner products, scaled as a fold has it."""
        center_D, scale_D = self.scaling(scaling)
        handles = self.team.ask("share")
        if self.way == "images":
            parts = [(rows.astype(np.float64), by) for rows, by in map(self.team.fetch, handles)]
            return np.concatenate([((r if f is None else r * f[:, None]) - center_D) / scale_D for r, f in parts])
        size = self.team.size
        pairs = [(i, j) for i in range(size) for j in range(i + 1)]
        # Of equal work: diagonal pairs and others go round separately.
        pairs = [pair for pair in pairs if pair[0] == pair[1]] + [pair for pair in pairs if pair[0] != pair[1]]
        turns = [pairs[rank::size] for rank in range(size)]
        asked = [([(handles[i], handles[j]) for i, j in turn], center_D, scale_D) for turn in turns]
        bounds = np.cumsum([0, *(int((part >= 0).sum()) for (part,) in self._by_member(self.folds_N))])
        products_NN = np.empty((bounds[-1], bounds[-1]))
        for turn, answers in zip(turns, self.team.ask_each("products", asked), strict=True):
            for (i, j), product in zip(turn, answers, strict=True):
                rows, columns = slice(bounds[i], bounds[i + 1]), slice(bounds[j], bounds[j + 1])
                products_NN[rows, columns], products_NN[columns, rows] = product, product.T
        return products_NN

    def expanded(self, weights: np.ndarray) -> np.ndarray:
        """Weights of images, where the way was products, as weights of features [D, K]; others as they are."""
        if self.way != "products":
            return weights
        weights_NK = np.zeros((len(self.codes_N), weights.shape[1]))
        weights_NK[self.folds_N >= 0] = weights
        center_D, scale_D = self.scaling(-1)
        asked = [(own, center_D, scale_D) for (own,) in self._by_member(weights_NK)]
        total: np.ndarray = sum(self.team.ask_each("expand", asked))
        return total

    def _fit_mlp(self) -> Arrays:
        """The small network, on rotated images, images, or images that stay where they are."""
        center_D, scale_D = self.scaling(-1)
        weights_K = self.class_weights(-1)

        def on_epoch(epoch: int, epochs: int) -> None:
            self.team.report({"epoch": epoch, "epochs": epochs})

        if self.way == "sums":
            center_D = center_D if self.moments else self._sums().sum(axis=0) / len(self.codes_fit)
            squares = sum(self.team.ask("squares", self.num_folds, center_D[None]))[0].sum(axis=0)
            scale_D = scale_D * np.sqrt((squares / len(self.codes_fit) / scale_D**2).mean())
            fitted_N = np.flatnonzero(self.folds_N >= 0)

            def by_members(parameters: mlp.Parameters, chosen: np.ndarray) -> mlp.Parameters:
                chosen = fitted_N[chosen]
                cuts = np.searchsorted(chosen, self.bounds)
                own = [chosen[a:b] - at for a, b, at in zip(cuts, cuts[1:], self.bounds, strict=False)]
                asked = [(parameters, part, center_D, scale_D, weights_K) for part in own]
                answers = self.team.ask_each("mlp_gradient", asked)
                return [sum(parts[1:], parts[0]) for parts in zip(*answers, strict=True)]

            parameters = mlp.train(self.dim, self.num_classes, len(fitted_N), by_members, on_epoch)
            hidden, hidden_b = parameters[0] / scale_D[:, None], parameters[1]
            hidden_b = hidden_b - center_D @ hidden
            if self.moments:  # the head scales by itself
                mean_D, std_D = self.scaling(-1)
                hidden, hidden_b = hidden * std_D[:, None], hidden_b + mean_D @ hidden
        else:
            matrix = self.matrix(-1)
            every_N = np.ones(len(matrix), bool)
            make = basis_of_products if self.way == "products" else basis_of_rows
            basis = make(matrix, every_N, centred=True)
            scale = np.sqrt((basis.rows_NR**2).sum() / len(matrix) / min(self.dim, basis.rows_NR.shape[1]))
            inputs_NR = basis.rows_NR / scale

            def here(parameters: mlp.Parameters, chosen: np.ndarray) -> mlp.Parameters:
                codes_N = self.codes_fit[chosen]
                return mlp.gradient(parameters, inputs_NR[chosen], codes_N, weights_K[codes_N])

            # Products of so few rows gain nothing from more threads, and lose much where cores are shared.
            with threadpool_limits(1):
                parameters = mlp.train(inputs_NR.shape[1], self.num_classes, len(matrix), here, on_epoch)
            weights = basis.back @ (parameters[0] / scale)
            hidden, hidden_b = self.expanded(weights), parameters[1] - basis.center @ weights
        out, out_b = parameters[2], parameters[3]
        if self.num_classes == 2:  # one column of log odds
            out, out_b = out[:, 1:] - out[:, :1], out_b[1:] - out_b[:1]
        return {
            "hidden_coef": hidden.T.copy(),
            "hidden_intercept": hidden_b,
            "coef": out.T.copy(),
            "intercept": out_b,
        }

    # Where images stay with their members

    def _fit_by_sums(self, grid: Grid) -> Arrays:
        self.team.ask("objective", "float32")
        total = len(self.codes_fit)
        center_D, scale_D = self.scaling(-1)
        if self.request.kind == "logistic" and not self.moments:
            center_D = self._sums().sum(axis=0) / total
        rotation_DD, variances_D = self._rotation(center_D, scale_D)
        c = list(self.request.c)
        pairs = [(value, fold) for value in c for fold in range(self.num_folds)] if self.num_folds > 1 else []
        start, started = None, time.monotonic()
        if pairs:
            optimum, coordinates = self._minimize(pairs, center_D, rotation_DD, variances_D, None, GRID_TOLERANCE)
            W, b = coordinates.raw(optimum.theta_JPK, np.arange(len(optimum.values_P)))
            self._fill(grid, self._scored(pairs, W, b, optimum, time.monotonic() - started))
            theta = optimum.theta_JPK.reshape(self.dim + 1, len(c), self.num_folds, -1)
            start = theta[:, c.index(grid.best_c)].mean(axis=1)
        optimum, coordinates = self._minimize(
            [(grid.best_c, -1)], center_D, rotation_DD, variances_D, start, FINAL_TOLERANCE
        )
        W, b = coordinates.raw(optimum.theta_JPK, np.arange(len(optimum.values_P)))
        W, b = W.reshape(self.dim, -1), b.reshape(-1)
        if self.moments:  # the head scales by itself
            W, b = W * scale_D[:, None], b + center_D @ W
        arrays = {"coef": W.T.copy(), "intercept": b.copy()}
        if self.request.kind == "svm":
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
        repeat, columns = problem_shape(self.kind, self.num_classes)
        weights = np.stack([self.class_weights(fold) for _, fold in pairs])
        problems = problems_of(self.kind, np.array([c for c, _ in pairs]), np.array([f for _, f in pairs]), weights)
        scalings = [self.moments[fold] if self.moments else (center_D, np.ones(self.dim)) for _, fold in pairs]
        if self.kind == "svm" and not self.moments:
            scalings = [(np.zeros(self.dim), np.ones(self.dim))] * len(pairs)
        coordinates = Coordinates(
            np.repeat([one[0] for one in scalings], repeat, axis=0),
            np.repeat([one[1] for one in scalings], repeat, axis=0),
            rotation_DD,
            variances_D,
            1.0 if self.kind == "svm" else 0.0,
        )
        name = f"theta {pairs}"
        shape = (self.dim + 1, len(problems.c_P), columns)
        before = self.team.recall(name)
        start = before if before is not None else (np.zeros(shape) if start is None else start.reshape(shape))

        def on_step(now: Optimum) -> None:
            self.team.remember(name, now.theta_JPK)
            self.team.report({"step": now.steps, "passes": now.products, "gap": float(now.gaps_P.max())})

        return minimize(TeamObjective(self.team), problems, coordinates, start, tolerance, on_step), coordinates

    def _rotation(self, center_D: np.ndarray, scale_D: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Coordinates in which the images' covariance is diagonal; for the speed of the solver only."""
        if self.kind == "svm" and not self.moments:
            center_D = np.zeros(self.dim)
        if self.dim > MAX_ROTATED_DIM:
            counts = len(self.codes_fit)
            squares = sum(self.team.ask("squares", self.num_folds, center_D[None]))[0].sum(axis=0)
            return None, squares / counts / scale_D**2
        covariance_DD = sum(self.team.ask("covariance", center_D, scale_D)) / len(self.codes_fit)
        variances_D, rotation_DD = np.linalg.eigh(covariance_DD)
        return rotation_DD, np.maximum(variances_D, 0)

    def _scored(
        self, pairs: list[tuple[float, int]], W: np.ndarray, b: np.ndarray, optimum: Optimum, seconds: float
    ) -> list[Path]:
        """What the folds' optima say of the images they left out, as paths without scores but accuracies."""
        paths = []
        repeat = len(optimum.values_P) // len(pairs)
        self._oof: dict[tuple[float, int], tuple[np.ndarray, np.ndarray]] = {}
        for fold in range(self.num_folds):
            path = Path(fold, sorted(self.request.c))
            for c in path.c:
                at = pairs.index((c, fold))
                own = slice(at * repeat, (at + 1) * repeat)
                weights, intercept = W[:, own].reshape(self.dim, -1), b[own].reshape(-1)
                self._oof[c, fold] = weights, intercept
                right, count = np.sum(self.team.ask("right_left_out", weights, intercept, fold), axis=0)
                path.accuracies.append(float(right / count))
                value = optimum.values_P[own]
                path.values.append(float(value.sum()))
                path.seconds.append(seconds / len(pairs))
                path.gaps.append(float((optimum.gaps_P[own] * value).sum() / value.sum()))
                self.team.report({"c": c, "fold": fold, "accuracy": path.accuracies[-1]})
            paths.append(path)
        return paths

    def _temperature(self, c: float) -> float:
        """As `svm_temperature`, of images that stay where they are: the best of ever finer grids."""
        low, high = -4.0, 4.0
        for _ in range(4):
            grid = np.linspace(low, high, 33)
            losses = np.zeros(len(grid))
            for fold in range(self.num_folds):
                weights, intercept = self._oof[c, fold]
                losses += sum(self.team.ask("log_losses", weights, intercept, fold, 10.0**grid))
            best = int(losses.argmin())
            low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        return float(10 ** grid[best])

    # What all ways share

    def _fill(self, grid: Grid, paths: list[Path]) -> None:
        """The grid's rows in the order of the request, and the best C: of equals the first, as GridSearchCV has it."""
        if not paths:
            return
        for c in self.request.c:
            at = paths[0].c.index(c)
            accuracies = [
                path.accuracies[at]
                if path.accuracies
                else accuracy(path.scores[at], self.codes_fit[self.folds_fit == path.left_out])
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

    def class_weights(self, left_out: int) -> np.ndarray:
        """Of the images a fold leaves, as scikit-learn's `balanced` has them. [K]"""
        if self.weights_K is not None:
            return self.weights_K
        if self.request.class_weight == "none":
            return np.ones(self.num_classes)
        counts_K = np.bincount(self.codes_fit[self.folds_fit != left_out], minlength=self.num_classes)
        weights_K: np.ndarray = counts_K.sum() / (self.num_classes * np.maximum(counts_K, 1))
        return weights_K

    def scaling(self, left_out: int) -> tuple[np.ndarray, np.ndarray]:
        """Center and scale of the features, [D] each."""
        return self.moments.get(left_out, (np.zeros(self.dim), np.ones(self.dim)))

    def _sums(self) -> np.ndarray:
        total: np.ndarray = sum(self.team.ask("sums", self.num_folds))
        return total

    def _moments(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation of the images each fold leaves, as scikit-learn's StandardScaler has them."""
        sums_FD = self._sums()
        seen = [[f for f in range(self.num_folds) if f != left_out] for left_out in (*range(self.num_folds), -1)]
        counts_F = np.bincount(self.folds_fit, minlength=self.num_folds)
        numbers = [counts_F[folds].sum() for folds in seen]
        if self.num_folds == 1:  # nothing is left out
            seen, numbers = seen[1:], numbers[1:]
        means = np.stack([sums_FD[folds].sum(axis=0) / count for folds, count in zip(seen, numbers, strict=True)])
        squares = sum(self.team.ask("squares", self.num_folds, means))
        found = {}
        left_outs = [*range(self.num_folds), -1] if self.num_folds > 1 else [-1]
        for left_out, folds, count, mean_D, square_FD in zip(left_outs, seen, numbers, means, squares, strict=True):
            variance_D = square_FD[folds].sum(axis=0) / count
            eps = np.finfo(np.float64).eps
            constant_D = variance_D <= count * eps * variance_D + (count * mean_D * eps) ** 2
            found[left_out] = (mean_D, np.where(constant_D, 1.0, np.sqrt(variance_D)))
        return found

    def _by_member(self, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Every member's part of arrays over all images."""
        parts = zip(self.bounds, self.bounds[1:], strict=False)
        return [tuple(array[start:end] for array in arrays) for start, end in parts]


class TeamObjective:
    """The losses' sums over all members' images."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def evaluate(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> list[np.ndarray]:
        return self._sum(self.team.ask("evaluate", W, b, problems))

    def fix(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> None:
        self.team.ask("fix", W, b, problems)

    def product(self, V: np.ndarray, v: np.ndarray, chosen_P: np.ndarray) -> list[np.ndarray]:
        return self._sum(self.team.ask("product", V, v, chosen_P))

    def _sum(self, answers: list[list[np.ndarray]]) -> list[np.ndarray]:
        return [sum(parts[1:], parts[0]) for parts in zip(*answers, strict=True)]
