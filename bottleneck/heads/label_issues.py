"""Find images that are likely mislabelled, by what heads say that have not seen them.

Confident learning (Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70
(2021) 1373-1411): an image counts as one of a class if its probability of that class is at least the mean one of the
images labelled so (equations 1 and 2). Where that is another class than its label's, the label is likely wrong.

Legend: N images, K classes, n those of a block.
"""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.errors import CorruptError
from bottleneck.heads.solver.losses import probabilities
from bottleneck.heads.solver.out_of_fold import NUM_ROWS, OutOfFold
from bottleneck.heads.solver.protocol import Workers, total
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
"""`score` is by how much the most probable class is more probable than the label: from 0 to 1, the largest first."""
ROUNDING = 1e-6
"""Of probabilities: where those of a class are all alike, as one image's is, none is below their mean."""


class Suspects(NamedTuple):
    """Images of a block whose labels are likely wrong."""

    rows: np.ndarray
    """Their numbers within the block."""
    suggested: np.ndarray
    """The class each is counted as."""
    scores: np.ndarray


def find_suspects(probabilities_nK: np.ndarray, class_indices_n: np.ndarray, thresholds_K: np.ndarray) -> Suspects:
    """The images that count as one of another class than their label's.

    Args:
        probabilities_nK: by heads that have not seen the images.
        thresholds_K: the mean probability of each class over all images labelled so.
    """
    every_n = np.arange(len(class_indices_n))
    confident_nK = np.where(probabilities_nK >= thresholds_K - ROUNDING, probabilities_nK, -1.0)
    counted_n = confident_nK.argmax(axis=1)
    given_n = probabilities_nK[every_n, class_indices_n]
    scores_n = probabilities_nK.max(axis=1) - given_n
    # A label that is the most probable one is not in doubt, whatever else is more probable than usual.
    is_suspect_n = (counted_n != class_indices_n) & (confident_nK[every_n, counted_n] >= 0) & (scores_n > 0)
    rows = np.flatnonzero(is_suspect_n)
    return Suspects(rows, counted_n[rows], scores_n[rows])


def find_label_issues(workers: Workers, folds: Sequence[np.ndarray], out_of_fold: OutOfFold, head: "Head") -> pa.Table:
    """The images of a fit that are likely mislabelled, as a table of ISSUE_SCHEMA, the likeliest first.

    Fitted images are judged by the folds that left them out, held-out ones by the head. Probabilities stay with the
    workers; sums over classes and the images found are what travels.

    Args:
        folds: of each worker's images.
    """
    parts = out_of_fold.by_worker(folds)
    sums_K, counts_K = total(workers.ask_each(sum_confidences, [(part, head) for part in parts]))
    thresholds_K = np.where(counts_K > 0, sums_K / np.maximum(counts_K, 1), np.inf)
    found = pa.concat_tables(workers.ask_each(list_issues, [(part, head, thresholds_K) for part in parts]))
    return found.sort_by([("score", "descending"), ("key", "ascending")])


def sum_confidences(worker: Worker, out_of_fold: OutOfFold, head: "Head") -> np.ndarray:
    """The summed probability of their own label, and the number, of this worker's images by class: [2, K]."""
    num_classes = len(head.classes_)
    result_2K = np.zeros((2, num_classes))
    for rows, probabilities_nK in _unseen(worker, out_of_fold, head):
        class_indices_n = worker.class_indices_N[rows]
        own_n = probabilities_nK[np.arange(len(rows)), class_indices_n]
        result_2K[0] += np.bincount(class_indices_n, own_n, num_classes)
        result_2K[1] += np.bincount(class_indices_n, minlength=num_classes)
    return result_2K


def list_issues(worker: Worker, out_of_fold: OutOfFold, head: "Head", thresholds_K: np.ndarray) -> pa.Table:
    """This worker's images that are likely mislabelled, in any order."""
    names_K, tables = head.class_names, [ISSUE_SCHEMA.empty_table()]
    for rows, probabilities_nK in _unseen(worker, out_of_fold, head):
        found = find_suspects(probabilities_nK, worker.class_indices_N[rows], thresholds_K)
        rows = rows[found.rows]
        labels, suggested = names_K[worker.class_indices_N[rows]], names_K[found.suggested]
        columns = [worker.keys_N[rows], labels, suggested, found.scores, worker.folds_N[rows] == HELD_OUT]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, ISSUE_SCHEMA, strict=True)]
        tables.append(pa.table(arrays, schema=ISSUE_SCHEMA))
    return pa.concat_tables(tables)


def _unseen(worker: Worker, out_of_fold: OutOfFold, head: "Head") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of this worker's images and their probabilities [n, K], by a head that has not seen them."""
    for rows, scores_nK in out_of_fold.blocks(worker):
        yield rows, probabilities(scores_nK.astype(np.float64) * head.temperature_)
    held_out = np.flatnonzero(worker.folds_N == HELD_OUT)
    for start in range(0, len(held_out), NUM_ROWS):
        rows = held_out[start : start + NUM_ROWS]
        yield rows, head.predict_proba(worker.features_ND[rows])


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
