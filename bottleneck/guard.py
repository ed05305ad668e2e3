"""Decoding that survives what a hostile image can do to a decoder written in C: crash it, or keep it busy for ever."""

import contextlib
import faulthandler
import multiprocessing
from typing import Any

from bottleneck.decode import Decoded, Rejected, decode
from bottleneck.spec import FeatureSpec, Limits

DECODE_SECONDS = 30
"""A decoder that takes longer hangs: a 100-megapixel JPEG takes about 2 s."""


def guarded_by_exit(data: bytes, spec: FeatureSpec, limits: Limits) -> Decoded | Rejected:
    """Decode, ending this process if the decoder hangs: for worker processes, whose tasks are then run again apart."""
    faulthandler.dump_traceback_later(DECODE_SECONDS, exit=True)
    try:
        return decode(data, spec, limits)
    finally:
        faulthandler.cancel_dump_traceback_later()


class GuardedByProcess:
    """Decode in a child process: an image that kills or hangs it is rejected as `decoder_crash` or `decode_timeout`.

    For the shards whose task crashed; starting the child takes a fraction of a second, each image a little more.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._child: Any = None
        self._pipe: Any = None

    def __call__(self, data: bytes, spec: FeatureSpec, limits: Limits) -> Decoded | Rejected:
        if self._child is None:
            self._pipe, far_end = self._context.Pipe()
            self._child = self._context.Process(target=_decode_for_parent, args=(far_end,), daemon=True)
            self._child.start()
            far_end.close()
            self._pipe.recv()  # ready: importing is not the image's time
        try:
            self._pipe.send((data, spec, limits))
            if not self._pipe.poll(DECODE_SECONDS):
                self.close()
                return Rejected("decode_timeout")
            decoded: Decoded | Rejected = self._pipe.recv()
            return decoded
        except (EOFError, OSError):
            self.close()
            return Rejected("decoder_crash")

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._pipe.close()
            self._child = None


def _decode_for_parent(pipe: Any) -> None:
    pipe.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            pipe.send(decode(*pipe.recv()))
