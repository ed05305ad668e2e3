"""The sections of a report as HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bottleneck.heads.evaluate import Evaluation
from bottleneck.heads.labels_evaluation import AnyEvaluation
from bottleneck.inspect.html import data_uri, page
from bottleneck.inspect.plots import (
    DARK,
    LIGHT,
    MAX_CELLS,
    MAX_NUMBERED,
    ImageFileFormat,
    Theme,
    draw_calibration,
    draw_confusion,
    draw_coverage,
)
from bottleneck.text import counted

COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Shares of the images at which the page tells the accuracy."""


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures for a report."""

    images: dict[str, bytes] = field(default_factory=dict)
    """JPEG by key."""
    missing: str = ""
    """Why pictures are missing, as a sentence."""


@dataclass(frozen=True)
class Rejections:
    """Images rejected for one reason."""

    images: int
    keys: tuple[str, ...] = ()
    """The first of them."""


@dataclass(frozen=True)
class LabelIssues:
    """Images that are likely mislabelled."""

    images: int
    shown: tuple[dict[str, Any], ...] = ()
    """The likeliest, as rows of `label_issues.ISSUE_SCHEMA`."""


def report_html(
    title: str,
    evaluation: Evaluation,
    grid: list[dict[str, Any]] | None,
    details: dict[str, dict[str, Any]],
    thumbnails: Thumbnails,
    rejected: dict[str, Rejections],
    notes: Sequence[str] = (),
    label_issues: LabelIssues | None = None,
    metric: str = "accuracy",
) -> str:
    """The page as text; see `write_report`."""
    sections = [
        ("summary", "Summary"),
        *grid_section(grid),
        ("classes", "Classes"),
        ("confusion", "Confusion matrix"),
        ("pairs", "Most confused"),
        ("mistakes", "Worst mistakes"),
        *([("labels", "Likely mislabelled")] if label_issues else []),
        ("calibration", "Calibration"),
        ("coverage", "Leaving images undecided"),
        ("rejected", "Rejected images"),
        ("made", "How it was made"),
    ]
    classes = counted(len(evaluation.classes), "class", "classes")
    return page(
        "report",
        title,
        f"{counted(evaluation.num_images, 'labelled image')}, {classes}",
        sections,
        evaluation=evaluation,
        notes=[*notes, *notes_of(evaluation)],
        numbers=_numbers(evaluation),
        grid=grid_table(grid, metric) if grid else None,
        confusion=_confusion(evaluation),
        calibration=_themed(draw_calibration, evaluation),
        coverage=_coverage(evaluation),
        label_issues=label_issues,
        thumbnails=thumbnails,
        rejected=rejected,
        details=details,
    )


def _numbers(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    low, high = evaluation.accuracy_interval
    return [
        ("Accuracy", f"{evaluation.accuracy:.2%}", f"95 % interval {low:.2%} to {high:.2%}"),
        ("Top-5 accuracy", f"{evaluation.top5_accuracy:.2%}", "the label is among five"),
        ("Macro F1", f"{evaluation.macro.f1:.3f}", "mean over classes"),
        ("Calibration error", f"{evaluation.calibration_error:.3f}", "0 is best"),
        *_losses(evaluation),
        ("Images", f"{evaluation.num_images:,}", f"{evaluation.num_correct:,} right"),
    ]


def _losses(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    if evaluation.log_loss is None:  # the head knows none of the labels
        return []
    return [
        ("Log loss", f"{evaluation.log_loss:.3f}", "of the probabilities; 0 is best"),
        ("Brier score", f"{evaluation.brier_score:.3f}", "their squared error; 0 is best"),
    ]


def notes_of(evaluation: AnyEvaluation) -> list[str]:
    """Notes on the images that are no part of the figures, or errors in them."""
    notes = []
    if unknown := evaluation.unknown_labels:
        named = ", ".join(list(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        images = counted(sum(unknown.values()), "image")
        notes.append(f"{images} with labels the head does not know, counted as its errors: {named}.")
    if evaluation.num_unlabelled:
        notes.append(f"{counted(evaluation.num_unlabelled, 'image')} without a label left out.")
    return notes


def grid_section(grid: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    """The section of the grid, if there is one."""
    return [("grid", f"Choice of {_listed(varied_in(grid))}")] if grid else []


def varied_in(grid: list[dict[str, Any]]) -> list[str]:
    """What the rows of a grid differ in, besides C."""
    return [name for name in ("kind", "scale") if name in grid[0]]


def _listed(varied: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(varied), "C")))


def grid_table(grid: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The scores of every fold, for the template of the grid."""
    least = metric == "log_loss"
    best = (min if least else max)(range(len(grid)), key=lambda row: grid[row]["mean"])
    varied = varied_in(grid)
    num_folds = max(len(row["folds"]) for row in grid)
    columns = [*varied, "C", *(f"fold {number + 1}" for number in range(num_folds)), "mean", "std", "seconds"]
    rows = []
    for number, row in enumerate(grid):
        scores = [f"{score:.4f}" for score in row["folds"]] + [""] * (num_folds - len(row["folds"]))
        ends = [f"{row['mean']:.4f}", f"{row['std']:.4f}", f"{row['seconds']:,.2f}"]
        mark = " (best)" if number == best else ""
        c = f"{row['C']:g}"
        first, *others = [*(row[name] for name in varied), c]
        names = [f"{first}{mark}", *others]
        rows.append([*names, *scores, *ends])
    title = f"{metric.replace('_', ' ').capitalize()} on held-out folds{', the lower the better,' if least else ''}"
    by = _listed(varied)
    return {
        "title": f"{title} by {by}, the inverse strength of the penalty",
        "columns": columns,
        "rows": rows,
        "best": best,
    }


def _confusion(evaluation: Evaluation) -> dict[str, Any]:
    num_classes = len(evaluation.classes)
    worst = "".join(f" {pair.label} taken for {pair.predicted}, {pair.images}." for pair in evaluation.confused[:3])
    # Digits are sharp at any size as SVG; ten thousand squares are smaller as PNG.
    file_format: ImageFileFormat = "svg" if num_classes <= MAX_NUMBERED else "png"
    light, dark = (_drawn(draw_confusion(evaluation, file_format, theme), file_format) for theme in (LIGHT, DARK))
    return {
        "light": light,
        "dark": dark,
        "alt": f"Confusion matrix of {counted(num_classes, 'class', 'classes')}. Most confused:{worst or ' none'}",
        "group": -(-num_classes // MAX_CELLS),
        # A cell of 30 px fits two digits; beyond, a pixel of the screen for each of the PNG.
        "width": max(460, 30 * num_classes + 160) if num_classes <= MAX_NUMBERED else 1650,
    }


def _coverage(evaluation: Evaluation) -> dict[str, Any]:
    """The curve, and what it says at some shares."""
    curve = evaluation.coverage_curve
    rows = []
    for share in COVERAGES:
        # The surest images that are this share at least: every point adds some.
        point = next(point for point in curve if point.coverage >= share - 1e-9)
        rows.append([f"{point.coverage:.1%}", f"{point.accuracy:.2%}", f"{point.threshold:.4f}"])
    return {**_themed(draw_coverage, evaluation), "rows": list(dict.fromkeys(map(tuple, rows)))}


def _themed(draw: Callable[[Evaluation, ImageFileFormat, Theme], bytes], evaluation: Evaluation) -> dict[str, str]:
    return {name: _drawn(draw(evaluation, "svg", theme), "svg") for name, theme in (("light", LIGHT), ("dark", DARK))}


def _drawn(data: bytes, file_format: ImageFileFormat) -> str:
    return data_uri("image/svg+xml" if file_format == "svg" else "image/png", data)
