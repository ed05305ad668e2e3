"""From a prepared shard to its data file: extract, commit; and a whole small job. Plain Python, wherever it runs.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck.dataset.features import Receipt, finished, write_shard
from bottleneck.dataset.plan import MAX_REJECTED, Plan, check_max_rejected, data_name, differences, load_plan, survey
from bottleneck.dataset.plan_parts import Shard
from bottleneck.dataset.schema import data_schema
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.extract.prepare import Prepared, Taken, Work, prepare_shard
from bottleneck.extract.summary import Summary, Tally, pending_shards, summarize
from bottleneck.networks import base as base_module
from bottleneck.networks.base import Base, choose_precision, fitting_batch_size, requested_layers, resolve_apart
from bottleneck.networks.layers import check_layers
from bottleneck.networks.weights import check_weights
from bottleneck.spec import FeatureRequest, Limits, Reading
from bottleneck.storage.opened import check_output_uri, normal_uri, open_store

log = logging.getLogger(__name__)

Columns = Callable[[list[np.ndarray], np.ndarray], list[pa.Array]]
"""Makes what a data file holds beside the images' outcomes, of the features of a shard's ok rows (one array [N, D] a
layer) and of which rows are ok: the features themselves, or a head's predictions."""


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
    for start in range(0, len(prepared.pixels_NHWC), base.batch_size):
        batch_NHWC = prepared.pixels_NHWC[start : start + base.batch_size]
        for parts, features_ND in zip(features, base(batch_NHWC), strict=True):
            parts.append(features_ND)
        if on_batch:
            on_batch(start + len(batch_NHWC))
    has_pixels = prepared.pixels_of_row >= 0
    repeated = [np.concatenate(parts)[prepared.pixels_of_row[has_pixels]] for parts in features]
    made = (columns or feature_columns)(repeated, has_pixels)
    if prepared.taken is not None:
        made = _with_taken(made, prepared.taken)
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


def _with_taken(made: list[pa.Array], taken: Taken) -> list[pa.Array]:
    """Columns with the values of the rows that were taken over, bit by bit, in their places."""
    rows_N = np.arange(len(taken.of_row))
    index = pa.array(np.where(taken.of_row >= 0, len(rows_N) + taken.of_row, rows_N))
    old = [column.combine_chunks() for column in taken.columns.columns]
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


def ok_rows(rows: pa.Table) -> np.ndarray:
    """Which rows are ok, as a mask [N]."""
    return np.array([reason is None for reason in rows.column("reason").to_pylist()], bool)


def extract_shard(work: Work, base: Base, shard: Shard) -> Receipt:
    """Both halves, one after the other."""
    return extract_prepared(work, base, prepare_shard(work, shard))


def extract_local(
    source: str,
    output: str,
    request: FeatureRequest | None = None,
    *,
    limits: Limits | None = None,
    reading: Reading | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
    batch_size: int = 32,
) -> Summary:
    """Do a small job in this process, without Ray: plan if there is no plan, extract what is missing, finish.

    An image that crashes the decoder takes this process with it; the job `extract` survives that.

    Args:
        source, output: folders or s3://bucket/prefix.
        request: which features; VGG16's averaged block5_pool with ImageNet weights where left out.
        max_rejected: share of planned images that may be rejected before the run stops.

    Raises:
        BottleneckError: any kind, see `errors`.
    """
    started = time.monotonic()
    request = request or FeatureRequest()
    plan = open_or_make_plan(
        source,
        output,
        request,
        limits=limits or Limits(),
        reading=reading,
        shard_size=shard_size,
        max_rejected=max_rejected,
    )
    done = plan.committed()
    tally = Tally(plan, max_rejected)
    if finished(plan) is None:
        work = Work.of(plan, tally.run_id)
        base = None
        for shard in pending_shards(plan, done):
            if work.is_committed(shard):
                continue
            base = base or Base(plan.spec, fitting_batch_size(batch_size, plan.largest_shard))
            tally.add(extract_shard(work, base, shard))
    return summarize(plan, tally, done, started)


def open_or_make_plan(
    source: str,
    output: str,
    request: FeatureRequest,
    *,
    limits: Limits,
    reading: Reading | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
    has_bfloat16: Callable[[], bool] = base_module.has_bfloat16,
) -> Plan:
    """The output's plan, if it agrees with what is asked for; a new one where there is none.

    Args:
        shard_size: images of a shard in a new plan; None takes the default, and whatever an old plan has.
        max_rejected: share of the images that a list names that may be missing from a new plan.
        has_bfloat16: asked once, for a new plan with precision `auto`: have the workers bfloat16 in hardware?

    Raises:
        FingerprintError: if the plan was made with other settings; it names them.
    """
    check_output_uri(output)
    check_max_rejected(max_rejected)
    plan = load_plan(output)
    if plan is None:
        # All before the seconds that Keras takes to start, and a list may take its time as well.
        limits.check_installed()
        check_weights(request.weights)
        check_layers(request.base, request.layers)
        found = survey(source, output, reading=reading, shard_size=shard_size, max_rejected=max_rejected)
        return found.make_plan(resolve_apart(request, choose_precision(request, has_bfloat16)), limits)
    check_request(plan, source, request, limits=limits, reading=reading, shard_size=shard_size)
    return plan


def check_request(
    plan: Plan, source: str, request: FeatureRequest, *, limits: Limits, reading: Reading | None, shard_size: int | None
) -> None:
    """Raise FingerprintError, naming each differing field, unless a plan is what was asked for.

    Raises:
        UsageError: if it is one of predictions.
    """
    if plan.predictions:
        raise UsageError(
            f"{plan.output} is an output of predictions. Give another output for features, or go on there with "
            f"`bottleneck predict {plan.source} {plan.predictions.head} {plan.output}`."
        )
    asked: dict[str, Any] = {
        "base": request.base,
        "layers": list(requested_layers(request)),
        "resize": request.resize,
        "interpolation": request.interpolation,
        "exif": request.exif,
        "decode": request.decode,
        "dtype": request.dtype,
    }
    if request.precision != "auto":
        asked["precision"] = request.precision
    requested: dict[str, Any] = {
        "spec": asked,
        "limits": limits.to_json(),
        "reading": (reading or Reading()).asked(),
        "source": normal_uri(source),
    }
    if shard_size is not None:
        requested["shard_size"] = shard_size
    # Other words for the weights may mean the same ones: load them to see, unless the run is refused anyhow.
    message = differences(plan, requested)
    if message is None and request.weights != plan.spec.weights:
        asked["weights_sha256"] = resolve_apart(request, plan.spec.precision).weights_sha256
        message = differences(plan, requested)
    if message is not None:
        raise FingerprintError(message)
