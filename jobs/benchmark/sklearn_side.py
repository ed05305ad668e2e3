"""scikit-learn's side of `--what head` and `--what head-growth`.

Legend: N images, D features, K classes.
"""

import multiprocessing
import os
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.dataset.features import open_features, rows_of
from bottleneck.errors import BottleneckError
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.rows import as_dtype
from bottleneck.heads.solver.worker import Worker
from jobs.benchmark.process import Figures

C = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
REQUEST = HeadRequest(c=C)
"""Three folds of 3/4 of the images, as `bottleneck fit` has them unless it is told otherwise."""
THREADS = 2
"""Of matrix products in one process; `bottleneck fit` takes the cores it finds."""
TOLERANCE = 1e-8
"""Of scikit-learn's gradient, where it is to come as near to the optimum as this project."""
MAX_ITERATIONS = 100_000


@dataclass(frozen=True)
class Data:
    """The images that are fitted on."""

    features_ND: np.ndarray
    class_indices_N: np.ndarray
    folds_N: np.ndarray
    num_classes: int


def load(source: str, layer: str, request: HeadRequest = REQUEST) -> Data:
    """Read features and deal them to folds, as `bottleneck fit` does; in float32."""
    features = open_features(source)
    worker = Worker()
    rule, num_rows = request.split_rule, sum(rows_of(features).values())
    names, class_indices_N, traits, _ = worker.read(features, layer, features.files, num_rows, rule)
    classes = sorted(names)
    class_indices_N = np.array([classes.index(name) for name in names])[class_indices_N]
    folds_N = rule.split(class_indices_N, traits, classes).folds_N
    fitted_N = folds_N >= 0
    features_ND = as_dtype(worker.features_ND[fitted_N], np.float32)
    return Data(features_ND, class_indices_N[fitted_N], folds_N[fitted_N], len(classes))


def measure_grid_search(source: str, layer: str) -> Figures:
    """The tutorials' search on features as a network gives them, in float32; without the fit on all folds."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from threadpoolctl import threadpool_limits

    data = load(source, layer)
    fitted: list[Any] = []

    def score(estimator: Any, features_ND: np.ndarray, class_indices_N: np.ndarray) -> float:
        fitted.append(estimator)  # which the search would forget
        return float(estimator.score(features_ND, class_indices_N))

    search = GridSearchCV(
        LogisticRegression(), {"C": list(C)}, cv=PredefinedSplit(data.folds_N), scoring=score, refit=False
    )
    with threadpool_limits(THREADS), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # how far it came is told below
        started = time.perf_counter()
        search.fit(data.features_ND, data.class_indices_N)
        seconds = time.perf_counter() - started
    rows = []
    for number, c in enumerate(C):
        own = fitted[number * REQUEST.folds : (number + 1) * REQUEST.folds]
        accuracies = [float(search.cv_results_[f"split{fold}_test_score"][number]) for fold in range(REQUEST.folds)]
        objectives = [objective(estimator, data, fold) for fold, estimator in enumerate(own)]
        iterations = [int(estimator.n_iter_.max()) for estimator in own]
        rows.append({"c": c, "accuracies": accuracies, "objectives": objectives, "iterations": iterations})
    stopped = sum(int(estimator.n_iter_.max()) >= estimator.max_iter for estimator in fitted)
    return {"seconds": seconds, "stopped_by_max_iter": stopped, "rows": rows}


def measure_converged(source: str, layer: str, limit_seconds: float, request: HeadRequest = REQUEST) -> Figures:
    """Every value of C without the first fold, each in a process of its own, which is ended when its time is over.

    With a single C there are no folds, and all images are fitted on.
    """
    context = multiprocessing.get_context("spawn")
    rows = []
    for c in request.c:
        ours, theirs = context.Pipe()
        process = context.Process(target=_converge, args=(theirs, source, layer, c, request), daemon=True)
        process.start()
        theirs.close()  # so that its end is seen here
        try:
            ours.recv()  # it has read the features
            rows.append({"c": c, **(ours.recv() if ours.poll(limit_seconds) else {"seconds": None})})
        except EOFError:
            raise BottleneckError(f"scikit-learn ended early at C = {c:g}, with {process.exitcode}.") from None
        finally:
            process.terminate()
            process.join()
    return {
        "rows": rows,
        # What runs out of time is counted with its limit, so this is the least that the whole grid takes.
        "grid_seconds_at_least": request.folds * sum(row["seconds"] or limit_seconds for row in rows),
        "over_limit": sum(row["seconds"] is None for row in rows),
    }


def _converge(connection: Any, source: str, layer: str, c: float, request: HeadRequest) -> None:
    os.dup2(2, 1)
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    data = load(source, layer, request)
    left_out = 0 if request.cross_validated else -1
    seen_N = data.folds_N != left_out
    seen_ND = data.features_ND[seen_N].astype(np.float64)  # float32 ends far from such a tolerance
    connection.send(None)
    with threadpool_limits(THREADS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        estimator = LogisticRegression(C=c, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
        estimator.fit(seen_ND, data.class_indices_N[seen_N])
        seconds = time.perf_counter() - started
    found = {"seconds": seconds, "objective": objective(estimator, data, left_out)}
    if request.cross_validated:
        right = estimator.score(data.features_ND[~seen_N].astype(np.float64), data.class_indices_N[~seen_N])
        found["accuracy"] = float(right)
    connection.send(found)


def objective(estimator: Any, data: Data, left_out: int) -> float:
    """What a fitted LogisticRegression minimised, on the images of the other folds, in float64."""
    seen_N = data.folds_N != left_out
    coef_KD = estimator.coef_.astype(np.float64)
    scores_NK = data.features_ND[seen_N].astype(np.float64) @ coef_KD.T + estimator.intercept_.astype(np.float64)
    if scores_NK.shape[1] == 1:  # the log odds of the second of two classes
        scores_NK = np.hstack([np.zeros_like(scores_NK), scores_NK])
    truth_N = np.searchsorted(estimator.classes_, data.class_indices_N[seen_N])
    return float(estimator.C * log_losses(scores_NK, truth_N).sum() + (coef_KD**2).sum() / 2)


def log_losses(scores_NK: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Of every image; also those of 1e-20, which a large C and many images make count."""
    every_N = np.arange(len(truth_N))
    ahead_NK = scores_NK - scores_NK[every_N, truth_N][:, None]
    ahead_NK[every_N, truth_N] = -np.inf
    top_N = np.maximum(ahead_NK.max(axis=1), 0)
    others_N = np.exp(ahead_NK - top_N[:, None]).sum(axis=1)
    losses_N: np.ndarray = np.where(top_N > 0, top_N + np.log(np.exp(-top_N) + others_N), np.log1p(others_N))
    return losses_N
