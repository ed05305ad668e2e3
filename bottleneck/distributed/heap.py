"""Return free memory that the C library keeps to the system."""

import contextlib
import ctypes
import time

TRIM_SECONDS = 10.0
"""Between two returns: each takes some milliseconds."""


class Trimmer:
    """Gives what is free back to the system now and then.

    Objects of many sizes, some of them long-lived, leave glibc's heap full of holes: without it the driver grew by
    50 kB a shard, with the memory in use staying what it was.
    """

    def __init__(self) -> None:
        self._trimmed_at = time.monotonic()

    def __call__(self) -> None:
        """Return it, if the last time was long enough ago; nothing where the C library has no such call."""
        if time.monotonic() - self._trimmed_at < TRIM_SECONDS:
            return
        with contextlib.suppress(AttributeError, OSError, TypeError):  # musl, macOS, Windows
            ctypes.CDLL(None).malloc_trim(0)
        self._trimmed_at = time.monotonic()
