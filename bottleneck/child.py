"""Run a function of this package in a process of its own and exchange messages with it.

The process knows nothing of its parent's main module. `multiprocessing` would import that again, so that a script
without `if __name__ == "__main__":` would start itself once more, and fail. Messages are JSON and plain bytes: what a
process says that met hostile bytes is data, never code.
"""

import importlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, Self

from bottleneck import errors
from bottleneck.errors import BottleneckError

log = logging.getLogger(__name__)

PARENT_SECONDS = 0.5
"""Between two checks whether the parent is alive."""

Serve = Callable[[Connection], None]
"""The function a child runs, with the pipe to its parent."""


class ChildDiedError(Exception):
    """The process ended without an answer."""


class Child:
    """A process that runs a function of a module; a context manager, which ends it.

    What it prints goes to stderr: stdout belongs to a job's result.
    """

    def __init__(self, serve: Serve) -> None:
        self.pipe, far_end = Pipe()
        with far_end:
            arguments = (serve.__module__, serve.__name__, str(far_end.fileno()), str(os.getpid()))
            self._process = subprocess.Popen(  # noqa: S603  # this Python, no shell
                command(__name__, *arguments),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[far_end.fileno()],
                process_group=0,  # a Ctrl-C is for the parent, which ends it
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exit_code(self, seconds: float) -> int | None:
        """The exit code as in `subprocess`, -N for signal N; None if it still runs after that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package, without the working directory on its path (`-P`)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment for `command`: imports resolve as in this process."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [os.path.abspath(path) for path in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*filter(None, given), *paths]))}


def ask(serve: Serve, request: dict[str, Any]) -> Any:
    """Send one request to a new child, whose function calls `answer`.

    Raises:
        ChildDiedError: if it dies over that.
        BottleneckError: what it met.
    """
    with Child(serve) as child:
        try:
            child.pipe.send_bytes(json.dumps(request).encode())
            result = json.loads(child.pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise ChildDiedError from error
    if "error" in result:
        raise raised(result["error"])
    return result["value"]


def answer(pipe: Connection, function: Callable[[dict[str, Any]], Any]) -> None:
    """Answer the parent's request with the result of a function, or with the error it raises."""
    request = json.loads(pipe.recv_bytes())
    try:
        result = {"value": function(request)}
    except Exception as error:
        result = as_result(error)
    pipe.send_bytes(json.dumps(result).encode())


def as_result(error: BaseException) -> dict[str, Any]:
    """An error as JSON, for another process."""
    if isinstance(error, BottleneckError):
        return {"error": [type(error).__name__, str(error)]}
    told = f"A worker failed with {type(error).__name__}: {error}."
    return {"error": ["BottleneckError", told, "".join(traceback.format_exception(error))]}


def raised(error: list[str]) -> BottleneckError:
    """The exception for an error from `as_result`; the traceback of an unexpected one is logged."""
    kind, message, *tracebacks = error
    for one in tracebacks:
        log.error("%s", one)
    made: BottleneckError = getattr(errors, kind, BottleneckError)(message)
    return made


def run() -> None:
    """The program."""
    module, name, handle, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    with Connection(int(handle)) as pipe:
        getattr(importlib.import_module(module), name)(pipe)


def _end_with(parent: int) -> None:
    """Exit when the parent has died, as a killed parent cannot end its children."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    run()
