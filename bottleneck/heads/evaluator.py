"""Count a head's predictions batch by batch, in flat memory."""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bottleneck.errors import UsageError
from bottleneck.heads.coverage import NUM_DOUBT_BINS, doubt_bins
from bottleneck.heads.evaluate import ConfusedPair, Evaluation, Mistake

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
SUMS = (
    *("_confusion_KK", "_unknown_K", "_bin_counts", "_bin_correct", "_bin_probability", "_num_unlabelled", "_num_top5"),
    *("_sum_log_loss", "_sum_squared_error", "_doubt_counts", "_doubt_correct", "_num_answered"),
    "_num_answered_correct",
)
"""What the evaluators of parts are added up by."""


class Evaluator:
    """Counts predictions as they come. Workers count a part each, and `merge` puts the parts together."""

    def __init__(self, classes: Iterable[str], threshold: float | None = None) -> None:
        """Args:
        classes: the head's `classes_`, K labels.
        threshold: count apart the images whose top probability is as large at least.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise UsageError(f"`threshold` takes a probability from 0 to 1. Received: {threshold}.")
        self.threshold = threshold
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
        self._sum_log_loss = self._sum_squared_error = 0.0
        self._doubt_counts = np.zeros(NUM_DOUBT_BINS, np.int64)
        self._doubt_correct = np.zeros(NUM_DOUBT_BINS, np.int64)
        self._num_answered = self._num_answered_correct = 0
        self._mistakes: list[Mistake] = []
        self._examples: dict[tuple[int, int], list[tuple[float, str]]] = {}
        """By true and predicted class: minus the probability, and the key, of the surest ones."""

    def add(self, keys_N: Sequence[Any], labels_N: Sequence[Any], probabilities_NK: np.ndarray) -> None:
        """Count a batch.

        Args:
            keys_N, labels_N: str, in the order of the rows; a label may be None.
            probabilities_NK: as `Head.predict_proba` gives them.
        """
        if probabilities_NK.shape != (len(keys_N), len(self.classes)) or len(labels_N) != len(keys_N):
            raise ValueError(
                f"{len(keys_N)} keys, {len(labels_N)} labels, probabilities {probabilities_NK.shape} of "
                f"{len(self.classes)} classes"
            )
        given_N, top_N = probabilities_NK.argmax(axis=1), probabilities_NK.max(axis=1)
        true_N = np.array([self._index.get(str(label), -1) for label in labels_N], np.int64)
        is_right_N = given_N == true_N
        for row, (key, label) in enumerate(zip(keys_N, labels_N, strict=True)):
            if label is None:
                self._num_unlabelled += 1
            else:
                probability = float(np.float32(top_N[row]))  # as predictions keep it
                self._count(str(key), str(label), int(true_N[row]), int(given_N[row]), probability)
        is_labelled_N = np.array([label is not None for label in labels_N], bool)
        self._count_answers(top_N[is_labelled_N], is_right_N[is_labelled_N])
        is_known_N = is_labelled_N & (true_N >= 0)
        self._count_probabilities(probabilities_NK[is_known_N], true_N[is_known_N])
        self._prune()

    def _count(self, key: str, label: str, true: int, given: int, probability: float) -> None:
        is_right = true == given
        if true < 0:
            self._unknown_K[given] += 1
            is_counted = label in self._unknown_labels or len(self._unknown_labels) < MAX_UNKNOWN
            self._unknown_labels[label if is_counted else OTHER_LABELS] += 1
        else:
            self._confusion_KK[true, given] += 1
            self._keep_example(true, given, (-probability, key))
        # Bins are open below and closed above, as in the paper; 0 goes into the first.
        which = min(max(int(np.ceil(probability * NUM_BINS)) - 1, 0), NUM_BINS - 1)
        self._bin_counts[which] += 1
        self._bin_correct[which] += is_right
        self._bin_probability[which] += probability
        if not is_right:
            self._mistakes.append(Mistake(key, label, self.classes[given], probability))

    def _count_answers(self, top_N: np.ndarray, is_right_N: np.ndarray) -> None:
        """Count labelled images by top probability, for the curve and for the threshold."""
        bins_N = doubt_bins(top_N)
        self._doubt_counts += np.bincount(bins_N, minlength=NUM_DOUBT_BINS)
        self._doubt_correct += np.bincount(bins_N[is_right_N], minlength=NUM_DOUBT_BINS)
        if self.threshold is not None:
            is_answered_N = top_N >= self.threshold
            self._num_answered += int(is_answered_N.sum())
            self._num_answered_correct += int(is_right_N[is_answered_N].sum())

    def _count_probabilities(self, probabilities_NK: np.ndarray, true_N: np.ndarray) -> None:
        """Add the top-5 hits, log loss and squared errors of images whose label the head knows."""
        own_N = probabilities_NK[np.arange(len(true_N)), true_N]
        is_better_NK = probabilities_NK > own_N[:, None]
        # Of equal classes the first is the better one, as in predictions.
        is_first_NK = np.arange(len(self.classes)) < true_N[:, None]
        is_better_NK |= (probabilities_NK == own_N[:, None]) & is_first_NK
        self._num_top5 += int((is_better_NK.sum(axis=1) < 5).sum())
        self._sum_log_loss -= float(np.log(np.maximum(own_N, np.finfo(np.float64).eps)).sum())
        self._sum_squared_error += float((probabilities_NK**2).sum() - 2 * own_N.sum() + len(own_N))

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
        if (other.classes, other.threshold) != (self.classes, self.threshold):
            raise ValueError("evaluators of different classes or thresholds cannot be merged")
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
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
            sum_log_loss=self._sum_log_loss,
            sum_squared_error=self._sum_squared_error,
            doubt_counts=tuple(self._doubt_counts.tolist()),
            doubt_correct=tuple(self._doubt_correct.tolist()),
            threshold=self.threshold,
            num_answered=self._num_answered,
            num_answered_correct=self._num_answered_correct,
            confused=tuple(
                ConfusedPair(self.classes[t], self.classes[p], -count, self._keys(t, p)) for count, t, p in confused
            ),
            mistakes=tuple(_worst(self._mistakes)),
            examples={self.classes[index]: self._keys(index, index)[0] for index in named},
        )

    def _keys(self, true: int, given: int) -> tuple[str, ...]:
        return tuple(key for _, key in sorted(self._examples.get((true, given), [])))


def _worst(mistakes: list[Mistake]) -> list[Mistake]:
    return heapq.nsmallest(NUM_MISTAKES, mistakes, key=lambda one: (-one.probability, one.key))
