"""Count a head's predictions batch by batch, in flat memory."""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck.errors import UsageError
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


def _worst(mistakes: list[Mistake]) -> list[Mistake]:
    return heapq.nsmallest(NUM_MISTAKES, mistakes, key=lambda one: (-one.probability, one.key))
