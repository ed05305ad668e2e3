"""From a features dataset to a head: labels, split, fit, judgement of the held-out images; wherever the members run."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bottleneck.errors import UsageError
from bottleneck.evaluate import Evaluator
from bottleneck.features import Features
from bottleneck.head import Head, Origin
from bottleneck.leader import Leader
from bottleneck.plan import versions
from bottleneck.spec import canonical_layer
from bottleneck.splits import HELD_OUT, split
from bottleneck.team import HeadRequest, Team
from bottleneck.text import counted

log = logging.getLogger(__name__)


@dataclass
class Fitted:
    """A head and how it was come by."""

    head: Head
    evaluator: Evaluator
    """Of the held-out images."""

    @property
    def details(self) -> dict[str, Any]:
        """The split, the grid, the versions; a part of the head."""
        return self.head.origin_.details


def fit_features(team: Team, features: Features, request: HeadRequest, rows_of: dict[str, int]) -> Fitted:
    """Fit a head on the ok, labelled images of a features dataset.

    Args:
        rows_of: ok images of each file, at least.

    Raises:
        UsageError: for labels that cannot be fitted on, or a layer that is not there.
        FeaturesError: for features that are NaN or infinite.
    """
    started = time.monotonic()
    layer = chosen_layer(features, request)
    shares = _shares(features.files, rows_of, team.size)
    answers = team.ask_each("read", [(features, layer, files, sum(rows_of[f] for f in files)) for files in shares])
    names, codes, digests, unlabelled = zip(*answers, strict=True)
    classes = sorted({name for part in names for name in part})
    check_labels(dict.fromkeys(classes, 1), features.plan.output)
    number = {name: code for code, name in enumerate(classes)}
    codes_N = np.concatenate(
        [np.array([number[name] for name in part], int)[own] for part, own in zip(names, codes, strict=True)]
    )
    team.report({"read": len(codes_N), "classes": len(classes), "seconds": time.monotonic() - started})
    num_folds = request.folds if request.cross_validated else 1
    sides = split(
        codes_N,
        np.concatenate(digests),
        classes,
        request.test_fraction,
        num_folds,
    )
    if sides.conflicts:
        groups = counted(sides.conflicts, "group")
        log.warning("%s of byte-identical images with different labels; all of a group stay on one side", groups)
    leader = Leader(team, [len(own) for own in codes], codes_N, sides.folds_N, len(classes), request, num_folds)
    arrays, grid = leader.fit(features.spec.dims[features.spec.layers.index(layer)])
    head = Head.of(request, grid.best_c, classes, arrays)
    evaluator = Evaluator(classes)
    for part in team.ask("judge", head, HELD_OUT):
        evaluator.merge(part)
    details = {
        "request": {**asdict(request), "layer": layer, "c": list(request.c)},
        "images": len(codes_N),
        "fitted_on": int((sides.folds_N >= 0).sum()),
        "held_out": int((sides.folds_N == HELD_OUT).sum()),
        "unlabelled": int(sum(unlabelled)),
        "copies": sides.copies,
        "conflicting_copies": sides.conflicts,
        "grid": grid.rows,
        "c": grid.best_c,
        "way": leader.way,
        "num_workers": team.size,
        "seconds": round(time.monotonic() - started, 2),
        "versions": versions(),
    }
    head.origin_ = Origin(layer, features.spec, features.plan.output, features.plan.sha256, details)
    return Fitted(head, evaluator)


def chosen_layer(features: Features, request: HeadRequest) -> str:
    """The column to fit on. Raises UsageError where it is not there, or not clear."""
    if request.layer is None and len(features.layers) == 1:
        return features.layers[0]
    if request.layer is None or canonical_layer(request.layer) not in features.layers:
        raise UsageError(f"Expected --layer to be one of {', '.join(features.layers)}. Received: {request.layer}.")
    return canonical_layer(request.layer)


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
