"""Show progress on stderr: a live line on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bottleneck.text import printable

PLAIN_SECONDS = 10.0
"""Between plain lines, which are read in log files."""
RATE_SECONDS = 30.0
"""The displayed rate covers the last half minute, so that it follows a growing cluster."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    images: int
    """Done, of `planned`, earlier runs included."""
    planned: int
    rejected: int
    limiting: str
    """The stage that limits the rate: `network`, `decode` or `read`; `start` before the first image; empty
    where nothing is measured."""
    waiting: str = ""
    """What a stalled run waits for; shown instead of what limits it."""
    expected: str = ""
    """The forecast of the run, once there is one; printed once, in its own line."""


class Display:
    """Show `Progress` as it changes. A context manager: the last state stays on the screen."""

    def __init__(self, title: str, images_before: int = 0) -> None:
        self.title = title
        self._before = images_before
        self._history: deque[tuple[float, int]] = deque()
        self._last: Progress | None = None
        self._printed_at = 0.0
        self._printed: Progress | None = None
        self._expected = ""
        self._live: Any = None

    def __enter__(self) -> "Display":
        self._live = start_live()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._last is not None and self._last != self._printed:
            self._print(self._last)

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._last is None or progress.images > self._last.images or not self._history:
            self._history.append((now, progress.images))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        self._last = progress
        if progress.expected != self._expected:
            self._expected = progress.expected
            self._tell(self._expected)
        if self._live is not None:
            self._live.update(self._drawn(progress), refresh=True)
        elif now - self._printed_at >= PLAIN_SECONDS:
            self._print(progress)

    def _rate_and_eta(self, left: int) -> tuple[float, float] | None:
        """Images per second and the remaining seconds, once two states differ.

        Images arrive in batches; between two of them the seconds count down. If a batch is late, the rate is that of
        the whole time until now.
        """
        (first_time, first), (last_time, last) = self._history[0], self._history[-1]
        if last <= first:
            return None
        now = time.monotonic()
        rate = (last - first) / (last_time - first_time)
        eta = left / rate - (now - last_time)
        if eta < 1 and left:
            rate = (last - first) / (now - first_time)
            eta = left / rate
        return rate, eta

    def line(self, progress: Progress) -> str:
        """One line of words and numbers."""
        parts = [f"{progress.images:,} of {progress.planned:,}"]
        left = progress.planned - progress.images
        if not left:
            parts.append("done")  # at which rate the summary says, for the whole run
        elif known := self._rate_and_eta(left):
            parts += [
                f"{known[0]:.1f} images/s" if known[0] >= 0.1 else f"{known[0]:.1g} images/s",
                f"ETA {duration(known[1])}",
            ]
        if progress.rejected:
            parts.append(f"{progress.rejected:,} rejected")
        if progress.waiting:
            parts.append(f"waiting for {progress.waiting}")
        elif progress.limiting == "start":
            parts += ["starting"] if left else []
        elif progress.limiting:
            parts.append(f"limited by {progress.limiting}")
        return " · ".join(parts)

    def _print(self, progress: Progress) -> None:
        self._printed_at = time.monotonic()
        self._printed = progress
        print(f"{self.title}: {printable(self.line(progress))}", file=sys.stderr, flush=True)

    def _tell(self, line: str) -> None:
        """Print a line above the live one."""
        if self._live is not None:
            self._live.console.print(printable(line), markup=False, highlight=False)
        else:
            print(f"{self.title}: {printable(line)}", file=sys.stderr, flush=True)

    def _drawn(self, progress: Progress) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(width=12)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=max(1, progress.planned), completed=progress.images, width=12)
        grid.add_row(self.title, bar, self.line(progress))
        return grid


def start_live(*, transient: bool = False) -> Any:
    """Rich's live display on stderr, started; None where stderr is no terminal.

    Args:
        transient: whether it goes when it is stopped, as what it showed is then shown elsewhere.
    """
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(stderr=True), auto_refresh=False, transient=transient)
    live.start()
    return live


def duration(seconds: float) -> str:
    """3725 -> `1 h 2 min`, 65 -> `1 min 5 s`, 9.2 -> `9 s`."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole} s" if minutes else f"{whole} s"


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Silence file descriptor 2, on which TensorFlow's and Ray's libraries greet before any setting reaches them."""
    with open(os.devnull, "w") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
