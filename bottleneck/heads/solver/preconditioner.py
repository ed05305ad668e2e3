"""Approximate the inverse Hessian of softmax and one-column losses, for conjugate gradients.

In coordinates in which the rows' covariance is diagonal, the Hessian of a softmax is about the Kronecker product of the
variances with the classes' own Hessian, if what a row says of classes were independent of its features. That couples
classes that are mistaken for one another, which without it take half of all iterations to be told apart.

Legend: P problems, K score columns of a problem, J = D + 1 coordinates (the last is b).
"""

import numpy as np

LEAST_CURVATURE = 1e-6
"""Of the largest one: smaller ones are rounding where products are in float32."""


class Preconditioner:
    """Multiplies gradients with the approximate inverse Hessian."""

    def __init__(
        self, penalty_J: np.ndarray, variances_J: np.ndarray, curvature_PK: np.ndarray, pairs_PKK: np.ndarray | None
    ) -> None:
        """Args:
        penalty_J: second derivative of the penalty.
        variances_J: of the rows in each coordinate; 1 for b.
        curvature_PK: sums of the losses' second derivatives by one score.
        pairs_PKK: minus the sums of those by two scores; None for those of one score alone.
        """
        self._vectors_PKK = None
        if pairs_PKK is not None:
            hessian_PKK = -pairs_PKK
            columns_K = np.arange(curvature_PK.shape[1])
            # Not from the pairs, whose rounding is larger than the curvature where the classes are sure.
            hessian_PKK[:, columns_K, columns_K] = curvature_PK
            # A shift of all classes has no curvature; more than all others together sorts it last.
            hessian_PKK += 2 * curvature_PK.mean(axis=1)[:, None, None]
            curvature_PK, self._vectors_PKK = np.linalg.eigh(hessian_PKK)
            curvature_PK = np.maximum(curvature_PK, curvature_PK[:, -2, None] * LEAST_CURVATURE)
            curvature_PK[:, -1] = 0
        penalty_J11, variances_J11 = penalty_J[:, None, None], variances_J[:, None, None]
        self._inverse_JPK = 1 / (penalty_J11 + variances_J11 * curvature_PK + 1e-300)
        if pairs_PKK is not None and penalty_J[-1] == 0:
            self._inverse_JPK[-1, :, -1] = 0  # nothing determines a shift of all classes' b

    def __call__(self, residual_JPK: np.ndarray, chosen_P: np.ndarray) -> np.ndarray:
        """Multiply the residuals of the problems with these numbers."""
        inverse_JPK = self._inverse_JPK[:, chosen_P]
        if self._vectors_PKK is None:
            alone_JPK: np.ndarray = inverse_JPK * residual_JPK
            return alone_JPK
        vectors_PKK = self._vectors_PKK[chosen_P]
        turned_PJK = residual_JPK.transpose(1, 0, 2) @ vectors_PKK
        turned_PJK *= inverse_JPK.transpose(1, 0, 2)
        result_PJK: np.ndarray = turned_PJK @ vectors_PKK.transpose(0, 2, 1)
        return result_PJK.transpose(1, 0, 2)
