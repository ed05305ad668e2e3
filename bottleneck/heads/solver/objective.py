"""The sums of losses over rows: values, gradients, Hessian products.

Legend: N rows, D features, P problems, K score columns of a problem.
"""

from typing import Any, Protocol

import numpy as np

from bottleneck.heads.solver.losses import Problems, curvatures_of, losses_of
from bottleneck.heads.solver.rows import Rows, Sums

KEPT_BYTES = 256_000_000
"""Largest curvatures that are kept between products, and largest copy of the rows in the type of products; where
features are many, curvatures may take half as much as they do in float32. What is not kept is computed again."""
COUPLED_VALUES = 4_000_000
"""Largest products of classes, 32 MB: without them Newton's equations take more iterations."""


class Objective(Protocol):
    """Sums over all rows, wherever they are. Weights W and directions V are [D, P, K], b and v [P, K]."""

    def evaluate(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> Sums:
        """Loss [P], its gradients by W and b, and the sums of s times curvature [P, K]."""

    def fix(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> np.ndarray | None:
        """Fix the point of the Hessian for the next products.

        Returns:
            The sums of s times the probabilities of two classes, [P, K, K], which tell the classes that are mistaken
            for one another; None without a softmax, or for very many classes.
        """

    def product(self, V: np.ndarray, v: np.ndarray, chosen_P: np.ndarray) -> Sums:
        """The Hessian of the loss of the fixed problems with these numbers, times a direction: by W and by b."""


class LocalObjective:
    """The sums over one worker's rows."""

    def __init__(self, rows: Rows, product_dtype: Any = np.float64) -> None:
        """Hold the rows.

        Args:
            product_dtype: of Hessian products. float32 halves their time and bends only the way to the optimum; where
                it is, the gradient says, in float64.
        """
        self.rows = self._product_rows = rows
        self.product_dtype = np.dtype(product_dtype)
        features_ND = rows.features_ND
        if features_ND.dtype.itemsize > self.product_dtype.itemsize and features_ND.nbytes <= 2 * KEPT_BYTES:
            self._product_rows = rows.copied(self.product_dtype)
        self._curvatures: dict[int, np.ndarray] = {}

    def evaluate(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> Sums:
        rows, (D, P, K) = self.rows, W.shape

        def of_part(part: slice) -> Sums:
            block_ND = rows.block(part, np.float64)
            scores_NPK = (block_ND @ W.reshape(D, -1)).reshape(len(block_ND), P, K)
            scores_NPK += b
            loss_NP, slope_NPK, curvature_NPK = losses_of(scores_NPK, rows.class_indices_N[part], problems)
            weights_NP = rows.weights(problems, part)
            slope_NPK *= weights_NP[:, :, None]
            return [
                (weights_NP * loss_NP).sum(axis=0),
                (block_ND.T @ slope_NPK.reshape(len(block_ND), P * K)).reshape(D, P, K),
                slope_NPK.sum(axis=0),
                np.einsum("np,npk->pk", weights_NP, curvature_NPK),
            ]

        return rows.summed(of_part, P * K)

    def fix(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> np.ndarray | None:
        rows, (_, P, K), dtype = self._product_rows, W.shape, self.product_dtype
        self._at = (W.reshape(len(W), -1).astype(dtype), b.astype(dtype), problems)
        self._curvatures.clear()
        if problems.kind != "softmax" or P * K * K > COUPLED_VALUES:
            return None

        def of_part(part: slice) -> Sums:
            found_NPK = self._curvature(part, rows.block(part, dtype))
            seen_NPK = found_NPK * rows.weights(problems, part).astype(dtype)[:, :, None]
            return [np.stack([found_NPK[:, p].T @ seen_NPK[:, p] for p in range(P)]).astype(np.float64)]

        return rows.summed(of_part, P * K)[0]

    def product(self, V: np.ndarray, v: np.ndarray, chosen_P: np.ndarray) -> Sums:
        rows, (D, P, K), dtype = self._product_rows, V.shape, self.product_dtype
        V, v = V.reshape(D, -1).astype(dtype), v.astype(dtype)
        problems = self._at[2].at(chosen_P)

        def of_part(part: slice) -> Sums:
            block_ND = rows.block(part, dtype)
            curvature_NPK = self._curvature(part, block_ND)
            if curvature_NPK.shape[1] > P:
                curvature_NPK = curvature_NPK[:, chosen_P]
            along_NPK = (block_ND @ V).reshape(len(block_ND), P, K)
            along_NPK += v
            if K > 1:
                # The Hessian does not see a shift of all classes; without it a sure row loses no digits.
                along_NPK -= along_NPK[np.arange(len(along_NPK)), :, rows.class_indices_N[part]][:, :, None]
                along_NPK -= np.einsum("npk,npk->np", curvature_NPK, along_NPK)[:, :, None]
            along_NPK *= curvature_NPK
            along_NPK *= rows.weights(problems, part).astype(dtype)[:, :, None]
            by_W = (block_ND.T @ along_NPK.reshape(len(block_ND), P * K)).reshape(D, P, K)
            return [by_W.astype(np.float64), along_NPK.sum(axis=0).astype(np.float64)]

        return rows.summed(of_part, self._at[1].shape[0] * K)

    def _curvature(self, part: slice, block_ND: np.ndarray) -> np.ndarray:
        """What bends the loss of a block of rows: probabilities [n, P, K] of a softmax, else the second derivative."""
        if part.start in self._curvatures:
            return self._curvatures[part.start]
        W, b, problems = self._at
        scores_NPK = (block_ND @ W).reshape(len(block_ND), *b.shape)
        scores_NPK += b
        found_NPK = curvatures_of(scores_NPK, self.rows.class_indices_N[part], problems)
        kept_bytes = max(KEPT_BYTES, 2 * len(self.rows) * block_ND.shape[1])
        if b.size * len(self.rows) * self.product_dtype.itemsize <= kept_bytes:
            self._curvatures[part.start] = found_NPK
        return found_NPK
