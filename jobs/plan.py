"""List a source and freeze it as the plan of an output, without extracting anything.

    bottleneck plan s3://bucket/photos s3://bucket/features

Prints the numbers of images, bytes, labels and shards, and an estimate of rate, time and output size, measured on a few
of the images. Run `bottleneck extract` with the same options to extract the plan.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import numpy as np
import tyro

from bottleneck.dataset.make_plan import MAX_REJECTED
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import SHARDS_PER_PART
from bottleneck.distributed.ray_resources import workers_have_bfloat16
from bottleneck.distributed.ray_session import cluster_address
from bottleneck.errors import BottleneckError, UsageError
from bottleneck.extract.estimate import Estimate
from bottleneck.extract.open_plan import open_or_make_plan
from bottleneck.extract.sample import measure_sample
from bottleneck.sources.reading import Limits, Reading
from bottleneck.sources.selection import Selection
from bottleneck.spec import FeatureRequest
from bottleneck.text import counted, size
from jobs.results import answer, show


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The options of a plan, shared with `bottleneck extract`."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder, s3://bucket/prefix or URI with images, tars or Parquet files; or a single tar, Parquet file or list."""
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """A folder or s3://bucket/prefix for the features."""
    features: FeatureRequest = field(default_factory=FeatureRequest)
    reading: Reading = field(default_factory=Reading)
    selection: Selection = field(default_factory=Selection)
    shard_size: int | None = None
    """Images per shard of a new plan, the unit of work and of loss. Default: 16 to 512, so that there are at least 20
    shards."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Config(PlanRequest):
    max_rejected: float = MAX_REJECTED
    """Share of the images of a list that may be missing."""
    use_gpu: bool = False
    """Choose the precision for GPUs even if the cluster has none yet, as `extract` does."""
    no_estimate: bool = False
    """Skip the estimate of rate, time and output size, which extracts a few images."""
    price_per_hour: float | None = None
    """What an hour of one machine like this costs, in any currency: the estimate then tells the price."""

    def __post_init__(self) -> None:
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise UsageError(f"--price-per-hour takes a number from 0 up. Received: {self.price_per_hour}.")
        if self.price_per_hour is not None and self.no_estimate:
            raise UsageError("--price-per-hour is of the estimate, which --no-estimate skips. Leave one of them out.")


def main(config: Config) -> int:
    plan = open_or_make_plan(
        config.source,
        config.output,
        config.features,
        limits=config.limits,
        reading=config.reading,
        selection=config.selection,
        shard_size=config.shard_size,
        max_rejected=config.max_rejected,
        workers_have_bfloat16=partial(workers_have_bfloat16, config.use_gpu),
    )
    for line in describe(plan):
        show(line)
    requests = requests_of(plan)
    if "://" in plan.source or "://" in plan.output:
        shown = [f"{count:,} {verb.upper()}" for verb, count in requests.items() if count is not None]
        show(f"requests     {', '.join(shown)}, without what is tried again")
    estimate = None if config.no_estimate else estimated(plan)
    price = None
    if estimate and config.price_per_hour is not None:
        price = estimate.seconds / 3600 * config.price_per_hour
        show(f"price        about {price:,.2f} at {config.price_per_hour:g} an hour; the requests come on top")
    answer(
        {
            "output": plan.output,
            "images": plan.num_images,
            "bytes": plan.num_bytes,
            "selection": plan.selection.asked(),
            "labels": len(plan.label_counts),
            "skipped": plan.skipped,
            "shards": plan.num_shards,
            "done": len(plan.committed()),
            "expected_output_bytes": expected_bytes(plan),
            "requests": requests,
            "estimate": estimate.to_json() if estimate else None,
            "price": None if price is None else round(price, 4),
            "fingerprint": plan.spec.fingerprint,
        }
    )
    return 0


def estimated(plan: Plan) -> Estimate | None:
    """Measure and show the plan's estimate; None if nothing is left to do or can be measured."""
    try:
        estimate = measure_sample(plan)
    except BottleneckError as error:  # the plan is made, whatever this machine can do with it
        show(f"estimate     none: {error}")
        return None
    if estimate:
        show(f"estimate     {estimate.line()}")
        if cluster_address():
            show("             measured here, not on the cluster of RAY_ADDRESS: it holds for one machine like this")
    return estimate


def describe(plan: Plan) -> list[str]:
    """Describe a plan, one fact per line."""
    spec = plan.spec
    labels = list(plan.label_counts.items())
    shown = ", ".join(f"{label} ({count:,})" for label, count in labels[:8]) + (", ..." if len(labels) > 8 else "")
    columns = ", ".join(f"{layer} ({dim:,})" for layer, dim in zip(spec.layers, spec.dims, strict=True))
    full = counted(plan.shard_size, "image")
    return [
        f"source       {plan.source} ({plan.reading.source_format})",
        f"images       {plan.num_images:,} ({size(plan.num_bytes)})",
        *([f"selection    {plan.selection}"] if plan.selection.asked() else []),
        f"labels       {len(labels):,}: {shown}" if labels else "labels       none",
        f"not images   {skipped(plan) or 'none'}",
        f"shards       {plan.num_shards:,} of up to {full}, {len(plan.committed()):,} done",
        f"features     {spec.base}, weights {spec.weights}: {columns}; {spec.precision}, stored as {spec.dtype}",
        f"output       {plan.output}, at most about {size(expected_bytes(plan))}",
        f"fingerprint  {spec.fingerprint}",
    ]


def requests_of(plan: Plan) -> dict[str, int | None]:
    """Requests that extracting the missing shards takes, by verb; None where the plan does not tell.

    Every image is a GET, a slice of a tar too; of Parquet files whole row groups are read, whose number is not planned.
    A data file is a PUT, and so is `_SUCCESS.json`; the plan's parts are read and data files listed.
    """
    done = plan.committed()
    images = plan.num_images - sum(plan.images_in(shard) for shard in done)
    shards = plan.num_shards - len(done)
    gets = None if plan.reading.source_format == "parquet" else images + -(-shards // SHARDS_PER_PART)
    return {"get": gets, "put": shards + bool(shards), "list": -(-plan.num_shards // 1000)}


def skipped(plan: Plan) -> str:
    """What the source holds besides images, as last listed."""
    return ", ".join(f"{count:,} x {suffix}" for suffix, count in plan.skipped.items())


def expected_bytes(plan: Plan) -> int:
    """Uncompressed features plus 150 bytes per row; compression makes it smaller."""
    return plan.num_images * (sum(plan.spec.dims) * np.dtype(plan.spec.dtype).itemsize + 150)
