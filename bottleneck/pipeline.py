"""The extraction on Ray Data: a row is a shard, CPU tasks prepare it, actors with the network extract and commit it.

Pixels travel from task to actor as one binary value of Ray's object store; what reaches the driver is a receipt. Stages
never raise for what a person must mend: they pass the error on as a row, so that only a worker that died counts as a
lost shard, which is prepared again with each image in a guarded child process.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck import errors
from bottleneck.base import Base, has_bfloat16
from bottleneck.errors import BottleneckError, IncompleteError, StoreError
from bottleneck.extract import (
    Prepared,
    Summary,
    Tally,
    Work,
    extract_prepared,
    pending_shards,
    prepare_shard,
    summarize,
)
from bottleneck.features import Receipt, finished
from bottleneck.guard import GuardedByProcess, guarded_by_exit
from bottleneck.plan import Extended, Plan, Shard
from bottleneck.progress import Progress

log = logging.getLogger(__name__)

CORES_PER_ACTOR = 8
"""A network on a CPU scales to about this many cores; more cores get more networks."""
CPU_BATCH_SIZE = 32
"""VGG16's largest activations are 0.4 GB (bfloat16: 0.2 GB) at 32; larger batches are no faster on a CPU."""
GPU_BATCH_SIZE = 256
TASK_RETRIES = 2
"""A task that dies this often again probably meets an image that kills decoders: it is then run apart."""
ACTOR_RESTARTS = 1000
"""Bounded, so that a network that cannot start does not start for ever; far above what a spot market does to a run."""
LOCAL_STORE_BYTES = 1_000_000_000
"""Ray's shared memory on one machine: room for about ten prepared shards."""
POLL_SECONDS = 0.5


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


def start_ray() -> None:
    """Join the cluster RAY_ADDRESS names, or start Ray on this machine, reachable from nowhere else."""
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(address=os.environ["RAY_ADDRESS"], **options)
        else:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of this process: Ray's C++ part writes to stderr
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=LOCAL_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **options,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "local")
        raise StoreError(
            f"Ray did not start or answer at {address}: {error}. Look at RAY_ADDRESS and at /tmp/ray."
        ) from error


def workers_have_bfloat16() -> bool:
    """Ask a worker like those that will run: one with a GPU if the cluster has any."""
    import ray

    start_ray()
    num_gpus = 1 if ray.cluster_resources().get("GPU") else 0
    return bool(ray.get(ray.remote(num_cpus=0, num_gpus=num_gpus)(has_bfloat16).remote()))


def extract_on_ray(
    plan: Plan,
    options: RunOptions,
    max_rejected: float,
    on_progress: Callable[[Progress], None],
    extended: Extended | None = None,
) -> Summary:
    """Extract the shards of a plan that are missing, and finish the output.

    Args:
        on_progress: called about twice a second.

    Raises:
        IncompleteError: if shards are left over because their workers kept dying.
        TooManyRejectedError, FeaturesError, StoreError, WeightsError, FingerprintError: the run stops; nothing is lost.
    """
    started = time.monotonic()
    done_before = plan.committed()
    tally = Tally(plan, max_rejected)
    if finished(plan) is None and len(done_before) < plan.num_shards:
        start_ray()
        run = _Run(plan, options, tally, on_progress, done_before)
        run.extract(pending_shards(plan, done_before), guarded=False)
        lost = [shard for shard in pending_shards(plan, plan.committed()) if shard.number not in tally.receipts]
        if lost:
            log.warning("%d shards lost their workers and are prepared again, image by image", len(lost))
            run.extract(lost, guarded=True)
            still_lost = [shard.number for shard in lost if shard.number not in plan.committed()]
            if still_lost:
                raise IncompleteError(
                    f"The workers of {len(still_lost)} shards kept dying, the first is {still_lost[0]}: out of memory? "
                    "What is done is kept; run the same command again, with more memory or a smaller --batch-size."
                )
    return summarize(plan, tally, done_before, started, extended)


class _Run:
    """The driver's side of a run."""

    def __init__(
        self,
        plan: Plan,
        options: RunOptions,
        tally: Tally,
        on_progress: Callable[[Progress], None],
        done_before: dict[int, int],
    ) -> None:
        import ray

        self.plan, self.options, self.tally, self.on_progress = plan, options, tally, on_progress
        self.work = Work.of(plan)
        self.images_of = {shard: plan.images_in(shard) for shard in range(plan.num_shards)}
        self.images_before = sum(self.images_of[shard] for shard in done_before)
        self.num_gpus = int(ray.cluster_resources().get("GPU", 0))
        self.num_cpus = int(ray.cluster_resources().get("CPU", 1))
        self.num_actors = options.num_actors or self.num_gpus or max(1, self.num_cpus // CORES_PER_ACTOR)
        self.live = ray.remote(num_cpus=0, max_restarts=-1)(_Live).remote()

    def extract(self, shards: list[Shard], *, guarded: bool) -> None:
        """Run shards through the two stages; receipts land in the tally."""
        # Errors of the stages themselves come as rows; blocks fail only when a worker died more often than it may.
        for row in self._rows(self._dataset(shards, guarded=guarded)):
            if row is None:
                self._show()
                continue
            if "error" in row:
                kind, message = row["error"]
                raise getattr(errors, kind, BottleneckError)(message)
            self.tally.add(Receipt(**row["receipt"]))
            self._show()

    def _dataset(self, shards: list[Shard], *, guarded: bool) -> Any:
        import ray
        from ray.data import ActorPoolStrategy

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")  # the only way to bound retries
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1
        # With reservation Ray Data keeps a CPU for the actors, which take none: half of a machine of two cores.
        context.op_resource_reservation_enabled = bool(self.num_gpus)
        batch_size = self.options.batch_size or (GPU_BATCH_SIZE if self.num_gpus else CPU_BATCH_SIZE)
        threads = None if self.num_gpus else max(1, self.num_cpus // self.num_actors)
        return (
            ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards))
            .map_batches(
                _prepare,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"work": self.work, "guarded": guarded},
                num_cpus=1,
                ray_remote_args_fn=lambda: {"max_retries": TASK_RETRIES},
            )
            .map_batches(
                _ExtractFeatures,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    "work": self.work,
                    "batch_size": batch_size,
                    "num_threads": threads,
                    "live": self.live,
                },
                compute=ActorPoolStrategy(size=min(self.num_actors, len(shards))),
                # Other resources than the tasks have, or Ray Data fuses both stages and nothing overlaps.
                num_gpus=1 if self.num_gpus else 0,
                num_cpus=0,
                ray_remote_args_fn=lambda: {"max_restarts": ACTOR_RESTARTS, "max_task_retries": ACTOR_RESTARTS},
            )
        )

    def _rows(self, dataset: Any) -> Iterator[dict[str, Any] | None]:
        """Result rows as they come, and None whenever none came for a while."""
        import queue
        import threading

        results: queue.Queue[Any] = queue.Queue()

        def pull() -> None:
            try:
                for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for text in batch.column("result").to_pylist():
                        results.put(json.loads(text))
                results.put(StopIteration())
            except BaseException as error:
                results.put(error)

        threading.Thread(target=pull, name="results", daemon=True).start()
        while True:
            try:
                result = results.get(timeout=POLL_SECONDS)
            except queue.Empty:
                yield None
                continue
            if isinstance(result, StopIteration):
                return
            if isinstance(result, BaseException):
                raise result
            yield result

    def _show(self) -> None:
        import ray

        try:
            live = ray.get(self.live.snapshot.remote(), timeout=POLL_SECONDS)
        except Exception:
            live = {}  # the counter restarts, or the cluster is busy: receipts still count
        receipts = self.tally.receipts
        under_way = sum(images for shard, images in live.get("images", {}).items() if shard not in receipts)
        images = self.images_before + sum(self.images_of[shard] for shard in receipts) + under_way
        self.on_progress(Progress(images, self.plan.num_images, self.tally.rejected, live.get("limiting", "start")))


class _Live:
    """A counter that the actors tell how far they are, batch by batch; only the display reads it."""

    def __init__(self) -> None:
        self.images: dict[int, int] = {}
        self.seconds = {"network": 0.0, "decode": 0.0, "read": 0.0}
        self.idle_seconds = 0.0

    def report(self, shard: int, images: int, network: float, idle: float, decode: float, read: float) -> None:
        self.images[shard] = images
        for name, seconds in (("network", network), ("decode", decode), ("read", read)):
            self.seconds[name] += seconds
        self.idle_seconds += idle

    def snapshot(self) -> dict[str, Any]:
        seconds = self.seconds
        if not seconds["network"]:
            return {"images": self.images, "limiting": "start"}
        # Where the networks hardly wait they are the limit, else what they wait for.
        waiting = self.idle_seconds > 0.15 * (seconds["network"] + self.idle_seconds)
        slower = "decode" if seconds["decode"] > seconds["read"] else "read"
        return {"images": self.images, "limiting": slower if waiting else "network"}


def _prepare(table: pa.Table, work: Work, guarded: bool) -> pa.Table:
    """First stage: a shard's number -> its rows and pixels."""
    [row] = table.to_pylist()
    shard = Shard(**row)
    decoder = GuardedByProcess() if guarded else None
    try:
        if work.is_committed(shard.number):
            return _message(shard.number, note={"receipt": asdict(Receipt(shard.number, {}, 0, created=False))})
        prepared = prepare_shard(work, shard, decoder or guarded_by_exit)
    except Exception as error:
        return _message(shard.number, note=_error(error))
    finally:
        if decoder:
            decoder.close()
    note = {"read": prepared.read_seconds, "decode": prepared.decode_seconds}
    return _message(shard.number, prepared.rows, prepared.pixels_NHWC, note)


class _ExtractFeatures:
    """Second stage, one actor a network: rows and pixels -> the committed data file's receipt."""

    def __init__(self, work: Work, batch_size: int, num_threads: int | None, live: Any) -> None:
        self.work, self.live = work, live
        self.error: dict[str, Any] | None = None
        self.idle_since: float | None = None
        try:
            self.base = Base(work.spec, batch_size, num_threads)
        except Exception as error:
            self.error = _error(error)  # raised here, it would only restart the actor

    def __call__(self, table: pa.Table) -> pa.Table:
        shard = table.column("shard")[0].as_py()
        note = json.loads(table.column("note")[0].as_py())
        result = note if "error" in note or "receipt" in note else self.error or self._extract(shard, table, note)
        return pa.table({"result": [json.dumps(result)]})

    def _extract(self, shard: int, table: pa.Table, note: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        idle = now - self.idle_since if self.idle_since else 0.0
        timings = {"idle": idle, **note}

        def report(images: int) -> None:
            nonlocal now
            before, now = now, time.monotonic()
            self.live.report.remote(shard, images, network=now - before, **timings)
            timings.update(idle=0.0, read=0.0, decode=0.0)

        try:
            size = self.work.spec.image_size_px
            pixels = table.column("pixels").chunk(0)
            pixels_NHWC = np.frombuffer(pixels[0].as_buffer(), np.uint8).reshape(-1, size, size, 3)
            rows = pa.ipc.open_stream(table.column("rows")[0].as_buffer()).read_all()
            receipt = extract_prepared(self.work, self.base, Prepared(shard, rows, pixels_NHWC), report)
            return {"receipt": asdict(receipt)}
        except Exception as error:
            return _error(error)
        finally:
            self.idle_since = time.monotonic()


def _message(
    shard: int, rows: pa.Table | None = None, pixels_NHWC: np.ndarray | None = None, note: dict[str, Any] | None = None
) -> pa.Table:
    """One row between the stages; the pixels are not copied into it."""
    sink = pa.BufferOutputStream()
    if rows is not None:
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
    buffer = pa.py_buffer(pixels_NHWC) if pixels_NHWC is not None else pa.py_buffer(b"")
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    pixels = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])
    return pa.table(
        {
            "shard": pa.array([shard], pa.int32()),
            "rows": pa.array([sink.getvalue().to_pybytes()], pa.binary()),
            "pixels": pixels,
            "note": [json.dumps(note or {})],
        }
    )


def _error(error: BaseException) -> dict[str, Any]:
    if isinstance(error, BottleneckError):
        return {"error": [type(error).__name__, str(error)]}
    log.exception("a stage failed")
    return {"error": ["BottleneckError", f"A worker failed with {type(error).__name__}: {error}."]}
