"""Fit a head on a features dataset: read labels, split, fit, evaluate on held-out images."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from bottleneck.dataset.features import Features, side_by_side
from bottleneck.dataset.plan import versions
from bottleneck.dataset.schema import ok_rows
from bottleneck.errors import UsageError
from bottleneck.heads.held_out import SPLIT_VERSION, as_class_indices, count_right, evaluate_fold, held_out_digests
from bottleneck.heads.label_issues import find_label_issues
from bottleneck.heads.label_sets import LabelSets
from bottleneck.heads.labels_evaluation import AnyEvaluation, AnyEvaluator, LabelsEvaluation, evaluator_of
from bottleneck.heads.near_copies import find_near_copies
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.coordinator import Coordinator
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.protocol import LocalWorkers, Workers
from bottleneck.heads.solver.worker import Worker, labelled_rows
from bottleneck.heads.splits import HELD_OUT, SplitRule, all_traits, held_out_sha256
from bottleneck.heads.test_set import evaluate_on, read_test
from bottleneck.spec import BESIDE, canonical_layer, layers_in

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head


@dataclass
class Fitted:
    """A head, and how it was obtained."""

    head: "Head"
    evaluator: AnyEvaluator
    """Of the held-out images, or of the test set."""
    label_issues: pa.Table | None = None
    """Images that are likely mislabelled, of `label_issues.ISSUE_SCHEMA`; None without folds, which tell them."""

    @property
    def evaluation(self) -> AnyEvaluation | None:
        """On the held-out images or the test set; None where there are none."""
        return self.evaluator.result() if num_evaluated(self.details) else None

    @property
    def details(self) -> dict[str, Any]:
        """The split, the grid, the versions; a part of the head."""
        return self.head.origin.details


def fit_features(
    workers: Workers,
    features: Features,
    request: HeadRequest,
    rows_of: dict[str, int],
    test: Features | None = None,
) -> Fitted:
    """Fit a head on the ok, labelled images of a features dataset.

    Args:
        rows_of: ok images of each file, at least.
        test: features of other images, on which the head is evaluated.

    Raises:
        UsageError: for labels that cannot be fitted on or evaluated, or a layer that is not there.
        FeaturesError: for features that are NaN or infinite.
    """
    started = time.monotonic()
    layer = chosen_layer(features, request)
    rule = request.split_rule
    shares = _shares(features.files, rows_of, workers.size)
    asked = [(features, layer, files, sum(rows_of[f] for f in files), rule) for files in shares]
    names, codes, parts, unlabelled = zip(*workers.ask_each(Worker.read, asked), strict=True)
    classes, class_indices_N = as_class_indices(names, codes)
    check_labels(dict.fromkeys(classes, 1), features.plan.output)
    sets = LabelSets.of(classes, features.plan.output) if request.multi_label else None
    labels = classes if sets is None else sets.names
    workers.report({"read": len(class_indices_N), "classes": len(classes), "seconds": time.monotonic() - started})
    traits = all_traits(parts)
    tested = read_test(workers, test, layer, labels, traits.digests_N, sets=sets is not None) if test else None
    split = rule.split(class_indices_N, traits, classes, sets)
    if sets is not None:
        _check_on_some(sets, class_indices_N[split.folds_N >= 0])
    counts = [len(own) for own in codes]
    coordinator = Coordinator(
        FitData(
            workers,
            counts,
            class_indices_N,
            split.folds_N,
            len(classes),
            request,
            rule.num_folds,
            has_label_KL=None if sets is None else sets.has_label_KL,
        )
    )
    arrays, grid = coordinator.fit(features.spec.dim_of(layer))
    from bottleneck.heads.head import Head, Origin  # here, as it may be imported in a thread while this solves

    head = Head.of(request, grid, labels, arrays)
    evaluator: Any = evaluator_of(head)
    held_out = evaluate_on(workers, head, test, layer) if test else workers.ask(evaluate_fold, head, HELD_OUT)
    for part in held_out:
        evaluator.merge(part)
    evaluation = evaluator.result() if test or (split.folds_N == HELD_OUT).any() else None
    folds = [own for (own,) in coordinator.data.by_worker(split.folds_N)]
    issues = None
    if grid.out_of_fold is not None:
        issues = find_label_issues(workers, folds, grid.out_of_fold, head)
    details = {
        "request": {**request.to_json(), "layer": layer},
        "images": len(class_indices_N),
        "fitted_on": int((split.folds_N >= 0).sum()),
        "held_out": int((split.folds_N == HELD_OUT).sum()),
        "unlabelled": int(sum(unlabelled)),
        "copies": split.copies,
        "conflicting_copies": split.conflicts,
        "groups": split.num_groups,
        "ungrouped": traits.num_ungrouped,
        "held_out_with_test_keys": split.num_moved,
        "split": {
            **rule.to_json(),
            "version": SPLIT_VERSION,
            "held_out_sha256": held_out_sha256(traits.digests_N[split.folds_N == HELD_OUT]),
        },
        "grid": grid.rows,
        "grid_end": grid.end,
        "gap": grid.gap,
        "test": tested,
        "c": None if request.kind == "mlp" else grid.best_c,
        "temperature": head.temperature_,
        **_figures(evaluation, workers, folds, head, features.spec.dim_of(layer)),
        **({} if sets is None else {"thresholds": head.thresholds_.tolist()}),
        "label_issues": None if issues is None else len(issues),
        "way": coordinator.solver,
        "num_workers": 0 if isinstance(workers, LocalWorkers) else workers.size,
        "seconds": round(time.monotonic() - started, 2),
        "versions": versions(),
    }
    head.origin_ = Origin(layer, features.spec, features.plan.output, features.plan.sha256, details)
    return Fitted(head, evaluator, issues)


def _check_on_some(sets: LabelSets, class_indices_N: np.ndarray) -> None:
    """Raise UsageError for a name that every fitted image has, from which nothing can be told apart."""
    everywhere = np.flatnonzero(sets.has_label_KL[class_indices_N].all(axis=0))
    if len(everywhere):
        raise UsageError(
            f"Every image that is fitted on is labelled {sets.names[everywhere[0]]}. Expected names that some images "
            "have and others have not; leave it out of the labels."
        )


def num_evaluated(details: dict[str, Any]) -> int:
    """Images that the fit of a head with these details was evaluated on."""
    test = details.get("test")
    return int(test["images"] if test else details["held_out"])


def _figures(
    evaluation: AnyEvaluation | None, workers: Workers, folds: list[np.ndarray], head: "Head", dim: int
) -> dict[str, float | int | None]:
    """Figures of the evaluation besides the accuracy; None where there is none.

    Near copies are those of held-out images; None where there are too many pairs to look at, or a test set.
    """
    names = ("log_loss", "brier_score", "near_copies", "near_copy_pairs", "accuracy_without_near_copies")
    figures: dict[str, float | int | None] = dict.fromkeys(names)
    if evaluation is None:
        return figures
    if isinstance(evaluation, LabelsEvaluation):
        return {**figures, "log_loss": evaluation.log_loss, "average_precision": evaluation.average_precision}
    figures |= {"log_loss": evaluation.log_loss, "brier_score": evaluation.brier_score}
    if not any((folds_N == HELD_OUT).any() for folds_N in folds):
        return figures
    near = find_near_copies(workers, folds, dim)
    if near is not None:
        num_right = num_near = 0
        for own in workers.ask_each(count_right, [(head, HELD_OUT, near_n) for near_n in near.is_near]):
            num_right, num_near = num_right + own[0], num_near + own[1]
        num_others = evaluation.num_images - num_near
        figures |= {"near_copies": num_near, "near_copy_pairs": near.pairs}
        if num_others:
            figures["accuracy_without_near_copies"] = (evaluation.num_correct - num_right) / num_others
    return figures


def evaluate_head(
    head: "Head", features: Features, *, held_out: bool = False, threshold: float | None = None
) -> AnyEvaluation:
    """Evaluate a head on the labelled ok images of a dataset, one data file at a time.

    Args:
        held_out: evaluate only on the images that its fit held out, which are in these features.
        threshold: count apart the images whose top probability is as large at least, from 0 to 1.

    Raises:
        UsageError: if no image has a label, or the fit held none out.
        FingerprintError: if the held-out images cannot be told from the others, as the features are not those of the
            fit, or not as they were.
    """
    evaluator, layer = evaluator_of(head, threshold), head.origin.layer
    digests = held_out_digests(head, features) if held_out else None
    for table in features.tables(["key", "label", "status", "sha256", *layers_in(layer)]):
        ok = ok_rows(table).combine_chunks()
        if digests is not None:
            ok = labelled_rows(ok)[0]
            ok = ok.filter(np.isin(SplitRule.digests(ok), digests)).combine_chunks()
        if len(ok):
            probabilities_NK = head.predict_proba(side_by_side(ok, layer).astype(np.float32, copy=False))
            evaluator.add(ok.column("key").to_pylist(), ok.column("label").to_pylist(), probabilities_NK)
    return evaluator.result()


def chosen_layer(features: Features, request: HeadRequest) -> str:
    """The column to fit on. Raises UsageError where it is not there, or not clear."""
    if request.layer is None and len(features.layers) == 1:
        return features.layers[0]
    asked = [canonical_layer(one) for one in layers_in(request.layer or "")]
    if request.layer is None or not set(asked) <= set(features.layers) or len(set(asked)) < len(asked):
        raise UsageError(
            f"Expected `layer` to be one of {', '.join(features.layers)}, or different ones joined by "
            f"{BESIDE!r}. Received: {request.layer}."
        )
    return BESIDE.join(asked)


def check_labels(label_counts: Mapping[str, int], output: str) -> None:
    """Raise UsageError where there are no labels, or only one."""
    if not label_counts:
        raise UsageError(
            f"{output} has no ok image with a label. Expected images in class folders; extract again without --labels "
            "none, to another output."
        )
    if len(label_counts) < 2:
        raise UsageError(
            f"All images of {output} have the same label: {next(iter(label_counts))}. Expected two or more."
        )


def _shares(files: list[str], rows_of: dict[str, int], size: int) -> list[list[str]]:
    """Files in order, cut into as many runs of about equal rows."""
    ends = np.cumsum([rows_of[name] for name in files])
    owners = [
        min(int(size * (end - rows_of[f] / 2) / max(ends[-1], 1)), size - 1) for f, end in zip(files, ends, strict=True)
    ]
    return [[name for name, owner in zip(files, owners, strict=True) if owner == rank] for rank in range(size)]
