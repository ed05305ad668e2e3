"""Draw confusion matrix, calibration and coverage as PNG or SVG, for light and dark pages.

Legend: K classes; R rows and C columns of what is drawn, which are groups of neighbouring classes where K is large.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bottleneck.choices import check_choice
from bottleneck.heads.evaluate import Evaluation
from bottleneck.heads.evaluator import NUM_BINS

ImageFileFormat = Literal["png", "svg"]

MAX_NUMBERED = 40
"""Most classes whose cells show counts; with more, cells are too small for digits."""
MAX_CELLS = 250
"""Cells per side; with more classes, neighbours share a cell, as a cell below 3 pixels cannot be seen."""
MAX_LABEL_CHARACTERS = 22
NUM_TICKS = 25


@dataclass(frozen=True)
class Theme:
    """Colours of a page: text and lines have a contrast of at least 4.5 and 3 on the surface (WCAG 2.2)."""

    surface: str
    text: str
    line: str
    right: str
    wrong: str


LIGHT = Theme(surface="#ffffff", text="#1b2230", line="#8a93a3", right="#1f5fbf", wrong="#d1480f")
DARK = Theme(surface="#171b23", text="#e6e9ef", line="#7d8799", right="#5b9bf5", wrong="#ff8a4c")


def draw_confusion(evaluation: Evaluation, file_format: ImageFileFormat = "png", theme: Theme = LIGHT) -> bytes:
    """Draw the confusion matrix: rows are true classes, colours the shares of predicted classes.

    Up to MAX_NUMBERED classes each cell holds its count. With more than MAX_CELLS, a cell on the diagonal shows the
    recall of its group of classes, any other the largest share of a class of one group taken for one of the other.
    """
    check_choice("file_format", file_format, ImageFileFormat)
    num_classes = len(evaluation.classes)
    group = -(-num_classes // MAX_CELLS)
    rows = list(evaluation.classes)
    counts_RC = evaluation.confusion_KK
    if evaluation.unknown_K.any() and group == 1:
        rows, counts_RC = [*rows, "(unknown label)"], np.vstack([counts_RC, evaluation.unknown_K])
    shares_RC = counts_RC / np.maximum(counts_RC.sum(axis=1, keepdims=True), 1)
    is_right_RC = np.equal.outer(np.arange(len(rows)), np.arange(num_classes))
    if group > 1:
        shares_RC = _pooled(shares_RC, group)
        is_right_RC = is_right_RC[: len(shares_RC), : len(shares_RC)]
    is_numbered = num_classes <= MAX_NUMBERED
    side_inches = max(4.8, 0.3 * num_classes + 2.2) if is_numbered else 11.0
    figure, axes = _figure(theme, (side_inches, side_inches))
    colours_RC3 = _colours(shares_RC, is_right_RC, theme)
    axes.imshow(colours_RC3, interpolation="nearest", aspect="equal")
    if is_numbered:
        _write_counts(axes, counts_RC, colours_RC3, theme)
    step = 1 if is_numbered else -(-len(shares_RC) // NUM_TICKS)
    for axis, labels in ((axes.xaxis, list(evaluation.classes)), (axes.yaxis, rows)):
        ticks = list(range(0, -(-len(labels) // group), step))
        axis.set_ticks(ticks, [_short(labels[tick * group]) for tick in ticks], fontsize=8, parse_math=False)
    axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    return _saved(figure, file_format)


def draw_calibration(evaluation: Evaluation, file_format: ImageFileFormat = "svg", theme: Theme = LIGHT) -> bytes:
    """Draw accuracy by top probability, with the number of images below; calibrated bars end on the diagonal."""
    check_choice("file_format", file_format, ImageFileFormat)
    counts = np.array(evaluation.bin_counts)
    filled = counts > 0
    right = np.array(evaluation.bin_correct)[filled] / counts[filled]
    middles = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    figure, axes = _figure(theme, (4.6, 5.2), 2, height_ratios=(3, 1), sharex=True)
    top, bottom = axes
    width = 0.9 / NUM_BINS
    top.bar(middles[filled], right, width=width, color=theme.right, label="accuracy found")
    top.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=theme.text, label="calibrated: as right as sure")
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    top.set_ylabel("accuracy", fontsize=10)
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False, labelcolor=theme.text)
    bottom.bar(middles, counts, width=width, color=theme.line)
    bottom.set_ylabel("images", fontsize=10)
    bottom.set_xlabel("top probability", fontsize=10)
    return _saved(figure, file_format)


def draw_coverage(evaluation: Evaluation, file_format: ImageFileFormat = "svg", theme: Theme = LIGHT) -> bytes:
    """Draw the accuracy on the images that are answered by the share that is, and the threshold if there is one."""
    check_choice("file_format", file_format, ImageFileFormat)
    curve = evaluation.coverage_curve
    figure, axes = _figure(theme, (4.6, 3.6))
    accuracies = [point.accuracy for point in curve]
    axes.plot([point.coverage for point in curve], accuracies, color=theme.right, linewidth=2)
    if evaluation.coverage and evaluation.accuracy_answered is not None:
        label = f"threshold {evaluation.threshold:g}"
        axes.plot(evaluation.coverage, evaluation.accuracy_answered, "o", color=theme.wrong, label=label)
        axes.legend(loc="lower left", fontsize=8, frameon=False, labelcolor=theme.text)
    lowest = min(accuracies)
    axes.set(xlim=(0, 1.02), ylim=(lowest - 0.08 * (1.02 - lowest), 1 + 0.04 * (1.02 - lowest)))
    axes.set_xlabel("share of the images answered", fontsize=10)
    axes.set_ylabel("accuracy on these", fontsize=10)
    return _saved(figure, file_format)


def _figure(theme: Theme, size_inches: tuple[float, float], num_rows: int = 1, **layout: Any) -> tuple[Any, Any]:
    """Make a figure in the colours of a theme, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=size_inches, facecolor=theme.surface, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    keywords = {"gridspec_kw": {"height_ratios": layout.pop("height_ratios")}} if "height_ratios" in layout else {}
    axes = figure.subplots(num_rows, **layout, **keywords)
    for one in np.atleast_1d(axes):
        one.set_facecolor(theme.surface)
        one.tick_params(colors=theme.text, which="both", labelsize=8)
        one.xaxis.label.set_color(theme.text)
        one.yaxis.label.set_color(theme.text)
        for spine in one.spines.values():
            spine.set_color(theme.line)
    return figure, axes


def _saved(figure: Any, file_format: ImageFileFormat) -> bytes:
    import matplotlib

    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "bottleneck"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as boxes
        metadata = {"Date": None, "Creator": None} if file_format == "svg" else {"Software": None}
        figure.savefig(file, format=file_format, dpi=150, metadata=metadata)
    return file.getvalue()


def _pooled(shares_KK: np.ndarray, group: int) -> np.ndarray:
    """Blocks of `group` x `group` classes: the largest error share, on the diagonal the mean recall."""
    num_classes = len(shares_KK)
    num_groups = -(-num_classes // group)
    recall_K = np.diag(shares_KK)
    padded_KK = np.zeros((num_groups * group, num_groups * group))
    padded_KK[:num_classes, :num_classes] = shares_KK - np.diag(recall_K)
    result_RC: np.ndarray = padded_KK.reshape(num_groups, group, num_groups, group).max(axis=(1, 3))
    for row in range(num_groups):
        result_RC[row, row] = recall_K[row * group : (row + 1) * group].mean()
    return result_RC


def _colours(shares_RC: np.ndarray, is_right_RC: np.ndarray, theme: Theme) -> np.ndarray:
    """Surface where nothing is, towards one colour for right and another for wrong answers."""
    # The root, and a floor, keep one image of a hundred visible beside ninety-nine.
    strength_RC = np.where(shares_RC > 0, 0.15 + 0.85 * np.sqrt(shares_RC), 0)[..., None]
    goal_RC3 = np.where(is_right_RC[..., None], _rgb(theme.right), _rgb(theme.wrong))
    result_RC3: np.ndarray = (1 - strength_RC) * _rgb(theme.surface) + strength_RC * goal_RC3
    return result_RC3


def _write_counts(axes: Any, counts_RC: np.ndarray, colours_RC3: np.ndarray, theme: Theme) -> None:
    for row, column in np.argwhere(counts_RC):
        # Black or white, whichever stands out more from the cell (relative luminance of WCAG, gamma left out).
        luminance = float(colours_RC3[row, column] @ (0.2126, 0.7152, 0.0722))
        colour = "#000000" if luminance > 0.45 else "#ffffff"
        axes.text(column, row, f"{counts_RC[row, column]}", ha="center", va="center", fontsize=8, color=colour)


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL_CHARACTERS else label[: MAX_LABEL_CHARACTERS - 1] + "…"
