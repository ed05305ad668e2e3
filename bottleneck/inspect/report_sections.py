"""The sections of a report as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bottleneck.heads.evaluate import ConfusedPair, Evaluation
from bottleneck.inspect import html
from bottleneck.inspect.html import data_uri, escape, name
from bottleneck.inspect.plots import (
    DARK,
    LIGHT,
    MAX_CELLS,
    MAX_NUMBERED,
    ImageFileFormat,
    draw_calibration,
    draw_confusion,
)
from bottleneck.text import counted


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures for a report."""

    images: dict[str, bytes] = field(default_factory=dict)
    """JPEG by key."""
    missing: str = ""
    """Why some or all are not here, as a sentence for people."""


@dataclass(frozen=True)
class Rejections:
    """Images rejected for one reason."""

    images: int
    keys: tuple[str, ...] = ()
    """The first of them."""


def report_html(
    title: str,
    evaluation: Evaluation,
    grid: list[dict[str, Any]] | None,
    details: dict[str, dict[str, Any]],
    thumbnails: Thumbnails,
    rejected: dict[str, Rejections],
    notes: Sequence[str] = (),
) -> str:
    """The page as text; see `write_report`."""
    remarks = "".join(f'<p class="note" role="note">{escape(note)}</p>' for note in (*notes, *_notes(evaluation)))
    absent = f'<p class="note" role="note">{escape(thumbnails.missing)}</p>' if thumbnails.missing else ""
    sections = [("summary", "Summary", remarks + _numbers(evaluation))]
    if grid:
        sections.append(("grid", "Choice of C", _grid(grid)))
    sections.append(("classes", "Classes", _classes(evaluation)))
    sections.append(("confusion", "Confusion matrix", _confusion(evaluation)))
    sections.append(("pairs", "Most confused", absent + _pairs(evaluation, thumbnails.images)))
    sections.append(("mistakes", "Worst mistakes", _mistakes(evaluation, thumbnails.images)))
    sections.append(("calibration", "Calibration", _calibration(evaluation)))
    sections.append(("rejected", "Rejected images", _rejected(rejected)))
    made = "".join(f"<h3>{escape(heading)}</h3>{html.definitions(values)}" for heading, values in details.items())
    sections.append(("made", "How it was made", made))
    classes = counted(len(evaluation.classes), "class", "classes")
    images = f"{counted(evaluation.num_images, 'labelled image')}, {classes}"
    return html.page(title, images, sections, "Everything on this page is inside this file; it loads nothing.")


def _numbers(evaluation: Evaluation) -> str:
    low, high = evaluation.accuracy_interval
    shown = [
        ("Accuracy", f"{evaluation.accuracy:.2%}", f"95 % interval {low:.2%} to {high:.2%}"),
        ("Top-5 accuracy", f"{evaluation.top5_accuracy:.2%}", "the label is among five"),
        ("Macro F1", f"{evaluation.macro.f1:.3f}", "mean over classes"),
        ("Calibration error", f"{evaluation.calibration_error:.3f}", "0 is best"),
        ("Images", f"{evaluation.num_images:,}", f"{evaluation.num_correct:,} right"),
    ]
    items = (f"<div><dt>{title}</dt><dd>{value}<small>{note}</small></dd></div>" for title, value, note in shown)
    return f'<dl class="numbers">{"".join(items)}</dl>'


def _notes(evaluation: Evaluation) -> list[str]:
    notes = []
    if unknown := evaluation.unknown_labels:
        named = ", ".join(list(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        images = counted(sum(unknown.values()), "image")
        notes.append(f"{images} with labels the head does not know, counted as its errors: {named}.")
    if evaluation.num_unlabelled:
        notes.append(f"{counted(evaluation.num_unlabelled, 'image')} without a label left out.")
    return notes


def _grid(grid: list[dict[str, Any]]) -> str:
    best = max(range(len(grid)), key=lambda row: grid[row]["mean"])
    num_folds = max(len(row["folds"]) for row in grid)
    columns = ["C", *(f"fold {number + 1}" for number in range(num_folds)), "mean", "std", "seconds"]
    rows = []
    for number, row in enumerate(grid):
        scores = [f"{score:.4f}" for score in row["folds"]] + [""] * (num_folds - len(row["folds"]))
        ends = [f"{row['mean']:.4f}", f"{row['std']:.4f}", f"{row['seconds']:,.2f}"]
        mark = " (best)" if number == best else ""
        rows.append(([f"{row['C']:g}{mark}", *scores, *ends], "best" if number == best else ""))
    return html.table("Accuracy on held-out folds by C, the inverse strength of the penalty", columns, rows)


def _classes(evaluation: Evaluation) -> str:
    rows = [
        ([name(line.label), *map(html.share_cell, (line.precision, line.recall, line.f1)), f"{line.support:,}"], "")
        for line in evaluation.per_class
    ]
    columns = ["Class", "Precision", "Recall", "F1", "Images"]
    return html.table("Every class; the headings sort", columns, rows, sortable=True)


def _confusion(evaluation: Evaluation) -> str:
    num_classes = len(evaluation.classes)
    group = -(-num_classes // MAX_CELLS)
    words = "Rows are true classes, columns what they were taken for. Blue is right, orange wrong; the stronger, the "
    words += "larger the share of its row."
    if group > 1:
        words += f" Each square stands for {group} neighbouring classes: on the diagonal their mean recall, elsewhere "
        words += "the largest share of one class taken for another."
    words += " A click enlarges it."
    worst = "".join(f" {pair.label} taken for {pair.predicted}, {pair.images}." for pair in evaluation.confused[:3])
    alt = f"Confusion matrix of {counted(num_classes, 'class', 'classes')}. Most confused:{worst or ' none'}"
    # Digits are sharp at any size as SVG; ten thousand squares are smaller as PNG.
    file_format: ImageFileFormat = "svg" if num_classes <= MAX_NUMBERED else "png"
    light, dark = (_drawn(draw_confusion(evaluation, file_format, theme), file_format) for theme in (LIGHT, DARK))
    # A cell of 30 px fits two digits; beyond, a pixel of the screen for each of the PNG.
    width = max(460, 30 * num_classes + 160) if num_classes <= MAX_NUMBERED else 1650
    shown = html.picture(light, dark, alt, max_width_px=min(width, 1000), large_width_px=width)
    return f"<p>{words}</p>{shown}"


def _calibration(evaluation: Evaluation) -> str:
    light, dark = (_drawn(draw_calibration(evaluation, "svg", theme), "svg") for theme in (LIGHT, DARK))
    error = evaluation.calibration_error
    words = f"Of the images the head is p sure of, a share p should be right. The gap is {error:.3f} on average."
    return f"<p>{words}</p>" + html.picture(light, dark, f"Calibration, error {error:.3f}", max_width_px=416)


def _drawn(data: bytes, file_format: ImageFileFormat) -> str:
    return data_uri("image/svg+xml" if file_format == "svg" else "image/png", data)


def _pairs(evaluation: Evaluation, images: dict[str, bytes]) -> str:
    if not evaluation.confused:
        return "<p>No image was taken for another class the head knows.</p>"
    items = "\n".join(f"<li>{_pair(pair, evaluation, images)}</li>" for pair in evaluation.confused)
    return f'<ol class="pairs">{items}</ol>'


def _pair(pair: ConfusedPair, evaluation: Evaluation, images: dict[str, bytes]) -> str:
    shown = []
    for label, key, words in (
        (pair.label, evaluation.examples.get(pair.label), f"<b>{name(pair.label)}</b>"),
        (pair.label, pair.keys[0] if pair.keys else None, f"{name(pair.label)}, <b>mistaken</b>"),
        (pair.predicted, evaluation.examples.get(pair.predicted), f"<b>{name(pair.predicted)}</b>"),
    ):
        absent = "no picture" if key else "none was recognised"
        shown.append(html.thumbnail(images.get(key or ""), f"{label}: {key}", words, absent))
    keys = "".join(f'<li class="key">{name(key)}</li>' for key in pair.keys)
    plural = "image" if pair.images == 1 else "images"
    return (
        f"<h3>{name(pair.label)} taken for {name(pair.predicted)}: {pair.images:,} {plural}</h3>"
        f'<div class="three">{"".join(shown)}</div>'
        f"<details><summary>keys</summary><ul>{keys}</ul></details>"
    )


def _mistakes(evaluation: Evaluation, images: dict[str, bytes]) -> str:
    if not evaluation.mistakes:
        return "<p>There are none: every image was recognised.</p>"
    items = []
    for mistake in evaluation.mistakes:
        words = (
            f"<b>{name(mistake.label)}</b> taken for <b>{name(mistake.predicted)}</b>, {mistake.probability:.1%} sure"
            f'<br><span class="key">{name(mistake.key)}</span>'
        )
        alt = f"{mistake.label} taken for {mistake.predicted}"
        items.append(f"<li>{html.thumbnail(images.get(mistake.key), alt, words)}</li>")
    return f'<p>Wrong answers the head was surest of.</p><ol class="gallery">{"".join(items)}</ol>'


def _rejected(rejected: dict[str, Rejections]) -> str:
    if not rejected:
        return "<p>None: every planned image has features.</p>"
    blocks = []
    for reason, one in rejected.items():
        keys = "".join(f'<li class="key">{name(key)}</li>' for key in one.keys)
        more = f"<li>and {one.images - len(one.keys):,} more</li>" if one.images > len(one.keys) else ""
        blocks.append(f"<details><summary>{escape(reason)}: {one.images:,}</summary><ul>{keys}{more}</ul></details>")
    return "<p>These images have no features and are not part of the numbers above.</p>" + "".join(blocks)
