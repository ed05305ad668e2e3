"""How good a head is: counts streamed batch by batch, and what follows from them.

Legend: N images of a batch, K classes of the head. Memory depends on K, never on the number of images.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from bottleneck.errors import UsageError
from bottleneck.text import printable

NUM_BINS = 15
"""Of equal width for the calibration error: Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""
NUM_MISTAKES = 24
NUM_CONFUSED = 10
NUM_EXAMPLES = 3
MAX_PAIRS = 4_000
"""Confused pairs whose example keys are kept at once; beyond it the rarest ones lose theirs, never their counts."""
MAX_UNKNOWN = 1_000
"""Labels unknown to the head that are counted one by one; the rest are counted together, as OTHER_LABELS."""
OTHER_LABELS = "(other labels)"


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
            confused=tuple(ConfusedPair(**{**pair, "keys": tuple(pair["keys"])}) for pair in value["confused"]),
            mistakes=tuple(Mistake(**mistake) for mistake in value["mistakes"]),
            examples=value["examples"],
        )


class Evaluator:
    """Counts predictions as they come. Workers count a part each, and `merge` puts the parts together."""

    def __init__(self, classes: Iterable[str]) -> None:
        """Args:
        classes: the head's `classes_`, K labels.
        """
        self.classes = tuple(str(label) for label in classes)
        self._index = {label: index for index, label in enumerate(self.classes)}
        num_classes = len(self.classes)
        self._confusion_KK = np.zeros((num_classes, num_classes), np.int64)
        self._unknown_K = np.zeros(num_classes, np.int64)
        self._unknown_labels: Counter[str] = Counter()
        self._num_unlabelled = 0
        self._num_top5 = 0
        self._bin_counts = np.zeros(NUM_BINS, np.int64)
        self._bin_correct = np.zeros(NUM_BINS, np.int64)
        self._bin_probability = np.zeros(NUM_BINS)
        self._mistakes: list[Mistake] = []
        self._examples: dict[tuple[int, int], list[tuple[float, str]]] = {}
        """By true and predicted class: minus the probability, and the key, of the surest ones."""

    def add(self, keys_N: Sequence[Any], labels_N: Sequence[Any], predictions: pa.Table) -> None:
        """Count a batch.

        Args:
            keys_N, labels_N: str, in the order of the rows; a label may be None.
            predictions: as `Head.predictions` gives them, with five classes a row, or all there are.
        """
        if not len(keys_N) == len(labels_N) == predictions.num_rows:
            raise ValueError(f"{len(keys_N)} keys, {len(labels_N)} labels, {predictions.num_rows} predictions")
        columns = [predictions.column(name).to_pylist() for name in ("predicted", "probability", "top_labels")]
        if predictions.num_rows and len(columns[2][0]) < min(5, len(self.classes)):
            raise ValueError(f"top-5 accuracy needs predictions with top=5. Received: {len(columns[2][0])} a row.")
        for key, label, predicted, probability, top in zip(keys_N, labels_N, *columns, strict=True):
            if label is None:
                self._num_unlabelled += 1
            else:
                self._count(str(key), str(label), predicted, probability, top)
        self._prune()

    def _count(self, key: str, label: str, predicted: str, probability: float, top: list[str]) -> None:
        true, given = self._index.get(label), self._index[predicted]
        is_right = true == given
        if true is None:
            self._unknown_K[given] += 1
            is_counted = label in self._unknown_labels or len(self._unknown_labels) < MAX_UNKNOWN
            self._unknown_labels[label if is_counted else OTHER_LABELS] += 1
        else:
            self._confusion_KK[true, given] += 1
            self._keep_example(true, given, (-probability, key))
        self._num_top5 += label in top[:5]
        # Bins are open below and closed above, as in the paper; 0 goes into the first.
        which = min(max(int(np.ceil(probability * NUM_BINS)) - 1, 0), NUM_BINS - 1)
        self._bin_counts[which] += 1
        self._bin_correct[which] += is_right
        self._bin_probability[which] += probability
        if not is_right:
            self._mistakes.append(Mistake(key, label, predicted, probability))

    def _keep_example(self, true: int, given: int, example: tuple[float, str]) -> None:
        kept = self._examples.setdefault((true, given), [])
        kept.append(example)
        if len(kept) > NUM_EXAMPLES:
            kept.remove(max(kept))

    def _prune(self) -> None:
        """Forget all but the worst mistakes, and the examples of rare pairs where there are very many."""
        if len(self._mistakes) > NUM_MISTAKES:
            self._mistakes = _worst(self._mistakes)
        excess = len(self._examples) - MAX_PAIRS - len(self.classes)
        if excess > 0:
            pairs = [pair for pair in self._examples if pair[0] != pair[1]]
            for pair in heapq.nsmallest(excess, pairs, key=lambda pair: (self._confusion_KK[pair], pair)):
                del self._examples[pair]

    def merge(self, other: "Evaluator") -> None:
        """Add what another evaluator of the same classes counted."""
        if other.classes != self.classes:
            raise ValueError("evaluators of different classes cannot be merged")
        for name in ("_confusion_KK", "_unknown_K", "_bin_counts", "_bin_correct", "_bin_probability"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._num_unlabelled += other._num_unlabelled
        self._num_top5 += other._num_top5
        for label, count in sorted(other._unknown_labels.items()):
            is_counted = label in self._unknown_labels or len(self._unknown_labels) < MAX_UNKNOWN
            self._unknown_labels[label if is_counted else OTHER_LABELS] += count
        self._mistakes += other._mistakes
        for (true, given), examples in other._examples.items():
            for example in examples:
                self._keep_example(true, given, example)
        self._prune()

    def result(self) -> Evaluation:
        """What has been counted so far.

        Raises:
            UsageError: if no image had a label.
        """
        if not self._bin_counts.sum():
            raise UsageError(
                f"No image has a label, so nothing can be evaluated ({self._num_unlabelled:,} without one). Labels "
                "come from the folders that hold the images: extract with `--labels folder`."
            )
        errors_KK = self._confusion_KK - np.diag(np.diag(self._confusion_KK))
        pairs = [(-int(errors_KK[t, p]), int(t), int(p)) for t, p in np.argwhere(errors_KK)]
        confused = heapq.nsmallest(NUM_CONFUSED, pairs)
        named = sorted({index for _, *pair in confused for index in pair if (index, index) in self._examples})
        return Evaluation(
            classes=self.classes,
            confusion_KK=self._confusion_KK.copy(),
            unknown_labels=dict(sorted(self._unknown_labels.items())),
            unknown_K=self._unknown_K.copy(),
            num_unlabelled=self._num_unlabelled,
            num_top5=self._num_top5,
            bin_counts=tuple(self._bin_counts.tolist()),
            bin_correct=tuple(self._bin_correct.tolist()),
            bin_probability=tuple(self._bin_probability.tolist()),
            confused=tuple(
                ConfusedPair(self.classes[t], self.classes[p], -count, self._keys(t, p)) for count, t, p in confused
            ),
            mistakes=tuple(_worst(self._mistakes)),
            examples={self.classes[index]: self._keys(index, index)[0] for index in named},
        )

    def _keys(self, true: int, given: int) -> tuple[str, ...]:
        return tuple(key for _, key in sorted(self._examples.get((true, given), [])))


def wilson_interval(num_correct: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share, right also near 0 and 1: Wilson, JASA 22 (1927) 209-212."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = num_correct / num_images, z * z / num_images
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * float(np.sqrt(share * (1 - share) / num_images + weight / num_images / 4))
    # At either end the bound is exact, where rounding gives 3e-18.
    return (
        max(0.0, centre - half) if num_correct else 0.0,
        min(1.0, centre + half) if num_correct < num_images else 1.0,
    )


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


def _worst(mistakes: list[Mistake]) -> list[Mistake]:
    return heapq.nsmallest(NUM_MISTAKES, mistakes, key=lambda one: (-one.probability, one.key))
