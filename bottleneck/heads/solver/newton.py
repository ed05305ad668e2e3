"""Solve many regularised linear problems over the same rows, by truncated Newton steps in lockstep.

A problem is a value of C and the fold it leaves out (and, for an svm, a class). It minimises

    sum_i s_i loss(x_i W + b, y_i) + |W|^2 / 2

with the weight s_i of a row being C times its class' weight, and 0 for rows of the fold left out: what
LogisticRegression (b is free) and LinearSVC (squared hinge, b is penalised like a weight) minimise. Newton's equations
are solved by conjugate gradients in coordinates in which the rows' covariance is diagonal. As the penalty makes the
objective 1-strongly convex, half the squared gradient bounds how far it is above the optimum.

Legend: N rows, D features, P problems, K score columns of a problem, J = D + 1 coordinates (the last is b).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bottleneck.heads.solver.losses import Problems
from bottleneck.heads.solver.objective import Objective
from bottleneck.heads.solver.preconditioner import Preconditioner

MAX_STEPS = 200
MAX_PRODUCTS = 3000
"""Most iterations of one Newton step; rounding makes more useless."""
TRUNCATION = 0.2
"""Far from the optimum, conjugate gradients stop when one more of them gains less than this share of the mean so far
(Nash and Sofer 1990). Measured on 680 rows, C from 0.1 to 10,000: 0.5 takes a tenth longer, 0.1 a third."""
NEAR = 1e-2
"""Relative gap below which a Newton step squares it. Conjugate gradients then go on until they are as close, as every
new start forgets the Hessian: that saves half of all evaluations and a third of all products (6,000 rows)."""
LEAST_RESIDUAL = 1e-7
"""The least share of the squared gradient that one Newton step is to leave: with products in float32, much less takes
far more iterations."""


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of the optimiser: x W + b = ((x - center) / scale) rotation theta + theta_b."""

    centers_PD: np.ndarray
    scales_PD: np.ndarray
    rotation_DD: np.ndarray | None
    """Orthogonal; the eigenvectors of the scaled rows' covariance. None for the identity."""
    variances_D: np.ndarray
    """Of the scaled, centred rows in these coordinates; for the preconditioner only."""
    penalty_of_b: float

    def raw(self, theta_JPK: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta -> W [D, P, K], b [P, K]."""
        inner = theta_JPK[:-1]
        W = inner if self.rotation_DD is None else np.tensordot(self.rotation_DD, inner, axes=1)
        W = W / self.scales_PD[active].T[:, :, None]
        return W, theta_JPK[-1] - np.einsum("pd,dpk->pk", self.centers_PD[active], W)

    def adjoint(self, W: np.ndarray, b: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Gradients by W and b -> gradient by theta."""
        W = W - self.centers_PD[active].T[:, :, None] * b
        W = W / self.scales_PD[active].T[:, :, None]
        inner = W if self.rotation_DD is None else np.tensordot(self.rotation_DD.T, W, axes=1)
        return np.concatenate([inner, b[None]])

    @property
    def penalty_J(self) -> np.ndarray:
        penalty_J = np.ones(len(self.variances_D) + 1)
        penalty_J[-1] = self.penalty_of_b
        return penalty_J


@dataclass
class Optimum:
    """The result of the problems."""

    theta_JPK: np.ndarray
    values_P: np.ndarray
    """Objectives, penalty included."""
    gaps_P: np.ndarray
    """Bounds of how far the objectives are above the optimum, relative to them."""
    steps: int = 0
    products: int = 0


Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""theta, gradient [J, P, K] and the numbers of the active problems -> direction [J, P, K]."""


def minimize(
    objective: Objective,
    problems: Problems,
    coordinates: Coordinates,
    start_JPK: np.ndarray,
    tolerance: float,
    on_step: Callable[[Optimum], None] | None = None,
    solve: Solver | None = None,
) -> Optimum:
    """Solve every problem until its gap is below the tolerance, or limited by rounding.

    Args:
        start_JPK: where to begin; zeros, or the optimum of a smaller C.
        tolerance: of the gap, relative to the objective.
        on_step: called after every Newton step.
        solve: gives Newton's direction where there is a better way than conjugate gradients.
    """
    now = Optimum(start_JPK.copy(), np.zeros(0), np.zeros(0))
    look = partial(_look, objective, problems, coordinates)
    every = np.arange(len(problems.c_P))
    now.values_P, gradient, curvature = look(now.theta_JPK, every)
    best_P, stuck_P = np.full(len(every), np.inf), np.zeros(len(every), int)
    while True:
        now.gaps_P = _gaps(coordinates, now.values_P, gradient, curvature)
        # Near the optimum the objective no longer tells better from worse, but the gradient does.
        stuck_P = np.where(now.gaps_P < best_P / 4, 0, stuck_P + 1)
        best_P = np.minimum(best_P, now.gaps_P)
        active = every[(now.gaps_P > tolerance) & ((stuck_P < 4) | (now.gaps_P > 1e-7))]
        if not len(active) or now.steps >= MAX_STEPS:
            return now
        if solve:
            direction = solve(now.theta_JPK, gradient, active)
        else:
            direction = _direction(objective, problems, coordinates, now, gradient, curvature, active, tolerance)
        moved = _search(look, now, gradient, curvature, direction, active)
        now.steps += 1
        if on_step:
            on_step(now)
        if not moved:
            return now


def gaps_of(
    objective: Objective, problems: Problems, coordinates: Coordinates, theta_JPK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Objectives [P], penalty included, and bounds of how far they are above the optimum, relative to them."""
    every = np.arange(len(problems.c_P))
    values_P, gradient, curvature = _look(objective, problems, coordinates, theta_JPK, every)
    return values_P, _gaps(coordinates, values_P, gradient, curvature)


def _look(
    objective: Objective, problems: Problems, coordinates: Coordinates, theta: np.ndarray, active: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objectives [p] of the active problems, their gradients [J, p, K] and the curvatures by the scores [p, K]."""
    penalty_J11 = coordinates.penalty_J[:, None, None]
    value, by_W, by_b, curvature = objective.evaluate(*coordinates.raw(theta, active), problems.at(active))
    value = value + (penalty_J11 * theta**2).sum(axis=(0, 2)) / 2
    return value, coordinates.adjoint(by_W, by_b, active) + penalty_J11 * theta, curvature


def _gaps(coordinates: Coordinates, values_P: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    # b is free, so its part of the bound is by its curvature.
    norms_P = (gradient[:-1] ** 2).sum(axis=(0, 2))
    norms_P += (gradient[-1] ** 2 / np.maximum(curvature + coordinates.penalty_of_b, 1e-300)).sum(axis=1)
    gaps_P: np.ndarray = norms_P / 2 / values_P
    return gaps_P


def _direction(
    objective: Objective,
    problems: Problems,
    coordinates: Coordinates,
    now: Optimum,
    gradient: np.ndarray,
    curvature: np.ndarray,
    active: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """The truncated Newton direction of the active problems; zero for the others."""
    penalty_J11 = coordinates.penalty_J[:, None, None]
    direction = np.zeros_like(gradient)
    fixed = active
    pairs_PKK = objective.fix(*coordinates.raw(now.theta_JPK[:, fixed], fixed), problems.at(fixed))
    precondition = Preconditioner(
        coordinates.penalty_J, np.append(coordinates.variances_D, 1.0), curvature[fixed], pairs_PKK
    )
    residual = -gradient
    search = np.zeros_like(gradient)
    search[:, fixed] = precondition(residual[:, fixed], np.arange(len(fixed)))
    size_P = (residual * search).sum(axis=(0, 2))
    first_P, model_P = size_P.copy(), np.zeros(len(size_P))
    # As close as Newton's own error and the tolerance make it worth.
    far_P = now.gaps_P > NEAR
    wanted_P = np.clip(now.gaps_P, np.maximum(LEAST_RESIDUAL, 0.1 * tolerance / now.gaps_P), 0.1)
    wanted_P[far_P] = 1e-26
    for count in range(1, MAX_PRODUCTS + 1):
        chosen = np.searchsorted(fixed, active)
        V, v = coordinates.raw(search[:, active], active)
        by_W, by_b = objective.product(V, v, chosen)
        bent = coordinates.adjoint(by_W, by_b, active) + penalty_J11 * search[:, active]
        now.products += 1
        step_P = size_P[active] / np.maximum((search[:, active] * bent).sum(axis=(0, 2)), 1e-300)
        direction[:, active] += step_P[:, None] * search[:, active]
        residual[:, active] -= step_P[:, None] * bent
        scaled = precondition(residual[:, active], chosen)
        new_P = (residual[:, active] * scaled).sum(axis=(0, 2))
        model = -(direction[:, active] * (residual - gradient)[:, active]).sum(axis=(0, 2)) / 2
        gain_P = 1 - model_P[active] / np.minimum(model, -1e-300)
        ended = far_P[active] & (count * gain_P < TRUNCATION) & (count > 2)
        ended |= new_P <= wanted_P[active] * first_P[active]
        search[:, active] = scaled + (new_P / size_P[active])[:, None] * search[:, active]
        size_P[active], model_P[active] = new_P, model
        active = active[~ended]
        if not len(active):
            break
    return direction


def _search(
    look: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
    now: Optimum,
    gradient: np.ndarray,
    curvature: np.ndarray,
    direction: np.ndarray,
    active: np.ndarray,
) -> bool:
    """Move along the direction, by half as much until the objective falls enough; false if no problem can move."""
    slope_P = (gradient * direction).sum(axis=(0, 2))
    length, moved = 1.0, False
    while len(active) and length > 1e-6:
        theta = now.theta_JPK[:, active] + length * direction[:, active]
        value, by_theta, bent = look(theta, active)
        # Rounding of a sum of many losses is allowed for.
        allowed = now.values_P[active] + 1e-4 * length * slope_P[active] + 1e-13 * np.abs(now.values_P[active])
        good = value <= allowed
        chosen = active[good]
        now.theta_JPK[:, chosen], now.values_P[chosen] = theta[:, good], value[good]
        gradient[:, chosen], curvature[chosen] = by_theta[:, good], bent[good]
        moved |= bool(good.any())
        active, length = active[~good], length / 2
    return moved
