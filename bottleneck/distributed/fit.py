"""Fit a head on the features of an output, in this process or as a Ray Train job."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bottleneck.dataset.features import Features, open_features, rows_of
from bottleneck.distributed.train import train_head
from bottleneck.errors import UsageError
from bottleneck.heads.fit import check_labels, fit_features
from bottleneck.heads.request import ClassWeight, HeadRequest, Kind, Metric, ScaleChoice
from bottleneck.heads.solver.protocol import LocalWorkers
from bottleneck.heads.solver.worker import Worker
from bottleneck.heads.test_set import request_with_test

if TYPE_CHECKING:  # scikit-learn takes seconds to import
    from bottleneck.heads.head import Head


def fit_head(
    features: Features | str,
    request: HeadRequest | None = None,
    *,
    kind: Kind | None = None,
    layer: str | None = None,
    c: float | Sequence[float] | None = None,
    folds: int | None = None,
    metric: Metric | None = None,
    test_fraction: float | None = None,
    scale: ScaleChoice | None = None,
    class_weight: ClassWeight | None = None,
    hidden_size: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    test: Features | str | None = None,
    num_workers: int = 0,
    use_gpu: bool = False,
) -> "Head":
    """Fit a head on the labelled ok images of a features dataset.

    Holds out a part of each class, chooses the best `c` by cross-validation if there are several, fits on the images
    that are not held out, and evaluates on those that are. The result does not depend on the number of workers.

    Args:
        features: from `open_features`, or the URI of an output of `extract`.
        request: all options of the fit; the arguments below replace its fields.
        kind: `logistic`, `svm` or `mlp`.
        layer: column of the features; may be left out if there is only one.
        c: inverse strength of the L2 penalty, above 0; of several values the best is taken.
        folds: folds of the cross-validation.
        metric: what cross-validation chooses by: `accuracy`, `macro_f1`, `balanced_accuracy` or `log_loss`.
        test_fraction: share of each class that is held out, 0 up to below 1.
        scale: `none`, `standard` or `l2`; `auto` has cross-validation choose among them.
        class_weight: `none` or `balanced`; None leaves what the request has.
        hidden_size, epochs, seed: of an mlp, as in `HeadRequest`.
        test: features of other images to evaluate on, or their URI; nothing is held out then.
        num_workers: 0 fits in this process, without Ray. 1 and more are workers of a Ray Train job, on the Ray of this
            process, which is left running, or on one that is started and stopped here.
        use_gpu: place each Ray Train worker on a node with a GPU.

    Returns:
        A fitted head. `head.origin_.details` has the split, the grid and the accuracy on the held-out images or
        the test set.

    Raises:
        UsageError: for an option with an invalid value, or labels that cannot be fitted on or evaluated.
        FingerprintError: if the test set has features of another kind.
        FeaturesError: for features that are NaN or infinite.
    """
    options: dict[str, Any] = {
        "kind": kind,
        "layer": layer,
        "c": tuple(c) if isinstance(c, Sequence) else None if c is None else (c,),
        "folds": folds,
        "metric": metric,
        "test_fraction": test_fraction,
        "scale": scale,
        "class_weight": class_weight,
        "hidden_size": hidden_size,
        "epochs": epochs,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    request = replace(request or HeadRequest(), **given)
    if num_workers < 0:
        raise UsageError(f"`num_workers` takes a number from 0 up. Received: {num_workers}.")
    if num_workers == 0 and use_gpu:
        raise UsageError("`use_gpu` places the workers of a Ray Train job. Give `num_workers` from 1 up with it.")
    if isinstance(features, str):
        features = open_features(features)
    if isinstance(test, str):
        test = open_features(test)
    if test is not None:
        request = request_with_test(request, test, features)
    check_labels(features.plan.label_counts, features.plan.output)
    if num_workers:
        fitted = train_head(features, request, rows_of(features), test=test, num_workers=num_workers, use_gpu=use_gpu)
    else:
        fitted = fit_features(LocalWorkers(Worker()), features, request, rows_of(features), test)
    if evaluation := fitted.evaluation:
        fitted.details["accuracy"] = evaluation.accuracy
    return fitted.head
