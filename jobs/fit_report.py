"""The report of a fit, and the sentences that go with its figures."""

import logging
from typing import TYPE_CHECKING, Any

from bottleneck.dataset.features import Features
from bottleneck.heads.fit import evaluate_head
from bottleneck.heads.label_issues import read_label_issues
from bottleneck.heads.labels_evaluation import AnyEvaluation
from bottleneck.heads.request import HeadRequest
from bottleneck.inspect.report import report_of_features, write_report
from bottleneck.text import counted
from jobs.fit_findings import near_copies_note

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head

log = logging.getLogger(__name__)

RANDOM_WEIGHTS = (
    "The features were made with weights %s, not trained ones: right for tests and timing, not for accuracy."
)


def try_report(
    uri: str, head: "Head", features: Features, test: Features | None = None, evaluation: AnyEvaluation | None = None
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


def write_head_report(uri: str, head: "Head", features: Features, evaluation: AnyEvaluation) -> None:
    """Write the report of a head.

    Args:
        features: the images it was evaluated on: those that hold the held-out ones, or the test set.
    """
    details = head.origin.details
    varied = [name for name in ("kind", "scale") if details["request"][name] == "auto"]
    columns = ("mean", "std", "seconds", *varied)
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
