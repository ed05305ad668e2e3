"""Find images that are likely mislabelled, by what heads say that have not seen them.

Confident learning (Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70
(2021) 1373-1411): an image counts as one of a class if its probability of that class is at least the mean one of the
images labelled so (equations 1 and 2). The share of a class' images that count as others' tells how many of its labels
are wrong, and these are the ones that the heads believe in least (pruning by class, section 3.2), unless such a label
is still the most probable one.

Legend: N images, K classes, n images of a block.
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.errors import CorruptError
from bottleneck.heads.solver.losses import probabilities
from bottleneck.heads.solver.out_of_fold import NUM_ROWS, OutOfFold
from bottleneck.heads.solver.protocol import Workers
from bottleneck.heads.solver.rows import as_dtype
from bottleneck.heads.solver.worker import Worker
from bottleneck.heads.splits import HELD_OUT
from bottleneck.storage.parquet import open_parquet
from bottleneck.storage.store import ObjectGoneError, open_store

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head

LABEL_ISSUES = "label-issues.parquet"
ISSUE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("suggested", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("held_out", pa.bool_(), nullable=False),
    ]
)
"""`suggested` is the most probable class, `score` by how much it is more probable than the label."""
ROUNDING = 1e-6
"""Of probabilities: where those of a class are all alike, as one image's is, none is below their mean."""


class Opinions(NamedTuple):
    """What heads that have not seen the images say of them."""

    given_N: np.ndarray
    """The probability of the label."""
    top_N: np.ndarray
    """The probability of the most probable class."""
    best_N: np.ndarray
    """That class."""


def opinions(probabilities_NK: np.ndarray, class_indices_N: np.ndarray) -> Opinions:
    """The opinions that these probabilities are; of equal classes the label is the most probable one."""
    every_N = np.arange(len(class_indices_N))
    given_N, best_N = probabilities_NK[every_N, class_indices_N], probabilities_NK.argmax(axis=1)
    top_N = probabilities_NK[every_N, best_N]
    return Opinions(given_N, top_N, np.where(given_N == top_N, class_indices_N, best_N))


def counted_classes(probabilities_NK: np.ndarray, thresholds_K: np.ndarray) -> np.ndarray:
    """The class each image counts as, or -1: of those as probable as their threshold, the most probable one."""
    confident_NK = np.where(probabilities_NK >= thresholds_K - ROUNDING, probabilities_NK, -1.0)
    counted_N = confident_NK.argmax(axis=1)
    return np.where(confident_NK[np.arange(len(counted_N)), counted_N] >= 0, counted_N, -1)


def pick_issues(said: Opinions, counted_N: np.ndarray, class_indices_N: np.ndarray, num_classes: int) -> np.ndarray:
    """The numbers of the images that are likely mislabelled, the likeliest first: by the margin of the best class.

    Args:
        counted_N: from `counted_classes`, with each class' mean probability as its threshold.
    """
    by_class = np.lexsort((said.given_N, class_indices_N))
    starts = np.searchsorted(class_indices_N[by_class], np.arange(num_classes))
    wrong_K = _count_wrong(counted_N, class_indices_N, num_classes)
    pruned = [by_class[start : start + wrong] for start, wrong in zip(starts, wrong_K, strict=True)]
    rows = np.concatenate([np.empty(0, int), *pruned])
    rows = rows[said.best_N[rows] != class_indices_N[rows]]
    result: np.ndarray = rows[np.argsort(said.given_N[rows] - said.top_N[rows], kind="stable")]
    return result


def _count_wrong(counted_N: np.ndarray, class_indices_N: np.ndarray, num_classes: int) -> list[int]:
    """How many labels of each class are wrong: its part of the confident joint, scaled to all of its images."""
    is_counted_N = counted_N >= 0
    pairs, found = np.unique(class_indices_N[is_counted_N] * num_classes + counted_N[is_counted_N], return_counts=True)
    labels, others = np.divmod(pairs, num_classes)
    sizes_K, wrong = np.bincount(class_indices_N, minlength=num_classes), []
    for index, size in enumerate(sizes_K.tolist()):
        own = labels == index
        is_right, counts = others[own] == index, found[own].astype(float)
        if not is_right.any():  # one image at least is what its label says
            is_right, counts = np.append(is_right, True), np.append(counts, 1.0)
        shares = counts / counts.sum() * size
        whole = np.rint(shares)
        missing = int(size - whole.sum())  # by rounding: given to those that lost most by it, or taken back
        at = np.argsort((whole - shares) * np.sign(missing), kind="stable")[: abs(missing)]
        whole[at] += np.sign(missing)
        wrong.append(max(0, size - max(1, int(whole[is_right][0]))))
    return wrong


def find_label_issues(workers: Workers, folds: Sequence[np.ndarray], out_of_fold: OutOfFold, head: "Head") -> pa.Table:
    """The images of a fit that are likely mislabelled, as a table of ISSUE_SCHEMA, the likeliest first.

    Fitted images are judged by the folds that left them out, held-out ones by the head. Scores of all classes stay with
    the workers.

    Args:
        folds: of each worker's images.
    """
    names_K, parts = head.class_names, out_of_fold.by_worker(folds)
    asked = [(part, head) for part in parts]
    answers = workers.ask_each(ask_opinions, asked)
    said = Opinions(*(np.concatenate(columns) for columns in zip(*(own for own, _ in answers), strict=True)))
    class_indices_N = np.concatenate([indices for _, indices in answers])
    sizes_K = np.bincount(class_indices_N, minlength=len(names_K))
    sums_K = np.bincount(class_indices_N, said.given_N, len(names_K))
    thresholds_K = np.where(sizes_K > 0, sums_K / np.maximum(sizes_K, 1), np.inf)
    counted_N = np.concatenate(workers.ask_each(ask_counted, [(*own, thresholds_K) for own in asked]))
    rows = pick_issues(said, counted_N, class_indices_N, len(names_K))
    starts = np.cumsum([0, *(len(folds_N) for folds_N in folds)])
    owned = [(rows[(rows >= start) & (rows < end)], start) for start, end in itertools.pairwise(starts.tolist())]
    keys = workers.ask_each(ask_keys, [(own - start,) for own, start in owned])
    key_of = dict(zip(np.concatenate([own for own, _ in owned]).tolist(), np.concatenate(keys).tolist(), strict=True))
    columns = {
        "key": [key_of[row] for row in rows.tolist()],
        "label": names_K[class_indices_N[rows]],
        "suggested": names_K[said.best_N[rows]],
        "score": said.top_N[rows] - said.given_N[rows],
        "held_out": np.concatenate(list(folds))[rows] == HELD_OUT,
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in ISSUE_SCHEMA], schema=ISSUE_SCHEMA)


def ask_opinions(worker: Worker, out_of_fold: OutOfFold, head: "Head") -> tuple[Opinions, np.ndarray]:
    """Opinions of this worker's images, and these images' class indices."""
    num_images = len(worker.folds_N)
    said = Opinions(np.empty(num_images), np.empty(num_images), np.empty(num_images, np.int64))
    for rows, probabilities_nK in _unseen(worker, out_of_fold, head):
        for column, values in zip(said, opinions(probabilities_nK, worker.class_indices_N[rows]), strict=True):
            column[rows] = values
    return said, worker.class_indices_N


def ask_counted(worker: Worker, out_of_fold: OutOfFold, head: "Head", thresholds_K: np.ndarray) -> np.ndarray:
    """The class that each of this worker's images counts as."""
    counted_N = np.empty(len(worker.folds_N), np.int64)
    for rows, probabilities_nK in _unseen(worker, out_of_fold, head):
        counted_N[rows] = counted_classes(probabilities_nK, thresholds_K)
    return counted_N


def ask_keys(worker: Worker, rows: np.ndarray) -> np.ndarray:
    """The keys of some of this worker's images."""
    keys: np.ndarray = worker.keys.take(pa.array(rows)).to_numpy(zero_copy_only=False)
    return keys


def _unseen(worker: Worker, out_of_fold: OutOfFold, head: "Head") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of this worker's images and their probabilities [n, K], by a head that has not seen them."""
    for rows, scores_nK in out_of_fold.blocks(worker):
        yield rows, probabilities(scores_nK.astype(np.float64) * head.temperature_)
    held_out = np.flatnonzero(worker.folds_N == HELD_OUT)
    for start in range(0, len(held_out), NUM_ROWS):
        rows = held_out[start : start + NUM_ROWS]
        yield rows, head.predict_proba(as_dtype(worker.features_ND[rows], np.float32))


def write_label_issues(uri: str, issues: pa.Table) -> None:
    """Write LABEL_ISSUES to a folder or s3:// prefix, replacing an old one."""
    file = io.BytesIO()
    pq.write_table(issues, file, compression="zstd")
    open_store(uri).replace(LABEL_ISSUES, file.getvalue())


def read_label_issues(uri: str) -> pa.Table:
    """Read LABEL_ISSUES. Raises CorruptError if it is gone or damaged."""
    store = open_store(uri)
    try:
        with open_parquet(pa.BufferReader(store.read(LABEL_ISSUES))) as file:
            return file.read(columns=ISSUE_SCHEMA.names, use_threads=False).cast(ISSUE_SCHEMA)
    except ObjectGoneError:
        raise CorruptError(f"{store.uri}/{LABEL_ISSUES} is gone. Fit again, to another place.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptError(f"{store.uri}/{LABEL_ISSUES} is damaged: {error}. Fit again, to another place.") from error
