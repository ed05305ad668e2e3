"""The images that a fit held out: what a head says of them, and which they were.

Legend: N images of a worker, n of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.dataset.features import Features
from bottleneck.errors import CorruptError, FingerprintError, UsageError
from bottleneck.heads.label_sets import LabelSets, joined
from bottleneck.heads.labels_evaluation import AnyEvaluator, evaluator_of
from bottleneck.heads.solver.rows import as_dtype
from bottleneck.heads.solver.worker import Worker, encoded, labelled_rows
from bottleneck.heads.splits import HELD_OUT, SplitRule, all_traits, held_out_sha256

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head

SPLIT_VERSION = 1
"""Of what a rule means: another one deals images otherwise."""


def evaluate_fold(worker: Worker, head: Any, fold: int) -> AnyEvaluator:
    """Count what a `Head` predicts for a worker's images of a fold."""
    evaluator = evaluator_of(head)
    chosen_N = np.flatnonzero(worker.folds_N == fold)
    for start in range(0, len(chosen_N), 4096):
        part = chosen_N[start : start + 4096]
        probabilities_NK = head.predict_proba(as_dtype(worker.features_ND[part], np.float32))
        evaluator.add(worker.keys.take(part).to_pylist(), _labels(worker, head, part), probabilities_NK)
    return evaluator


def _labels(worker: Worker, head: Any, part: np.ndarray) -> list[str]:
    class_indices_n = worker.class_indices_N[part]
    if worker.has_label_KL is None:
        return [str(label) for label in head.classes_[class_indices_n]]
    return [joined(head.classes_[has_label_L].tolist()) for has_label_L in worker.has_label_KL[class_indices_n]]


def count_right(worker: Worker, head: Any, fold: int, which_n: np.ndarray) -> tuple[int, int]:
    """Count the images that a `Head` recognises among some of its images of a fold [n], and all of these."""
    rows = np.flatnonzero(worker.folds_N == fold)[which_n]
    if not len(rows):
        return 0, 0
    said_n = head.predict(as_dtype(worker.features_ND[rows], np.float32))
    return int((said_n == head.classes_[worker.class_indices_N[rows]]).sum()), len(rows)


def held_out_digests(head: "Head", features: Features) -> np.ndarray:
    """What the held-out images of a fit are known by, from the rule that the head keeps.

    Raises:
        UsageError, FingerprintError: as `evaluate_head`.
    """
    kept = head.origin.details.get("split")
    if not isinstance(kept, dict) or kept.get("version") != SPLIT_VERSION:
        raise UsageError(
            "The head does not say which images it held out: its fit was none of `bottleneck fit`, or of another "
            "version. Judge it on all images, or fit again."
        )
    try:
        wanted = str(kept["held_out_sha256"])
        rule = SplitRule.from_json({name: kept[name] for name in kept if name not in ("version", "held_out_sha256")})
    except (KeyError, TypeError) as error:
        raise CorruptError(f"The head's rule of its split cannot be read: {error}. Fit again.") from error
    if wanted == held_out_sha256(np.empty(0, np.uint64)):
        raise UsageError("The fit held no image out. Fit with a `test_fraction` above 0, or judge on other features.")
    if head.origin.plan_sha256 == features.plan.sha256:
        names, codes, parts = [], [], [rule.no_traits()]
        for table in features.tables(list(dict.fromkeys(["label", "status", *rule.columns()]))):
            labelled, _ = labelled_rows(table)
            found, own = encoded([labelled.column("label")])
            names.append(found)
            codes.append(own)
            parts.append(rule.traits(labelled))
        traits = all_traits(parts)
        classes, class_indices_N = as_class_indices(names, codes)
        sets = LabelSets.of(classes, features.plan.output) if head.multi_label else None
        digests = traits.digests_N[rule.split(class_indices_N, traits, classes, sets).folds_N == HELD_OUT]
        if held_out_sha256(digests) == wanted:
            return np.unique(digests)
    raise FingerprintError(
        f"{features.plan.output} is not, or no longer, what the head was fitted on ({head.origin.features}), so its "
        "held-out images are not known. Judge on all images of these features, or fit again."
    )


def as_class_indices(names: Sequence[list[str]], codes: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray]:
    """All labels, sorted, and every image's number among them.

    Args:
        names, codes: labels of each part, and its images' numbers among these.
    """
    classes = sorted({name for part in names for name in part})
    number = {name: code for code, name in enumerate(classes)}
    parts = [np.array([number[name] for name in part], int)[own] for part, own in zip(names, codes, strict=True)]
    return classes, np.concatenate(parts)
