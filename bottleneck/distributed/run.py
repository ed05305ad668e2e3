"""Drive an extraction on Ray Data: start the actors, hand out the plan, collect receipts, finish."""

import logging
import queue
import time
from collections.abc import Callable
from typing import Any

from bottleneck.child import raised
from bottleneck.console import Progress
from bottleneck.dataset.differences import differences
from bottleneck.dataset.extend import Extended
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import Shard
from bottleneck.dataset.write import Receipt
from bottleneck.distributed.heap import Trimmer
from bottleneck.distributed.monitor import Live, Snapshot, run_details
from bottleneck.distributed.network import hand_network
from bottleneck.distributed.pipeline import RunOrder, pulled, stages
from bottleneck.distributed.placement import needs_cpus, place, waiting_for
from bottleneck.distributed.ray_resources import tell_waiting
from bottleneck.distributed.ray_session import cluster_address, is_ours, start_ray, stop_ray
from bottleneck.distributed.run_options import RunOptions
from bottleneck.distributed.stages import WARM_UP
from bottleneck.errors import FingerprintError, IncompleteError, StoreError
from bottleneck.extract.estimate import RunForecast, forecast_run
from bottleneck.extract.summary import Summary, Tally, pending_shards, summarize
from bottleneck.extract.work import Work
from bottleneck.networks.base import CPU_BATCH_SIZE, GPU_BATCH_SIZE, fitting_batch_size
from bottleneck.networks.weights import is_file
from bottleneck.spec import FeatureRequest, FeatureSpec, Precision
from bottleneck.text import counted

log = logging.getLogger(__name__)


EMIT_RETRIES = 5
"""How often the task that emits shards may be lost."""
POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""Between two looks at the free resources, while no network is placed."""
DETAILS_SECONDS = 10.0
"""Timeout for the counter's last answer on a busy machine."""


class Run:
    """One run on Ray: the actors start at once and wait for the plan.

    A context manager:

        with Run(request, precision, options) as run:
            plan = make_plan(source, output, run.spec())
            summary = run.extract(plan, 0.05, show)
    """

    def __init__(
        self,
        request: FeatureRequest,
        precision: Precision,
        options: RunOptions,
        shard_size: int | None = None,
        num_images: int = 0,
    ) -> None:
        """Start the actors, and Ray if it is not running.

        Args:
            request: what to extract; a plan made before must agree with it.
            precision: the concrete one.
            shard_size: of the plan that is to be extracted, which batches are to fit.
            num_images: of the plan; from 256 on the runtimes of the network are measured, once per machine.
        """
        self.shard_size, self.num_images = shard_size, num_images
        self.request, self.precision, self.options = request, precision, options
        self.started = time.monotonic()
        self.queued: int | None = None
        self.order: list[Any] | None = None
        self.forget: list[int] = []
        self.images_done = 0
        self.last_receipt_at = 0.0
        self.prediction: RunForecast | None = None
        self.live: Any = None
        self.waiting_for, self.looked_at = "", self.started
        start_ray()
        try:
            self._start_actors()
        except BaseException:  # as from __exit__, which is only for what was entered
            self.__exit__()
            raise

    def _start_actors(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        asked, use_gpu = self.options.num_actors, self.options.use_gpu
        runtime = self.options.runtime
        on_cpus = needs_cpus(self.request.base, runtime, use_gpu, self.precision)
        self.placement = place(nodes, asked, use_gpu=use_gpu, may_grow=bool(cluster_address()), on_cpus=on_cpus)
        self.network = hand_network(self.request, self.precision, self.options.runtime, self.placement, self.num_images)
        tell_waiting("CPU", 1)
        tell_waiting("GPU", self.placement.num_gpus * self.placement.min_actors)
        # Beside the driver, as other nodes come and go.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        counter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, scheduling_strategy=here)(Live)
        self.live = counter.remote(with_metrics=True)
        self.results = self._start(guarded=False)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self.live is not None and not is_ours():  # where Ray stays, the actors are not to
            ray.kill(self.live)
        stop_ray()

    def spec(self) -> FeatureSpec:
        """The resolved spec, from the first actor that is ready.

        Raises:
            UsageError, WeightsError: what the actor met.
        """
        told = ""
        while True:
            live = self._snapshot()
            if (waiting := self._waiting(live)) and waiting != told:
                told = waiting
                log.info("waiting for %s; Ctrl-C ends it", waiting)
            if (resolved := live.get("resolved")) is not None:
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
        started: float | None = None,
        done: dict[int, int] | None = None,
    ) -> Summary:
        """Extract the shards of a plan that are missing, and finish the output.

        Args:
            max_rejected: share of the planned images that may be rejected before the run stops.
            on_progress: called about twice a second.
            started: by time.monotonic(), where the run's seconds count from. Default: when this Run was made.
            done: `plan.committed()`, if it is known. Default: `data/` is listed, which happens once a run.

        Raises:
            IncompleteError: if shards are left over because their workers kept dying.
            TooManyRejectedError, FeaturesError, StoreError, WeightsError, FingerprintError: the run stops; nothing is
                lost.
        """
        import ray

        if started is not None:
            self.started = started
        if is_file(self.request.weights):  # its content may be another than when it was planned: no image is read then
            found = {"weights_sha256": self.spec().weights_sha256}
            if message := differences(plan, {"spec": found}):
                raise FingerprintError(message)
        done_before = plan.committed() if done is None else done
        tally = Tally(plan, max_rejected)
        images_before = sum(plan.images_in(shard) for shard in done_before)
        work = Work.of(plan, tally.run_id).to_text()

        def lost() -> list[Shard]:
            left = pending_shards(plan, done_before.keys() | tally.receipts.keys())
            if left:  # committed by a worker that died before its receipt arrived, perhaps
                now = plan.committed()
                left = [shard for shard in left if shard.number not in now]
            return left

        def show() -> None:
            self.queued = plan.num_shards - len(done_before) - len(tally.receipts)
            live = self._snapshot()
            under_way = sum(images for shard, images in live.get("images", {}).items() if shard not in tally.receipts)
            images = images_before + self.images_done + under_way
            if self.prediction is None and "spent" in live:
                self.prediction = forecast_run(
                    live["spent"],
                    done=images - images_before,
                    planned=plan.num_images - images_before,
                    # As many of both as there are by now: a cluster may have begun with none.
                    cores=max(1, int(ray.cluster_resources().get("CPU", 0))),
                    networks=min(max(1, live["networks"]), plan.num_shards - len(done_before)),
                )
            expected = self.prediction.line() if self.prediction else ""
            limiting = live.get("limiting", "start")
            waiting = self._waiting(live)
            on_progress(Progress(images, plan.num_images, tally.rejected, limiting, waiting, expected))

        self._drain(plan, RunOrder(work, frozenset(done_before)), tally, show)
        for _ in range(EMIT_RETRIES):
            if self._snapshot().get("emitted", True) or not (left := lost()):
                break
            self.results = self._start(guarded=False)  # the task that hands out shards was killed, no image is suspect
            self._drain(plan, RunOrder(work, shards=tuple(left)), tally, show)
        if left := lost():
            log.warning("prepared again image by image: %s, whose workers died", counted(len(left), "shard"))
            self.results = self._start(guarded=True)
            self._drain(plan, RunOrder(work, shards=tuple(left)), tally, show)
            if left := lost():
                raise IncompleteError(
                    f"The workers of {counted(len(left), 'shard')} kept dying, first of {left[0].number}: out of "
                    "memory? What is done is kept; run the same command again, with more memory or a smaller "
                    "`batch_size`."
                )
        live = self._snapshot(DETAILS_SECONDS)
        details = run_details(live, tally, self.prediction, self.started, self.last_receipt_at)
        return summarize(plan, tally, done_before, self.started, extended, details)

    def _drain(self, plan: Plan, order: RunOrder, tally: Tally, show: Callable[[], None]) -> None:
        """Run the stages over the shards of an order until none is left."""
        import ray

        self.order = [ray.put(order)]  # in a list, or Ray would send the order itself along with each call
        show()
        shown_at, trim = time.monotonic(), Trimmer()
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
                trim()
                shown_at = time.monotonic()
        show()

    def _start(self, *, guarded: bool) -> "queue.Queue[Any]":
        """Start the two stages, and return the queue in which their results arrive."""
        most = self.options.batch_size or (GPU_BATCH_SIZE if self.placement.num_gpus else CPU_BATCH_SIZE)
        dataset = stages(
            self.live,
            self.placement,
            guarded=guarded,
            request=self.request,
            precision=self.precision,
            batch_size=fitting_batch_size(most, self.shard_size),
            network=self.network,
        )
        return pulled(dataset)

    def _next_result(self, seconds: float) -> Any:
        """The next result row, "end", or None if none came in time. Raises what Ray Data raised."""
        try:
            result = self.results.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(result, BaseException):
            raise StoreError(f"Ray gave up: {type(result).__name__}: {result}") from result
        return result

    def _snapshot(self, seconds: float = POLL_SECONDS) -> Snapshot:
        import ray

        try:
            forget, self.forget = self.forget, []
            # The order goes along each time, as a counter that was restarted has forgotten it.
            live: Snapshot = ray.get(self.live.snapshot.remote(forget, self.order, self.queued), timeout=seconds)
        except Exception:
            return {}  # the counter restarts, or the cluster is busy: receipts still count
        return live

    def _waiting(self, live: Snapshot) -> str:
        """The resource the networks wait for; empty once one is placed. Asks the cluster now and then.

        Args:
            live: as the counter knows it; where that does not answer nothing is known.
        """
        import ray

        if live.get("placed", 1):
            return ""
        now = time.monotonic()
        if now - self.looked_at > LOOK_SECONDS:
            self.looked_at = now
            total, free = ray.cluster_resources(), ray.available_resources()
            self.waiting_for = waiting_for(self.placement, total, free)
        return self.waiting_for
