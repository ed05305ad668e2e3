"""Extract a prepared shard and commit its data file.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from bottleneck.dataset.plan import data_name
from bottleneck.dataset.plan_parts import Shard
from bottleneck.dataset.schema import data_schema
from bottleneck.dataset.write import Receipt, write_shard
from bottleneck.extract.prepare import KeptRows, Prepared, prepare_shard
from bottleneck.extract.work import Work
from bottleneck.networks.base import Base
from bottleneck.storage.store import open_store

log = logging.getLogger(__name__)

Columns = Callable[[list[np.ndarray], np.ndarray], list[pa.Array]]
"""Make the columns besides the outcomes, from the features of the ok rows (one array [N, D] per layer) and the mask of
ok rows: the features themselves, or a head's predictions."""


def extract_prepared(
    work: Work,
    base: Base,
    prepared: Prepared,
    on_batch: Callable[[int], None] | None = None,
    columns: Columns | None = None,
) -> Receipt:
    """Compute a prepared shard's features and commit its data file.

    Args:
        on_batch: called with the number of images of the shard done so far.
        columns: what is made of the features; they are stored where left out.
    """
    features = [[np.empty((0, dim), work.spec.dtype)] for dim in work.spec.dims]
    num_done = 0
    for batch in base.stream(prepared.pixels_NHWC):
        for parts, features_ND in zip(features, batch, strict=True):
            parts.append(features_ND)
        num_done += len(batch[0])
        if on_batch:
            on_batch(num_done)
    has_pixels = prepared.pixels_of_row >= 0
    repeated = [np.concatenate(parts)[prepared.pixels_of_row[has_pixels]] for parts in features]
    made = (columns or feature_columns)(repeated, has_pixels)
    if prepared.kept_rows is not None:
        made = _with_kept_rows(made, prepared.kept_rows)
    table = pa.table([*prepared.rows.columns, *made], schema=data_schema(work.holds))
    shard = prepared.shard
    return write_shard(
        open_store(work.output),
        data_name(work.holds, shard.number),
        work.holds,
        shard.number,
        table,
        run_id=work.run_id,
        device=base.device,
        revision=shard.revision,
    )


def _with_kept_rows(made: list[pa.Array], kept_rows: KeptRows) -> list[pa.Array]:
    """Columns with the values of the kept rows, bit by bit, in their places."""
    rows_N = np.arange(len(kept_rows.index_of_row))
    index = pa.array(np.where(kept_rows.index_of_row >= 0, len(rows_N) + kept_rows.index_of_row, rows_N))
    old = [column.combine_chunks() for column in kept_rows.columns.columns]
    return [pa.concat_arrays([new, before]).take(index) for new, before in zip(made, old, strict=True)]


def feature_columns(features: list[np.ndarray], is_ok: np.ndarray) -> list[pa.Array]:
    """Features as fixed-size lists, null for the rows that are not ok."""
    columns = []
    for features_ND in features:
        values_ND = np.zeros((len(is_ok), features_ND.shape[1]), features_ND.dtype)
        values_ND[is_ok] = features_ND
        flat = pa.array(values_ND.reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, features_ND.shape[1], mask=pa.array(~is_ok)))
    return columns


def extract_shard(work: Work, base: Base, shard: Shard) -> Receipt:
    """Prepare a shard, then extract and commit it."""
    return extract_prepared(work, base, prepare_shard(work, shard))
