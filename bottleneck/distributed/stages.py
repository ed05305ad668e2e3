"""The two stages of an extraction as Ray Data calls them: prepare a shard, extract and commit it.

Pixels travel from task to actor as one binary value of Ray's object store; what reaches the driver is a receipt. Stages
never raise for what a person must mend: they pass the error on as a row, so that only a worker that died counts as a
lost shard, which is prepared again with each image in a guarded child process.
"""

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from bottleneck.child import as_result
from bottleneck.dataset.plan_parts import Shard
from bottleneck.dataset.write import Receipt
from bottleneck.distributed.network import HandedNetwork
from bottleneck.extract.prepare import KeptRows, Prepared, prepare_shard
from bottleneck.extract.sandbox import SandboxedDecoder, decode_or_exit
from bottleneck.extract.shard import Columns, extract_prepared
from bottleneck.extract.work import Work
from bottleneck.heads.predict import Predictor
from bottleneck.networks.base import Base
from bottleneck.spec import FeatureRequest, Precision

WARM_UP = {"receipt": None}
"""Takes the place of a shard, so that a worker starts before there is a plan."""
TABLES = ("rows", "of_row", "taken")
"""The tables of a `Prepared`, each a column of a message."""


def prepare_stage(table: pa.Table, guarded: bool) -> pa.Table:
    """First stage: prepare a shard, giving its rows and pixels."""
    row = json.loads(table.column("shard")[0].as_py())
    if "error" in row or row == WARM_UP:
        return _message(note=row)
    text = table.column("work")[0].as_py()
    work = Work.from_text(text)
    shard = Shard(**row)
    decoder = SandboxedDecoder() if guarded else None
    try:
        if work.is_committed(shard):
            return _message(note={"receipt": asdict(Receipt(shard.number, {}, 0, created=False))})
        prepared = prepare_shard(work, shard, decoder or decode_or_exit)
    except Exception as error:
        return _message(note=as_result(error))
    finally:
        if decoder:
            decoder.close()
    note = {
        "shard": asdict(shard),
        "read_bytes": prepared.read_bytes,
        "read": prepared.read_seconds,
        "decode": prepared.decode_seconds,
        "decode_core": prepared.decode_core_seconds,
    }
    return _message(prepared, note, text)


class ExtractFeatures:
    """Second stage, one actor per network: extract and commit a prepared shard, giving its receipt.

    For predictions the actor also loads the head, and stores its predictions instead of features.
    """

    def __init__(
        self,
        request: FeatureRequest,
        precision: Precision,
        batch_size: int,
        network: HandedNetwork,
        live: Any,
    ) -> None:
        self.live = live
        self.error: dict[str, Any] | None = None
        self.idle_since: float | None = None
        self.predictor: Predictor | None = None
        self.is_warm = False
        live.report_placed.remote()
        try:
            self.base = Base.of(request, precision, batch_size, **network.received())
            live.report_resolved.remote({"spec": self.base.spec.to_json()})
        except Exception as error:
            self.error = as_result(error)  # raised here, it would only restart the actor
            live.report_resolved.remote(self.error)

    def __call__(self, table: pa.Table) -> pa.Table:
        note = json.loads(table.column("note")[0].as_py())
        result = note if "error" in note or "receipt" in note else self.error or self._extract(table, note)
        return pa.table({"result": [json.dumps(result)]})

    def _extract(self, table: pa.Table, note: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(**note.pop("shard"))
        work = Work.from_text(table.column("work")[0].as_py())
        now, core_now, num_done = time.monotonic(), time.process_time(), 0
        idle = now - self.idle_since if self.idle_since else 0.0
        timings = {"idle": idle, "read": note["read"], "decode": note["decode"]}

        def count(images: int) -> float:
            """Report the time since the last count or the start."""
            nonlocal now, core_now
            before, core_before, now, core_now = now, core_now, time.monotonic(), time.process_time()
            if self.is_warm:
                self.live.report_network.remote(images, now - before, core_now - core_before)
            self.is_warm = True
            return now - before

        def report(images: int) -> None:
            nonlocal num_done
            seconds = count(images - num_done)
            num_done = images
            self.live.report.remote(shard.number, images, network=seconds, **timings)
            timings.update(idle=0.0, read=0.0, decode=0.0)

        try:
            self.base.check(work.spec)
            prepared = _unpacked(table, shard, work.spec.image_size_px)
            num_rows = prepared.rows.num_rows  # what is taken over counts as done at no cost
            self.live.report_prepared.remote(num_rows, len(prepared.pixels_NHWC), note["decode_core"], note["read"])
            receipt = extract_prepared(work, self.base, prepared, report, self._columns(work))
            if num_done:
                count(0)
            if receipt.created:
                self.live.report_committed.remote(receipt.statuses, note["read_bytes"], receipt.bytes)
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


def _message(prepared: Prepared | None = None, note: dict[str, Any] | None = None, work: str = "") -> pa.Table:
    """One row between the stages, without copying the pixels."""
    tables: list[pa.Table | None] = [None] * len(TABLES)
    buffer = pa.py_buffer(b"")
    if prepared is not None:
        tables[0], of_row = prepared.rows, {"pixels": prepared.pixels_of_row}
        if prepared.kept_rows is not None:
            tables[2], of_row["taken"] = prepared.kept_rows.columns, prepared.kept_rows.index_of_row
        tables[1] = pa.table(of_row)
        buffer = pa.py_buffer(prepared.pixels_NHWC)
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    pixels = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])
    packed = {name: pa.array([_packed(one)], pa.large_binary()) for name, one in zip(TABLES, tables, strict=True)}
    return pa.table({**packed, "pixels": pixels, "work": [work], "note": [json.dumps(note or {})]})


def _unpacked(message: pa.Table, shard: Shard, size_px: int) -> Prepared:
    rows, of_row, *taken = [_table(packed) for name in TABLES if (packed := message.column(name)[0].as_buffer()).size]
    pixels = message.column("pixels").chunk(0)
    pixels_NHWC = np.frombuffer(pixels[0].as_buffer(), np.uint8).reshape(-1, size_px, size_px, 3)
    again = KeptRows(taken[0], of_row.column("taken").to_numpy()) if taken else None
    return Prepared(shard, rows, pixels_NHWC, of_row.column("pixels").to_numpy(), again)


def _packed(table: pa.Table | None) -> bytes:
    if table is None:
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _table(packed: pa.Buffer) -> pa.Table:
    return pa.ipc.open_stream(packed).read_all()
