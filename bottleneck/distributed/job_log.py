"""Follow a cluster job's log over connections that may break, and extract its result."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from bottleneck.distributed.dashboard import LostError
from bottleneck.errors import ClusterError

log = logging.getLogger(__name__)

SILENT_SECONDS = 60
"""Seconds without a line after which the log is requested again: a connection can break silently."""
PATIENCE_SECONDS = 300
"""Seconds without any response before giving up: a restarted head is back by then."""
LONGEST_PAUSE_SECONDS = 30
STATE_DUMP = "[state-dump]"
"""In the hundreds of lines by which Ray's core tells what it counts, at times into the log of a job."""


class Transcript:
    """A job's log as it arrives: every line is shown, except the last JSON object, the job's result."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.result: dict[str, Any] | None = None
        self.result_line = ""
        self.num_seen = 0
        self._show = show
        self._num_read = 0
        self._rest = ""

    def begin_again(self) -> None:
        """Start reading from the beginning again; lines seen before are skipped."""
        self._num_read = 0

    def add(self, text: str) -> None:
        new = text[max(0, self.num_seen - self._num_read) :]
        self._num_read += len(text)
        self.num_seen = max(self.num_seen, self._num_read)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._line(line)

    def end(self) -> None:
        """Show a last line without a newline."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""

    def _line(self, line: str) -> None:
        if STATE_DUMP in line:
            return
        if (found := _json_object(line)) is None:
            self._show(line)
            return
        if self.result_line:
            self._show(self.result_line)
        self.result, self.result_line = found, line


def _json_object(line: str) -> dict[str, Any] | None:
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            return found if isinstance(found, dict) else None
    return None


def follow(client: Any, submission_id: str, transcript: Transcript, patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """Read a job's log until the job ends, and reconnect if the connection breaks.

    Args:
        patience_seconds: how long a dashboard may be silent.

    Returns:
        Ray's JobDetails.

    Raises:
        ClusterError: where the dashboard was silent for too long, or does not know the job any more.
    """
    answered, pause_seconds, is_lost = time.monotonic(), 1.0, False
    while True:
        seen = transcript.num_seen
        asyncio.run(_read_log(client, submission_id, transcript))
        if transcript.num_seen > seen:  # a log can flow for hours before the connection is lost
            answered = time.monotonic()
        try:
            details = client.get_job_info(submission_id)  # whyever the log has ended: this one knows
            answered, is_lost = time.monotonic(), False
            if details.status.is_terminal():
                with contextlib.suppress(LostError):  # where the log went with the node it was on
                    transcript.begin_again()
                    transcript.add(client.get_job_logs(submission_id))
                transcript.end()
                return details
        except LostError as error:
            if time.monotonic() - answered > patience_seconds:
                raise ClusterError(f"{error} For {patience_seconds:.0f} s now; the job may still run.") from None
            if not is_lost:
                log.warning("%s The job goes on without us; trying again.", error)
            is_lost = True
        pause_seconds = 1.0 if transcript.num_seen > seen else min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        time.sleep(min(pause_seconds, patience_seconds))


async def _read_log(client: Any, submission_id: str, transcript: Transcript) -> None:
    """Read until the job ends, the connection breaks, or nothing arrives."""
    import aiohttp

    transcript.begin_again()
    async with contextlib.aclosing(client.tail_job_logs(submission_id)) as chunks:
        # RuntimeError: how Ray's client says that a connection has ended amiss.
        with contextlib.suppress(StopAsyncIteration, TimeoutError, RuntimeError, OSError, aiohttp.ClientError):
            while True:
                transcript.add(await asyncio.wait_for(anext(chunks), SILENT_SECONDS))
