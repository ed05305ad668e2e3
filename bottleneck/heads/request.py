"""The options of a head, and their checks."""

import math
import numbers
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from bottleneck.choices import check_choice, check_choices
from bottleneck.errors import UsageError
from bottleneck.heads.splits import SplitRule

Kind = Literal["logistic", "svm", "mlp"]
KindChoice = Literal["logistic", "svm", "mlp", "auto"]
Scale = Literal["none", "standard", "l2"]
ScaleChoice = Literal["none", "standard", "l2", "auto"]
Metric = Literal["accuracy", "macro_f1", "balanced_accuracy", "log_loss", "average_precision"]
LABELS_METRICS = ("average_precision", "macro_f1", "log_loss")
"""Those that choose where images have several labels; the first is the default."""
ClassWeight = Literal["none", "balanced"]
Arrays = dict[str, np.ndarray]
"""Arrays of a head by name, without the trailing underscore of its attributes."""

HEAD_JSON = "head.json"
"""The JSON file of a head, written last: where it exists, the head is complete."""
NETWORK: dict[str, tuple[int, int, int | None]] = {
    "hidden_size": (1, 65_536, 256),
    "epochs": (1, 1_000_000, None),
    "seed": (0, 2**32 - 1, 0),
}
"""Options of an mlp alone: the least, the most and the default."""


class Variant(NamedTuple):
    """What cross-validation chooses besides C."""

    kind: Kind
    scale: Scale


@dataclass(frozen=True, kw_only=True)
class HeadRequest:
    """The head to fit."""

    kind: KindChoice = "logistic"
    """`logistic` (scikit-learn's LogisticRegression), `svm` (its LinearSVC), or `mlp` (one hidden layer); `auto` has
    cross-validation choose among the first two."""
    layer: str | None = None
    """Column of the features to fit on. Required if there are several. Several are taken side by side as 'A:avg +
    B:avg'."""
    c: tuple[float, ...] = (1.0,)
    """Inverse strength of the L2 penalty. Of several values, cross-validation chooses the best. Not for mlp."""
    multi_label: bool = False
    """Labels are sets of names, as `cat;dog`: fits a logistic regression for each name, with a threshold of its own."""
    folds: int = 3
    """Folds of the cross-validation."""
    metric: Metric = "accuracy"
    """What cross-validation chooses by: the highest, or the lowest log_loss. Values are scikit-learn's. With
    --multi-label average_precision, its mean over names, is the default, and macro_f1 and log_loss are the others."""
    test_fraction: float = 0.25
    """Share of each class to hold out of the fit and evaluate on; 0 for none."""
    test_keys: tuple[str, ...] = ()
    """Hold out the images whose keys match one of these patterns instead, such as 'test/*'; * also matches slashes."""
    group_by: str | None = None
    """Keep the images of a group in the same split and fold. A regular expression searched in the keys, whose
    parentheses match the name of the group, or a column of the features."""
    scale: ScaleChoice = "none"
    """`standard` removes mean and variance of every feature; `l2` scales each image's features to length 1; `auto`
    has cross-validation choose among all three."""
    class_weight: ClassWeight = "none"
    """`balanced` weights classes by the inverse of their number of images."""
    hidden_size: int = 256
    """Hidden units of an mlp."""
    epochs: int | None = None
    """Passes of an mlp over the images. By default 40, or more where that gives less than 2,000 steps."""
    seed: int = 0
    """Of an mlp's first weights and the order of images."""

    def __post_init__(self) -> None:
        class_weight: Any = self.class_weight
        if class_weight is None:  # as scikit-learn has it
            object.__setattr__(self, "class_weight", "none")
        check_choices(self)
        if not self.c or not all(math.isfinite(c) and c > 0 for c in self.c):
            raise UsageError(f"`c` takes numbers above 0. Received: {' '.join(map(str, self.c)) or 'none'}.")
        if len(set(self.c)) < len(self.c):
            raise UsageError(f"`c` names a value twice. Received: {' '.join(map(str, self.c))}.")
        if self.kind == "mlp" and self.c != (1.0,):
            raise UsageError("An mlp has no penalty, so it takes no `c`. Leave `c` out, or take logistic or svm.")
        if self.kind == "mlp" and self.scale == "auto":
            raise UsageError("An mlp is not cross-validated, so `scale` auto cannot choose. Name one of the others.")
        if self.multi_label:
            if self.kind != "logistic":
                raise UsageError(
                    f"`multi_label` fits logistic regressions. Received: `kind` {self.kind}. Leave it out."
                )
            if self.metric == "accuracy":
                object.__setattr__(self, "metric", LABELS_METRICS[0])
            if self.metric not in LABELS_METRICS:
                valid = ", ".join(LABELS_METRICS)
                raise UsageError(f"With `multi_label`, `metric` is one of {valid}. Received: {self.metric}.")
        elif self.metric == "average_precision":
            raise UsageError(
                "`metric` average_precision is for images with several labels. Give `multi_label` with it."
            )
        if self.kind in ("svm", "auto") and self.metric == "log_loss":
            raise UsageError(
                "An svm gives margins, no probabilities, while it is cross-validated, so `metric` log_loss cannot "
                "choose. Take another metric, or `kind` logistic."
            )
        check_network(self.kind, self.hidden_size, self.epochs, self.seed)
        if self.folds < 2:
            raise UsageError(f"`folds` takes a number from 2 up. Received: {self.folds}.")
        if not 0 <= self.test_fraction < 1:
            raise UsageError(f"`test_fraction` takes a share from 0 to below 1. Received: {self.test_fraction}.")
        if not isinstance(self.test_keys, tuple) or not all(self.test_keys):
            raise UsageError(
                f"`test_keys` takes a tuple of patterns, none of them empty. Received: {self.test_keys!r}."
            )
        if self.test_keys and self.test_fraction != type(self).test_fraction:
            raise UsageError("`test_keys` names the images that are held out, so it takes no `test_fraction`.")
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise UsageError(
                f"`group_by` takes a regular expression or a column. Received: {self.group_by}, where {error}."
            ) from None

    @property
    def cross_validated(self) -> bool:
        """Whether there is a cross-validation; always for an svm, whose probabilities come from the folds, and for
        several labels an image, whose thresholds do."""
        if self.kind == "mlp":
            return False
        return len(self.c) > 1 or self.kind in ("svm", "auto") or self.scale == "auto" or self.multi_label

    @property
    def variants(self) -> list[Variant]:
        """The kinds and scalings to choose from."""
        kinds: tuple[Kind, ...] = ("logistic", "svm") if self.kind == "auto" else (self.kind,)
        scales: tuple[Scale, ...] = get_args(Scale) if self.scale == "auto" else (self.scale,)
        return [Variant(kind, scale) for kind in kinds for scale in scales]

    @property
    def varied(self) -> list[str]:
        """What the variants differ in: `kind`, `scale`, both or nothing."""
        return [name for name in ("kind", "scale") if getattr(self, name) == "auto"]

    @property
    def split_rule(self) -> SplitRule:
        """The rule that divides the images."""
        return SplitRule(
            test_fraction=0.0 if self.test_keys else self.test_fraction,
            num_folds=self.folds if self.cross_validated else 1,
            test_keys=self.test_keys,
            group_by=self.group_by,
        )

    def to_json(self) -> dict[str, Any]:
        value = {**asdict(self), "c": list(self.c), "test_keys": list(self.test_keys), **plain_network(self)}
        return value if self.multi_label else {name: one for name, one in value.items() if name != "multi_label"}


def check_parameters(kind: Any, C: Any, scale: Any, class_weight: Any, multi_label: Any = False) -> None:
    """Raise UsageError for a parameter of a `Head` that is none of its valid values."""
    if not isinstance(multi_label, bool):
        raise UsageError(f"multi_label is True or False. Received: {multi_label!r}.")
    if multi_label and (kind != "logistic" or isinstance(class_weight, dict)):
        raise UsageError("With multi_label, kind is logistic, and class_weight is None or balanced.")
    check_choice("kind", kind, Kind)
    check_choice("scale", scale, Scale)
    if isinstance(class_weight, dict):
        for label, weight in class_weight.items():
            if not _is_number(weight) or weight < 0:
                raise UsageError(f"class_weight takes numbers from 0 up. Received: {weight!r} for {label!r}.")
    elif class_weight is not None:
        check_choice("class_weight", class_weight, ClassWeight)
    if not _is_number(C) or C <= 0:
        raise UsageError(f"C takes a number above 0. Received: {C!r}.")
    if kind == "mlp" and C != 1.0:
        raise UsageError(f"An mlp has no penalty, so it takes no C. Received: {C!r}. Leave it out.")


def check_network(kind: Any, hidden_size: Any, epochs: Any, seed: Any) -> None:
    """Raise UsageError for options of the small network that are out of range, or are given with another kind."""
    given = {"hidden_size": hidden_size, "epochs": epochs, "seed": seed}
    for name, value in given.items():
        low, high, default = NETWORK[name]
        if value != default and kind != "mlp":
            raise UsageError(f"`{name}` is an option of the mlp. Received: {value} with {kind}. Take `kind` mlp.")
        if value != default and not (_is_whole(value) and low <= value <= high):
            raise UsageError(f"`{name}` takes a whole number from {low} to {high:,}. Received: {value!r}.")


def plain_network(owner: Any) -> dict[str, Any]:
    """The options of the small network as JSON keeps them: NumPy's integers are as good until then."""
    values = {name: getattr(owner, name) for name in NETWORK}
    return {name: None if value is None else int(value) for name, value in values.items()}


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
