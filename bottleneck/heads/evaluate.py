"""The evaluation of a head: accuracy, scores per class, calibration, confusion, mistakes.

Legend: N images of a batch, K classes of the head. Memory depends on K, never on the number of images.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from bottleneck.heads.coverage import CoveragePoint, coverage_curve
from bottleneck.text import printable


class Mistake(NamedTuple):
    """An image that was taken for another class."""

    key: str
    label: str
    predicted: str
    probability: float


class ConfusedPair(NamedTuple):
    """How often images of one class were taken for another, and which ones most surely."""

    label: str
    predicted: str
    images: int
    keys: tuple[str, ...]


class ClassScores(NamedTuple):
    """A line of the classification report."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a head's predictions of labelled images were worth. Made by `Evaluator.result`."""

    classes: tuple[str, ...]
    """K labels the head knows."""
    confusion_KK: np.ndarray
    """int64, images by true class (row) and predicted class (column)."""
    unknown_labels: dict[str, int]
    """Images whose label the head does not know, by label: all of them errors of the head."""
    unknown_K: np.ndarray
    """int64, those images by predicted class."""
    num_unlabelled: int
    """Images without a label, left out of everything else."""
    num_top5: int
    """Images whose label is among the five most probable classes."""
    bin_counts: tuple[int, ...]
    """Images by their top probability, in NUM_BINS bins of equal width."""
    bin_correct: tuple[int, ...]
    bin_probability: tuple[float, ...]
    """Sum of the top probabilities of each bin."""
    sum_log_loss: float
    """Of minus the log probability of every known label, none below the rounding of float64, as scikit-learn's."""
    sum_squared_error: float
    """Of the squared errors of all K probabilities, of images with a known label."""
    doubt_counts: tuple[int, ...]
    """Images by their top probability, in the bins of `coverage.doubt_bins`."""
    doubt_correct: tuple[int, ...]
    threshold: float | None = None
    """A top probability below which an image is left undecided, if one was given."""
    num_answered: int = 0
    """Images with a top probability of `threshold` or more."""
    num_answered_correct: int = 0
    confused: tuple[ConfusedPair, ...] = ()
    """The most confused pairs, most frequent first."""
    mistakes: tuple[Mistake, ...] = ()
    """The wrong answers given with the highest probability, worst first."""
    examples: dict[str, str] = field(default_factory=dict)
    """For classes of the confused pairs, the key of the image recognised most surely."""

    @property
    def num_images(self) -> int:
        """Images with a label."""
        return int(self.confusion_KK.sum() + self.unknown_K.sum())

    @property
    def num_correct(self) -> int:
        return int(np.trace(self.confusion_KK))

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_images)

    @property
    def top5_accuracy(self) -> float:
        return self.num_top5 / self.num_images

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the gap of accuracy and mean probability, averaged over bins by their images."""
        gaps = (abs(right - sure) for right, sure in zip(self.bin_correct, self.bin_probability, strict=True))
        return sum(gaps) / self.num_images

    @property
    def log_loss(self) -> float | None:
        """Mean of minus the log probability of the label, over images whose label the head knows; None without any."""
        known = int(self.confusion_KK.sum())
        return self.sum_log_loss / known if known else None

    @property
    def brier_score(self) -> float | None:
        """Mean squared error of the probabilities, over the same images: summed over classes, for two classes halved,
        as scikit-learn's."""
        known = int(self.confusion_KK.sum())
        return self.sum_squared_error / known / (2 if len(self.classes) == 2 else 1) if known else None

    @property
    def coverage_curve(self) -> list[CoveragePoint]:
        """Accuracy on the images that are answered, by the share that is."""
        return coverage_curve(self.doubt_counts, self.doubt_correct)

    @property
    def coverage(self) -> float | None:
        """Share of the images that are answered at `threshold`; None without one."""
        return None if self.threshold is None else self.num_answered / self.num_images

    @property
    def accuracy_answered(self) -> float | None:
        """Accuracy on the images that are answered at `threshold`; None where none is."""
        return self.num_answered_correct / self.num_answered if self.num_answered else None

    @property
    def per_class(self) -> list[ClassScores]:
        """One line for every label that images have or the head gave, sorted; what is 0/0 counts as 0."""
        right_K = np.diag(self.confusion_KK)
        support_K = self.confusion_KK.sum(axis=1)
        given_K = self.confusion_KK.sum(axis=0) + self.unknown_K
        # As scikit-learn computes them, to the last bit: its report rounds to two digits.
        precision_K = right_K / np.maximum(given_K, 1)
        recall_K = right_K / np.maximum(support_K, 1)
        f1_K = 2 * right_K / np.maximum(support_K + given_K, 1)
        lines = [
            ClassScores(label, float(precision), float(recall), float(f1), int(support))
            for label, precision, recall, f1, support, given in zip(
                self.classes, precision_K, recall_K, f1_K, support_K, given_K, strict=True
            )
            if support or given
        ]
        lines += [ClassScores(label, 0.0, 0.0, 0.0, count) for label, count in self.unknown_labels.items()]
        return sorted(lines)

    @property
    def macro(self) -> ClassScores:
        """The plain mean over the lines of `per_class`."""
        return self._average("macro avg", weighted=False)

    @property
    def weighted(self) -> ClassScores:
        """The mean weighted by support."""
        return self._average("weighted avg", weighted=True)

    def _average(self, name: str, *, weighted: bool) -> ClassScores:
        lines = self.per_class
        weights = [line.support for line in lines] if weighted else None
        scores_K3 = np.array([(line.precision, line.recall, line.f1) for line in lines])
        precision, recall, f1 = (float(np.average(scores_K, weights=weights)) for scores_K in scores_K3.T.copy())
        return ClassScores(name, precision, recall, f1, self.num_images)

    def summary(self) -> dict[str, Any]:
        """The numbers of a glance, as JSON values."""
        return {
            "images": self.num_images,
            "correct": self.num_correct,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "top5_accuracy": self.top5_accuracy,
            "macro_precision": self.macro.precision,
            "macro_recall": self.macro.recall,
            "macro_f1": self.macro.f1,
            "calibration_error": self.calibration_error,
            "log_loss": self.log_loss,
            "brier_score": self.brier_score,
            "threshold": self.threshold,
            "coverage": self.coverage,
            "accuracy_answered": self.accuracy_answered,
            "unknown_labels": self.unknown_labels,
            "unlabelled": self.num_unlabelled,
        }

    def to_json(self) -> dict[str, Any]:
        """JSON values: the counts, which are all that `from_json` reads, and the summary for people."""
        cells = [[int(t), int(p), int(self.confusion_KK[t, p])] for t, p in np.argwhere(self.confusion_KK)]
        return {
            "summary": self.summary(),
            "classes": list(self.classes),
            "confusion": cells,
            "unknown_labels": self.unknown_labels,
            "unknown_predicted": [[int(p), int(self.unknown_K[p])] for p in np.flatnonzero(self.unknown_K)],
            "num_unlabelled": self.num_unlabelled,
            "num_top5": self.num_top5,
            "bin_counts": list(self.bin_counts),
            "bin_correct": list(self.bin_correct),
            "bin_probability": list(self.bin_probability),
            "sum_log_loss": self.sum_log_loss,
            "sum_squared_error": self.sum_squared_error,
            "doubt_counts": list(self.doubt_counts),
            "doubt_correct": list(self.doubt_correct),
            "threshold": self.threshold,
            "num_answered": self.num_answered,
            "num_answered_correct": self.num_answered_correct,
            "confused": [{**pair._asdict(), "keys": list(pair.keys)} for pair in self.confused],
            "mistakes": [mistake._asdict() for mistake in self.mistakes],
            "examples": self.examples,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        num_classes = len(value["classes"])
        confusion_KK = np.zeros((num_classes, num_classes), np.int64)
        for label, predicted, count in value["confusion"]:
            confusion_KK[label, predicted] = count
        unknown_K = np.zeros(num_classes, np.int64)
        for predicted, count in value["unknown_predicted"]:
            unknown_K[predicted] = count
        return cls(
            classes=tuple(value["classes"]),
            confusion_KK=confusion_KK,
            unknown_labels=value["unknown_labels"],
            unknown_K=unknown_K,
            num_unlabelled=value["num_unlabelled"],
            num_top5=value["num_top5"],
            bin_counts=tuple(value["bin_counts"]),
            bin_correct=tuple(value["bin_correct"]),
            bin_probability=tuple(value["bin_probability"]),
            sum_log_loss=value["sum_log_loss"],
            sum_squared_error=value["sum_squared_error"],
            doubt_counts=tuple(value["doubt_counts"]),
            doubt_correct=tuple(value["doubt_correct"]),
            threshold=value["threshold"],
            num_answered=value["num_answered"],
            num_answered_correct=value["num_answered_correct"],
            confused=tuple(ConfusedPair(**{**pair, "keys": tuple(pair["keys"])}) for pair in value["confused"]),
            mistakes=tuple(Mistake(**mistake) for mistake in value["mistakes"]),
            examples=value["examples"],
        )


def wilson_interval(num_correct: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share, correct also near 0 and 1: Wilson, JASA 22 (1927) 209-212."""
    from scipy.stats import binomtest

    interval = binomtest(num_correct, num_images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def classification_report(evaluation: Evaluation) -> str:
    """The table that scikit-learn's function of this name gives for the same predictions, to the letter."""
    lines = evaluation.per_class
    width = max(len("weighted avg"), *(len(printable(line.label)) for line in lines))
    text = f"{'':>{width}} " + "".join(f" {name:>9}" for name in ("precision", "recall", "f1-score", "support"))
    text += "\n\n" + "".join(_line(line, width) for line in lines)
    text += f"\n{'accuracy':>{width}}  {'':>9} {'':>9} {evaluation.accuracy:>9.2f} {evaluation.num_images:>9}\n"
    return text + _line(evaluation.macro, width) + _line(evaluation.weighted, width)


def _line(line: ClassScores, width: int) -> str:
    scores = f"{line.precision:>9.2f} {line.recall:>9.2f} {line.f1:>9.2f} {line.support:>9}"
    return f"{printable(line.label):>{width}}  {scores}\n"
