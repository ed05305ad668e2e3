"""Fit a head on arrays, in this process.

Legend: N images, D features, K classes, L labels where images have several.
"""

from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from bottleneck.heads.dealing import HELD_OUT
from bottleneck.heads.request import Arrays, ClassWeight, HeadRequest, plain_network
from bottleneck.heads.solver.coordinator import Coordinator
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.protocol import LocalWorkers
from bottleneck.heads.solver.worker import Worker

if TYPE_CHECKING:  # it imports this module
    from bottleneck.heads.head import Head


def fit_arrays(
    head: "Head",
    features_ND: np.ndarray,
    class_indices_N: np.ndarray,
    weights_N: np.ndarray | None = None,
    has_label_KL: np.ndarray | None = None,
) -> Arrays:
    """The arrays of a head that has its parameters and classes.

    Args:
        class_indices_N: numbers of classes, or of sets of labels.
        weights_N: of the images, from 0 up; None where all count alike.
        has_label_KL: bool, the labels of each set, where images have several.

    Raises:
        ValueError: for fewer than two classes, or a label that all or none of the images have.
    """
    folds_N = np.zeros(len(class_indices_N), int)
    if weights_N is not None:
        folds_N[weights_N == 0] = HELD_OUT
    seen_N, of_weight = (
        class_indices_N[folds_N != HELD_OUT],
        "" if weights_N is None else " with a `sample_weight` above 0",
    )
    if has_label_KL is not None:
        share_L = has_label_KL[seen_N].mean(axis=0) if len(seen_N) else np.zeros(has_label_KL.shape[1])
        same = np.flatnonzero((share_L == 0) | (share_L == 1))
        if len(share_L) < 2 or len(same):
            received = (
                f"{head.classes_[same[0]]}, on {'all' if share_L[same[0]] else 'none'}" if len(same) else "one label"
            )
            raise ValueError(f"Expected two labels at least, each on some images{of_weight}. Received {received}.")
    elif len(seen_K := np.unique(seen_N)) < 2:
        received = ", ".join(f"one class: {label}" for label in head.classes_[seen_K]) or "none"
        raise ValueError(f"Expected at least two classes{of_weight}. Received {received}.")
    weights_K = None
    named: ClassWeight = "balanced" if head.class_weight == "balanced" else "none"
    if isinstance(head.class_weight, dict):
        labels_N = head.classes_[class_indices_N]
        weights_K = compute_class_weight(head.class_weight, classes=head.classes_, y=labels_N)
    request = HeadRequest(
        kind=head.kind,
        c=(1.0 if head.kind == "mlp" else float(head.C),),
        scale=head.scale,
        class_weight=named,
        multi_label=head.multi_label,
        **plain_network(head),
    )
    worker = Worker()
    worker.hold(features_ND)
    num_classes = len(head.classes_) if has_label_KL is None else len(has_label_KL)
    data = FitData(
        LocalWorkers(worker),
        [len(folds_N)],
        class_indices_N,
        folds_N,
        num_classes,
        request,
        1,
        weights_K,
        weights_N,
        has_label_KL,
    )
    return Coordinator(data).fit(features_ND.shape[1])[0]
