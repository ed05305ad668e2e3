"""A separate test set: features of other images, checked before the fit and evaluated after it."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bottleneck.dataset.features import Features, side_by_side
from bottleneck.dataset.schema import ok_rows
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.heads.label_sets import names_in
from bottleneck.heads.labels_evaluation import AnyEvaluator, evaluator_of
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.protocol import Workers
from bottleneck.heads.solver.worker import Worker, check_finite, labelled_rows
from bottleneck.heads.splits import SplitRule
from bottleneck.spec import layers_in
from bottleneck.text import shown

if TYPE_CHECKING:  # scikit-learn takes seconds to import, which --help can do without
    from bottleneck.heads.head import Head


class _Labels(NamedTuple):
    """What a worker read of a test set before the fit."""

    labels: Counter[str]
    """Images by label."""
    digests_N: np.ndarray
    """uint64, of every labelled image, as in `Traits`."""
    num_unlabelled: int


def request_with_test(request: HeadRequest, test: Features, features: Features) -> HeadRequest:
    """The request of a fit that is evaluated on a test set: nothing is held out.

    Compares plans alone, so it costs nothing.

    Raises:
        UsageError: if something is to be held out as well, the test set is what is fitted on, or it has no label that
            the features have.
        FingerprintError: if the features are of another kind.
    """
    if request.test_keys or request.test_fraction not in (0, HeadRequest.test_fraction):
        raise UsageError(
            "`test` names the images to evaluate on, and all others are fitted on, so it takes neither "
            "`test_fraction` nor `test_keys`."
        )
    ours, output = features.plan, test.plan.output
    if output == ours.output or test.plan.sha256 == ours.sha256:
        raise UsageError(
            f"`test` holds the images that are fitted on: {output}. Expected features of other images; leave `test` "
            "out to have some of these held out."
        )
    if test.spec.fingerprint != features.spec.fingerprint:
        raise FingerprintError(
            f"The features of `test` are of another kind than those of {ours.output}. Differing: "
            f"{'; '.join(features.spec.differences(test.spec, ours.output, output))}. Extract the test images with the "
            "same options."
        )
    if not request.multi_label:  # else names are compared, which the workers read
        check_known(test.plan.label_counts, ours.label_counts, output)
    return replace(request, test_fraction=0.0)


def check_known(labels: Collection[str], classes: Collection[str], output: str) -> None:
    """Raise UsageError unless one of the labels of a test set is one of the classes."""
    if not labels:
        raise UsageError(
            f"{output} has no ok image with a label, so nothing can be evaluated on it. Expected images in class "
            "folders; extract again without --labels none, to another output."
        )
    if not set(labels) & set(classes):
        raise UsageError(
            f"None of the labels of {output} is one of the classes. Expected some of {shown(sorted(classes))}. "
            f"Received: {shown(sorted(labels))}."
        )


def read_test(
    workers: Workers,
    test: Features,
    layer: str,
    classes: Sequence[str],
    digests_N: np.ndarray,
    *,
    sets: bool = False,
) -> dict[str, Any]:
    """Look through a test set before the fit.

    Args:
        classes: of the head.
        digests_N: of the images that are fitted on, as in `Traits`.
        sets: whether labels are sets of classes.

    Returns:
        What the head's details say of it, as JSON values.

    Raises:
        UsageError: if none of its images has a label of these classes.
        FeaturesError: for features that are NaN or infinite.
    """
    parts = workers.ask_each(_read, [(test, layer, files) for files in _dealt(test.files, workers.size)])
    labels = sum((part.labels for part in parts), Counter[str]())
    found = {label: names_in(label) if sets else (label,) for label in labels}
    check_known({name for names in found.values() for name in names}, classes, test.plan.output)
    known = set(classes)
    return {
        "features": test.plan.output,
        "plan_sha256": test.plan.sha256,
        "images": labels.total(),
        "unlabelled": sum(part.num_unlabelled for part in parts),
        "unknown": sum(count for label, count in labels.items() if not known.issuperset(found[label])),
        "copies": sum(int(np.isin(part.digests_N, digests_N).sum()) for part in parts),
    }


def evaluate_on(workers: Workers, head: "Head", test: Features, layer: str) -> list[AnyEvaluator]:
    """Count what a head predicts for a test set, a part each worker."""
    return workers.ask_each(_evaluate, [(head, test, layer, files) for files in _dealt(test.files, workers.size)])


def _read(worker: Worker, test: Features, layer: str, files: list[str]) -> _Labels:
    labels: Counter[str] = Counter()
    digests, unlabelled = [np.empty(0, np.uint64)], 0
    for name in files:
        labelled, num_unlabelled = labelled_rows(
            test.table(name, ["key", "label", "status", "sha256", *layers_in(layer)])
        )
        check_finite(side_by_side(labelled, layer), labelled, f"{test.plan.output}/{name}")
        labels.update(labelled.column("label").to_pylist())
        digests.append(SplitRule.digests(labelled))
        unlabelled += num_unlabelled
    return _Labels(labels, np.concatenate(digests), unlabelled)


def _evaluate(worker: Worker, head: "Head", test: Features, layer: str, files: list[str]) -> AnyEvaluator:
    evaluator = evaluator_of(head)
    for name in files:
        ok = ok_rows(test.table(name, ["key", "label", "status", *layers_in(layer)])).combine_chunks()
        if len(ok):
            probabilities_NK = head.predict_proba(side_by_side(ok, layer).astype(np.float32, copy=False))
            evaluator.add(ok.column("key").to_pylist(), ok.column("label").to_pylist(), probabilities_NK)
    return evaluator


def _dealt(files: list[str], size: int) -> list[list[str]]:
    return [files[rank::size] for rank in range(size)]
