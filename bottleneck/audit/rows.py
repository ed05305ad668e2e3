"""Check the rows of a data file: outcomes as planned, features or predictions for ok rows only.

The part of `audit` that reads every value, for `verify --full`.
"""

from collections import Counter
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.audit.data_file import check_bytes
from bottleneck.audit.objects import REASONS, Objects, Wrong, _short, expect
from bottleneck.audit.plan import AuditedPlan
from bottleneck.audit.tables import data_schema, read_tables

SUM_TOLERANCE = 1e-3
"""Ten thousand float32 of a softmax, each rounded, add up to 1 within a tenth of it."""


def check_data(objects: Objects, plan: AuditedPlan, shard: int, images: pa.Table, statuses: Counter[str]) -> None:
    """Read every value of a data file (all its bytes verified) and compare its rows with the plan.

    Args:
        images: the shard's, from its part.
        statuses: what the file's footer says.

    Raises:
        StoreError: the file cannot be fetched.
        Wrong: a column or a row is not what it should be.
    """
    document = plan.documents["plan.json"]
    data = objects.read(plan.data_name(shard))
    check_bytes(data)
    table = pa.concat_tables(read_tables(data, data_schema(document)))
    layers = [] if "predictions" in document else document["spec"]["layers"]
    rows = table.drop_columns(layers).to_pylist()
    for number, (row, image) in enumerate(zip(rows, images.to_pylist(), strict=True)):
        status, reason = row["status"], row["reason"]
        # A rejected image may have been gone or another one when it was read, so its etag is not the plan's.
        for field in ("key", "label", "etag") if status == "ok" else ("key", "label"):
            expect(f"row {number}: {field} is", row[field], image[field])
        if (status, reason) != ("ok", None) and not (status == "rejected" and reason in REASONS):
            raise Wrong(f"row {number}: status {status!r} with reason {reason!r}, expected ok or a known reason")
        if status == "ok" and (empty := [name for name in ("width", "height", "mode", "sha256") if row[name] is None]):
            raise Wrong(f"row {number}: ok, but without {', '.join(empty)}")
    counts = Counter(row["reason"] or "ok" for row in rows)
    expect("its rows are", dict(counts), dict(statuses), "but its footer says")
    ok = [row["status"] == "ok" for row in rows]
    for layer in layers:
        _check_features(table[layer].combine_chunks(), layer, ok)
    if "predictions" in document:
        for number, row in enumerate(rows):
            _check_prediction(number, row, document["predictions"]["top"])
            if classes := document["predictions"].get("classes"):
                _check_probabilities(number, row, classes)


def _check_features(column: pa.FixedSizeListArray, layer: str, ok: list[bool]) -> None:
    """Features where, and only where, a row is ok, and all of them finite."""
    for number, (is_ok, has_features) in enumerate(zip(ok, column.is_valid().to_pylist(), strict=True)):
        if is_ok != has_features:
            state = "ok, but has no" if is_ok else "rejected, but has"
            raise Wrong(f"row {number} is {state} features in {layer}")
    finite = pc.is_finite(column.flatten()).fill_null(False)  # flatten leaves the rejected rows out
    if (position := finite.index(False).as_py()) >= 0:
        nth, dim = divmod(position, column.type.list_size)
        number = [number for number, is_ok in enumerate(ok) if is_ok][nth]
        raise Wrong(f"row {number}: value {dim} of {layer} is NaN, infinite or null")


def _check_prediction(number: int, row: dict[str, Any], top: int) -> None:
    """A prediction where, and only where, a row is ok: the best class, and the best few with the best first."""
    fields = ("predicted", "probability", "top_labels", "top_probabilities")
    is_ok = row["status"] == "ok"
    for field in fields:
        if is_ok != (row[field] is not None):
            raise Wrong(f"row {number} is {'ok, but has no' if is_ok else 'rejected, but has'} {field}")
    if not is_ok:
        return
    predicted, probability, labels, values = (row[field] for field in fields)
    if not 0 < len(labels) == len(values) <= top:
        raise Wrong(
            f"row {number}: {len(labels)} top_labels with {len(values)} top_probabilities, expected 1 to {top} of both"
        )
    if None in labels or len(set(labels)) < len(labels):
        raise Wrong(f"row {number}: top_labels are {labels}, expected each class once")
    if not all(value is not None and 0 <= value <= 1 for value in values):
        raise Wrong(f"row {number}: top_probabilities are {values}, expected numbers from 0 to 1")
    if any(first < second for first, second in pairwise(values)):
        raise Wrong(f"row {number}: top_probabilities are {values}, expected the highest first")
    expect(f"row {number}: predicted is", predicted, labels[0], "but the first of top_labels is")
    expect(f"row {number}: probability is", probability, values[0], "but the first of top_probabilities is")


def _check_probabilities(number: int, row: dict[str, Any], classes: list[str]) -> None:
    """The probability of every class where, and only where, a row is ok; together 1, and those of its top classes."""
    values = row["probabilities"]
    if (row["status"] == "ok") != (values is not None):
        state = "ok, but has no" if values is None else "rejected, but has"
        raise Wrong(f"row {number} is {state} probabilities")
    if values is None:
        return
    if not all(value is not None and 0 <= value <= 1 for value in values):
        raise Wrong(f"row {number}: probabilities are {_short(values)}, expected numbers from 0 to 1")
    if not abs(sum(values) - 1) < SUM_TOLERANCE:
        raise Wrong(f"row {number}: probabilities add up to {sum(values)}, expected 1")
    of_class = dict(zip(classes, values, strict=True))
    expected = [of_class.get(label) for label in row["top_labels"]]
    expect(f"row {number}: top_probabilities are", row["top_probabilities"], expected, "but in probabilities they are")
