"""The two halves of extraction as Ray Data's stages: tables of one row, a shard, in and out.

Pixels travel from task to actor as one binary value of Ray's object store; what reaches the driver is a receipt. Stages
never raise for what a person must mend: they pass the error on as a row, so that only a worker that died counts as a
lost shard, which is prepared again with each image in a guarded child process.
"""

import json
import logging
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck import errors
from bottleneck.base import Base
from bottleneck.errors import BottleneckError
from bottleneck.extract import Columns, Prepared, Work, extract_prepared, prepare_shard
from bottleneck.features import Receipt
from bottleneck.guard import GuardedByProcess, guarded_by_exit
from bottleneck.listing import Shard
from bottleneck.predict import Predictor
from bottleneck.spec import FeatureRequest, Precision

log = logging.getLogger(__name__)


def prepare_stage(table: pa.Table, guarded: bool) -> pa.Table:
    """First stage: a shard's number -> its rows and pixels."""
    work = Work.from_json(json.loads(table.column("work")[0].as_py()))
    row = json.loads(table.column("shard")[0].as_py())
    if "error" in row:
        return _message(-1, note=row)
    shard = Shard(**row)
    decoder = GuardedByProcess() if guarded else None
    try:
        if work.is_committed(shard.number):
            return _message(shard.number, note={"receipt": asdict(Receipt(shard.number, {}, 0, created=False))})
        prepared = prepare_shard(work, shard, decoder or guarded_by_exit)
    except Exception as error:
        return _message(shard.number, note=as_result(error))
    finally:
        if decoder:
            decoder.close()
    note = {"work": work.to_json(), "read": prepared.read_seconds, "decode": prepared.decode_seconds}
    return _message(shard.number, prepared.rows, prepared.pixels_NHWC, note)


class ExtractFeatures:
    """Second stage, one actor a network: rows and pixels -> the committed data file's receipt.

    Where the work is one of predictions, the actor loads the head as well, and stores its answers.
    """

    def __init__(
        self, request: FeatureRequest, precision: Precision, batch_size: int, num_threads: int | None, live: Any
    ) -> None:
        self.live = live
        self.error: dict[str, Any] | None = None
        self.idle_since: float | None = None
        self.predictor: Predictor | None = None
        try:
            self.base = Base.of(request, precision, batch_size, num_threads)
            live.report_resolved.remote({"spec": self.base.spec.to_json()})
        except Exception as error:
            self.error = as_result(error)  # raised here, it would only restart the actor
            live.report_resolved.remote(self.error)

    def __call__(self, table: pa.Table) -> pa.Table:
        note = json.loads(table.column("note")[0].as_py())
        result = note if "error" in note or "receipt" in note else self.error or self._extract(table, note)
        return pa.table({"result": [json.dumps(result)]})

    def _extract(self, table: pa.Table, note: dict[str, Any]) -> dict[str, Any]:
        shard = table.column("shard")[0].as_py()
        work = Work.from_json(note.pop("work"))
        now = time.monotonic()
        idle = now - self.idle_since if self.idle_since else 0.0
        timings = {"idle": idle, **note}

        def report(images: int) -> None:
            nonlocal now
            before, now = now, time.monotonic()
            self.live.report.remote(shard, images, network=now - before, **timings)
            timings.update(idle=0.0, read=0.0, decode=0.0)

        try:
            self.base.check(work.spec)
            size = work.spec.image_size_px
            pixels = table.column("pixels").chunk(0)
            pixels_NHWC = np.frombuffer(pixels[0].as_buffer(), np.uint8).reshape(-1, size, size, 3)
            rows = pa.ipc.open_stream(table.column("rows")[0].as_buffer()).read_all()
            receipt = extract_prepared(work, self.base, Prepared(shard, rows, pixels_NHWC), report, self._columns(work))
            return {"receipt": asdict(receipt)}
        except Exception as error:
            return as_result(error)
        finally:
            self.idle_since = time.monotonic()

    def _columns(self, work: Work) -> Columns | None:
        if work.predictions is None:
            return None
        if self.predictor is None or self.predictor.spec != work.predictions:
            self.predictor = Predictor(work.predictions)
        return self.predictor


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


def raised(error: list[str]) -> BottleneckError:
    """A stage's error as an exception of the driver."""
    kind, message = error
    made: BottleneckError = getattr(errors, kind, BottleneckError)(message)
    return made


def as_result(error: BaseException) -> dict[str, Any]:
    """An error as a result row."""
    if isinstance(error, BottleneckError):
        return {"error": [type(error).__name__, str(error)]}
    log.exception("a stage failed")
    return {"error": ["BottleneckError", f"A worker failed with {type(error).__name__}: {error}."]}
