"""The classifier on features, with scikit-learn's interface; saved as safetensors and JSON.

Legend: N images, D features, K classes (one column of scores where there are two), H hidden units of an mlp.
"""

from typing import Any, Self

import numpy as np
import pyarrow as pa
from scipy.special import expit, log_expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted, validate_data

from bottleneck.errors import CorruptError, UsageError
from bottleneck.heads.fit_arrays import fit_arrays
from bottleneck.heads.head_file import checked_tensors, read_head, restored, write_head
from bottleneck.heads.label_sets import sets_of
from bottleneck.heads.origin import Origin as Origin
from bottleneck.heads.prediction_table import prediction_table
from bottleneck.heads.request import HEAD_JSON as HEAD_JSON
from bottleneck.heads.request import (
    HeadRequest,
    Kind,
    Scale,
    check_parameters,
    plain_network,
)
from bottleneck.heads.solver.grid import Grid
from bottleneck.heads.solver.losses import l2_scaled, log_probabilities, probabilities
from bottleneck.spec import FeatureSpec, Proba


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier on features, used like any of scikit-learn's: in pipelines, `cross_val_score` and `GridSearchCV`.

    Args:
        kind: `logistic` (multinomial, the optimum of LogisticRegression), `svm` (one against the rest, squared hinge,
            the optimum of LinearSVC) or `mlp` (one hidden layer).
        C: inverse strength of the L2 penalty, above 0; the mlp has none.
        scale: `standard` removes mean and variance, `l2` gives each row length 1.
        class_weight: `balanced` weighs classes by the inverse of their size; or a dict of weights by label, 1 where it
            has none; None (or `none`, as the command line has it) weighs all classes alike.
        hidden_size, epochs, seed: of the mlp alone; as in `HeadRequest`.
        multi_label: images have several labels each: a logistic regression for each, the optimum of
            OneVsRestClassifier(LogisticRegression()).

    Attributes:
        classes_: labels [K], sorted.
        coef_, intercept_: [K, D] and [K] in float64 on scaled features; one row where there are two classes.
        feature_names_in_: names of the features [D], where `fit` got a DataFrame whose columns are all strings.
        temperature_: the factor of the scores whose softmax the probabilities are, from the folds of `bottleneck fit`;
            1 where it has none.
        thresholds_: with `multi_label`, the probabilities [K] from which each label is predicted: with the largest F1
            of the folds of `bottleneck fit`, else 0.5.
        origin_: where a head that was fitted on an output of `extract` comes from.
    """

    temperature_: float = 1.0

    def __init__(
        self,
        kind: Kind = "logistic",
        C: float = 1.0,
        scale: Scale = "none",
        class_weight: Any = None,
        hidden_size: int = 256,
        epochs: int | None = None,
        seed: int = 0,
        multi_label: bool = False,
    ) -> None:
        self.kind = kind
        self.C = C
        self.scale = scale
        self.class_weight = class_weight
        self.hidden_size = hidden_size
        self.epochs = epochs
        self.seed = seed
        self.multi_label = multi_label

    @classmethod
    def of(cls, request: HeadRequest, grid: Grid, classes: list[str], arrays: dict[str, np.ndarray]) -> Self:
        """A head from what its fit gave."""
        weight = None if request.class_weight == "none" else request.class_weight
        network = plain_network(request)
        head = cls(grid.best.kind, grid.best_c, grid.best.scale, weight, **network, multi_label=request.multi_label)
        head.classes_ = np.array(classes, dtype=object)
        head._take(arrays)
        if grid.label_counts is not None:
            head.thresholds_ = expit(grid.label_counts.best_thresholds())
        head.n_features_in_ = arrays["hidden_coef" if request.kind == "mlp" else "coef"].shape[1]
        return head

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit in this process.

        Args:
            X: features [N, D].
            y: labels [N], of two classes at least. With `multi_label` a matrix [N, L] of 0 and 1, or strings of names
                separated by `;`.
            sample_weight: weights [N] from 0 up, by which the images' losses are multiplied (and with which `standard`
                takes mean and variance): 2 is the same as the image twice, 0 as without it. An mlp draws its images
                in batches, so for it this holds but nearly. Default: 1 for all.

        Raises:
            UsageError: for a parameter that is none of its valid values.
            ValueError: for features, labels or weights that cannot be fitted on, as scikit-learn's classifiers do.
        """
        check_parameters(self.kind, self.C, self.scale, self.class_weight, self.multi_label)
        dtypes, has_label_KL = [np.float64, np.float32], None
        if self.multi_label:
            self.classes_, class_indices_N, has_label_KL = sets_of(y)
            features_ND = validate_data(self, X, dtype=dtypes)
            check_consistent_length(features_ND, class_indices_N)
        else:
            features_ND, labels_N = validate_data(self, X, y, dtype=dtypes)
            check_classification_targets(labels_N)
            self.classes_, class_indices_N = np.unique(labels_N, return_inverse=True)
        weights_N = None
        if sample_weight is not None:
            weights_N = _check_sample_weight(sample_weight, features_ND, dtype=np.float64, ensure_non_negative=True)
        arrays = fit_arrays(self, features_ND, class_indices_N, weights_N, has_label_KL)
        for name in ("origin_", "sha256_", "temperature_", "thresholds_"):  # of the head that was loaded before
            self.__dict__.pop(name, None)
        self._take(arrays)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [N, K], or [N] where there are two classes: log odds of a logistic head, margins of an svm."""
        scores_NK = self._scores(self._checked(X))
        return scores_NK[:, 0] if scores_NK.shape[1] == 1 else scores_NK

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, K]: a softmax of the scores times `temperature_`, which changes no prediction. With
        `multi_label` each label's own, which do not add up to 1."""
        return self._probabilities(self._checked(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities [N, K], finite also where a probability is too small for a float."""
        logits_NK = self._logits(self._checked(X))
        log_NK: np.ndarray = log_expit(logits_NK) if self.multi_label else log_probabilities(logits_NK)
        return log_NK

    def predict(self, X: Any) -> np.ndarray:
        """Labels [N]; with `multi_label` a matrix [N, K] of 0 and 1."""
        if self.multi_label:
            return (self.predict_proba(X) >= self.thresholds_).astype(np.int64)
        scores = self.decision_function(X)
        best_N = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        labels_N: np.ndarray = self.classes_[best_N]
        return labels_N

    def predictions(self, features_ND: np.ndarray, top: int = 5, proba: Proba = "top") -> pa.Table:
        """What the head says of each row, as a table of PREDICTION_FIELDS with up to `top` classes a row.

        Args:
            proba: `all` adds the probabilities of all classes, float32 [K] in the order of `classes_`.
        """
        features_ND = np.asarray(features_ND)
        probabilities_NK = np.empty((0, len(self.classes_)))
        if len(features_ND):  # else there is no product, as there are no dimensions either
            probabilities_NK = self._probabilities(features_ND.astype(np.float32, copy=False))
        thresholds_K = self.thresholds_ if self.multi_label else None
        return prediction_table(probabilities_NK, self.class_names, top, proba, thresholds_K)

    @property
    def class_names(self) -> np.ndarray:
        """The classes [K] as text, which is what labels are in features, predictions and reports."""
        names_K = np.empty(len(self.classes_), object)
        names_K[:] = [str(label) for label in self.classes_]
        return names_K

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        features_ND: np.ndarray = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return features_ND

    def _scores(self, features_ND: np.ndarray) -> np.ndarray:
        scaled_ND = self._scaled(features_ND)
        if self.kind == "mlp":
            hidden_NH = np.maximum(scaled_ND @ self.hidden_coef_.T + self.hidden_intercept_, 0)
            scaled_ND = hidden_NH
        scores_NK: np.ndarray = scaled_ND @ self.coef_.T + self.intercept_
        return scores_NK

    def _probabilities(self, features_ND: np.ndarray) -> np.ndarray:
        logits_NK = self._logits(features_ND)
        found_NK: np.ndarray = expit(logits_NK) if self.multi_label else probabilities(logits_NK)
        return found_NK

    def _logits(self, features_ND: np.ndarray) -> np.ndarray:
        return self._scores(features_ND) * self.temperature_

    def _scaled(self, features_ND: np.ndarray) -> np.ndarray:
        features_ND = features_ND.astype(np.float64)
        if self.scale == "l2":
            return l2_scaled(features_ND)
        return (features_ND - self.mean_) / self.scale_ if self.scale == "standard" else features_ND

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def _take(self, arrays: dict[str, np.ndarray]) -> None:
        self.temperature_ = 1.0
        if self.multi_label:
            self.thresholds_ = np.full(len(self.classes_), 0.5)
        for name, value in arrays.items():
            setattr(self, f"{name}_", float(value[0]) if name == "temperature" else value)

    @property
    def origin(self) -> Origin:
        """Where the head comes from.

        Raises:
            UsageError: for a head that was fitted on arrays, which does not know.
        """
        known: Origin | None = getattr(self, "origin_", None)
        if known is None:
            raise UsageError(
                "This head was fitted on arrays and has no record of the features they came from. Expected a head from "
                "`bottleneck fit` or `bottleneck.fit_head`; `predict(X)` takes features in memory."
            )
        return known

    def save(self, uri: str, origin: Origin | None = None) -> None:
        """Write `head.safetensors`, then `head.json`, to a folder or s3:// prefix.

        A head that was fitted on arrays is saved, too; only `predict` and its like on images need an origin.

        Args:
            uri: the folder or prefix, without a head.
            origin: where the features come from; default the head's own, if it has one.

        Raises:
            UsageError: if there is a head already, or the classes are neither strings nor integers nor booleans.
        """
        check_is_fitted(self)
        origin = origin or getattr(self, "origin_", None)
        write_head(uri, self, origin)
        if origin:
            self.origin_ = origin

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read a head. Nothing of it is ever executed.

        Raises:
            UsageError: if there is none, or of a format this version does not know.
            CorruptError: if a file is truncated, changed or not what it should be; it says which.
        """
        document, data = read_head(uri)
        try:
            head: Self = restored(cls, document)
            head._take(checked_tensors(data, uri, head))
        except (UsageError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CorruptError(f"{uri} is no readable head: {error!r}. Restore it, or fit it again.") from error
        return head

    def to_sklearn(self) -> Any:
        """A fitted `LogisticRegression`, `LinearSVC` or `MLPClassifier` with this head's coefficients.

        Where the head scales, it is the last step of a `Pipeline` behind a `StandardScaler` or `Normalizer`. It says
        what the head says, to rounding (scikit-learn scales float32 features in float32, the head in float64), but
        has no temperature: its probabilities are the softmax of the scores, and a `LinearSVC` has none.
        """
        from bottleneck.heads.as_sklearn import as_sklearn

        check_is_fitted(self)
        if self.multi_label:
            raise UsageError(
                "A head with `multi_label` has no estimator of scikit-learn's. Use `coef_` and `intercept_`."
            )
        return as_sklearn(self)

    def check_fits(self, spec: FeatureSpec) -> None:
        """Raise FingerprintError, naming each differing field, unless features of this spec are the head's own kind."""
        self.origin.check_fits(spec)
