"""Count what was predicted for the images a fold left out, and score it by a metric.

Legend: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.heads.request import Metric
from bottleneck.heads.solver.losses import log_loss


@dataclass(frozen=True)
class Counts:
    """All that the metrics need: a few numbers a class, where a confusion matrix of 20,000 classes has 3 GB."""

    right_K: np.ndarray
    """int64, images of each class that were predicted as such."""
    images_K: np.ndarray
    """int64, images of each class."""
    predicted_K: np.ndarray
    """int64, images predicted as each class."""
    log_loss: float
    """Sum over the images of minus the log probability of their class."""

    @classmethod
    def of(cls, scores_NK: np.ndarray, class_indices_N: np.ndarray) -> "Counts":
        """Count a batch.

        Args:
            scores_NK: [N, K], or [N, 1] where there are two classes: the log odds of the second.
        """
        num_columns = scores_NK.shape[1]
        num_classes = max(num_columns, 2)
        best_N = scores_NK.argmax(axis=1) if num_columns > 1 else (scores_NK[:, 0] > 0).astype(int)
        return cls(
            np.bincount(class_indices_N[best_N == class_indices_N], minlength=num_classes),
            np.bincount(class_indices_N, minlength=num_classes),
            np.bincount(best_N, minlength=num_classes),
            log_loss(scores_NK, class_indices_N),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.right_K + other.right_K,
            self.images_K + other.images_K,
            self.predicted_K + other.predicted_K,
            self.log_loss + other.log_loss,
        )

    def score(self, metric: Metric) -> float:
        """The value of scikit-learn's function of this name (`macro_f1`: f1_score with average="macro")."""
        if metric == "log_loss":
            return self.log_loss / int(self.images_K.sum())
        if metric == "macro_f1":
            both_K = self.images_K + self.predicted_K
            return float((2 * self.right_K[both_K > 0] / both_K[both_K > 0]).mean())
        if metric == "balanced_accuracy":
            there_K = self.images_K > 0
            return float((self.right_K[there_K] / self.images_K[there_K]).mean())
        return int(self.right_K.sum()) / int(self.images_K.sum())


def best_of(values: Sequence[float], metric: Metric) -> int:
    """The number of the best value, the first of equals, as GridSearchCV."""
    return int(np.argmin(values) if metric == "log_loss" else np.argmax(values))
