"""Return free memory that the C library keeps to the system."""

import contextlib
import ctypes
import time

TRIM_SECONDS = 10.0
"""Seconds between two trims, each of which takes some milliseconds."""


class Trimmer:
    """Return free memory to the system now and then.

    Objects of many sizes and lifetimes fragment glibc's heap: without trimming the driver grew by 50 kB per shard, with
    constant memory in use.
    """

    def __init__(self) -> None:
        self._trimmed_at = time.monotonic()

    def __call__(self) -> None:
        """Trim if the last time was long enough ago; does nothing on other C libraries."""
        if time.monotonic() - self._trimmed_at < TRIM_SECONDS:
            return
        with contextlib.suppress(AttributeError, OSError, TypeError):  # musl, macOS, Windows
            ctypes.CDLL(None).malloc_trim(0)
        self._trimmed_at = time.monotonic()
