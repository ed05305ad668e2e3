"""Make scikit-learn's own estimator of a head, for where this package is not installed.

Legend: D features, K classes (one row of coefficients where there are two), H hidden units of an mlp.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelBinarizer, Normalizer, StandardScaler
from sklearn.svm import LinearSVC

if TYPE_CHECKING:
    from bottleneck.heads.head import Head


def as_sklearn(head: "Head") -> Any:
    """A fitted estimator of scikit-learn's with the head's coefficients; see `Head.to_sklearn`."""
    classes_K = np.array(head.classes_.tolist())
    scaler = _scaler(head)
    if head.kind == "mlp":
        classifier = _mlp(head, classes_K)
    else:
        weights = None if head.class_weight == "none" else head.class_weight
        kind = LogisticRegression if head.kind == "logistic" else LinearSVC
        classifier = kind(C=head.C, class_weight=weights)
        classifier.coef_, classifier.intercept_ = head.coef_.copy(), head.intercept_.copy()
    classifier.classes_ = classes_K
    for step in (classifier, scaler):
        if step is not None:
            step.n_features_in_ = head.n_features_in_
    first = classifier if scaler is None else scaler
    if hasattr(head, "feature_names_in_"):
        first.feature_names_in_ = head.feature_names_in_.copy()
    return classifier if scaler is None else make_pipeline(scaler, classifier)


def _scaler(head: "Head") -> Any:
    if head.scale == "none":
        return None
    if head.scale == "l2":
        return Normalizer()
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_, scaler.var_ = head.mean_.copy(), head.scale_.copy(), head.scale_**2
    scaler.n_samples_seen_ = np.int64(0)  # not known to a head; `partial_fit` begins anew
    return scaler


def _mlp(head: "Head", classes_K: np.ndarray) -> Any:
    network = MLPClassifier(hidden_layer_sizes=(len(head.hidden_coef_),))
    network.coefs_ = [head.hidden_coef_.T.copy(), head.coef_.T.copy()]
    network.intercepts_ = [head.hidden_intercept_.copy(), head.intercept_.copy()]
    network.n_layers_, network.n_outputs_ = 3, len(head.coef_)
    network.out_activation_ = "logistic" if network.n_outputs_ == 1 else "softmax"
    network._label_binarizer = LabelBinarizer().fit(classes_K)  # with which `predict` finds its labels
    return network
