"""Fit a head on the features of an output, in this process or as a Ray Train job."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bottleneck.dataset.features import Features, open_features, rows_of
from bottleneck.distributed.train import train_head
from bottleneck.errors import UsageError
from bottleneck.heads.fit import Fitted, check_labels, fit_features
from bottleneck.heads.request import ClassWeight, HeadRequest, KindChoice, Metric, ScaleChoice
from bottleneck.heads.solver.partial import PartialResults
from bottleneck.heads.solver.protocol import FitEvent, LocalWorkers
from bottleneck.heads.solver.worker import Worker
from bottleneck.heads.test_set import request_with_test

if TYPE_CHECKING:  # scikit-learn takes seconds to import
    from bottleneck.heads.head import Head


def fit_head(
    features: Features | str,
    request: HeadRequest | None = None,
    *,
    kind: KindChoice | None = None,
    layer: str | None = None,
    c: float | Sequence[float] | None = None,
    multi_label: bool | None = None,
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
        kind: `logistic`, `svm` or `mlp`; `auto` has cross-validation choose among the first two.
        layer: column of the features; may be left out if there is only one.
        c: inverse strength of the L2 penalty, above 0; of several values the best is taken.
        multi_label: labels are sets of names, as `cat;dog`, and each name is fitted.
        folds: folds of the cross-validation.
        metric: what cross-validation chooses by, as in `HeadRequest`.
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
        "multi_label": multi_label,
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
    check_workers(num_workers, use_gpu)
    if isinstance(features, str):
        features = open_features(features)
    if isinstance(test, str):
        test = open_features(test)
    if test is not None:
        request = request_with_test(request, test, features)
    check_labels(features.plan.label_counts, features.plan.output)
    fitted = fit_request(features, request, test=test, num_workers=num_workers, use_gpu=use_gpu)
    if evaluation := fitted.evaluation:
        fitted.details["accuracy"] = evaluation.accuracy
    return fitted.head


def check_workers(num_workers: int, use_gpu: bool) -> None:
    """Raise UsageError for workers that no fit can have."""
    if num_workers < 0:
        raise UsageError(f"`num_workers` takes a number from 0 up. Received: {num_workers}.")
    if num_workers == 0 and use_gpu:
        raise UsageError("`use_gpu` places the workers of a Ray Train job. Give `num_workers` from 1 up with it.")


def fit_request(
    features: Features,
    request: HeadRequest,
    *,
    test: Features | None = None,
    num_workers: int = 0,
    use_gpu: bool = False,
    on_event: Callable[[FitEvent], None] = lambda event: None,
    kept: PartialResults | None = None,
) -> Fitted:
    """Fit in this process, without Ray, with 0 workers; else as a Ray Train job. Both give the same head.

    Args:
        on_event: told how the fit goes.
        kept: where results outlive this process.

    Raises:
        As `fit_features` and `train_head`.
    """
    rows = rows_of(features)
    if num_workers == 0:
        return fit_features(LocalWorkers(Worker(), on_event, kept), features, request, rows, test)
    return train_head(
        features, request, rows, test=test, num_workers=num_workers, use_gpu=use_gpu, on_event=on_event, kept=kept
    )
