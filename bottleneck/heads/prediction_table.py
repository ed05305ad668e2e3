"""Predictions of images as a table: the best classes of each, or all of them."""

import numpy as np
import pyarrow as pa

from bottleneck.dataset.schema import prediction_fields
from bottleneck.heads.label_sets import joined
from bottleneck.spec import Proba


def prediction_table(
    probabilities_NK: np.ndarray, names_K: np.ndarray, top: int, proba: Proba, thresholds_K: np.ndarray | None = None
) -> pa.Table:
    """A row of `prediction_fields` for each image, with up to `top` classes.

    Args:
        names_K: the classes, as text.
        proba: `all` adds the probabilities of all classes, float32 [K] in the order of `names_K`.
        thresholds_K: where images have several labels, the probabilities from which each is predicted: `predicted` is
            the set of them.
    """
    count = min(top, len(names_K))
    fields = prediction_fields(len(names_K) if proba == "all" else 0)
    # Stable, so that of equal classes the first is best, as argmax has it.
    best_NT = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :count]
    values_NT = np.take_along_axis(probabilities_NK, best_NT, axis=1).astype(np.float32)
    labels_NT = names_K[best_NT]
    offsets = pa.array(np.arange(0, len(best_NT) * count + 1, count), pa.int32())
    predicted_N = labels_NT[:, 0].tolist()
    if thresholds_K is not None:
        predicted_N = [joined(names_K[is_above_K].tolist()) for is_above_K in probabilities_NK >= thresholds_K]
    columns = [
        pa.array(predicted_N, pa.string()),
        pa.array(values_NT[:, 0]),
        pa.ListArray.from_arrays(offsets, pa.array(labels_NT.reshape(-1), pa.string())),
        pa.ListArray.from_arrays(offsets, pa.array(values_NT.reshape(-1))),
    ]
    if proba == "all":
        all_N = pa.array(probabilities_NK.astype(np.float32).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(all_N, len(names_K)))
    return pa.table(columns, schema=pa.schema(fields))
