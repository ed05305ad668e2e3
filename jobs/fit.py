"""Fit a head on a features dataset, with cross-validation and an evaluation on held-out images.

    bottleneck fit features/ head/
    bottleneck fit s3://bucket/features s3://bucket/head --c 0.1 1 10 100 1000 10000 --folds 3 --num-workers 4
    bottleneck fit features/ head/ --test-keys 'test/*' --group-by '/(P[0-9]+)_'
    bottleneck fit features/ head/ --test test-features/ --scale auto --metric macro_f1
    bottleneck fit features/ head/ --multi-label --c 0.1 1 10

Runs as a Ray Train job that replaces workers that die, or with --num-workers 0 in this process. A killed fit goes on
where it was when it is run again. The result equals scikit-learn's LogisticRegression or LinearSVC
for any number of workers. Writes head.safetensors, head.json, report.html and confusion.png to HEAD, and with several C
(or an svm) label-issues.parquet: the images that are likely mislabelled.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bottleneck.console import duration
from bottleneck.dataset.features import Features, open_features
from bottleneck.distributed.fit import check_workers, fit_request
from bottleneck.distributed.ray_session import cluster_address
from bottleneck.errors import FingerprintError
from bottleneck.heads.fit import Fitted, check_labels, chosen_layer, num_evaluated
from bottleneck.heads.label_issues import write_label_issues
from bottleneck.heads.label_sets import mostly_sets
from bottleneck.heads.labels_evaluation import AnyEvaluation, headline, report_text
from bottleneck.heads.request import HEAD_JSON, HeadRequest
from bottleneck.heads.solver.partial import partial_results
from bottleneck.heads.test_set import request_with_test
from bottleneck.inspect.report import REPORT_HTML
from bottleneck.storage.store import check_output_uri, open_store
from bottleneck.text import counted
from jobs.fit_findings import FINDINGS, findings
from jobs.fit_report import RANDOM_WEIGHTS, end_of_grid, split_notes, try_report
from jobs.fit_table import GridTable
from jobs.results import answer, show

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    features: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """An output of `bottleneck extract`."""
    head: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HEAD")]
    """A folder or s3://bucket/prefix for the head."""
    request: HeadRequest = field(default_factory=HeadRequest)
    test: str | None = None
    """Evaluate on these features, an output of other images made with the same options, and hold nothing out."""
    num_workers: int = 1
    """Ray Train workers, each of which holds a share of the features. 0 fits in this process, without Ray, which is
    faster where they are few."""
    use_gpu: bool = False
    """Place each worker on a node with a GPU."""
    allow_incomplete: bool = False
    """Also fit on unfinished features, with the shards that exist."""


def main(config: Config) -> int:
    answer(fit(config))
    return 0


def fit(config: Config) -> dict[str, Any]:
    """Run the job without printing the result."""
    from bottleneck.heads.head import Head

    started = time.monotonic()
    features = open_features(config.features, allow_incomplete=config.allow_incomplete)
    test = open_features(config.test, allow_incomplete=config.allow_incomplete) if config.test else None
    request = request_with_test(config.request, test, features) if test else config.request
    layer = chosen_layer(features, request)
    check_output_uri(config.head)
    store = open_store(config.head)
    kept = partial_results(store, features, {**request.to_json(), "layer": layer})
    if store.exists(HEAD_JSON):
        kept.sweep()  # of a run that was killed just before
        head = Head.load(config.head)
        _check_same(head, features, test, {**request.to_json(), "layer": layer}, config.head)
        show(f"{config.head} is fitted already")
        has_report = store.exists(REPORT_HTML)
        if num_evaluated(head.origin.details) and not has_report:  # the job was stopped before it, or it failed
            has_report = try_report(config.head, head, features, test)
        return _result(config.head, head, has_report=has_report)
    check_workers(config.num_workers, config.use_gpu)
    store.try_writing()  # before the work, which would be lost
    check_labels(features.plan.label_counts, config.features)
    if not request.multi_label and mostly_sets(features.plan.label_counts):
        log.warning(
            "Many labels are several names separated by ;, and each set of names is a class of its own now. Give "
            "--multi-label to fit every name."
        )
    if features.spec.weights.startswith("random:"):
        log.warning(RANDOM_WEIGHTS, features.spec.weights)
    with GridTable(request) as table:
        fitted = fit_request(
            features,
            request,
            test=test,
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            on_event=table.show,
            kept=kept,
        )
    evaluation = fitted.evaluation
    if evaluation is not None:
        fitted.details["accuracy"] = evaluation.accuracy
    if fitted.label_issues is not None:  # before the head, which is complete where it is
        write_label_issues(config.head, fitted.label_issues)
    fitted.head.save(config.head)
    kept.sweep()
    tell(fitted, evaluation, time.monotonic() - started)
    if advice := faster_way(config.num_workers, fitted.details["seconds"], time.monotonic() - started):
        log.info("%s", advice)
    # After the head: a source that has gone or a disk that is full must not cost the fit.
    has_report = evaluation is not None and try_report(config.head, fitted.head, features, test, evaluation)
    show(f"head: {config.head}{', with report.html' if has_report else ''}")
    return _result(config.head, Head.load(config.head), has_report=has_report)


def faster_way(num_workers: int, fit_seconds: float, seconds: float) -> str:
    """Advice where Ray took most of the time of a fit on this machine, even if one process does all the work; else ''.

    Args:
        seconds: of the fit and all around it.
    """
    alone = num_workers * fit_seconds
    if not num_workers or cluster_address() or 2 * alone > seconds:
        return ""
    return f"--num-workers 0 fits this in this process, without Ray, in about {duration(max(alone, 1))}"


def tell(fitted: Fitted, evaluation: AnyEvaluation | None, seconds: float) -> None:
    """Show the figures of a fit.

    Args:
        evaluation: None where there is neither a held-out image nor a test set.
        seconds: what the whole job took.
    """
    details = fitted.details
    classes = counted(len(fitted.head.classes_), "class", "classes")
    penalty = "" if details["c"] is None else f", C = {details['c']:g}"
    if details["request"]["kind"] == "auto":
        penalty += f", kind {fitted.head.kind}"
    if details["request"]["scale"] == "auto":
        penalty += f", scale {fitted.head.scale}"
    show(
        f"fitted on {counted(details['fitted_on'], 'image')} of {classes}{penalty}, in {duration(seconds)} "
        f"(the fit itself {duration(details['seconds'])})"
    )
    for note in split_notes(details):
        log.info("%s", note)
    if details["unlabelled"]:
        log.warning("%s without a label left out", counted(details["unlabelled"], "image"))
    if test := details["test"]:
        if test["unknown"]:
            images = counted(test["unknown"], "test image")
            log.warning("%s with labels the head does not know, counted as its errors", images)
        if test["unlabelled"]:
            log.warning("%s without a label left out", counted(test["unlabelled"], "test image"))
    if advice := end_of_grid(details):
        log.warning("%s", advice)
    if evaluation is not None:
        for line in report_text(evaluation).split("\n"):
            show(line)
        show(headline(evaluation, "test image" if details["test"] else "held-out image"))
    for line in findings(fitted):
        show(line)


def _check_same(head: "Head", features: Features, test: Features | None, request: dict[str, Any], uri: str) -> None:
    """Raise if another head is in this place, naming the differences."""
    details = head.origin.details
    there = details.get("request", {})
    if there:  # an earlier version may not have had all options of this one
        there = {"multi_label": False, **HeadRequest().to_json(), **there, "features": head.origin.plan_sha256}
        there["test"] = (details.get("test") or {}).get("plan_sha256")
    asked = {"multi_label": False, **request, "features": features.plan.sha256, "test": test and test.plan.sha256}
    differing = [
        f"{name}: fitted {there.get(name)}, requested {value}"
        for name, value in asked.items()
        if there.get(name) != value
    ]
    if differing:
        raise FingerprintError(
            f"{uri} holds a head that was fitted otherwise. Differing: {'; '.join(differing)}. Give the same values, "
            "or another place."
        )


def _result(uri: str, head: "Head", *, has_report: bool) -> dict[str, Any]:
    details = head.origin.details
    return {
        "head": uri,
        "kind": head.kind,
        "scale": head.scale,
        "c": details["c"],
        "metric": details.get("request", {}).get("metric", HeadRequest.metric),
        "grid_end": details.get("grid_end"),
        "gap": details.get("gap"),
        "classes": len(head.classes_),
        "accuracy": details.get("accuracy"),
        "average_precision": details.get("average_precision"),
        **{name: details.get(name) for name in FINDINGS},
        "grid": [
            {
                "kind": row.get("kind", head.kind),
                "scale": row.get("scale", head.scale),
                "c": row["c"],
                "mean": row["mean"],
                "gap": row["gap"],
            }
            for row in details["grid"]
        ],
        **{name: details[name] for name in ("images", "fitted_on", "held_out", "num_workers", "seconds", "way")},
        **{name: details.get("request", {}).get(name) for name in ("test_keys", "group_by")},
        "groups": details.get("groups"),
        "test": details.get("test"),
        "report": f"{uri.rstrip('/')}/{REPORT_HTML}" if has_report else None,
        "sha256": head.sha256_,
    }
