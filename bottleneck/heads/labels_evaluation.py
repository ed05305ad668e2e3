"""Evaluate a head of images with several labels each: average precision, F1 at its thresholds.

Legend: N images of a batch, L labels. Memory depends on L, never on the number of images.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logit

from bottleneck.errors import UsageError
from bottleneck.heads.evaluate import Evaluation, classification_report, wilson_interval
from bottleneck.heads.evaluator import MAX_UNKNOWN, NUM_MISTAKES, OTHER_LABELS, Evaluator
from bottleneck.heads.label_sets import memberships, names_in
from bottleneck.heads.solver.label_counts import LabelCounts
from bottleneck.text import counted, printable


class LabelMistake(NamedTuple):
    """A label that an image was given and does not have, or has and was not given."""

    key: str
    label: str
    missed: bool
    probability: float


class LabelScores(NamedTuple):
    """A line of the report."""

    label: str
    average_precision: float | None
    """None without an image that has the label."""
    threshold: float
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelsEvaluation:
    """What a head's sets of labels were worth. Made by `LabelsEvaluator.result`."""

    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    """Probabilities from which each label is predicted."""
    counts: LabelCounts
    hits_L: np.ndarray
    """Images that are rightly given each label."""
    predicted_L: np.ndarray
    """Images that are given each label."""
    num_images: int
    """Images with labels, the empty set among them."""
    num_correct: int
    """Images whose labels are all right."""
    num_unlabelled: int
    unknown_labels: dict[str, int]
    """Images with labels that the head does not know, by label: left out of the figures of labels."""
    mistakes: tuple[LabelMistake, ...] = ()
    """The ones furthest from the label's threshold, worst first."""

    @property
    def accuracy(self) -> float:
        """Share of the images whose labels are all right: scikit-learn's accuracy_score of an indicator matrix."""
        return self.num_correct / self.num_images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        return wilson_interval(self.num_correct, self.num_images)

    @property
    def average_precision(self) -> float:
        """Mean over the labels that images have."""
        return self.counts.score("average_precision")

    @property
    def log_loss(self) -> float:
        """Mean over images and labels."""
        return self.counts.score("log_loss")

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the labels that images have."""
        found = [line.f1 for line in self.per_class if line.support]
        return float(np.mean(found)) if found else 0.0

    @property
    def micro_f1(self) -> float:
        """F1 of all labels of all images together."""
        both = int(self.predicted_L.sum() + self.counts.support_L.sum())
        return 2 * int(self.hits_L.sum()) / max(both, 1)

    @property
    def per_class(self) -> list[LabelScores]:
        """A line for each label, in order; what is 0/0 counts as 0."""
        support_L, averages_L = self.counts.support_L, self.counts.average_precision_L
        precision_L = self.hits_L / np.maximum(self.predicted_L, 1)
        recall_L = self.hits_L / np.maximum(support_L, 1)
        f1_L = 2 * self.hits_L / np.maximum(self.predicted_L + support_L, 1)
        return [
            LabelScores(
                label,
                float(averages_L[at]) if support_L[at] else None,
                self.thresholds[at],
                float(precision_L[at]),
                float(recall_L[at]),
                float(f1_L[at]),
                int(support_L[at]),
            )
            for at, label in enumerate(self.classes)
        ]

    def summary(self) -> dict[str, Any]:
        """The numbers of a glance, as JSON values."""
        return {
            "images": self.num_images,
            "correct": self.num_correct,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "average_precision": self.average_precision,
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
            "log_loss": self.log_loss,
            "unknown_labels": self.unknown_labels,
            "unlabelled": self.num_unlabelled,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "summary": self.summary(),
            "labels": [line._asdict() for line in self.per_class],
            "mistakes": [mistake._asdict() for mistake in self.mistakes],
        }


class LabelsEvaluator:
    """Counts predictions as they come. Workers count a part each, and `merge` puts the parts together."""

    def __init__(self, classes: Sequence[str], thresholds: Sequence[float]) -> None:
        self.classes, self.thresholds = tuple(classes), tuple(thresholds)
        num_labels = len(self.classes)
        none_NL = np.empty((0, num_labels))
        self._counts = LabelCounts.of(none_NL, none_NL.astype(bool))
        self._hits_L = np.zeros(num_labels, np.int64)
        self._predicted_L = np.zeros(num_labels, np.int64)
        self._num_images = self._num_correct = self._num_unlabelled = 0
        self._unknown_labels: Counter[str] = Counter()
        self._mistakes: list[tuple[float, LabelMistake]] = []

    def add(self, keys_N: Sequence[Any], labels_N: Sequence[str | None], probabilities_NL: np.ndarray) -> None:
        """Count a batch.

        Args:
            keys_N, labels_N: in the order of the rows; labels are sets of names as text, or None.
            probabilities_NL: as `Head.predict_proba` gives them.
        """
        is_labelled_N = np.array([label is not None for label in labels_N], bool)
        self._num_unlabelled += int((~is_labelled_N).sum())
        keys = [str(key) for key, labelled in zip(keys_N, is_labelled_N, strict=True) if labelled]
        sets = [names_in(label) for label in labels_N if label is not None]
        found_NL = probabilities_NL[is_labelled_N]
        known = set(self.classes)
        others_N = np.zeros(len(sets), bool)
        for row, names in enumerate(sets):
            for name in names:
                if name not in known:
                    others_N[row] = True
                    is_counted = name in self._unknown_labels or len(self._unknown_labels) < MAX_UNKNOWN
                    self._unknown_labels[name if is_counted else OTHER_LABELS] += 1
        truth_NL = memberships(sets, self.classes)
        given_NL = found_NL >= np.array(self.thresholds)
        tiny = np.finfo(np.float64).tiny
        self._counts += LabelCounts.of(logit(np.clip(found_NL.astype(np.float64), tiny, 1 - 1e-16)), truth_NL)
        self._hits_L += (given_NL & truth_NL).sum(axis=0)
        self._predicted_L += given_NL.sum(axis=0)
        self._num_images += len(sets)
        self._num_correct += int(((given_NL == truth_NL).all(axis=1) & ~others_N).sum())
        distances_NL = np.abs(found_NL - np.array(self.thresholds))
        wrong = np.argwhere(given_NL != truth_NL)
        order = np.argsort(-distances_NL[tuple(wrong.T)], kind="stable")[:NUM_MISTAKES]
        for row, label in wrong[order].tolist():
            one = LabelMistake(
                keys[row], self.classes[label], bool(truth_NL[row, label]), float(np.float32(found_NL[row, label]))
            )
            self._mistakes.append((float(distances_NL[row, label]), one))
        self._mistakes = _worst(self._mistakes)

    def merge(self, other: "LabelsEvaluator") -> None:
        """Add what another evaluator of the same labels counted."""
        if (other.classes, other.thresholds) != (self.classes, self.thresholds):
            raise ValueError("evaluators of different labels or thresholds cannot be merged")
        for name in ("_counts", "_hits_L", "_predicted_L", "_num_images", "_num_correct", "_num_unlabelled"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._unknown_labels += other._unknown_labels
        self._mistakes = _worst(self._mistakes + other._mistakes)

    def result(self) -> LabelsEvaluation:
        """What has been counted so far. Raises UsageError if no image had labels."""
        if not self._num_images:
            raise UsageError(
                f"No image has a label, so nothing can be evaluated ({self._num_unlabelled:,} without one)."
            )
        return LabelsEvaluation(
            classes=self.classes,
            thresholds=self.thresholds,
            counts=self._counts,
            hits_L=self._hits_L.copy(),
            predicted_L=self._predicted_L.copy(),
            num_images=self._num_images,
            num_correct=self._num_correct,
            num_unlabelled=self._num_unlabelled,
            unknown_labels=dict(sorted(self._unknown_labels.items())),
            mistakes=tuple(one for _, one in self._mistakes),
        )


AnyEvaluation = Evaluation | LabelsEvaluation
AnyEvaluator = Evaluator | LabelsEvaluator


def evaluator_of(head: Any, threshold: float | None = None) -> AnyEvaluator:
    """An empty evaluator for a `Head`.

    Args:
        threshold: as for `Evaluator`; a head with several labels an image has thresholds of its own.

    Raises:
        UsageError: for a threshold with such a head.
    """
    if not head.multi_label:
        return Evaluator([str(label) for label in head.classes_], threshold)
    if threshold is not None:
        raise UsageError(
            "A head of several labels an image has a threshold for each, from its fit. Received: `threshold` "
            f"{threshold}. Leave it out."
        )
    return LabelsEvaluator([str(label) for label in head.classes_], head.thresholds_.tolist())


def report_text(evaluation: AnyEvaluation) -> str:
    """The table of an evaluation, as text."""
    return classification_report(evaluation) if isinstance(evaluation, Evaluation) else labels_report(evaluation)


def headline(evaluation: AnyEvaluation, kind: str) -> str:
    """The figures of an evaluation in one line.

    Args:
        kind: what the images are called: `held-out image`.
    """
    low, high = evaluation.accuracy_interval
    interval = f"(95 % interval {100 * low:.2f} to {100 * high:.2f})"
    images = counted(evaluation.num_images, kind)
    if isinstance(evaluation, Evaluation):
        return (
            f"accuracy {100 * evaluation.accuracy:.2f} % on {images} {interval}, log loss {evaluation.log_loss:.3f}, "
            f"Brier score {evaluation.brier_score:.3f}"
        )
    return (
        f"average precision {evaluation.average_precision:.3f}, F1 {evaluation.macro_f1:.3f} by label and "
        f"{evaluation.micro_f1:.3f} in all, every label right on {100 * evaluation.accuracy:.2f} % of {images} "
        f"{interval}"
    )


def labels_report(evaluation: LabelsEvaluation) -> str:
    """A table of the labels, as text."""
    lines = evaluation.per_class
    width = max(len("macro avg"), *(len(printable(line.label)) for line in lines))
    names = ("avg-prec", "threshold", "precision", "recall", "f1-score", "support")
    text = f"{'':>{width}} " + "".join(f" {name:>9}" for name in names) + "\n\n"
    for line in lines:
        average = "" if line.average_precision is None else f"{line.average_precision:.2f}"
        text += f"{printable(line.label):>{width}}  {average:>9} {line.threshold:>9.2f} {line.precision:>9.2f} "
        text += f"{line.recall:>9.2f} {line.f1:>9.2f} {line.support:>9}\n"
    there = [line for line in lines if line.support]
    means = [float(np.mean([getattr(line, name) for line in there] or [0])) for name in ("precision", "recall", "f1")]
    text += f"\n{'macro avg':>{width}}  {evaluation.average_precision:>9.2f} {'':>9} "
    return text + " ".join(f"{mean:>9.2f}" for mean in means) + f" {evaluation.num_images:>9}"


def _worst(mistakes: list[tuple[float, LabelMistake]]) -> list[tuple[float, LabelMistake]]:
    return heapq.nsmallest(NUM_MISTAKES, mistakes, key=lambda pair: (-pair[0], pair[1].key, pair[1].label))
