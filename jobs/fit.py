"""Fit a head on a features dataset, with cross-validation and an evaluation on held-out images.

    bottleneck fit features/ head/
    bottleneck fit s3://bucket/features s3://bucket/head --c 0.1 1 10 100 1000 10000 --folds 3 --num-workers 4
    bottleneck fit features/ head/ --test-keys 'test/*' --group-by '/(P[0-9]+)_'

Runs as a Ray Train job that replaces workers that die. The result equals scikit-learn's LogisticRegression or LinearSVC
for any number of workers. Writes head.safetensors, head.json, report.html and confusion.png to HEAD.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bottleneck.console import PLAIN_SECONDS, duration, start_live
from bottleneck.dataset.features import Features, open_features, rows_of
from bottleneck.distributed.train import train_head
from bottleneck.errors import FingerprintError
from bottleneck.heads.evaluate import Evaluation, classification_report
from bottleneck.heads.fit import Fitted, check_labels, chosen_layer, evaluate_head
from bottleneck.heads.request import HEAD_JSON, HeadRequest
from bottleneck.heads.solver.protocol import FitEvent
from bottleneck.inspect.report import REPORT_HTML, report_of_features, write_report
from bottleneck.storage.store import check_output_uri, open_store
from bottleneck.text import counted
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
    num_workers: int = 1
    """Ray Train workers, each of which holds a share of the features."""
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
    layer = chosen_layer(features, config.request)
    check_output_uri(config.head)
    store = open_store(config.head)
    if store.exists(HEAD_JSON):
        head = Head.load(config.head)
        _check_same(head, features, config.request, layer, config.head)
        show(f"{config.head} is fitted already")
        has_report = store.exists(REPORT_HTML)
        if head.origin.details["held_out"] and not has_report:  # the job was stopped before it, or the report failed
            has_report = try_report(config.head, head, features)
        return _result(config.head, head, has_report=has_report)
    store.try_writing()  # before the work, which would be lost
    check_labels(features.plan.label_counts, config.features)
    if features.spec.weights.startswith("random:"):
        log.warning(RANDOM_WEIGHTS, features.spec.weights)
    with GridTable(config.request) as table:
        fitted = train_head(
            features,
            config.request,
            rows_of(features),
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            on_event=table.show,
        )
    evaluation = fitted.evaluator.result() if fitted.details["held_out"] else None
    if evaluation is not None:
        fitted.details["accuracy"] = evaluation.accuracy
    fitted.head.save(config.head)
    tell(fitted, evaluation, time.monotonic() - started)
    # After the head: a source that has gone or a disk that is full must not cost the fit.
    has_report = evaluation is not None and try_report(config.head, fitted.head, features, evaluation)
    show(f"head: {config.head}{', with report.html' if has_report else ''}")
    return _result(config.head, Head.load(config.head), has_report=has_report)


def tell(fitted: Fitted, evaluation: Evaluation | None, seconds: float) -> None:
    """Show the figures of a fit.

    Args:
        evaluation: None where no image was held out.
        seconds: what the whole job took.
    """
    details = fitted.details
    classes = counted(len(fitted.head.classes_), "class", "classes")
    penalty = "" if details["c"] is None else f", C = {details['c']:g}"
    show(
        f"fitted on {counted(details['fitted_on'], 'image')} of {classes}{penalty}, in {duration(seconds)} "
        f"(the fit itself {duration(details['seconds'])})"
    )
    for note in split_notes(details):
        log.info("%s", note)
    if details["unlabelled"]:
        log.warning("%s without a label left out", counted(details["unlabelled"], "image"))
    if advice := end_of_grid(details):
        log.warning("%s", advice)
    if evaluation is not None:
        low, high = evaluation.accuracy_interval
        for line in classification_report(evaluation).split("\n"):
            show(line)
        show(
            f"accuracy {100 * evaluation.accuracy:.2f} % on {counted(details['held_out'], 'held-out image')} "
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f})"
        )


def try_report(uri: str, head: "Head", features: Features, evaluation: Evaluation | None = None) -> bool:
    """Write the report beside a saved head; log the reason and return False if that fails.

    Args:
        evaluation: on the held-out images; made here where it is None.
    """
    try:
        write_head_report(uri, head, features, evaluation or evaluate_head(head, features, held_out=True))
    except Exception as error:  # of the source, of what reads it, of drawing: none of them makes the head worth less
        log.warning(
            "The report could not be written: %s. The head is saved; run the same command again to write the report.",
            str(error).rstrip("."),
        )
        log.debug("the report", exc_info=True)
        return False
    return True


def write_head_report(uri: str, head: "Head", features: Features, evaluation: Evaluation) -> None:
    """Write the report of a head, on its held-out images."""
    details = head.origin.details
    grid = [
        {"C": row["c"], "folds": row["accuracies"], "mean": row["mean"], "std": row["std"], "seconds": row["seconds"]}
        for row in details["grid"]
    ]
    title = f"Head ({head.kind}) of {counted(len(head.classes_), 'class', 'classes')}"
    material = report_of_features(features, head, evaluation)
    weights = features.spec.weights
    notes = [RANDOM_WEIGHTS % weights] if weights.startswith("random:") else []
    notes += [note for note in (*split_notes(details), end_of_grid(details)) if note]
    write_report(uri, title, evaluation, grid=grid or None, notes=notes, **material)


def split_notes(details: dict[str, Any]) -> list[str]:
    """Notes on how images were divided, one sentence each."""
    request, notes = details["request"], []
    if request["test_keys"]:
        moved = details["held_out_with_test_keys"]
        also = f"; {counted(moved, 'other')} with them, as copies or of their groups" if moved else ""
        named = ", ".join(request["test_keys"])
        notes.append(f"Held out are the images whose keys match {named}{also}.")
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


def _check_same(head: "Head", features: Features, request: HeadRequest, layer: str, uri: str) -> None:
    """Raise if another head is in this place, naming the differences."""
    asked = {**request.to_json(), "layer": layer}
    there = head.origin.details.get("request", {})
    if there:  # an earlier version may not have had all options of this one
        there = {**HeadRequest().to_json(), **there, "features": head.origin.plan_sha256}
    differing = [
        f"{name}: fitted {there.get(name)}, requested {value}"
        for name, value in {**asked, "features": features.plan.sha256}.items()
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
        "c": details["c"],
        "grid_end": details.get("grid_end"),
        "gap": details.get("gap"),
        "classes": len(head.classes_),
        "accuracy": details.get("accuracy"),
        "grid": [{"c": row["c"], "mean": row["mean"], "gap": row["gap"]} for row in details["grid"]],
        **{name: details[name] for name in ("images", "fitted_on", "held_out", "num_workers", "seconds", "way")},
        **{name: details.get("request", {}).get(name) for name in ("test_keys", "group_by")},
        "groups": details.get("groups"),
        "report": f"{uri.rstrip('/')}/{REPORT_HTML}" if has_report else None,
        "sha256": head.sha256_,
    }


class GridTable:
    """Show the grid: as a live table on a terminal while it fills, then as lines of the result."""

    def __init__(self, request: HeadRequest) -> None:
        self.request = request
        self.accuracies: dict[tuple[float, int], float] = {}
        self.state = "starting"
        self._live: Any = None
        self._told = time.monotonic()

    def __enter__(self) -> "GridTable":
        self._live = start_live(transient=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        for line in self.lines():
            show(line)

    def show(self, event: FitEvent) -> None:
        if "accuracy" in event:
            self.accuracies[event["c"], event["fold"]] = event["accuracy"]
            self.state = f"C = {event['c']:g}, fold {event['fold'] + 1}"
        elif "read" in event:
            classes = counted(event["classes"], "class", "classes")
            self.state = f"{counted(event['read'], 'image')} of {classes} read in {duration(event['seconds'])}"
        elif "epoch" in event:
            self.state = f"epoch {event['epoch']} of {event['epochs']}"
        else:
            passes = counted(event["passes"], "pass", "passes")
            self.state = f"step {event['step']}, {passes}, at most {event['gap']:.0e} above the optimum"
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)
        elif "read" in event or time.monotonic() - self._told > PLAIN_SECONDS:
            self._told = time.monotonic()
            log.info("fit: %s", self.state)

    def rows(self) -> list[list[str]]:
        """C, each fold's accuracy and their mean, as text."""
        rows = []
        for c in self.request.c if self.accuracies else []:
            found = [self.accuracies.get((c, fold)) for fold in range(self.request.folds)]
            known = [value for value in found if value is not None]
            mean = f"{sum(known) / len(known):.4f}" if len(known) == len(found) else ""
            rows.append([f"{c:g}", *("" if value is None else f"{value:.4f}" for value in found), mean])
        return rows

    def lines(self) -> list[str]:
        """The table as plain text."""
        if not self.accuracies:
            return []
        head = ["C", *(f"fold {fold + 1}" for fold in range(self.request.folds)), "mean"]
        return ["".join(f"{cell:>10}" for cell in row) for row in [head, *self.rows()]]

    def _drawn(self) -> Any:
        from rich.table import Table as Drawn

        drawn = Drawn(title=f"fit: {self.state}", title_justify="left")
        for name in ["C", *(f"fold {fold + 1}" for fold in range(self.request.folds)), "mean"]:
            drawn.add_column(name, justify="right")
        for row in self.rows():
            drawn.add_row(*row)
        return drawn
