"""Extract a whole source in this process, without Ray."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bottleneck.console import Progress
from bottleneck.dataset.extend import Extended
from bottleneck.dataset.make_plan import MAX_REJECTED
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import Shard
from bottleneck.extract.open_plan import open_or_make_plan
from bottleneck.extract.prepare import Prepared, prepare_shard
from bottleneck.extract.shard import extract_prepared
from bottleneck.extract.summary import Summary, Tally, pending_shards, summarize
from bottleneck.extract.work import Work
from bottleneck.networks.base import Base, fitting_batch_size
from bottleneck.sources.reading import Limits, Reading
from bottleneck.sources.selection import Selection
from bottleneck.spec import FeatureRequest, RuntimeName


def extract_images(
    source: str,
    output: str,
    request: FeatureRequest | None = None,
    *,
    base: str | None = None,
    weights: str | None = None,
    layers: Sequence[str] | None = None,
    limits: Limits | None = None,
    reading: Reading | None = None,
    selection: Selection | None = None,
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
    batch_size: int = 32,
    runtime: RuntimeName = "auto",
) -> Summary:
    """Extract the features of every image of a source in this process, without Ray.

    Plans if the output has no plan, extracts the shards that are missing, and writes `_SUCCESS.json`. Meant for small
    jobs and for debugging: an image that crashes its decoder takes this process with it, which `bottleneck extract`
    survives.

    Args:
        source: folder or URI with images.
        output: folder or s3://bucket/prefix for the features.
        request: which features; default VGG16's averaged block5_pool with ImageNet weights. The three arguments below
            replace its fields.
        base: the frozen network, as `vgg16` or `resnet50`.
        weights: `imagenet`, a file or URI of Keras weights, or `random:SEED`.
        layers: where features are taken, as `block5_pool:avg`.
        limits: which images are accepted.
        reading: how the source is read.
        selection: which images of the source are planned, as `Selection(limit=100)`; default all.
        shard_size: images in a shard of a new plan; default 16 to 512, by the number of images.
        max_rejected: share of the planned images, 0 to 1, that may be rejected before the run stops.
        batch_size: most images the network takes at once.
        runtime: what executes the network; `auto` is the fastest on this machine.

    Returns:
        The counts of the output and of this run.

    Raises:
        BottleneckError: any kind, see `errors`.
    """
    started = time.monotonic()
    options = {"base": base, "weights": weights, "layers": None if layers is None else tuple(layers)}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    request = replace(request or FeatureRequest(), **given)
    plan = open_or_make_plan(
        source,
        output,
        request,
        limits=limits or Limits(),
        reading=reading,
        selection=selection,
        shard_size=shard_size,
        max_rejected=max_rejected,
    )
    return extract_here(plan, max_rejected, runtime=runtime, batch_size=batch_size, started=started)


def extract_here(
    plan: Plan,
    max_rejected: float = MAX_REJECTED,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    runtime: RuntimeName = "auto",
    batch_size: int = 32,
    done: dict[int, int] | None = None,
    extended: Extended | None = None,
    started: float | None = None,
) -> Summary:
    """Extract the missing shards of a plan in this process; the next shard is prepared while the network runs.

    Args:
        on_progress: called after each batch.
        done: `plan.committed()`, if it is known.
        started: by time.monotonic(), where the run's seconds count from.

    Raises:
        BottleneckError: as `extract_images`.
    """
    started = time.monotonic() if started is None else started
    done = plan.committed() if done is None else done
    tally = Tally(plan, max_rejected)
    if len(done) == plan.num_shards:
        return summarize(plan, tally, done, started, extended)
    work = Work.of(plan, tally.run_id)
    num_before = sum(plan.images_in(shard) for shard in done)
    num_done, first_batch = num_before, 0.0

    def show(images: int) -> None:
        nonlocal first_batch
        first_batch = first_batch or time.monotonic()
        if on_progress:
            on_progress(Progress(num_done + images, plan.num_images, tally.rejected, "network"))

    def prepared(shard: Shard) -> Prepared | None:
        return None if work.is_committed(shard) else prepare_shard(work, shard)

    pending = pending_shards(plan, done)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(prepared, pending[0])
        network = Base(
            plan.spec,
            fitting_batch_size(batch_size, plan.largest_shard),
            runtime=runtime,
            num_images=plan.num_images - num_before,
        )
        for number, shard in enumerate(pending, start=1):
            ready = coming.result()
            if number < len(pending):
                coming = thread.submit(prepared, pending[number])
            if ready is not None:
                tally.add(extract_prepared(work, network, ready, show))
            num_done += plan.images_in(shard.number)
            show(0)
    details = {}
    if first_batch and num_done > num_before:
        seconds = max(1e-9, time.monotonic() - first_batch)
        details = {
            "first_batch_seconds": round(first_batch - started, 2),
            "images_per_second": round((num_done - num_before) / seconds, 2),
        }
    return summarize(plan, tally, done, started, extended, details)
