"""The losses of linear classifiers: values, slopes and curvatures by scores.

A problem is a value of C and the fold it leaves out (and, for an svm, a class); one pass over the rows serves many. A
row's weight s is C times its class' weight times its own, and 0 for rows of the fold that is left out.

Legend: N rows, D features, P problems, K score columns of a problem.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Problems:
    """P minimisation problems."""

    kind: str
    """`softmax` (K columns a problem), `logistic`, `labels` or `svm` (one column: a positive class or label)."""
    c_P: np.ndarray
    left_out_P: np.ndarray
    """The fold whose rows a problem does not see; -1 where it sees all."""
    positive_P: np.ndarray
    """The class whose rows are positive, for one column; for `labels` the label."""
    class_weights_PK: np.ndarray
    """Of every class, whatever the number of columns."""
    has_label_KL: np.ndarray | None = None
    """For `labels`, whose classes are sets of labels: bool, whether each set has each label."""

    def at(self, active: np.ndarray) -> "Problems":
        return Problems(
            self.kind,
            self.c_P[active],
            self.left_out_P[active],
            self.positive_P[active],
            self.class_weights_PK[active],
            self.has_label_KL,
        )

    def signs(self, class_indices_N: np.ndarray) -> np.ndarray:
        """1.0 for the positive rows of each problem, -1.0 for the others: [N, P]."""
        if self.has_label_KL is not None:
            is_positive_KP = self.has_label_KL[:, self.positive_P]
            signs_NP: np.ndarray = np.where(is_positive_KP, 1.0, -1.0)[class_indices_N]
            return signs_NP
        return np.where(class_indices_N[:, None] == self.positive_P, 1.0, -1.0)


def losses_of(
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
    sign_NP = problems.signs(class_indices_N)
    margin_NP = sign_NP * scores_NPK[:, :, 0]
    if problems.kind != "svm":
        wrong_NP = 1 / (1 + np.exp(np.minimum(margin_NP, 700)))
        loss_NP = np.logaddexp(0, -margin_NP)
        curvature_NP = wrong_NP * (1 - wrong_NP)
        return loss_NP, (-sign_NP * wrong_NP)[:, :, None], curvature_NP[:, :, None]
    lack_NP = np.maximum(0, 1 - margin_NP)
    return lack_NP**2, (-2 * sign_NP * lack_NP)[:, :, None], (2.0 * (lack_NP > 0))[:, :, None]


def curvatures_of(scores_NPK: np.ndarray, class_indices_N: np.ndarray, problems: Problems) -> np.ndarray:
    """Probabilities of a softmax, else the loss' second derivative, at scores (which are overwritten)."""
    if problems.kind == "softmax":
        scores_NPK -= scores_NPK.max(axis=2, keepdims=True)
        np.exp(scores_NPK, out=scores_NPK)
        scores_NPK /= scores_NPK.sum(axis=2, keepdims=True)
        return scores_NPK
    sign_NP = problems.signs(class_indices_N).astype(scores_NPK.dtype)
    margin_NP = sign_NP * scores_NPK[:, :, 0]
    if problems.kind != "svm":
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
