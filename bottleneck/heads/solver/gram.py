"""Solve data that fits one worker: rotate it into its span, then follow growing C fold by fold.

Where images are fewer than dimensions, N x N products of images hold all that matters (exact, as the penalty does not
change under rotation): 25,088 dimensions cost as much as N. Each fold gets coordinates in which its rows' covariance is
diagonal, and each C starts where the one before ended.

Legend: N images, D features, M of them seen by a fold, R dimensions of the span of those, K score columns.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg

from bottleneck.heads.solver.label_counts import AnyCounts, counts_of
from bottleneck.heads.solver.losses import Problems
from bottleneck.heads.solver.newton import Coordinates, Solver, minimize
from bottleneck.heads.solver.objective import LocalObjective
from bottleneck.heads.solver.rows import Rows

DIRECT_IMAGES = 4096
"""Largest system of an svm's Newton equations that is solved directly: its support vectors change with every step."""
REFINEMENTS = 4
"""Solutions of those equations, each of what the one before left: large features and C leave it few right digits."""
ROUGH_TOLERANCE = 1e-9
"""Up to this tolerance, Hessian products in float32 are accurate enough."""
WAY_TOLERANCE = 1e-4
LARGEST_START = 1e4
"""C times the mean squared length of an image, from zeros: with more, an svm's support vectors change at every step."""
LARGEST_GROWTH = 100.0
"""Of C, from one svm to the next, for the same reason."""
RANK_TOLERANCE = 1e-14
"""Of the largest variance, an image: below it is the rounding of the products."""


@dataclass(frozen=True)
class Basis:
    """The span of the images outside a fold."""

    rows_NR: np.ndarray
    """Every image in its coordinates, centred if the intercept is free."""
    variances_R: np.ndarray
    seen_N: np.ndarray
    back: np.ndarray
    """[D, R] from coordinates to features, or [M, R] from coordinates to weights of the seen images."""
    center: np.ndarray
    """The mean, as `back` gives it: [D], or [M] products of the mean with the seen images."""


@dataclass
class Path:
    """The optima of one fold along growing C."""

    left_out: int
    c: list[float]
    weights: list[np.ndarray] = field(default_factory=list)
    """For each C [D, K]; of the seen images instead of features, [M, K], where the basis was made from products."""
    intercepts: list[np.ndarray] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    """For each C the scores of the images left out, [n, K]."""
    seconds: list[float] = field(default_factory=list)
    counts: list[AnyCounts] = field(default_factory=list)
    """For each C, what was predicted for the images left out."""


def basis_of_products(products_NN: np.ndarray, seen_N: np.ndarray, *, centred: bool) -> Basis:
    """The basis from the Gram matrix of all images."""
    rows_NM = products_NN[:, seen_N]
    center_M = rows_NM[seen_N].mean(axis=0) if centred else np.zeros(rows_NM.shape[1])
    if centred:
        rows_NM = rows_NM - center_M
        rows_NM -= rows_NM.mean(axis=1)[:, None]
    roots_R, vectors_MR = _eigen(rows_NM[seen_N])
    if centred:
        # Near copies differ by so little that their eigenvector takes on some of the vector of ones, whose eigenvalue
        # is 0: left in, it brings back the mean, which is far larger than what tells the copies apart.
        vectors_MR -= vectors_MR.mean(axis=0)
    back_MR = vectors_MR / np.sqrt(roots_R)
    return Basis(rows_NM @ back_MR, roots_R / len(vectors_MR), seen_N, back_MR, center_M)


def basis_of_rows(features_ND: np.ndarray, seen_N: np.ndarray, *, centred: bool) -> Basis:
    """The basis from the images, at least as many as dimensions."""
    seen_MD = features_ND[seen_N]
    center_D = seen_MD.mean(axis=0) if centred else np.zeros(seen_MD.shape[1])
    seen_MD = seen_MD - center_D
    roots_R, vectors_DR = _eigen(seen_MD.T @ seen_MD)
    return Basis((features_ND - center_D) @ vectors_DR, roots_R / len(seen_MD), seen_N, vectors_DR, center_D)


def solve_path(
    basis: Basis,
    class_indices_N: np.ndarray,
    folds_N: np.ndarray,
    left_out: int,
    kind: str,
    c_values: list[float],
    class_weights_K: np.ndarray,
    tolerance: float,
    sample_weights_N: np.ndarray | None = None,
    has_label_KL: np.ndarray | None = None,
) -> Path:
    """Solve one fold for each C, in growing order.

    Args:
        kind: `softmax`, `logistic` (two classes), `svm` or `labels`.
        class_weights_K: for `labels` [L, K].
        left_out: the fold whose images are not seen but scored.
        tolerance: of the objective, relative, above its optimum.
        sample_weights_N: of the images; None where all count alike.
        has_label_KL: as in `Problems`.
    """
    seen_N = basis.seen_N
    rows = Rows(
        basis.rows_NR[seen_N],
        class_indices_N[seen_N],
        np.zeros(int(seen_N.sum()), int),
        sample_weights_N=None if sample_weights_N is None else sample_weights_N[seen_N],
    )
    R = rows.features_ND.shape[1]
    P, K = problem_shape(kind, len(class_weights_K))
    coordinates = Coordinates(np.zeros((P, R)), np.ones((P, R)), None, basis.variances_R, 1.0 if kind == "svm" else 0.0)
    objective = LocalObjective(rows, np.dtype(np.float32))
    products_MM = None
    if kind == "svm" and len(rows.features_ND) <= DIRECT_IMAGES:
        products_MM = rows.features_ND @ rows.features_ND.T + 1.0
    path = Path(left_out, sorted(c_values))
    out_nR = basis.rows_NR[folds_N == left_out]
    ends: list[np.ndarray] = []
    way = _way(path.c, basis.variances_R.sum()) if products_MM is not None else []
    for c in sorted([*way, *path.c]):
        started = time.monotonic()
        problems = problems_of(kind, np.array([c]), np.array([-1]), class_weights_K[None], has_label_KL)
        solve = None
        if products_MM is not None:
            solve = _support_vector_solver(rows, products_MM, problems)
        start = _start(objective, problems, coordinates, ends, (R + 1, P, K))
        # On the way to a closer optimum the other values of C only point to it.
        is_last = c == path.c[-1]
        is_rough = c in way or (tolerance < ROUGH_TOLERANCE and not is_last)
        wanted = WAY_TOLERANCE if is_rough else max(tolerance, ROUGH_TOLERANCE)
        optimum = minimize(objective, problems, coordinates, start, wanted, solve=solve)
        if tolerance < wanted and is_last:
            close = LocalObjective(rows)
            optimum = minimize(close, problems, coordinates, optimum.theta_JPK, tolerance, solve=solve)
        ends.append(optimum.theta_JPK)
        if c in way:
            continue
        theta_JK = optimum.theta_JPK.reshape(R + 1, -1)
        weights = basis.back @ theta_JK[:-1]
        path.intercepts.append(theta_JK[-1] - basis.center @ weights)
        path.weights.append(weights)
        path.values.append(float(optimum.values_P.sum()))
        path.gaps.append(float((optimum.gaps_P * optimum.values_P).sum() / optimum.values_P.sum()))
        path.scores.append(out_nR @ theta_JK[:-1] + theta_JK[-1])
        if len(out_nR):
            path.counts.append(counts_of(path.scores[-1], class_indices_N[folds_N == left_out], has_label_KL))
        path.seconds.append(time.monotonic() - started)
    return path


def problem_shape(kind: str, num_classes: int) -> tuple[int, int]:
    """Problems and score columns per C and fold: a softmax couples its classes, an svm has one problem per class.

    Args:
        num_classes: for `labels` the number of these, of which each is a problem.
    """
    if kind == "softmax":
        return 1, num_classes
    if kind == "labels":
        return num_classes, 1
    return (num_classes if kind == "svm" and num_classes > 2 else 1), 1


def problems_of(
    kind: str,
    c: np.ndarray,
    left_out: np.ndarray,
    class_weights: np.ndarray,
    has_label_KL: np.ndarray | None = None,
) -> Problems:
    """The problems of pairs of C and fold; for an svm or `labels`, each pair's classes or labels in turn.

    Args:
        class_weights: of each pair [K], for `labels` [L, K].
    """
    num_classes = class_weights.shape[1]
    repeat, _ = problem_shape(kind, num_classes)
    positive = np.arange(repeat) if repeat > 1 or kind == "labels" else np.ones(1, int)
    if kind == "svm" and repeat > 1:
        # As LIBLINEAR's `train` has it: a class' weight counts where it stands against the others, whose is 1.
        identity = np.eye(num_classes)
        weights = np.concatenate([identity * row + (1 - identity) for row in class_weights])
    elif kind == "labels":
        weights = class_weights.reshape(-1, class_weights.shape[-1])
    else:
        weights = np.repeat(class_weights, repeat, axis=0)
    return Problems(
        kind,
        np.repeat(c, repeat),
        np.repeat(left_out, repeat),
        np.tile(positive, len(c)),
        weights,
        has_label_KL,
    )


def _way(c_values: list[float], squared_length: float) -> list[float]:
    """More values of C, so that none is too large to start with, or too far from the one before."""
    way: list[float] = []
    before = LARGEST_START / squared_length if squared_length else np.inf
    for c in c_values:
        between = c / LARGEST_GROWTH
        while between > before:
            way.append(between)
            between /= LARGEST_GROWTH
        before = max(c, before)
    return way


def _start(
    objective: LocalObjective,
    problems: Problems,
    coordinates: Coordinates,
    ends: list[np.ndarray],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Extrapolate from smaller values of C, if that is better than the last optimum."""
    if not ends:
        return np.zeros(shape)
    if len(ends) == 1:
        return ends[-1]
    every = np.arange(len(problems.c_P))
    last, ahead = ends[-1], 2 * ends[-1] - ends[-2]
    penalty_J11 = coordinates.penalty_J[:, None, None]

    def value(theta: np.ndarray) -> Any:
        return (
            objective.evaluate(*coordinates.raw(theta, every), problems)[0]
            + (penalty_J11 * theta**2).sum(axis=(0, 2)) / 2
        )

    better_P = value(ahead) < value(last)
    return np.where(better_P[:, None], ahead, last)


def _support_vector_solver(rows: Rows, products_MM: np.ndarray, problems: Problems) -> Solver:
    """Newton's direction of the squared hinge, whose Hessian is I + 2 A' S A over the rows A inside the margin.

    By Woodbury's identity as few equations as there are such rows, or dimensions.
    """
    features_MJ = np.hstack([rows.features_ND, np.ones((len(rows.features_ND), 1))])
    weights_MP = rows.weights(problems, slice(None))

    def solve(theta_JPK: np.ndarray, gradient: np.ndarray, active: np.ndarray) -> np.ndarray:
        direction = np.zeros_like(gradient)
        scores_MP = features_MJ @ theta_JPK[:, :, 0]
        for p in active:
            sign_M = np.where(rows.class_indices_N == problems.positive_P[p], 1.0, -1.0)
            inside = np.flatnonzero((sign_M * scores_MP[:, p] < 1) & (weights_MP[:, p] > 0))
            twice, near = 2 * weights_MP[inside, p], features_MJ[inside]
            is_dual = len(inside) <= near.shape[1]
            if is_dual:
                matrix = products_MM[np.ix_(inside, inside)] + np.diag(1 / twice)
            else:
                matrix = (near.T * twice) @ near + np.eye(near.shape[1])
            factor = scipy.linalg.cho_factor(matrix, check_finite=False)
            left = -gradient[:, p, 0]
            for _ in range(REFINEMENTS):
                if is_dual:
                    step = left - near.T @ scipy.linalg.cho_solve(factor, near @ left)
                else:
                    step = scipy.linalg.cho_solve(factor, left)
                direction[:, p, 0] += step
                left = left - step - near.T @ (twice * (near @ step))
        return direction

    return solve


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the span, without those below rounding."""
    values, vectors = scipy.linalg.eigh(matrix, driver="evd", check_finite=False)
    kept = values > max(values[-1], 0) * RANK_TOLERANCE * len(values)
    return values[kept], vectors[:, kept]
