"""Extract a whole source in this process, without Ray."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bottleneck.dataset.make_plan import MAX_REJECTED
from bottleneck.dataset.success import finished
from bottleneck.extract.open_plan import open_or_make_plan
from bottleneck.extract.shard import extract_shard
from bottleneck.extract.summary import Summary, Tally, pending_shards, summarize
from bottleneck.extract.work import Work
from bottleneck.networks.base import Base, fitting_batch_size
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import FeatureRequest


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
    shard_size: int | None = None,
    max_rejected: float = MAX_REJECTED,
    batch_size: int = 32,
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
        shard_size: images in a shard of a new plan; default 16 to 512, by the number of images.
        max_rejected: share of the planned images, 0 to 1, that may be rejected before the run stops.
        batch_size: most images the network takes at once.

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
        shard_size=shard_size,
        max_rejected=max_rejected,
    )
    done = plan.committed()
    tally = Tally(plan, max_rejected)
    if finished(plan, done) is None:
        work = Work.of(plan, tally.run_id)
        network = None
        for shard in pending_shards(plan, done):
            if work.is_committed(shard):
                continue
            network = network or Base(plan.spec, fitting_batch_size(batch_size, plan.largest_shard))
            tally.add(extract_shard(work, network, shard))
    return summarize(plan, tally, done, started)
