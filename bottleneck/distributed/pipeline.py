"""Build the Ray Data dataset of an extraction: a row is a shard, its result a receipt."""

import json
import logging
import queue
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from bottleneck.child import as_result
from bottleneck.dataset.plan import load_plan
from bottleneck.dataset.plan_parts import Shard
from bottleneck.distributed.placement import Placement
from bottleneck.distributed.ray_session import RESULTS_THREAD, RUN
from bottleneck.distributed.stages import WARM_UP, ExtractFeatures, prepare_stage
from bottleneck.errors import BottleneckError
from bottleneck.extract.summary import pending_shards
from bottleneck.extract.work import Work

MAX_PREPARING = 1000
"""Shards being prepared or waiting for a core: more than clusters have cores, and all that the driver holds of a large
plan. Without a bound Ray Data submits them all."""
TASK_RETRIES = 2
"""Retries of a task that dies; after that it probably has an image that kills decoders, and runs in isolation."""
ACTOR_RESTARTS = 1000
"""Bounded, so that a network that cannot start is not restarted forever; far above what spot markets cause."""
POLL_SECONDS = 0.05
"""Between two checks for the order."""


@dataclass(frozen=True)
class RunOrder:
    """What the driver asks of the stages; handed to Ray once."""

    work: str
    """A `Work` as text."""
    done: frozenset[int] = frozenset()
    """Shards that the driver found committed."""
    shards: tuple[Shard, ...] | None = None
    """Only these shards; None for all that are not done."""

    def pending(self) -> list[Shard]:
        """The shards to extract. Raises BottleneckError if the plan cannot be read."""
        if self.shards is not None:
            return list(self.shards)
        plan = load_plan(Work.from_text(self.work).output)
        return pending_shards(plan, self.done) if plan else []


def stages(live: Any, placement: Placement, *, guarded: bool, **constructor: Any) -> Any:
    """Build the lazy dataset that takes every pending shard through both stages.

    Args:
        live: the counter, which says what to do.
        guarded: decode every image in a child process.
        constructor: what every `ExtractFeatures` gets beside the counter.
    """
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it reports every worker that dies, in a page each
    warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")  # the only way to bound retries
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")  # of a plan with few shards
    context = DataContext.get_current().copy()  # what else this process does with Ray Data is not changed
    context.set_config(RUN, True)
    context.enable_progress_bars = False
    # Errors of the stages themselves come as rows; blocks fail only when a worker died more often than it may.
    context.max_errored_blocks = -1
    # Every row its own block: a row is a shard, and shards are what runs side by side.
    context.target_max_block_size = 1
    # Of what is reserved by stage, Ray Data keeps a CPU for actors that take none: half of a machine of two cores.
    # Without its allocator, though, nothing holds those who prepare back: of VGG16 on CPUs they filled the disk.
    context.op_resource_reservation_ratio = 0.5 if placement.num_gpus else 0.0
    with DataContext.current(context):
        return _stages(live, placement, guarded, constructor)


def _stages(live: Any, placement: Placement, guarded: bool, constructor: dict[str, Any]) -> Any:
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    blocks: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    # Different resources for each stage, or Ray Data fuses neighbours and nothing overlaps.
    return (
        ray.data.from_items([{"emit": True}], override_num_blocks=1)
        .map_batches(
            _emit,
            **blocks,
            fn_kwargs={"live": live},
            num_cpus=0,
            # Emitted again after a crash, shards could repeat or be skipped; what is lost this way is done later.
            ray_remote_args_fn=lambda: {"max_retries": 0},
        )
        .map_batches(
            prepare_stage,
            **blocks,
            fn_kwargs={"guarded": guarded},
            compute=TaskPoolStrategy(size=MAX_PREPARING),
            num_cpus=placement.decode_cpus,
            ray_remote_args_fn=lambda: {"max_retries": TASK_RETRIES},
        )
        .map_batches(
            ExtractFeatures,
            batch_size=1,  # a shard; Ray Data insists on a number where GPUs are asked for
            batch_format="pyarrow",
            fn_constructor_kwargs={**constructor, "live": live},
            # The most are asked for at once: what has no place yet waits for it, and makes a cluster that can grow do
            # so, where Ray Data's own growing asks for no more than the cluster has.
            compute=ActorPoolStrategy(
                min_size=placement.min_actors, max_size=placement.max_actors, initial_size=placement.max_actors
            ),
            num_gpus=placement.num_gpus,
            num_cpus=placement.num_cpus,
            ray_remote_args_fn=lambda: {"max_restarts": ACTOR_RESTARTS, "max_task_retries": ACTOR_RESTARTS},
        )
    )


def _emit(_: pa.Table, live: Any) -> Iterator[pa.Table]:
    """Yield one row per shard, as fast as the stages take them, once there is an order."""
    import ray

    if ray.get(live.what_to_do.remote()) is None:
        # A worker that prepares takes a second to start: meanwhile the network loads, and is the only one that works.
        yield pa.table({"work": [""], "shard": [json.dumps(WARM_UP)]})
    while (handle := ray.get(live.what_to_do.remote())) is None:
        time.sleep(POLL_SECONDS)
    order: RunOrder = ray.get(handle[0])
    try:
        shards = order.pending()
    except BottleneckError as error:
        yield pa.table({"work": [order.work], "shard": [json.dumps(as_result(error))]})
        return
    for shard in shards:
        yield pa.table({"work": [order.work], "shard": [json.dumps(asdict(shard))]})
    ray.get(live.report_emitted.remote())


def pulled(dataset: Any) -> "queue.Queue[Any]":
    """Iterate over the stages' dataset in a thread; results, then "end" or an exception, arrive in the queue."""
    results: queue.Queue[Any] = queue.Queue()

    def pull() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for text in batch.column("result").to_pylist():
                    results.put(json.loads(text))
            results.put("end")
        except BaseException as error:
            results.put(error)

    threading.Thread(target=pull, name=RESULTS_THREAD, daemon=True).start()
    return results
