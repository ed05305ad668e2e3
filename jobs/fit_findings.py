"""What a fit found out about its images, as sentences for the output and the report."""

from typing import Any

from bottleneck.heads.fit import Fitted
from bottleneck.heads.label_issues import LABEL_ISSUES
from bottleneck.text import counted

FINDINGS = (
    *("log_loss", "brier_score", "temperature", "near_copies", "near_copy_pairs", "accuracy_without_near_copies"),
    "label_issues",
)
"""Details of a head that are part of the job's result as they are."""


def findings(fitted: Fitted) -> list[str]:
    """Near copies and likely mislabelled images, a line each."""
    lines, issues = [near_copies_note(fitted.details)], fitted.label_issues
    if issues is not None and len(issues):
        first = issues.slice(0, 1).to_pylist()[0]
        named = f"{first['key']} (labelled {first['label']}, looks like {first['suggested']})"
        few = f"{counted(len(issues), 'image')} {'is' if len(issues) == 1 else 'are'} likely mislabelled"
        lines.append(f"{few}, first of all {named}; see {LABEL_ISSUES}")
    return [line for line in lines if line]


def near_copies_note(details: dict[str, Any]) -> str:
    """The accuracy without held-out images that have near copies among the fitted ones.

    Empty without any, and where all have one: then the features, such as those of random weights, tell no copies apart.
    """
    num_near, without = details.get("near_copies"), details.get("accuracy_without_near_copies")
    if not num_near or without is None:
        return ""
    has = f"{counted(num_near, 'test image')} {'has a near copy' if num_near == 1 else 'have near copies'}"
    them = "it" if num_near == 1 else "them"
    return f"{has} among the training images: accuracy without {them} {100 * without:.2f} %."
