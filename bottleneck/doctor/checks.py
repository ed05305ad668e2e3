"""Run checks, each within a time limit; one that hangs or fails becomes a finding."""

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from bottleneck.errors import BottleneckError

CHECK_SECONDS = 45.0
"""Time limit of a check; a stalled store reports itself after 30 s."""
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|_KEY$|ACCESS_KEY")
_THREAD = "check of "
_SHORTEST_SECRET = 6
"""Shorter values of such variables (`1`, `token`) are not treated as secrets."""

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """The result of a check, with a remedy if it is not ok."""

    name: str
    state: State
    message: str


Look = Callable[[], Iterator[Finding]]


@dataclass(frozen=True)
class Check:
    """A check, which may yield several findings."""

    name: str
    look: Look
    limit_seconds: float = CHECK_SECONDS
    """Time limit in seconds."""


def examine(check: Check) -> Iterator[Finding]:
    """Yield the findings of a check; an error or a timeout is a failure.

    A check that timed out may continue in a daemon thread.
    """
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            for finding in check.look():
                found.put(finding)
        except BottleneckError as error:
            found.put(Finding(check.name, "failure", str(error)))
        except Exception as error:  # whatever is broken must not keep the other checks from being made
            found.put(Finding(check.name, "failure", f"{type(error).__name__}: {error}. The check itself failed."))
        found.put(None)

    ends = time.monotonic() + check.limit_seconds
    threading.Thread(target=run, name=f"{_THREAD}{check.name}", daemon=True).start()
    while True:
        try:
            finding = found.get(timeout=max(0.0, ends - time.monotonic()))
        except queue.Empty:
            told = f"no answer within {check.limit_seconds:.0f} s. Look at the network, the name and the endpoint."
            yield Finding(check.name, "failure", told)
            return
        if finding is None:
            return
        yield Finding(finding.name, finding.state, without_secrets(finding.message))


def is_examining() -> bool:
    """Whether a check that timed out is still running."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


def without_secrets(text: str) -> str:
    """Remove the values of environment variables with secret names from a text."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET and not os.path.exists(value):
            text = text.replace(value, f"<{name}>")
    return text
