"""The report of a head of images with several labels each, as HTML."""

from collections.abc import Sequence
from typing import Any

from bottleneck.heads.labels_evaluation import LabelsEvaluation
from bottleneck.inspect.html import page
from bottleneck.inspect.report_sections import Rejections, Thumbnails, grid_section, grid_table, notes_of
from bottleneck.text import counted


def labels_html(
    title: str,
    evaluation: LabelsEvaluation,
    grid: list[dict[str, Any]] | None,
    details: dict[str, dict[str, Any]],
    thumbnails: Thumbnails,
    rejected: dict[str, Rejections],
    notes: Sequence[str] = (),
    metric: str = "average_precision",
) -> str:
    """The page as text; see `report.write_report`."""
    sections = [
        ("summary", "Summary"),
        *grid_section(grid),
        ("labels", "Labels"),
        ("mistakes", "Worst mistakes"),
        ("rejected", "Rejected images"),
        ("made", "How it was made"),
    ]
    return page(
        "labels",
        title,
        f"{counted(evaluation.num_images, 'labelled image')}, {counted(len(evaluation.classes), 'label')}",
        sections,
        evaluation=evaluation,
        notes=[*notes, *notes_of(evaluation)],
        numbers=_numbers(evaluation),
        grid=grid_table(grid, metric) if grid else None,
        thumbnails=thumbnails,
        rejected=rejected,
        details=details,
    )


def _numbers(evaluation: LabelsEvaluation) -> list[tuple[str, str, str]]:
    low, high = evaluation.accuracy_interval
    return [
        ("Average precision", f"{evaluation.average_precision:.3f}", "mean over labels"),
        ("Macro F1", f"{evaluation.macro_f1:.3f}", "mean over labels, at their thresholds"),
        ("Micro F1", f"{evaluation.micro_f1:.3f}", "all labels together"),
        ("Every label right", f"{evaluation.accuracy:.2%}", f"95 % interval {low:.2%} to {high:.2%}"),
        ("Log loss", f"{evaluation.log_loss:.3f}", "of a label's probability; 0 is best"),
        ("Images", f"{evaluation.num_images:,}", f"{evaluation.num_correct:,} right"),
    ]
