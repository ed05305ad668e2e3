"""Labels that are sets of names, as `cat;dog`.

Legend: N images, K sets that images have, L names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bottleneck.errors import UsageError
from bottleneck.sources.labels import SEPARATOR
from bottleneck.text import shown

MOSTLY = 0.2
"""Share of labels with a separator from which they are taken to be sets."""


def names_in(label: str) -> tuple[str, ...]:
    """The names of a label, sorted: `dog; cat` -> (`cat`, `dog`). A label of separators alone is the empty set."""
    return tuple(sorted({name for part in label.split(SEPARATOR) if (name := part.strip())}))


def joined(names: Sequence[str]) -> str:
    """The label of a set of names; the separator alone for the empty set."""
    return SEPARATOR.join(sorted(names)) or SEPARATOR


@dataclass(frozen=True)
class LabelSets:
    """The sets that images have, and the names in them."""

    names: list[str]
    """L, sorted."""
    has_label_KL: np.ndarray
    """bool, whether each set has each name."""

    @classmethod
    def of(cls, labels: Sequence[str], source: str) -> Self:
        """The sets of some labels, in their order.

        Raises:
            UsageError: for labels that hold fewer than two names.
        """
        sets = [names_in(label) for label in labels]
        names = sorted({name for one in sets for name in one})
        if len(names) < 2:
            raise UsageError(
                f"With `multi_label`, labels are names separated by {SEPARATOR}. Expected two or more in "
                f"{source}. Received: {shown(names) or 'none'}."
            )
        return cls(names, memberships(sets, names))

    def entries(self, class_indices_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The image and the number of the name, of each name that an image has. Images without one are counted with the
        most frequent name, so that each has an entry."""
        has_label_NL = self.has_label_KL[class_indices_N]
        most = int(has_label_NL.sum(axis=0).argmax())
        has_label_NL[~has_label_NL.any(axis=1), most] = True
        images, names = np.nonzero(has_label_NL)
        return images, names


def memberships(sets: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """Whether each set has each of the names, bool [K, L]; other names are ignored."""
    number = {name: index for index, name in enumerate(names)}
    has_label_KL = np.zeros((len(sets), len(names)), bool)
    for row, one in enumerate(sets):
        has_label_KL[row, [number[name] for name in one if name in number]] = True
    return has_label_KL


def sets_of(y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as scikit-learn's users give them, as the solver takes them.

    Args:
        y: a 0/1 indicator matrix [N, L], or [N] strings of names separated by `;`.

    Returns:
        The names [L] (the numbers of the columns of a matrix), the set of each image as a number [N], and the names of
        each set, bool [K, L].

    Raises:
        ValueError: for anything else.
    """
    labels = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        names = np.arange(labels.shape[1])
        has_label_KL, class_indices_N = np.unique(labels.astype(bool), axis=0, return_inverse=True)
    elif labels.ndim == 1 and all(isinstance(label, str) for label in labels.tolist()):
        found, class_indices_N = np.unique(labels.astype(object), return_inverse=True)
        sets = [names_in(label) for label in found]
        every = sorted({name for one in sets for name in one})
        names, has_label_KL = np.array(every, object), memberships(sets, every)
    else:
        raise ValueError(
            "With multi_label, expected labels as a matrix [N, L] of 0 and 1, or as strings of names separated by "
            f"{SEPARATOR}. Received {labels.dtype} of shape {labels.shape}."
        )
    return names, class_indices_N.reshape(-1), has_label_KL


def mostly_sets(label_counts: dict[str, int]) -> bool:
    """Whether labels look like sets of names."""
    some = sum(count for label, count in label_counts.items() if len(names_in(label)) > 1)
    return some > MOSTLY * sum(label_counts.values())
