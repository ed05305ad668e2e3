"""Count the predicted classes of an output."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.dataset.features import read_table
from bottleneck.dataset.plan import Plan
from bottleneck.heads.label_sets import joined, names_in
from bottleneck.storage.store import open_store

if TYPE_CHECKING:  # scikit-learn takes a second to import, which workers that only extract can do without
    pass

MOST_COUNTED = 20_000
"""Shards that are read again to count predictions: ten million rows of a hundred bytes, a few minutes from S3."""
NUM_READERS = 16


@dataclass(frozen=True)
class Predicted:
    """What the rows of a finished output of predictions say."""

    classes: dict[str, int]
    """Images by the class they were given, or each of several, the most frequent first."""
    labelled: int
    """Of these images, how many have a label."""
    correct: int
    """Of the labelled ones, how many were given their label."""

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.labelled if self.labelled else None


def count_predicted(plan: Plan) -> Predicted | None:
    """Count the rows of an output by class; None for more than MOST_COUNTED shards."""
    if plan.num_shards > MOST_COUNTED:
        return None
    store = open_store(plan.output)
    are_sets = plan.predictions is not None and plan.predictions.multi_label

    def count(shard: int) -> tuple[Counter[str], int, int]:
        table = read_table(store, plan.data_name(shard), ["label", "predicted"])
        label, predicted = (table.column(name).cast(pa.string()) for name in ("label", "predicted"))
        if are_sets:
            label = pa.array(None if one is None else joined(names_in(one)) for one in label.to_pylist())
        is_right = pc.equal(label, predicted)  # null without a label or a prediction
        right = pc.sum(is_right).as_py() or 0
        answers = (one for one in predicted.to_pylist() if one is not None)
        found = Counter(name for one in answers for name in (names_in(one) if are_sets else (one,)))
        return found, len(is_right) - is_right.null_count, right

    with ThreadPoolExecutor(NUM_READERS) as pool:
        counts = list(pool.map(count, range(plan.num_shards)))
    classes = sum((found for found, _, _ in counts), Counter[str]())
    by_size = sorted(classes.items(), key=lambda pair: (-pair[1], pair[0]))
    return Predicted(dict(by_size), sum(one for _, one, _ in counts), sum(one for _, _, one in counts))
