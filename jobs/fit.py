"""Fit a head on a features dataset, with cross-validation and an evaluation on held-out images.

    bottleneck fit features/ head/
    bottleneck fit s3://bucket/features s3://bucket/head --c 0.1 1 10 100 1000 10000 --folds 3 --num-workers 4
    bottleneck fit features/ head/ --test-keys 'test/*' --group-by '/(P[0-9]+)_'
    bottleneck fit features/ head/ --test test-features/ --scale auto --metric macro_f1

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
from bottleneck.heads.evaluate import Evaluation, classification_report
from bottleneck.heads.fit import Fitted, check_labels, chosen_layer, evaluate_head, num_evaluated
from bottleneck.heads.label_issues import read_label_issues, write_label_issues
from bottleneck.heads.request import HEAD_JSON, HeadRequest
from bottleneck.heads.solver.partial import partial_results
from bottleneck.heads.test_set import request_with_test
from bottleneck.inspect.report import REPORT_HTML, report_of_features, write_report
from bottleneck.storage.store import check_output_uri, open_store
from bottleneck.text import counted
from jobs.fit_findings import FINDINGS, findings, near_copies_note
from jobs.fit_table import GridTable
from jobs.results import answer, show

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head

log = logging.getLogger(__name__)

RANDOM_WEIGHTS = (
    "The features were made with weights %s, not trained ones: right for tests and timing, not for accuracy."
)


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


def tell(fitted: Fitted, evaluation: Evaluation | None, seconds: float) -> None:
    """Show the figures of a fit.

    Args:
        evaluation: None where there is neither a held-out image nor a test set.
        seconds: what the whole job took.
    """
    details = fitted.details
    classes = counted(len(fitted.head.classes_), "class", "classes")
    penalty = "" if details["c"] is None else f", C = {details['c']:g}"
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
        low, high = evaluation.accuracy_interval
        for line in classification_report(evaluation).split("\n"):
            show(line)
        show(
            f"accuracy {100 * evaluation.accuracy:.2f} % on {counted(evaluation.num_images, _kind_of(details))} "
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f}), log loss {evaluation.log_loss:.3f}, "
            f"Brier score {evaluation.brier_score:.3f}"
        )
    for line in findings(fitted):
        show(line)


def try_report(
    uri: str, head: "Head", features: Features, test: Features | None = None, evaluation: Evaluation | None = None
) -> bool:
    """Write the report beside a saved head; log the reason and return False if that fails.

    Args:
        evaluation: on the held-out images, or on the test set if there is one; made here where it is None.
    """
    seen = test or features
    try:
        write_head_report(uri, head, seen, evaluation or evaluate_head(head, seen, held_out=test is None))
    except Exception as error:  # of the source, of what reads it, of drawing: none of them makes the head worth less
        log.warning(
            "The report could not be written: %s. The head is saved; run the same command again to write the report.",
            str(error).rstrip("."),
        )
        log.debug("the report", exc_info=True)
        return False
    return True


def write_head_report(uri: str, head: "Head", features: Features, evaluation: Evaluation) -> None:
    """Write the report of a head.

    Args:
        features: the images it was evaluated on: those that hold the held-out ones, or the test set.
    """
    details = head.origin.details
    columns = ("mean", "std", "seconds", *(["scale"] if details["request"]["scale"] == "auto" else []))
    grid = [
        {"C": row["c"], "folds": row.get("scores", row["accuracies"]), **{name: row[name] for name in columns}}
        for row in details["grid"]
    ]
    title = f"Head ({head.kind}) of {counted(len(head.classes_), 'class', 'classes')}"
    issues = read_label_issues(uri) if details.get("label_issues") is not None else None
    material = report_of_features(features, head, evaluation, issues)
    weights = features.spec.weights
    notes = [RANDOM_WEIGHTS % weights] if weights.startswith("random:") else []
    notes += [note for note in (*split_notes(details), near_copies_note(details), end_of_grid(details)) if note]
    metric = details["request"].get("metric", HeadRequest.metric)
    write_report(uri, title, evaluation, grid=grid or None, metric=metric, notes=notes, **material)


def split_notes(details: dict[str, Any]) -> list[str]:
    """Notes on how images were divided, one sentence each."""
    request, notes = details["request"], []
    if request["test_keys"]:
        moved = details["held_out_with_test_keys"]
        also = f"; {counted(moved, 'other')} with them, as copies or of their groups" if moved else ""
        named = ", ".join(request["test_keys"])
        notes.append(f"Held out are the images whose keys match {named}{also}.")
    if test := details.get("test"):
        notes.append(f"Evaluated on the {counted(test['images'], 'labelled image')} of {test['features']}.")
        if copies := test["copies"]:
            notes.append(
                f"{counted(copies, 'test image')} {'is' if copies == 1 else 'are'} byte-identical to images of the "
                "fit, so expect less on new ones."
            )
    if request["group_by"] is not None:
        alone = details["ungrouped"]
        also = f"; {counted(alone, 'image')} without a group stood alone" if alone else ""
        groups = counted(details["groups"] - alone, "group")
        notes.append(f"Images were kept together in {groups} by {request['group_by']}{also}.")
    if conflicts := details["conflicting_copies"]:
        sets = counted(conflicts, "set")
        notes.append(f"{sets} of byte-identical images {'has' if conflicts == 1 else 'have'} different labels.")
    return notes


def end_of_grid(details: dict[str, Any]) -> str:
    """Advice if the best C is at an end of the grid; else empty."""
    if not (end := details["grid_end"]):
        return ""
    return f"The best C, {details['c']:g}, is the {end} of the grid: a {end.replace('est', 'er')} one may be better."


def _kind_of(details: dict[str, Any]) -> str:
    return "test image" if details["test"] else "held-out image"


def _check_same(head: "Head", features: Features, test: Features | None, request: dict[str, Any], uri: str) -> None:
    """Raise if another head is in this place, naming the differences."""
    details = head.origin.details
    there = details.get("request", {})
    if there:  # an earlier version may not have had all options of this one
        there = {**HeadRequest().to_json(), **there, "features": head.origin.plan_sha256}
        there["test"] = (details.get("test") or {}).get("plan_sha256")
    asked = {**request, "features": features.plan.sha256, "test": test and test.plan.sha256}
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
        **{name: details.get(name) for name in FINDINGS},
        "grid": [
            {"scale": row.get("scale", head.scale), "c": row["c"], "mean": row["mean"], "gap": row["gap"]}
            for row in details["grid"]
        ],
        **{name: details[name] for name in ("images", "fitted_on", "held_out", "num_workers", "seconds", "way")},
        **{name: details.get("request", {}).get(name) for name in ("test_keys", "group_by")},
        "groups": details.get("groups"),
        "test": details.get("test"),
        "report": f"{uri.rstrip('/')}/{REPORT_HTML}" if has_report else None,
        "sha256": head.sha256_,
    }
