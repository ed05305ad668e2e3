"""Decode in a child process, or with a time limit, so that a hostile image cannot end a run."""

import contextlib
import faulthandler
import json
import logging
import os
import signal
import time
from multiprocessing.connection import Connection

import numpy as np

from bottleneck.child import Child
from bottleneck.extract.decode import Decoded, Rejected, decode
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureSpec

log = logging.getLogger(__name__)

DECODE_SECONDS = 30
"""A decoder that takes longer is considered hung: a 100-megapixel JPEG takes about 2 s."""
RETRY_SECONDS = (1.0, 5.0, 15.0)
"""Pauses before an image is decoded again after a lack of memory: others may have finished by then."""
EXIT_SECONDS = 5.0
"""Wait for a process whose pipe has closed; a core dump takes a while."""


def decode_or_exit(data: bytes, spec: FeatureSpec, limits: Limits) -> Decoded | Rejected:
    """Decode; exit this process if the decoder hangs or runs out of memory.

    For worker processes, whose tasks are then run again in isolation.
    """
    faulthandler.dump_traceback_later(DECODE_SECONDS, exit=True)
    try:
        return decode(data, spec, limits)
    except MemoryError:
        log.exception("a worker ends itself, and its shard is prepared again")
        os._exit(1)  # an orderly end needs memory
    finally:
        faulthandler.cancel_dump_traceback_later()


class SandboxedDecoder:
    """Decode in a child process: an image that kills or hangs it is rejected as `decoder_crash` or `decode_timeout`.

    An image that runs out of memory is tried again in a new process; then MemoryError is raised, as that is not a
    property of the image. A killed child (SIGKILL) counts as out of memory: the kernel does that, and no defect of a
    decoder.

    For the shards whose task crashed; starting the child takes a fraction of a second, each image a little more.
    """

    def __init__(self) -> None:
        self._child: Child | None = None

    def __call__(self, data: bytes, spec: FeatureSpec, limits: Limits) -> Decoded | Rejected:
        for pause_seconds in RETRY_SECONDS:
            try:
                return self._decode(data, spec, limits)
            except MemoryError as error:
                log.warning("out of memory while decoding, tried again in %.0f s: %s", pause_seconds, error)
                self.close()
                time.sleep(pause_seconds)
        return self._decode(data, spec, limits)

    def _decode(self, data: bytes, spec: FeatureSpec, limits: Limits) -> Decoded | Rejected:
        if self._child is None:
            self._child = Child(_decode_for_parent)
            try:
                self._child.pipe.recv_bytes()  # ready: importing is not the image's time
            except (EOFError, OSError) as error:
                self.close()
                raise MemoryError("the process that decodes does not start") from error
        pipe = self._child.pipe
        try:
            pipe.send_bytes(json.dumps({"spec": spec.to_json(), "limits": limits.to_json()}).encode())
            pipe.send_bytes(data)
            if not pipe.poll(DECODE_SECONDS):
                self.close()
                return Rejected("decode_timeout")
            outcome = json.loads(pipe.recv_bytes())
            if "out_of_memory" in outcome:  # which is no property of the image
                raise MemoryError(outcome["out_of_memory"])
            if "reason" in outcome:
                return Rejected(**outcome)
            size = spec.image_size_px
            return Decoded(np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(size, size, 3), **outcome)
        except (EOFError, OSError):
            exit_code = self._child.exit_code(EXIT_SECONDS)
            self.close()
            if exit_code == -signal.SIGKILL:
                raise MemoryError("the process that decodes was killed") from None
            return Rejected("decoder_crash")

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def _decode_for_parent(pipe: Connection) -> None:
    pipe.send_bytes(b"ready")
    with contextlib.suppress(EOFError):
        while True:
            asked, data = json.loads(pipe.recv_bytes()), pipe.recv_bytes()
            # Twice what the parent waits: for a parent that was killed meanwhile.
            faulthandler.dump_traceback_later(2 * DECODE_SECONDS, exit=True)
            try:
                outcome = decode(data, FeatureSpec.from_json(asked["spec"]), Limits.from_json(asked["limits"]))
            except MemoryError as error:
                pipe.send_bytes(json.dumps({"out_of_memory": str(error)}).encode())
                continue
            finally:
                faulthandler.cancel_dump_traceback_later()
            if isinstance(outcome, Rejected):
                pipe.send_bytes(json.dumps(vars(outcome)).encode())
            else:
                told = {"width": outcome.width, "height": outcome.height, "mode": outcome.mode}
                pipe.send_bytes(json.dumps(told).encode())
                pipe.send_bytes(outcome.pixels_HWC.tobytes())
