"""The classifier on features, with scikit-learn's interface; saved as safetensors and JSON.

Legend: N images, D features, K classes (one column of scores where there are two), H hidden units of an mlp.
"""

from typing import Any, Self

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from bottleneck.dataset.plan import versions
from bottleneck.dataset.schema import PREDICTION_FIELDS as PREDICTION_FIELDS
from bottleneck.errors import CorruptError, UsageError
from bottleneck.heads.head_file import (
    check_tensors,
    class_array,
    plain_classes,
    plain_weights,
    read_head,
    read_tensors,
    write_head,
)
from bottleneck.heads.origin import Origin as Origin
from bottleneck.heads.request import HEAD_JSON as HEAD_JSON
from bottleneck.heads.request import (
    NETWORK,
    ClassWeight,
    Grid,
    HeadRequest,
    Kind,
    Scale,
    check_parameters,
    plain_network,
)
from bottleneck.heads.solver.coordinator import Coordinator
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.losses import l2_scaled, probabilities
from bottleneck.heads.solver.protocol import LocalWorkers
from bottleneck.heads.solver.worker import Worker
from bottleneck.spec import FeatureSpec


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier on features, used like any of scikit-learn's.

    Args:
        kind: `logistic` (multinomial, the optimum of LogisticRegression), `svm` (one against the rest, squared hinge,
            the optimum of LinearSVC) or `mlp` (one hidden layer).
        C: inverse strength of the L2 penalty, above 0; the mlp has none.
        scale: `standard` removes mean and variance, `l2` gives each row length 1.
        class_weight: `balanced` weighs classes by the inverse of their size; or a dict of weights by label, 1 where it
            has none; `none` or None weighs all images alike.
        hidden_size, epochs, seed: of the mlp alone; as in `HeadRequest`.

    Attributes:
        classes_: labels [K], sorted.
        coef_, intercept_: [K, D] and [K] in float64 on scaled features; one row where there are two classes.
        origin_: where a head that was fitted on an output of `extract` comes from.
    """

    def __init__(
        self,
        kind: Kind = "logistic",
        C: float = 1.0,
        scale: Scale = "none",
        class_weight: Any = "none",
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
        head = cls(request.kind, grid.best_c, grid.best_scale, request.class_weight, **plain_network(request))
        head.classes_ = np.array(classes, dtype=object)
        head._take(arrays)
        head.n_features_in_ = arrays["hidden_coef" if request.kind == "mlp" else "coef"].shape[1]
        return head

    def fit(self, X: Any, y: Any) -> Self:
        """Fit in this process.

        Args:
            X: features [N, D].
            y: labels [N], of two classes at least.

        Raises:
            UsageError: for a parameter that is none of its valid values.
            ValueError: for features or labels that cannot be fitted on, as scikit-learn's classifiers do.
        """
        check_parameters(self.kind, self.C, self.scale, self.class_weight)
        features_ND, labels_N = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(labels_N)
        self.classes_, class_indices_N = np.unique(labels_N, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Expected at least two classes. Received one class: {self.classes_[0]}.")
        weights_K = None
        named: ClassWeight = "balanced" if self.class_weight == "balanced" else "none"
        if isinstance(self.class_weight, dict):
            weights_K = compute_class_weight(self.class_weight, classes=self.classes_, y=labels_N)
        c = 1.0 if self.kind == "mlp" else float(self.C)
        request = HeadRequest(kind=self.kind, c=(c,), scale=self.scale, class_weight=named, **plain_network(self))
        worker = Worker()
        worker.hold(features_ND)
        folds_N = np.zeros(len(class_indices_N), int)
        workers, num_classes = LocalWorkers(worker), len(self.classes_)
        data = FitData(workers, [len(folds_N)], class_indices_N, folds_N, num_classes, request, 1, weights_K)
        self._take(Coordinator(data).fit(features_ND.shape[1])[0])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [N, K], or [N] where there are two classes: log odds of a logistic head, margins of an svm."""
        check_is_fitted(self)
        features_ND = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        scores_NK = self._scores(features_ND)
        return scores_NK[:, 0] if scores_NK.shape[1] == 1 else scores_NK

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, K]. An svm's are its margins through a softmax whose temperature held-out folds gave."""
        check_is_fitted(self)
        features_ND = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return self._probabilities(features_ND)

    def predict(self, X: Any) -> np.ndarray:
        """Labels [N]."""
        scores = self.decision_function(X)
        best_N = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        labels_N: np.ndarray = self.classes_[best_N]
        return labels_N

    def predictions(self, features_ND: np.ndarray, top: int = 5) -> pa.Table:
        """What the head says of each row, as a table of PREDICTION_FIELDS with up to `top` classes a row."""
        features_ND = np.asarray(features_ND)
        count = min(top, len(self.classes_))
        if not len(features_ND):
            return pa.table([pa.array([], one.type) for one in PREDICTION_FIELDS], schema=pa.schema(PREDICTION_FIELDS))
        probabilities_NK = self._probabilities(features_ND.astype(np.float32, copy=False))
        # Stable, so that of equal classes the first is best, as argmax has it.
        best_NT = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :count]
        values_NT = np.take_along_axis(probabilities_NK, best_NT, axis=1).astype(np.float32)
        labels_NT = self.class_names[best_NT]
        offsets = pa.array(np.arange(0, len(best_NT) * count + 1, count), pa.int32())
        columns = [
            pa.array(labels_NT[:, 0], pa.string()),
            pa.array(values_NT[:, 0]),
            pa.ListArray.from_arrays(offsets, pa.array(labels_NT.reshape(-1), pa.string())),
            pa.ListArray.from_arrays(offsets, pa.array(values_NT.reshape(-1))),
        ]
        return pa.table(columns, schema=pa.schema(PREDICTION_FIELDS))

    @property
    def class_names(self) -> np.ndarray:
        """The classes [K] as text, which is what labels are in features, predictions and reports."""
        names_K = np.empty(len(self.classes_), object)
        names_K[:] = [str(label) for label in self.classes_]
        return names_K

    def _scores(self, features_ND: np.ndarray) -> np.ndarray:
        scaled_ND = self._scaled(features_ND)
        if self.kind == "mlp":
            hidden_NH = np.maximum(scaled_ND @ self.hidden_coef_.T + self.hidden_intercept_, 0)
            scaled_ND = hidden_NH
        scores_NK: np.ndarray = scaled_ND @ self.coef_.T + self.intercept_
        return scores_NK

    def _probabilities(self, features_ND: np.ndarray) -> np.ndarray:
        return probabilities(self._scores(features_ND) * (self.temperature_ if self.kind == "svm" else 1.0))

    def _scaled(self, features_ND: np.ndarray) -> np.ndarray:
        features_ND = features_ND.astype(np.float64)
        if self.scale == "l2":
            return l2_scaled(features_ND)
        return (features_ND - self.mean_) / self.scale_ if self.scale == "standard" else features_ND

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def _take(self, arrays: dict[str, np.ndarray]) -> None:
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
        document = {
            "kind": self.kind,
            "C": self.C,
            "scale": self.scale,
            "class_weight": plain_weights(self.class_weight),
            **plain_network(self),
            "classes": plain_classes(self.classes_),
            "dim": self.n_features_in_,
            "layer": origin and origin.layer,
            "fingerprint": origin and origin.spec.fingerprint,
            "spec": origin and origin.spec.to_json(),
            "features": origin and origin.features,
            "plan_sha256": origin and origin.plan_sha256,
            "details": origin.details if origin else {"versions": versions()},
        }
        write_head(uri, document, self._tensors())
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
            if document["spec"] is not None:
                spec = FeatureSpec.from_json(document["spec"])
                names = ("layer", "features", "plan_sha256", "details")
                head.origin_ = Origin(spec=spec, **{name: document[name] for name in names})
            head.sha256_ = str(document["sha256"])
            tensors = read_tensors(data, uri)
            check_tensors(
                tensors,
                kind=head.kind,
                scale=head.scale,
                dim=head.n_features_in_,
                num_classes=len(head.classes_),
                hidden_size=head.hidden_size,
            )
            head._take(tensors)
        except (UsageError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CorruptError(f"{uri} is no readable head: {error!r}. Restore it, or fit it again.") from error
        return head

    def check_fits(self, spec: FeatureSpec) -> None:
        """Raise FingerprintError, naming each differing field, unless features of this spec are the head's own kind."""
        self.origin.check_fits(spec)

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {"coef": self.coef_, "intercept": self.intercept_}
        if self.scale == "standard":
            tensors |= {"mean": self.mean_, "scale": self.scale_}
        if self.kind == "svm":
            tensors["temperature"] = np.array([self.temperature_])
        if self.kind == "mlp":
            tensors |= {"hidden_coef": self.hidden_coef_, "hidden_intercept": self.hidden_intercept_}
        return tensors
