"""Fit a head as a Ray Train job: rank 0 coordinates, the other workers answer it.

Ray Train places the workers and starts the group again when one dies; what the coordinator found until then waits in an
actor beside the group. Requests and answers pass through that actor, arrays through Ray's object store.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from bottleneck.child import as_result, raised
from bottleneck.dataset.features import Features
from bottleneck.distributed.exchange import Exchange, Failed, RayWorkers, WorkerRequest, fetch_object
from bottleneck.distributed.ray_resources import tell_waiting
from bottleneck.distributed.ray_session import THREAD_SECONDS, cluster_address, is_ours, start_ray, stop_ray
from bottleneck.errors import IncompleteError, UsageError
from bottleneck.heads.fit import Fitted, fit_features
from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.partial import PartialResults
from bottleneck.heads.solver.protocol import FitEvent
from bottleneck.heads.solver.worker import Worker

log = logging.getLogger(__name__)


MAX_FAILURES = 30
"""Failures of the group before the fit is given up; spot markets may take many workers."""
POLL_SECONDS = 0.2
CONTROLLER_SECONDS = 60.0
"""How long to wait for the controller of a stopped fit in a Ray that goes on: a busy machine starts it slowly."""
TRAIN_SETTINGS = {
    # Two seconds by default, of which a short fit waits for several.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Processes beside the group that a fit has no use for, each of which takes seconds of a small machine's start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Settings of Ray Train, unless the environment has others."""


def train_head(
    features: Features,
    request: HeadRequest,
    rows_of: dict[str, int],
    *,
    test: Features | None = None,
    num_workers: int = 1,
    use_gpu: bool = False,
    on_event: Callable[[FitEvent], None] = lambda event: None,
    kept: PartialResults | None = None,
) -> Fitted:
    """Fit a head with a group of Ray Train workers.

    Uses the Ray of this process and leaves it running; without one it starts or joins one, and stops it afterwards.

    Args:
        rows_of: ok images of each file, at least.
        test: features of other images, on which the head is evaluated.
        on_event: told how the fit goes, in the order it does.
        kept: where results outlive this process.

    Raises:
        UsageError: for labels that cannot be fitted on, or more workers than the cluster holds.
        FeaturesError: for features that are NaN or infinite.
        IncompleteError: if workers kept dying.
    """
    for name, value in TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    start_ray()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    # The only trainer of Ray Train V2 that asks for no framework.
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    resources = ray.cluster_resources()
    _check_resources(resources, num_workers, use_gpu)
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
    # None where all nodes are still to come: each worker then computes on all cores of its node.
    cpus = max(1, int(min(largest, resources.get("CPU", 1) / num_workers))) if largest else None
    exchange = ray.remote(num_cpus=0, max_concurrency=64)(Exchange).remote(kept.read() if kept else None)
    folder = tempfile.mkdtemp(prefix="bottleneck-fit-")
    given = {"exchange": exchange, "features": features, "request": request, "rows_of": rows_of, "test": test}
    given["threads"] = cpus
    trainer = DataParallelTrainer(
        _work,
        train_loop_config=given,
        # Spread: each worker holds its share of the features, and more nodes have more memory.
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}, placement_strategy="SPREAD"
        ),
        run_config=RunConfig(
            storage_path=folder,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[_introduction(exchange)],
        ),
    )
    ended: list[BaseException | None] = []

    def train() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=train, name="trainer", daemon=True)
    thread.start()
    try:
        while True:
            for event in ray.get(exchange.events.remote()):
                on_event(event)
            if kept:
                for name, value in ray.get(exchange.results.remote()).items():
                    kept.keep(name, value)
            result = ray.get(exchange.result.remote())
            if result is not None:
                break
            if ended:
                raise IncompleteError(f"The workers of the fit kept dying: {ended[0]}. Run the same command again.")
            time.sleep(POLL_SECONDS)
        thread.join(THREAD_SECONDS)  # it still speaks with Ray, which must not be stopped under it
        if "error" in result:
            raise raised(result["error"])
        fitted: Fitted = result["fitted"]
        return fitted
    except ray.exceptions.RayActorError as error:  # a spot machine may take it; what was found until then is lost
        raise IncompleteError(
            "The process beside the workers, which passes their answers on, has died. Run the same command again."
        ) from error
    finally:
        _end_training(thread, exchange)
        with contextlib.suppress(Exception):  # it may have died
            ray.kill(exchange)  # in a Ray that goes on
        stop_ray()
        shutil.rmtree(folder, ignore_errors=True)


def _introduction(exchange: Any) -> Any:
    """Have Ray Train's controller, an actor without a name, hand its handle to the exchange, so that it can end."""
    import ray
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Introduction(ControllerCallback):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            exchange.meet.remote([ray.get_runtime_context().current_actor])

    return Introduction()


def _end_training(thread: threading.Thread, exchange: Any) -> None:
    """End the thread of a fit that was stopped or failed: it must not use Ray while that shuts down.

    The thread waits for Ray Train's controller, or is about to start it.
    """
    import ray

    deadline = time.monotonic() + (THREAD_SECONDS if is_ours() else CONTROLLER_SECONDS)
    while thread.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # either actor may have died
            if known := ray.get(exchange.controller.remote(), timeout=POLL_SECONDS):
                ray.kill(known[0])
        thread.join(POLL_SECONDS)


def _check_resources(resources: dict[str, float], num_workers: int, use_gpu: bool) -> None:
    kind = "GPU" if use_gpu else "CPU"
    there = int(resources.get(kind, 0))
    if num_workers > there and cluster_address():  # which may grow, and many begin with none
        tell_waiting(kind, num_workers)
    elif num_workers < 1 or num_workers > there:
        raise UsageError(
            f"`num_workers` takes 1 to the cluster's number of {kind}s, which is {there}, as each worker needs one. "
            f"Received: {num_workers}."
        )


def _work(given: dict[str, Any]) -> None:
    """The function every worker of the group runs."""
    import ray.train
    import ray.train.collective

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    # Requests of a group that has died are told from this one's by the token.
    token = ray.train.collective.broadcast_from_rank_zero(uuid.uuid4().hex if rank == 0 else None)
    worker = Worker(ray.put if size > 1 else lambda value: value, fetch_object)
    with _threads(given["threads"]):
        if rank == 0:
            _lead(RayWorkers(given["exchange"], token, size, worker), given)
        else:
            _follow(given["exchange"], token, rank, worker)


def _lead(workers: "RayWorkers", given: dict[str, Any]) -> None:
    import ray

    try:
        fitted = fit_features(workers, given["features"], given["request"], given["rows_of"], given["test"])
        result: dict[str, Any] = {"fitted": fitted}
    except Exception as error:  # only a worker that died is worth another try
        result = as_result(error)
    ray.get(given["exchange"].end.remote(result))


def _follow(exchange: Any, token: str, rank: int, worker: Worker) -> None:
    import ray

    number = 0
    while (handle := ray.get(exchange.next_request.remote(token, number))) is not None:
        request: WorkerRequest = ray.get(handle[0])
        try:
            answer = request.answer(worker, rank)
        except Exception as error:
            answer = Failed(as_result(error)["error"])
        ray.get(exchange.answer.remote(token, number, rank, [ray.put([answer])]))  # wrapped, as it may be a handle
        number += 1


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Limit the threads of matrix products, of which every worker otherwise has one per core."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(count):
        yield
