"""The content of an export: rows in order, batch by batch, with labels as numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from bottleneck.choices import check_choices
from bottleneck.dataset.features import Features, vectors
from bottleneck.dataset.schema import ok_rows
from bottleneck.dataset.shuffle import shuffled
from bottleneck.errors import CorruptError
from bottleneck.sources.labels import are_numbers, numbered

ExportOrder = Literal["shuffled", "plan"]
UNLABELLED = -1
"""The label index of images without a label."""


class Batch(NamedTuple):
    """Some ok rows."""

    features: np.ndarray
    """In the stored dtype: [rows, D], or [rows, H, W, C] of a map."""
    codes_N: np.ndarray
    """int64, the number of the label among the label names, or UNLABELLED."""
    labels: Sequence[str | None]
    keys: Sequence[str]


@dataclass(frozen=True)
class Contents:
    """What an export writes; its shape is known before the rows are read."""

    features: Features
    layer: str
    num_images: int
    feature_shape: tuple[int, ...]
    """Of one image's features: (D,), or (H, W, C) of a map."""
    order: ExportOrder
    label_names: list[str]
    """All labels of the plan, in order, so that a label's number does not depend on which images are ok."""
    scratch: str
    """A folder for temporary files."""
    on_images: Callable[[int], None]

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def label_order(self) -> str:
        """How the labels are ordered: `number` where all are numbers, so that 10 follows 9; else `text`."""
        return "number" if are_numbers(self.label_names) else "text"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.features.spec.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.num_images, *self.feature_shape

    @property
    def attributes(self) -> dict[str, Any]:
        """What a reader should know of the file, as JSON values."""
        spec = self.features.spec
        return {
            "layer": self.layer,
            "shape": list(self.feature_shape),
            "order": self.order,
            "label_order": self.label_order,
            "fingerprint": spec.fingerprint,
            "spec": spec.to_json(),
        }

    def batches(self) -> Iterator[Batch]:
        """Every ok row, in the order asked for. Raises CorruptError if their number is another."""
        numbers = {label: code for code, label in enumerate(self.label_names)}
        num_written = 0
        for table, num_read in self._rows():
            labels = table.column("label").to_pylist()
            if unknown := set(labels) - {None} - numbers.keys():
                raise CorruptError(
                    f"{self.features.plan.output} has a label that is not in its plan: {min(unknown)!r}."
                )
            codes = [UNLABELLED if label is None else numbers[label] for label in labels]
            features = np.ascontiguousarray(vectors(table.column(self.layer))).reshape(-1, *self.feature_shape)
            yield Batch(features, np.array(codes, np.int64), labels, table.column("key").to_pylist())
            num_written += table.num_rows
            self.on_images((num_read + num_written) // 2)

    def _rows(self) -> Iterator[tuple[pa.Table, int]]:
        """Tables of ok rows in the order asked for, and how many rows are read by then."""
        num_read = 0

        def tables() -> Iterator[pa.Table]:
            nonlocal num_read
            for table in self.features.tables(["key", "label", "status", self.layer]):
                ok = ok_rows(table)
                num_read += ok.num_rows
                if num_read > self.num_images:
                    break
                if ok.num_rows:
                    yield ok.select(["key", "label", self.layer])
                if self.order != "plan":
                    self.on_images(num_read // 2)
            if num_read != self.num_images:
                raise CorruptError(
                    f"{self.features.plan.output} says that it has {self.num_images:,} ok images, and its rows are "
                    "more or fewer. Look at it with `bottleneck verify --full`."
                )

        for table in tables() if self.order == "plan" else shuffled(tables(), self.scratch):
            yield table, num_read


def label_names_of(features: Features) -> list[str]:
    """All labels in the order of their indices; while shards are pending again, also those of old files."""
    plan = features.plan
    known = set(plan.label_counts)
    if features.success is None:
        known.update(*(listing.label_counts for listing in plan.listings))
    return numbered(known)
