"""The losses of linear classifiers and their sums over rows: values, gradients, Hessian products.

A problem is a value of C and the fold it leaves out (and, for an svm, a class); one pass over the rows serves many. A
row's weight s is C times its class' weight times its own, and 0 for rows of the fold that is left out.

Legend: N rows, D features, P problems, K score columns of a problem.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

KEPT_VALUES = 64_000_000
"""Largest curvatures that are kept between products; larger ones are computed again."""
BLOCK_VALUES = 4_000_000
"""Scores per block of rows: 32 MB, a few such arrays at a time."""


@dataclass(frozen=True)
class Problems:
    """P minimisation problems."""

    kind: str
    """`softmax` (K columns a problem), `logistic` or `svm` (one column: a positive class against the others)."""
    c_P: np.ndarray
    left_out_P: np.ndarray
    """The fold whose rows a problem does not see; -1 where it sees all."""
    positive_P: np.ndarray
    """The class whose rows are positive, for one column."""
    class_weights_PK: np.ndarray
    """Of every class, whatever the number of columns."""

    def at(self, active: np.ndarray) -> "Problems":
        return Problems(
            self.kind,
            self.c_P[active],
            self.left_out_P[active],
            self.positive_P[active],
            self.class_weights_PK[active],
        )


@dataclass
class Rows:
    """The rows of one worker."""

    features_ND: np.ndarray
    """float32 or float64, as stored; never changed."""
    class_indices_N: np.ndarray
    """Class indices."""
    folds_N: np.ndarray
    """The fold of a row; -2 for rows that no problem sees."""
    factors_N: np.ndarray | None = None
    """What each row is multiplied with: one over its length, where rows are scaled to length 1."""
    sample_weights_N: np.ndarray | None = None
    """What each row's loss is multiplied with; None where all rows count alike."""

    def block(self, part: slice, dtype: Any) -> np.ndarray:
        """A block of scaled rows."""
        block_ND = self.features_ND[part].astype(dtype, copy=False)
        return block_ND if self.factors_N is None else block_ND * self.factors_N[part, None].astype(dtype)

    def parts(self, columns: int) -> list[slice]:
        """Slices of rows with so many scores that a block of them fits."""
        size = max(256, BLOCK_VALUES // max(columns, self.features_ND.shape[1]))
        return [slice(start, start + size) for start in range(0, len(self.features_ND), size)]

    def weights(self, problems: Problems, part: slice) -> np.ndarray:
        """s [n, P] of a block of rows."""
        class_indices_N, folds_N = self.class_indices_N[part], self.folds_N[part]
        seen_NP = (folds_N[:, None] != problems.left_out_P) & (folds_N[:, None] != -2)
        weights_NP: np.ndarray = seen_NP * problems.c_P * problems.class_weights_PK.T[class_indices_N]
        if self.sample_weights_N is not None:
            weights_NP *= self.sample_weights_N[part, None]
        return weights_NP


class Objective(Protocol):
    """Sums over all rows, wherever they are. Weights W and directions V are [D, P, K], b and v [P, K]."""

    def evaluate(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> list[np.ndarray]:
        """Loss [P], its gradients by W and b, and the sums of s times curvature [P, K]."""

    def fix(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> None:
        """Fix the point of the Hessian for the next products."""

    def product(self, V: np.ndarray, v: np.ndarray, chosen_P: np.ndarray) -> list[np.ndarray]:
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
        self.product_dtype = product_dtype
        if rows.features_ND.dtype != product_dtype and rows.features_ND.size <= KEPT_VALUES:
            self._product_rows = replace(rows, features_ND=rows.features_ND.astype(product_dtype))
        self._curvatures: dict[int, np.ndarray] = {}

    def evaluate(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> list[np.ndarray]:
        rows, (D, P, K) = self.rows, W.shape
        value_P, gradient, gradient_b, curvature = np.zeros(P), np.zeros((D, P * K)), np.zeros((P, K)), np.zeros((P, K))
        for part in rows.parts(P * K):
            block_ND = rows.block(part, np.float64)
            scores_NPK = (block_ND @ W.reshape(D, -1)).reshape(-1, P, K) + b
            loss_NP, slope_NPK, curvature_NPK = _losses(scores_NPK, rows.class_indices_N[part], problems)
            weights_NP = rows.weights(problems, part)
            value_P += (weights_NP * loss_NP).sum(axis=0)
            slope_NPK *= weights_NP[:, :, None]
            gradient += block_ND.T @ slope_NPK.reshape(len(block_ND), -1)
            gradient_b += slope_NPK.sum(axis=0)
            curvature += np.einsum("np,npk->pk", weights_NP, curvature_NPK)
        return [value_P, gradient.reshape(D, P, K), gradient_b, curvature]

    def fix(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> None:
        self._at = (W.astype(self.product_dtype), b.astype(self.product_dtype), problems)
        self._curvatures.clear()

    def product(self, V: np.ndarray, v: np.ndarray, chosen_P: np.ndarray) -> list[np.ndarray]:
        rows, (D, P, K), dtype = self._product_rows, V.shape, self.product_dtype
        result, result_b = np.zeros((D, P * K)), np.zeros((P, K))
        V, v = V.reshape(D, -1).astype(dtype), v.astype(dtype)
        for part in rows.parts(self._at[0].shape[1] * K):
            block_ND = rows.block(part, dtype)
            curvature_NPK = self._curvature(part, block_ND)
            if len(chosen_P) < curvature_NPK.shape[1]:
                curvature_NPK = curvature_NPK[:, chosen_P]
            along_NPK = (block_ND @ V).reshape(-1, P, K) + v
            if K > 1:
                # The Hessian does not see a shift of all classes; without it a sure row loses no digits.
                along_NPK -= along_NPK[np.arange(len(along_NPK)), :, rows.class_indices_N[part]][:, :, None]
                along_NPK *= curvature_NPK
                along_NPK -= curvature_NPK * along_NPK.sum(axis=2, keepdims=True)
            else:
                along_NPK *= curvature_NPK
            weights_NP = rows.weights(self._at[2].at(chosen_P), part).astype(dtype)
            along_NPK *= weights_NP[:, :, None]
            result += block_ND.T @ along_NPK.reshape(len(block_ND), -1)
            result_b += along_NPK.sum(axis=0)
        return [result.reshape(D, P, K), result_b]

    def _curvature(self, part: slice, block_ND: np.ndarray) -> np.ndarray:
        """What bends the loss of a block of rows: probabilities [n, P, K] of a softmax, else the second derivative."""
        if part.start in self._curvatures:
            return self._curvatures[part.start]
        W, b, problems = self._at
        scores_NPK = (block_ND @ W.reshape(len(W), -1)).reshape(-1, *b.shape) + b
        found_NPK = _curvatures(scores_NPK, self.rows.class_indices_N[part], problems)
        if b.size * len(self.rows.class_indices_N) <= KEPT_VALUES:
            self._curvatures[part.start] = found_NPK
        return found_NPK


def _losses(
    scores_NPK: np.ndarray, class_indices_N: np.ndarray, problems: Problems
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss [N, P], slope and curvature [N, P, K] at scores (which may be overwritten)."""
    if problems.kind == "softmax":
        rows_N = np.arange(len(class_indices_N))
        # Relative to the true class, so that tiny losses keep their digits: they are the ones a large C multiplies.
        scores_NPK -= scores_NPK[rows_N, :, class_indices_N][:, :, None]
        top_NP = scores_NPK.max(axis=2)
        powers_NPK = np.exp(scores_NPK - top_NP[:, :, None])
        powers_NPK[rows_N, :, class_indices_N] = 0
        others_NP, own_NP = powers_NPK.sum(axis=2), np.exp(-top_NP)
        total_NP = others_NP + own_NP
        loss_NP = top_NP + np.where(top_NP > 0, np.log(total_NP), np.log1p(others_NP))
        slope_NPK = powers_NPK / total_NP[:, :, None]
        curvature_NPK = slope_NPK * (1 - slope_NPK)
        curvature_NPK[rows_N, :, class_indices_N] = own_NP * others_NP / total_NP**2
        slope_NPK[rows_N, :, class_indices_N] = -others_NP / total_NP
        return loss_NP, slope_NPK, curvature_NPK
    sign_NP = np.where(class_indices_N[:, None] == problems.positive_P, 1.0, -1.0)
    margin_NP = sign_NP * scores_NPK[:, :, 0]
    if problems.kind == "logistic":
        wrong_NP = 1 / (1 + np.exp(np.minimum(margin_NP, 700)))
        loss_NP = np.logaddexp(0, -margin_NP)
        curvature_NP = wrong_NP * (1 - wrong_NP)
        return loss_NP, (-sign_NP * wrong_NP)[:, :, None], curvature_NP[:, :, None]
    lack_NP = np.maximum(0, 1 - margin_NP)
    return lack_NP**2, (-2 * sign_NP * lack_NP)[:, :, None], (2.0 * (lack_NP > 0))[:, :, None]


def _curvatures(scores_NPK: np.ndarray, class_indices_N: np.ndarray, problems: Problems) -> np.ndarray:
    """Probabilities of a softmax, else the loss' second derivative, at scores (which are overwritten)."""
    if problems.kind == "softmax":
        scores_NPK -= scores_NPK.max(axis=2, keepdims=True)
        np.exp(scores_NPK, out=scores_NPK)
        scores_NPK /= scores_NPK.sum(axis=2, keepdims=True)
        return scores_NPK
    sign_NP = np.where(class_indices_N[:, None] == problems.positive_P, 1, -1).astype(scores_NPK.dtype)
    margin_NP = sign_NP * scores_NPK[:, :, 0]
    if problems.kind == "logistic":
        wrong_NP = 1 / (1 + np.exp(np.minimum(margin_NP, 80)))
        bent_NP: np.ndarray = wrong_NP * (1 - wrong_NP)
    else:
        bent_NP = (2 * (margin_NP < 1)).astype(scores_NPK.dtype)
    return bent_NP[:, :, None]


def probabilities(scores_NK: np.ndarray) -> np.ndarray:
    """Softmax over classes; of one column of log odds, the probabilities of both classes."""
    scores_NK = _of_all_classes(scores_NK)
    powers_NK = np.exp(scores_NK - scores_NK.max(axis=1, keepdims=True))
    result_NK: np.ndarray = powers_NK / powers_NK.sum(axis=1, keepdims=True)
    return result_NK


def log_probabilities(scores_NK: np.ndarray) -> np.ndarray:
    """The logarithms of `probabilities`, finite also where those are too small for a float."""
    from scipy.special import log_softmax

    result_NK: np.ndarray = log_softmax(_of_all_classes(scores_NK), axis=1)
    return result_NK


def _of_all_classes(scores_NK: np.ndarray) -> np.ndarray:
    """Scores with a column for every class: one column of log odds belongs to the second class, the first has 0."""
    return np.hstack([np.zeros_like(scores_NK), scores_NK]) if scores_NK.shape[1] == 1 else scores_NK


SMALLEST_POWER = -4.0
"""Of ten, for a temperature: a head that is wrong however sure it is."""


def best_temperature(scores_NK: np.ndarray, class_indices_N: np.ndarray, largest_power: float = 4.0) -> float:
    """The factor of scores with the least log loss (Guo et al. 2017), on images not fitted on.

    Args:
        largest_power: of ten, up to which factors are tried, from SMALLEST_POWER on.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: log_loss(scores_NK * 10**power, class_indices_N),
        bounds=(SMALLEST_POWER, largest_power),
        method="bounded",
    )
    return float(10**found.x)


def log_loss(scores_NK: np.ndarray, class_indices_N: np.ndarray) -> float:
    """Sum of minus the log probability of every image's class."""
    scores_NK = _of_all_classes(scores_NK)
    top_N = scores_NK.max(axis=1)
    own_N = scores_NK[np.arange(len(class_indices_N)), class_indices_N]
    return float((np.log(np.exp(scores_NK - top_N[:, None]).sum(axis=1)) + top_N - own_N).sum())


def l2_scaled(features_ND: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay."""
    norms_N = np.linalg.norm(features_ND, axis=1, keepdims=True)
    result_ND: np.ndarray = features_ND / np.where(norms_N == 0, 1, norms_N)
    return result_ND
