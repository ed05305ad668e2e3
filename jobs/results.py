"""What a job answers: its result on stdout for a person to read, or with `--json` one JSON object there.

Progress and logs go to stderr, with `--json` the readable result as well. Whatever a job shows passes through here or
through `LineFormatter`, and is escaped: keys, labels and the answers of servers can hold what a terminal would obey.
"""

import contextlib
import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from bottleneck.text import printable


class _Streams:
    """Where results go."""

    as_json = False
    stdout: TextIO | None = None
    options: frozenset[str] = frozenset()
    """Options of the running job, by field name."""


@contextlib.contextmanager
def answering(*, as_json: bool) -> Iterator[None]:
    """Make jobs answer on the current stdout, even if it is redirected later."""
    before = _Streams.as_json, _Streams.stdout, _Streams.options
    _Streams.as_json, _Streams.stdout, _Streams.options = as_json, sys.stdout, frozenset()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # where a terminal has no letters but ASCII's
    try:
        yield
    finally:
        _Streams.as_json, _Streams.stdout, _Streams.options = before


def speak_of(options: Iterable[str]) -> None:
    """Make errors and logs name options of the job instead of parameters of the library."""
    _Streams.options = frozenset(options)


def with_options(message: str) -> str:
    """Replace parameters in a message (`test_fraction`) with the job's options (--test-fraction)."""
    options = _Streams.options
    return re.sub(r"`(\w+)`", lambda one: f"--{one[1].replace('_', '-')}" if one[1] in options else one[0], message)


def show(line: str, lead: str = "") -> None:
    """Print a line of the result.

    Args:
        lead: our own, and printed as it is: a coloured word, say.
    """
    _print(lead + printable(line), _shown())


def answer(result: dict[str, Any]) -> None:
    """Print the job's result as JSON, if requested. Called once, at the end."""
    if _Streams.as_json:
        _print(json.dumps(_finite(result), allow_nan=False), _Streams.stdout or sys.stdout)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, with null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def fail(error: str, message: str, exit_code: int) -> int:
    """Report an error in one line, and as JSON; returns the exit code."""
    message = with_options(message)
    _print(f"error: {printable(message)}", sys.stderr)
    answer({"error": error, "message": message, "exit_code": exit_code})
    return exit_code


def has_terminal() -> bool:
    """Whether `show` writes to a terminal."""
    return _shown().isatty()


def flush() -> None:
    """Flush before `os._exit`, which does not, and after help, whose reader may have left."""
    for stream in (_Streams.stdout or sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            silence(stream)


def silence(stream: TextIO) -> None:
    """Discard the rest of a stream whose reader, such as `head`, has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _shown() -> TextIO:
    return sys.stderr if _Streams.as_json else _Streams.stdout or sys.stdout


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)


class LineFormatter(logging.Formatter):
    """Format a record as one line, with a traceback's lines indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [printable(with_options(record.getMessage()))]
        if record.exc_info and record.exc_info[1]:
            for part in traceback.format_exception(record.exc_info[1]):
                lines += [f"  {printable(line)}" for line in part.rstrip("\n").split("\n")]
        return "\n".join(lines)
