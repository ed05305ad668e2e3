"""Certify a fitted head: how far its own arrays are above the optimum, by one pass over features.

A solver knows the gradient in coordinates of its own, which says nothing of what these coordinates leave out. This is
measured on the features themselves and on the coefficients as they are saved.

Legend: N images, D features, K classes, P problems.
"""

import numpy as np

from bottleneck.heads.request import Arrays
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import problem_shape, problems_of
from bottleneck.heads.solver.newton import Coordinates, gaps_of
from bottleneck.heads.solver.sums_fit import WorkersObjective
from bottleneck.heads.solver.worker import Worker


def certified_gap(data: FitData, arrays: Arrays, c: float) -> float:
    """A bound of how far a linear head is above the optimum of its fit, relative to its objective.

    Args:
        data: begun, with the scaling of the head.
        arrays: `coef` [K, D] and `intercept` [K] of the head, for scaled features.
    """
    center_D, scale_D = data.scaling(-1)
    coef_DK, intercept_K = arrays["coef"].T, arrays["intercept"]
    if data.kind != "svm" and not data.moments:
        # A free intercept moves with the weights: around the mean they are as independent as they get.
        center_D = data.sums().sum(axis=0) / data.totals_F.sum()
        intercept_K = intercept_K + center_D @ coef_DK
    P, K = problem_shape(data.kind, data.num_targets)
    weights = data.class_weights(-1)[None]
    problems = problems_of(data.kind, np.array([c]), np.array([-1]), weights, data.has_label_KL)
    coordinates = Coordinates(
        np.tile(center_D, (P, 1)),
        np.tile(scale_D, (P, 1)),
        None,
        np.ones(data.dim),
        1.0 if data.kind == "svm" else 0.0,
    )
    theta_JPK = np.concatenate([coef_DK, intercept_K[None]]).reshape(data.dim + 1, P, K)
    data.workers.ask(Worker.objective, "float64")
    values_P, gaps_P = gaps_of(WorkersObjective(data.workers), problems, coordinates, theta_JPK)
    return float((gaps_P * values_P).sum() / values_P.sum())
