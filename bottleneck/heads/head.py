"""The classifier on features, with scikit-learn's interface; saved as safetensors and JSON.

Legend: N images, D features, K classes (one column of scores where there are two), H hidden units of an mlp.
"""

from typing import Any, Self

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bottleneck.errors import CorruptError, UsageError
from bottleneck.heads.dealing import HELD_OUT
from bottleneck.heads.head_file import checked_tensors, class_array, read_head, write_head
from bottleneck.heads.origin import Origin as Origin
from bottleneck.heads.prediction_table import prediction_table
from bottleneck.heads.request import HEAD_JSON as HEAD_JSON
from bottleneck.heads.request import (
    NETWORK,
    ClassWeight,
    HeadRequest,
    Kind,
    Scale,
    check_parameters,
    plain_network,
)
from bottleneck.heads.solver.coordinator import Coordinator
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.grid import Grid
from bottleneck.heads.solver.losses import l2_scaled, log_probabilities, probabilities
from bottleneck.heads.solver.protocol import LocalWorkers
from bottleneck.heads.solver.worker import Worker
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

    Attributes:
        classes_: labels [K], sorted.
        coef_, intercept_: [K, D] and [K] in float64 on scaled features; one row where there are two classes.
        feature_names_in_: names of the features [D], where `fit` got a DataFrame whose columns are all strings.
        temperature_: the factor of the scores whose softmax the probabilities are, from the folds of `bottleneck fit`;
            1 where it has none.
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
    ) -> None:
        self.kind = kind
        self.C = C
        self.scale = scale
        self.class_weight = class_weight
        self.hidden_size = hidden_size
        self.epochs = epochs
        self.seed = seed

    @classmethod
    def of(cls, request: HeadRequest, grid: Grid, classes: list[str], arrays: dict[str, np.ndarray]) -> Self:
        """A head from what its fit gave."""
        weight = None if request.class_weight == "none" else request.class_weight
        head = cls(request.kind, grid.best_c, grid.best_scale, weight, **plain_network(request))
        head.classes_ = np.array(classes, dtype=object)
        head._take(arrays)
        head.n_features_in_ = arrays["hidden_coef" if request.kind == "mlp" else "coef"].shape[1]
        return head

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit in this process.

        Args:
            X: features [N, D].
            y: labels [N], of two classes at least.
            sample_weight: weights [N] from 0 up, by which the images' losses are multiplied (and with which `standard`
                takes mean and variance): 2 is the same as the image twice, 0 as without it. An mlp draws its images
                in batches, so for it this holds but nearly. Default: 1 for all.

        Raises:
            UsageError: for a parameter that is none of its valid values.
            ValueError: for features, labels or weights that cannot be fitted on, as scikit-learn's classifiers do.
        """
        check_parameters(self.kind, self.C, self.scale, self.class_weight)
        features_ND, labels_N = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(labels_N)
        self.classes_, class_indices_N = np.unique(labels_N, return_inverse=True)
        folds_N, weights_N = np.zeros(len(class_indices_N), int), None
        if sample_weight is not None:
            weights_N = _check_sample_weight(sample_weight, features_ND, dtype=np.float64, ensure_non_negative=True)
            folds_N[weights_N == 0] = HELD_OUT
        seen_K = np.unique(class_indices_N[folds_N != HELD_OUT])
        if len(seen_K) < 2:
            of_weight = "" if sample_weight is None else " with a `sample_weight` above 0"
            received = ", ".join(f"one class: {label}" for label in self.classes_[seen_K]) or "none"
            raise ValueError(f"Expected at least two classes{of_weight}. Received {received}.")
        weights_K = None
        named: ClassWeight = "balanced" if self.class_weight == "balanced" else "none"
        if isinstance(self.class_weight, dict):
            weights_K = compute_class_weight(self.class_weight, classes=self.classes_, y=labels_N)
        c = 1.0 if self.kind == "mlp" else float(self.C)
        request = HeadRequest(kind=self.kind, c=(c,), scale=self.scale, class_weight=named, **plain_network(self))
        worker = Worker()
        worker.hold(features_ND)
        workers, counts, num_classes = LocalWorkers(worker), [len(folds_N)], len(self.classes_)
        data = FitData(workers, counts, class_indices_N, folds_N, num_classes, request, 1, weights_K, weights_N)
        for name in ("origin_", "sha256_", "temperature_"):  # of the head that was loaded before
            self.__dict__.pop(name, None)
        self._take(Coordinator(data).fit(features_ND.shape[1])[0])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [N, K], or [N] where there are two classes: log odds of a logistic head, margins of an svm."""
        scores_NK = self._scores(self._checked(X))
        return scores_NK[:, 0] if scores_NK.shape[1] == 1 else scores_NK

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, K]: a softmax of the scores times `temperature_`, which changes no prediction."""
        return self._probabilities(self._checked(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities [N, K], finite also where a probability is too small for a float."""
        return log_probabilities(self._logits(self._checked(X)))

    def predict(self, X: Any) -> np.ndarray:
        """Labels [N]."""
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
        if not len(features_ND):  # of which there is no product, as there are no dimensions either
            return prediction_table(np.empty((0, len(self.classes_))), self.class_names, top, proba)
        probabilities_NK = self._probabilities(features_ND.astype(np.float32, copy=False))
        return prediction_table(probabilities_NK, self.class_names, top, proba)

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
        return probabilities(self._logits(features_ND))

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
            network = {name: document[name] for name in NETWORK}
            head = cls(document["kind"], document["C"], document["scale"], document["class_weight"], **network)
            head.classes_ = class_array(document["classes"])
            if isinstance(head.class_weight, dict):
                label_of = dict(zip(head.class_names, head.classes_.tolist(), strict=True))
                head.class_weight = {label_of.get(name, name): value for name, value in head.class_weight.items()}
            check_parameters(head.kind, head.C, head.scale, head.class_weight)
            head.n_features_in_ = document["dim"]
            if names := document.get("feature_names"):  # heads of earlier versions have no such field
                head.feature_names_in_ = np.array(names, dtype=object)
            if document["spec"] is not None:
                spec = FeatureSpec.from_json(document["spec"])
                others = ("layer", "features", "plan_sha256", "details")
                head.origin_ = Origin(spec=spec, **{name: document[name] for name in others})
            head.sha256_ = str(document["sha256"])
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
        return as_sklearn(self)

    def check_fits(self, spec: FeatureSpec) -> None:
        """Raise FingerprintError, naming each differing field, unless features of this spec are the head's own kind."""
        self.origin.check_fits(spec)
