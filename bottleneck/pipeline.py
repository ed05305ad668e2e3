"""The extraction on Ray Data: a row is a shard, CPU tasks prepare it, actors with the network extract and commit it."""

import json
import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from bottleneck import errors
from bottleneck.base import CORES_PER_ACTOR, CPU_BATCH_SIZE, GPU_BATCH_SIZE
from bottleneck.errors import BottleneckError, IncompleteError, StoreError
from bottleneck.estimate import Prediction, predict_run
from bottleneck.extend import Extended
from bottleneck.features import Receipt
from bottleneck.listing import Shard
from bottleneck.live import Live, process_started_at
from bottleneck.plan import Plan, load_plan
from bottleneck.prepare import Work
from bottleneck.progress import Progress
from bottleneck.session import RESULTS_THREAD, start_ray, stop_ray
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision
from bottleneck.stages import WARM_UP, ExtractFeatures, as_result, prepare_stage, raised
from bottleneck.tally import Summary, Tally, pending_shards, summarize

log = logging.getLogger(__name__)

MAX_PREPARING = 1000
"""Shards that are being prepared or wait for a core: more than clusters have cores, and all the driver has to hold of a
plan of a hundred thousand. Without a bound Ray Data submits them all."""
TASK_RETRIES = 2
"""A task that dies this often again probably meets an image that kills decoders: it is then run apart."""
EMIT_RETRIES = 5
"""How often the task that hands out shards may be lost."""
ACTOR_RESTARTS = 1000
"""Bounded, so that a network that cannot start does not start for ever; far above what a spot market does to a run."""
POLL_SECONDS = 0.5
DETAILS_SECONDS = 10.0
"""At most, for the counter's last answer on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run uses its machines; changes speed, never a feature."""

    num_actors: int | None = None
    """Networks side by side. Default: one a GPU; without GPUs one for every eight cores."""
    batch_size: int | None = None
    """Images a network takes at once. Default: 32 on CPUs, 256 on GPUs."""

    def __post_init__(self) -> None:
        for name in ("num_actors", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise errors.UsageError(f"--{name.replace('_', '-')} takes a number from 1 up. Received: {value}.")


class Run:
    """One run on Ray: the actors start at once, and wait for the plan that says what to extract.

    A context manager:

        with Run(request, precision, options) as run:
            plan = make_plan(source, output, run.spec())
            summary = run.extract(plan, 0.05, show)
    """

    def __init__(self, request: FeatureRequest, precision: Precision, options: RunOptions) -> None:
        """Start Ray, if it is not running, and the actors.

        Args:
            request: what to extract; a plan made before must agree with it.
            precision: the concrete one.
        """
        start_ray()
        import ray

        self.request, self.precision, self.options = request, precision, options
        on_cpus = os.environ.get("KERAS_BACKEND") == "openvino"
        self.num_gpus = 0 if on_cpus else int(ray.cluster_resources().get("GPU", 0))
        self.num_cpus = int(ray.cluster_resources().get("CPU", 1))
        self.num_actors = options.num_actors or self.num_gpus or max(1, self.num_cpus // CORES_PER_ACTOR)
        self.live = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)(Live).remote()
        self.order: str | None = None
        self.forget: list[int] = []
        self.images_done = 0
        self.last_receipt_at = 0.0
        self.prediction: Prediction | None = None
        self.results = self._start(guarded=False)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        stop_ray()

    def spec(self) -> FeatureSpec:
        """The spec the request resolves to, as the first actor to be ready found it.

        Raises:
            UsageError, WeightsError: what the actor met.
        """
        while True:
            if (resolved := self._snapshot().get("resolved")) is not None:
                if "error" in resolved:
                    raise raised(resolved["error"])
                return FeatureSpec.from_json(resolved["spec"])
            # Raises if Ray gave up. An end before there is a plan: the task that hands out shards was killed.
            if self._next_result(POLL_SECONDS / 5) == "end":
                self.results = self._start(guarded=False)

    def extract(
        self,
        plan: Plan,
        max_rejected: float,
        on_progress: Callable[[Progress], None],
        extended: Extended | None = None,
    ) -> Summary:
        """Extract the shards of a plan that are missing, and finish the output.

        Args:
            max_rejected: share of the planned images that may be rejected before the run stops.
            on_progress: called about twice a second.

        Raises:
            IncompleteError: if shards are left over because their workers kept dying.
            TooManyRejectedError, FeaturesError, StoreError, WeightsError, FingerprintError: the run stops; nothing is
                lost.
        """
        started = time.monotonic()
        done_before = plan.committed()
        tally = Tally(plan, max_rejected)
        images_before = sum(plan.images_in(shard) for shard in done_before)
        work = Work.of(plan, tally.run_id)

        def lost() -> list[Shard]:
            return [shard for shard in pending_shards(plan, plan.committed()) if shard.number not in tally.receipts]

        def show() -> None:
            live = self._snapshot()
            under_way = sum(images for shard, images in live.get("images", {}).items() if shard not in tally.receipts)
            images = images_before + self.images_done + under_way
            if self.prediction is None and "spent" in live:
                self.prediction = predict_run(
                    live["spent"],
                    done=images - images_before,
                    planned=plan.num_images - images_before,
                    cores=self.num_cpus,
                    networks=min(self.num_actors, plan.num_shards - len(done_before)),
                )
            expected = self.prediction.line() if self.prediction else ""
            on_progress(Progress(images, plan.num_images, tally.rejected, live.get("limiting", "start"), expected))

        self._drain(plan, work, None, tally, show)
        for _ in range(EMIT_RETRIES):
            if self._snapshot().get("emitted", True) or not lost():
                break
            self.results = self._start(guarded=False)  # the task that hands out shards was killed, no image is suspect
            self._drain(plan, work, None, tally, show)
        if left := lost():
            log.warning("%d shards lost their workers and are prepared again, image by image", len(left))
            self.results = self._start(guarded=True)
            self._drain(plan, work, left, tally, show)
            if left := lost():
                raise IncompleteError(
                    f"The workers of {len(left)} shards kept dying, the first is {left[0].number}: out of memory? What "
                    "is done is kept; run the same command again, with more memory or a smaller --batch-size."
                )
        return summarize(plan, tally, done_before, started, extended, self._details(tally))

    def _drain(
        self, plan: Plan, work: Work, shards: list[Shard] | None, tally: Tally, show: Callable[[], None]
    ) -> None:
        """Let the stages run, over these shards or all that are pending, until they are through."""
        order = {"work": work.to_json(), "shards": None if shards is None else [asdict(shard) for shard in shards]}
        self.order = json.dumps(order)
        show()
        shown_at = time.monotonic()
        while (result := self._next_result(POLL_SECONDS)) != "end":
            if result is not None:
                if "error" in result:
                    raise raised(result["error"])
                if result == WARM_UP:
                    continue
                receipt = Receipt(**result["receipt"])
                self.images_done += plan.images_in(receipt.shard)
                self.last_receipt_at = time.time()
                self.forget.append(receipt.shard)
                tally.add(receipt)
            if result is None or time.monotonic() - shown_at > POLL_SECONDS:
                show()
                shown_at = time.monotonic()
        show()

    def _start(self, *, guarded: bool) -> "queue.Queue[Any]":
        """Start the two stages; results, then "end" or an exception, arrive in the queue."""
        results: queue.Queue[Any] = queue.Queue()
        dataset = self._dataset(guarded=guarded)

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

    def _dataset(self, *, guarded: bool) -> Any:
        import ray
        from ray.data import ActorPoolStrategy, TaskPoolStrategy

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it reports every worker that dies, in a page each
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")  # the only way to bound retries
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")  # of a plan with few shards
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # Errors of the stages themselves come as rows; blocks fail only when a worker died more often than it may.
        context.max_errored_blocks = -1
        # Every row its own block: a row is a shard, and shards are what runs side by side.
        context.target_max_block_size = 1
        # With reservation Ray Data keeps a CPU for the actors, which take none: half of a machine of two cores.
        context.op_resource_reservation_enabled = bool(self.num_gpus)
        batch_size = self.options.batch_size or (GPU_BATCH_SIZE if self.num_gpus else CPU_BATCH_SIZE)
        threads = None if self.num_gpus else max(1, self.num_cpus // self.num_actors)
        blocks: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        # Different resources for each stage, or Ray Data fuses neighbours and nothing overlaps.
        return (
            ray.data.from_items([{"emit": True}], override_num_blocks=1)
            .map_batches(
                _emit,
                **blocks,
                fn_kwargs={"live": self.live},
                num_cpus=0,
                # Emitted again after a crash, shards could repeat or be skipped; what is lost this way is done later.
                ray_remote_args_fn=lambda: {"max_retries": 0},
            )
            .map_batches(
                prepare_stage,
                **blocks,
                fn_kwargs={"guarded": guarded},
                compute=TaskPoolStrategy(size=MAX_PREPARING),
                num_cpus=1,
                ray_remote_args_fn=lambda: {"max_retries": TASK_RETRIES},
            )
            .map_batches(
                ExtractFeatures,
                **blocks,
                fn_constructor_kwargs={
                    "request": self.request,
                    "precision": self.precision,
                    "batch_size": batch_size,
                    "num_threads": threads,
                    "live": self.live,
                },
                compute=ActorPoolStrategy(size=self.num_actors),
                num_gpus=1 if self.num_gpus else 0,
                num_cpus=0,
                ray_remote_args_fn=lambda: {"max_restarts": ACTOR_RESTARTS, "max_task_retries": ACTOR_RESTARTS},
            )
        )

    def _next_result(self, seconds: float) -> Any:
        """The next result row, "end", or None if none came in time. Raises what Ray Data raised."""
        try:
            result = self.results.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(result, BaseException):
            raise StoreError(f"Ray gave up: {type(result).__name__}: {result}") from result
        return result

    def _snapshot(self, seconds: float = POLL_SECONDS) -> dict[str, Any]:
        import ray

        try:
            forget, self.forget = self.forget, []
            # The order goes along each time, as a counter that was restarted has forgotten it.
            live: dict[str, Any] = ray.get(self.live.snapshot.remote(forget, self.order), timeout=seconds)
        except Exception:
            return {}  # the counter restarts, or the cluster is busy: receipts still count
        return live

    def _details(self, tally: Tally) -> dict[str, Any]:
        """Measured by the run itself: how long the first batch took to arrive, and the rate from there to the end."""
        live = self._snapshot(DETAILS_SECONDS)
        if "first_batch_at" not in live:
            return {}
        images = sum(receipt.images for receipt in tally.receipts.values() if receipt.created)
        # Where another run did part of it, this one was not alone with the machine: there is nothing to compare.
        alone = all(receipt.created for receipt in tally.receipts.values())
        predicted = self.prediction.compared(images, self.last_receipt_at) if self.prediction and alone else {}
        return {
            "first_batch_seconds": round(live["first_batch_at"] - process_started_at(), 2),
            "images_per_second": round(images / max(1e-9, self.last_receipt_at - live["first_batch_at"]), 2),
            "limiting": live["limiting"],
            **predicted,
        }


def _emit(_: pa.Table, live: Any) -> Iterator[pa.Table]:
    """Before the stages: one row a shard, as fast as they take them, once the driver has a plan."""
    import ray

    if ray.get(live.what_to_do.remote()) is None:
        # A worker that prepares takes a second to start: meanwhile the network loads, and is the only one that works.
        yield pa.table({"work": ["null"], "shard": [json.dumps(WARM_UP)]})
    while (order := ray.get(live.what_to_do.remote())) is None:
        time.sleep(POLL_SECONDS / 10)
    wanted = json.loads(order)
    work = json.dumps(wanted["work"])
    if wanted["shards"] is None:
        try:
            plan = load_plan(wanted["work"]["output"])
            shards = pending_shards(plan, plan.committed()) if plan else []
        except BottleneckError as error:
            yield pa.table({"work": [work], "shard": [json.dumps(as_result(error))]})
            return
    else:
        shards = [Shard(**shard) for shard in wanted["shards"]]
    for shard in shards:
        yield pa.table({"work": [work], "shard": [json.dumps(asdict(shard))]})
    ray.get(live.report_emitted.remote())
