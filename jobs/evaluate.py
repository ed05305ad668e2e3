"""Measure how well a head classifies labelled features.

    bottleneck evaluate head/ features/
    bottleneck evaluate head/ features/ --held-out
    bottleneck evaluate head/ s3://bucket/features --threshold 0.9 --report report/

Prints a classification report with accuracy, its confidence interval, log loss, Brier score and calibration error.
Features with another fingerprint than the head's are refused with exit code 4. Figures on the images of the fit do not
predict the accuracy on new images; --held-out evaluates on the images that the fit held out.
"""

import logging
from dataclasses import dataclass
from typing import Annotated

import tyro

from bottleneck.dataset.features import open_features
from bottleneck.heads.evaluate import Evaluation
from bottleneck.heads.fit import evaluate_head
from bottleneck.heads.labels_evaluation import AnyEvaluation, headline, report_text
from bottleneck.inspect.report import report_of_features, write_report
from bottleneck.storage.store import check_output_uri, open_store
from bottleneck.text import counted
from jobs.fit_findings import near_copies_note
from jobs.results import answer, show

log = logging.getLogger(__name__)

FITTED_ON_THESE = (
    "The head was fitted on images of these features, so expect less on new ones. `--held-out` evaluates only on "
    "images that it was not fitted on."
)
HELD_OUT = "Evaluated on the images that the fit held out."


@dataclass(frozen=True, kw_only=True)
class Config:
    head: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HEAD")]
    """The head to evaluate: a folder or s3:// prefix written by `bottleneck fit`."""
    features: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """Labelled features: an output of `bottleneck extract`."""
    held_out: bool = False
    """Evaluate only on the images that the fit held out; FEATURES must be those of the fit."""
    allow_incomplete: bool = False
    """Also evaluate on unfinished features, with the shards that exist."""
    threshold: float | None = None
    """Leave images with a lower top probability undecided: tells how many are answered, and how accurately."""
    report: str | None = None
    """Folder or s3:// prefix for report.html, confusion.png and evaluation.json."""


def main(config: Config) -> int:
    from bottleneck.heads.head import Head

    head = Head.load(config.head)
    features = open_features(config.features, allow_incomplete=config.allow_incomplete)
    head.check_fits(features.spec)
    if config.report:
        check_output_uri(config.report)
        open_store(config.report).try_writing()
    evaluation = evaluate_head(head, features, held_out=config.held_out, threshold=config.threshold)
    for line in report_text(evaluation).split("\n"):
        show(line)
    was_fitted_on = not config.held_out and head.origin.plan_sha256 == features.plan.sha256
    _tell(evaluation, was_fitted_on=was_fitted_on)
    near_copies = near_copies_note(head.origin.details) if config.held_out else ""
    if near_copies:
        show(near_copies)
    result = {**evaluation.summary(), "fitted_on_these": was_fitted_on, "held_out": config.held_out}
    if config.report:
        title = f"Evaluation of {config.head}"
        notes = [FITTED_ON_THESE] if was_fitted_on else [HELD_OUT] if config.held_out else []
        notes += [near_copies] if near_copies else []
        write_report(config.report, title, evaluation, **report_of_features(features, head, evaluation), notes=notes)
        result["report"] = f"{config.report.rstrip('/')}/report.html"
        show(f"report: {result['report']}")
    answer(result)
    return 0


def _tell(evaluation: AnyEvaluation, *, was_fitted_on: bool) -> None:
    if isinstance(evaluation, Evaluation):
        _tell_classes(evaluation)
    else:
        show(headline(evaluation, "image"))
    if evaluation.unknown_labels:
        named = ", ".join(f"{label} ({count:,})" for label, count in list(evaluation.unknown_labels.items())[:5])
        num_labels, num_images = len(evaluation.unknown_labels), sum(evaluation.unknown_labels.values())
        log.warning(
            "The head does not know %s, so %s counted as its errors: %s%s",
            counted(num_labels, "label"),
            counted(num_images, "image") + (" is" if num_images == 1 else " are"),
            named,
            ", ..." if num_labels > 5 else "",
        )
    if evaluation.num_unlabelled:
        log.warning("%s without a label left out", counted(evaluation.num_unlabelled, "image"))
    if was_fitted_on:
        log.warning("%s", FITTED_ON_THESE)


def _tell_classes(evaluation: Evaluation) -> None:
    low, high = evaluation.accuracy_interval
    show(
        f"accuracy {100 * evaluation.accuracy:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}), "
        f"top-5 {100 * evaluation.top5_accuracy:.2f} %, calibration error {evaluation.calibration_error:.3f}, "
        f"{counted(evaluation.num_images, 'image')}"
    )
    if evaluation.log_loss is not None:
        show(f"log loss {evaluation.log_loss:.3f}, Brier score {evaluation.brier_score:.3f}")
    if evaluation.coverage is not None:
        share, sure = f"{100 * evaluation.coverage:.2f} %", evaluation.accuracy_answered
        right = "" if sure is None else f", {100 * sure:.2f} % of them rightly"
        show(f"answered with a top probability of {evaluation.threshold:g} or more: {share} of the images{right}")
    for pair in evaluation.confused[:3]:
        show(f"most confused: {pair.label} taken for {pair.predicted}, {pair.images:,} x")
