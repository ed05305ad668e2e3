"""Extract features of every image of a source into a Parquet dataset.

    bottleneck extract photos/ features/
    bottleneck extract s3://bucket/photos s3://bucket/features --layers block5_pool:avg fc2

Plans the output if it has no plan, extracts the missing shards on Ray, and writes _SUCCESS.json. Kill it anywhere and
run the same command again: only what is missing is extracted.
"""

import logging
import time
from dataclasses import asdict, dataclass, field
from functools import partial

from bottleneck.console import Display, duration
from bottleneck.dataset.extend import Extended, extend_plan
from bottleneck.dataset.make_plan import MAX_REJECTED, Survey, survey
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.distributed.placement import needs_cpus
from bottleneck.distributed.ray_resources import check_use_gpu, workers_have_bfloat16
from bottleneck.distributed.ray_session import cluster_address
from bottleneck.distributed.run import Run
from bottleneck.distributed.run_options import RunOptions
from bottleneck.errors import UsageError
from bottleneck.extract.local import extract_here
from bottleneck.extract.open_plan import open_or_make_plan
from bottleneck.extract.summary import Summary, Tally, summarize
from bottleneck.networks.base import CPU_BATCH_SIZE
from bottleneck.networks.layers import check_layers
from bottleneck.networks.resolve import choose_precision
from bottleneck.storage.store import check_output_uri
from bottleneck.text import counted
from jobs import plan as plan_job
from jobs.results import answer, show

log = logging.getLogger(__name__)

IMAGES_PER_SHARD_SIZE = 12
"""A new plan has about 20 shards of 16 to 512 images; this guesses from their size whether a probe pays."""


@dataclass(frozen=True, kw_only=True)
class Config(plan_job.PlanRequest):
    extend: bool = False
    """List the source again and add the images that the plan does not have: all of them, or up to a larger --limit or
    --sample than it was planned with."""
    max_rejected: float = MAX_REJECTED
    """Share of the planned images that may be rejected before the run stops."""
    local: bool = False
    """Extract in this process, without Ray: starts in a second, for small jobs and debugging. An image that crashes its
    decoder ends it; run again without this to get past such an image."""
    run: RunOptions = field(default_factory=RunOptions)


def main(config: Config) -> int:
    weights = config.features.weights
    if weights.startswith("random:"):
        log.warning("The weights are %s, not trained ones: right for tests and timing, not for accuracy.", weights)
    summary = extract(config)
    report(summary)
    answer(asdict(summary))
    return 0


def extract(config: Config) -> Summary:
    """Run the job without printing the result."""
    started = time.monotonic()
    check_output_uri(config.output)
    if config.local and (config.run.num_actors or config.run.use_gpu):
        raise UsageError("--local runs one network in this process. Leave --num-actors and --use-gpu out.")
    needs_cpus(config.features.base, config.run.runtime, config.run.use_gpu, config.features.precision)
    check_use_gpu(config.run.use_gpu)
    plan, extended = _plan(config)
    if config.local:
        assert isinstance(plan, Plan)
        tell_plan(plan)
        with Display("extract") as display:
            return extract_here(
                plan,
                config.max_rejected,
                display.show,
                runtime=config.run.runtime,
                batch_size=config.run.batch_size or CPU_BATCH_SIZE,
                extended=extended,
                started=started,
            )
    done = None
    if isinstance(plan, Plan):
        tell_plan(plan)
        done = plan.committed()
        if len(done) == plan.num_shards:  # nothing to extract, so nothing to start
            return summarize(plan, Tally(plan, config.max_rejected), done, started, extended)
        precision, shard_size, num_images = plan.spec.precision, plan.largest_shard, plan.num_images
    else:
        precision = choose_precision(config.features, partial(workers_have_bfloat16, config.run.use_gpu))
        shard_size, num_images = plan.shard_size, IMAGES_PER_SHARD_SIZE * plan.shard_size
    with Run(config.features, precision, config.run, shard_size, num_images) as run:
        if isinstance(plan, Survey):
            plan = plan.make_plan(run.spec(), config.limits)
            tell_plan(plan)
        with Display("extract") as display:
            return run.extract(plan, config.max_rejected, display.show, extended, started, done)


def _plan(config: Config) -> tuple[Plan | Survey, Extended | None]:
    """Open or make the plan before Ray starts, so that it remains if Ray fails.

    On a cluster only survey the source, as only the workers know their weights.
    """
    there = load_plan(config.output)
    if there is None and cluster_address() and not config.local:
        check_layers(config.features.base, config.features.layers)
        found = survey(
            config.source,
            config.output,
            reading=config.reading,
            selection=config.selection,
            shard_size=config.shard_size,
            max_rejected=config.max_rejected,
        )
        return found, None
    is_extending = there is not None and config.extend
    plan = open_or_make_plan(
        config.source,
        config.output,
        config.features,
        limits=config.limits,
        reading=config.reading,
        selection=None if is_extending else config.selection,
        shard_size=config.shard_size,
        max_rejected=config.max_rejected,
    )
    extended = None
    if is_extending:
        plan, extended = extend_plan(plan, config.max_rejected, config.selection)
        tell_extended(extended)
    return plan, extended


def tell_plan(plan: Plan) -> None:
    spec = plan.spec
    log.info(
        "%s in %s -> %s: %s, weights %s, %s, %s%s",
        counted(plan.num_images, "image"),
        counted(plan.num_shards, "shard"),
        plan.output,
        spec.base,
        spec.weights,
        " ".join(spec.layers),
        spec.precision,
        f"; predictions of {plan.predictions.head}" if plan.predictions else "",
    )
    if plan.selection.asked():
        log.info("selected: %s", plan.selection)
    if skipped := plan_job.skipped(plan):
        log.info("not images: %s", skipped)


def tell_extended(extended: Extended) -> None:
    log.info("extended by %s", counted(extended.added, "image"))
    for count, keys, what in (
        (
            extended.changed,
            extended.changed_keys,
            "changed since (rows stay as they are until `bottleneck requeue --changed`)",
        ),
        (extended.gone, extended.gone_keys, "gone from the source (rows stay as they are)"),
    ):
        if count:
            more = ", ..." if count > len(keys) else ""
            log.warning("%s %s: %s%s", counted(count, "planned image"), what, ", ".join(keys), more)


def report(summary: Summary) -> None:
    """Show the result of a run."""
    rejected = sum(summary.rejected.values())
    rate = summary.details.get("images_per_second")
    told_rate = f", {rate:,.1f} images/s from its first batch on" if rate else ""
    show(
        f"{summary.output}: {counted(summary.images, 'image')}, {summary.ok:,} ok, {rejected:,} rejected; "
        f"{summary.done_now:,} of {counted(summary.shards, 'shard')} done by this run in "
        f"{duration(summary.seconds)}{told_rate}"
    )
    if "predicted_seconds" in summary.details:
        one = summary.details
        show(
            f"predicted after {counted(one['predicted_after_images'], 'image')}: "
            f"{one['predicted_images_per_second']:.1f} images/s, was {one['actual_images_per_second']:.1f} "
            f"({one['predicted_seconds'] / max(0.01, one['actual_seconds']):.2f}); "
            f"{duration(one['predicted_seconds'])} for the rest, took {duration(one['actual_seconds'])}"
        )
    for reason, count in sorted(summary.rejected.items(), key=lambda pair: -pair[1]):
        show(f"  rejected: {count:,} x {reason}")
