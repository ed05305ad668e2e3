"""From a shard of the plan to its data file: read, decode, extract, commit; plain Python, wherever it runs.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

import hashlib
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck import base as base_module
from bottleneck.base import Base, choose_precision, requested_layers, resolve_apart
from bottleneck.decode import Decoded, Rejected, decode
from bottleneck.errors import FingerprintError, TooManyRejectedError, UsageError
from bottleneck.features import Receipt, finish, finished, write_shard
from bottleneck.images import Image
from bottleneck.listing import Shard, read_images
from bottleneck.objects import ObjectChangedError, ObjectGoneError
from bottleneck.plan import Extended, Plan, data_name, differences, load_plan, make_plan
from bottleneck.rows import IMAGE_FIELDS, data_schema
from bottleneck.sources import open_source
from bottleneck.spec import FeatureRequest, FeatureSpec, Limits, OutputSpec, PredictionSpec, Reading
from bottleneck.store import check_output_uri, normal_uri, open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What every worker needs to know beside the shard: small, and without secrets."""

    source: str
    output: str
    spec: FeatureSpec
    limits: Limits
    reading: Reading
    run_id: str
    predictions: PredictionSpec | None = None

    @classmethod
    def of(cls, plan: Plan, run_id: str = "") -> "Work":
        run_id = run_id or uuid.uuid4().hex[:12]
        return cls(plan.source, plan.output, plan.spec, plan.limits, plan.reading, run_id, plan.predictions)

    @property
    def holds(self) -> OutputSpec:
        """What the rows of the output hold."""
        return self.predictions or self.spec

    def to_json(self) -> dict[str, Any]:
        predictions = self.predictions.to_json() if self.predictions else None
        return {
            **vars(self),
            "spec": self.spec.to_json(),
            "limits": vars(self.limits),
            "reading": self.reading.to_json(),
            "predictions": predictions,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Work":
        spec, limits = FeatureSpec.from_json(value["spec"]), Limits(**value["limits"])
        predictions = PredictionSpec(features=spec, **value["predictions"]) if value["predictions"] else None
        reading = Reading.from_json(value["reading"])
        return cls(**{**value, "spec": spec, "limits": limits, "reading": reading, "predictions": predictions})

    def is_committed(self, shard: int) -> bool:
        return open_store(self.output).exists(data_name(self.holds, shard))


@dataclass(frozen=True)
class Prepared:
    """A shard after its CPU half: every image has a row, the accepted ones have pixels."""

    shard: int
    rows: pa.Table
    """`IMAGE_FIELDS`, in the plan's order."""
    pixels_NHWC: np.ndarray
    """uint8 RGB of the rows whose status is ok, in their order."""
    read_seconds: float = 0.0
    """Waited for the source."""
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """What a run did and what there is now; a job prints it as JSON."""

    output: str
    images: int
    ok: int
    rejected: dict[str, int]
    shards: int
    done_before: int
    """Shards that were committed before this run."""
    done_now: int
    seconds: float
    fingerprint: str
    extended: Extended | None = None
    details: dict[str, Any] = field(default_factory=dict)


Decoder = Callable[[bytes, FeatureSpec, Limits], Decoded | Rejected]
Columns = Callable[[list[np.ndarray], np.ndarray], list[pa.Array]]
"""Makes what a data file holds beside the images' outcomes, of the features of a shard's ok rows (one array [N, D] a
layer) and of which rows are ok: the features themselves, or a head's predictions."""


def prepare_shard(work: Work, shard: Shard, decoder: Decoder = decode) -> Prepared:
    """Read and decode a shard's images: the half of the work that needs no network.

    Args:
        decoder: `decode`, or a guarded form of it where a hostile image must not take this process along.
    """
    images = read_images(open_store(work.output), shard)
    size = work.spec.image_size_px
    pixels_NHWC = np.empty((len(images), size, size, 3), np.uint8)
    rows: list[tuple[Any, ...]] = []
    num_ok = 0
    read_seconds = decode_seconds = 0.0
    outcomes = _read(work, images)
    while True:
        started = time.perf_counter()
        image_data = next(outcomes, None)
        read = time.perf_counter()
        if image_data is None:
            break
        image, data = image_data
        if isinstance(data, Rejected):
            rows.append(_row(image, data, None))
        else:
            decoded = decoder(data, work.spec, work.limits)
            rows.append(_row(image, decoded, hashlib.sha256(data).digest()))
            if isinstance(decoded, Decoded):
                pixels_NHWC[num_ok] = decoded.pixels_HWC
                num_ok += 1
        read_seconds += read - started
        decode_seconds += time.perf_counter() - read
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, one.type) for column, one in zip(columns, IMAGE_FIELDS, strict=True)]
    table = pa.table(arrays, schema=pa.schema(IMAGE_FIELDS))
    return Prepared(shard.number, table, pixels_NHWC[:num_ok], read_seconds, decode_seconds)


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
    made = (columns or feature_columns)([np.concatenate(parts) for parts in features], ok_rows(prepared.rows))
    table = pa.table([*prepared.rows.columns, *made], schema=data_schema(work.holds))
    name = data_name(work.holds, prepared.shard)
    return write_shard(
        open_store(work.output), name, work.holds, prepared.shard, table, run_id=work.run_id, device=base.device
    )


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
    max_rejected: float = 0.05,
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
    plan = open_or_make_plan(source, output, request, limits=limits or Limits(), reading=reading, shard_size=shard_size)
    done = plan.committed()
    tally = Tally(plan, max_rejected)
    if finished(plan) is None:
        work = Work.of(plan, tally.run_id)
        base = None
        for shard in pending_shards(plan, done):
            if work.is_committed(shard.number):
                continue
            base = base or Base(plan.spec, batch_size)
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
    has_bfloat16: Callable[[], bool] = base_module.has_bfloat16,
) -> Plan:
    """The output's plan, if it agrees with what is asked for; a new one where there is none.

    Args:
        shard_size: images of a shard in a new plan; None takes the default, and whatever an old plan has.
        has_bfloat16: asked once, for a new plan with precision `auto`: have the workers bfloat16 in hardware?

    Raises:
        FingerprintError: if the plan was made with other settings; it names them.
    """
    check_output_uri(output)
    plan = load_plan(output)
    if plan is None:
        spec = resolve_apart(request, choose_precision(request, has_bfloat16))
        return make_plan(source, output, spec, limits=limits, reading=reading, shard_size=shard_size)
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
        "dtype": request.dtype,
    }
    if request.precision != "auto":
        asked["precision"] = request.precision
    requested: dict[str, Any] = {
        "spec": asked,
        "limits": vars(limits),
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


def pending_shards(plan: Plan, done: dict[int, int]) -> list[Shard]:
    """The shards without a data file, in an order of this run's own, so that several runs share the work."""
    pending = [shard for shard in plan.shards() if shard.number not in done]
    random.shuffle(pending)
    return pending


class Tally:
    """Counts the outcomes of a run as receipts arrive and stops it when too many images are rejected."""

    def __init__(self, plan: Plan, max_rejected: float) -> None:
        if not 0 <= max_rejected <= 1:
            raise UsageError(f"--max-rejected takes a share from 0 to 1. Received: {max_rejected}.")
        self.allowed = max_rejected * plan.num_images
        self.max_rejected = max_rejected
        self.run_id = uuid.uuid4().hex[:12]
        self.receipts: dict[int, Receipt] = {}
        self.images = 0
        self.reasons: dict[str, int] = {}

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())

    def add(self, receipt: Receipt) -> None:
        self.receipts[receipt.shard] = receipt
        self.images += receipt.images
        for reason, count in receipt.rejected.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.check(self.reasons)

    def check(self, reasons: dict[str, int]) -> None:
        if sum(reasons.values()) > self.allowed:
            named = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
            raise TooManyRejectedError(
                f"{sum(reasons.values())} images were rejected ({named}), more than the {self.max_rejected:.0%} of the "
                "plan that --max-rejected allows. Look at the rows' `reason`; run again with a higher --max-rejected "
                "to go on from here."
            )


def summarize(
    plan: Plan,
    tally: Tally,
    done_before: dict[int, int],
    started: float,
    extended: Extended | None = None,
    details: dict[str, Any] | None = None,
) -> Summary:
    """Finish the output (unless it is finished) and say what was done."""
    document = finished(plan) or finish(plan, tally.receipts, tally.run_id)
    tally.check(document["rejected"])
    return Summary(
        output=plan.output,
        images=document["images"],
        ok=document["ok"],
        rejected=document["rejected"],
        shards=plan.num_shards,
        done_before=len(done_before),
        done_now=sum(receipt.created for receipt in tally.receipts.values()),
        seconds=round(time.monotonic() - started, 2),
        fingerprint=plan.holds.fingerprint,
        extended=extended,
        details=details or {},
    )


def _read(work: Work, images: list[Image]) -> Iterator[tuple[Image, bytes | Rejected]]:
    """Each image with its bytes, in order, many requests in flight; what cannot be read is rejected for what it is."""
    fetched = open_source(work.source, work.reading).read([image for image in images if _fits(image, work)])
    for image in images:
        if not _fits(image, work):
            yield image, Rejected("too_many_bytes")
            continue
        data = next(fetched)
        if isinstance(data, ObjectGoneError):
            yield image, Rejected("missing")
        elif isinstance(data, ObjectChangedError):
            yield image, Rejected("changed")
        else:
            yield image, data


def _fits(image: Image, work: Work) -> bool:
    # What a table says of its images is their mean.
    return work.reading.source_format == "parquet" or image.size <= work.limits.max_bytes


def _row(image: Image, outcome: Decoded | Rejected, sha256: bytes | None) -> tuple[Any, ...]:
    rejected = isinstance(outcome, Rejected)
    return (
        image.key,
        image.etag,
        image.label,
        "rejected" if rejected else "ok",
        outcome.reason if isinstance(outcome, Rejected) else None,
        outcome.width,
        outcome.height,
        outcome.mode,
        sha256,
    )
