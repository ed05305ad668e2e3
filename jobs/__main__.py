"""`python -m jobs NAME ...`; the installed command `bottleneck NAME ...` is the same table."""

import ast
import contextlib
import difflib
import gc
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

JOBS = (
    "extract",
    "plan",
    "status",
    "verify",
    "requeue",
    "fit",
    "evaluate",
    "predict",
    "classify",
    "similar",
    "duplicates",
    "report",
    "describe",
    "export",
    "diff",
    "doctor",
    "demo",
    "benchmark",
    "submit",
)
JSON = "--json"
COMPLETION = "--completion"
EXPECT_VERSION = "--expect-version"
"""Before a job's name: what `submit` sends, so that a job is not run by another version than it was checked by."""

UNEXPECTED = 70
"""The exit code of an exception that no job expects: `EX_SOFTWARE` of sysexits.h."""


def main(arguments: list[str] | None = None) -> int:
    """Run one job and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(
        50_000, 20, 50
    )  # by default a fifth of the time of importing goes into collections that find nothing
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the processes started: they cannot act on them
    as_json, arguments = split_json(arguments)
    if clash := _pydata_bottleneck():  # before anything of ours is imported, which then may be something of theirs
        print(f"error: {clash}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": "BottleneckError", "message": clash, "exit_code": 5}))
        return 5
    from bottleneck import __version__
    from bottleneck.errors import BottleneckError
    from jobs import results

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(results.LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("bottleneck").setLevel(logging.INFO)
    logging.getLogger("jobs").setLevel(logging.INFO)
    with results.answering(as_json=as_json):
        try:
            return _run(arguments)
        except BottleneckError as error:
            return results.fail(type(error).__name__, str(error), error.exit_code)
        except KeyboardInterrupt:
            print("interrupted: what is done is kept; run the same command again to go on.", file=sys.stderr)
            results.answer({"error": "Interrupted", "message": "interrupted", "exit_code": 3})
            results.flush()
            # Without Python's own end: threads of Ray and pyarrow that were cut short can abort it, with another code.
            os._exit(3)
        except Exception as error:
            logging.getLogger(__name__).exception("This is not expected to happen:")
            what = f"{type(error).__name__}: {error}".rstrip(".")
            remedy = f"This is a defect of bottleneck {__version__}: please report it with the lines above."
            return results.fail(type(error).__name__, f"{what}. {remedy}", UNEXPECTED)


def _run(arguments: list[str]) -> int:
    from bottleneck import __version__
    from bottleneck.errors import ClusterError, UsageError
    from jobs import results
    from jobs.command_line import completion, options, parse, with_environment

    if arguments[:1] in (["--version"], ["-V"]):
        print(__version__)
        return 0
    if arguments[:1] == [EXPECT_VERSION]:
        expected, arguments = "".join(arguments[1:2]), arguments[2:]
        if expected != __version__:
            raise ClusterError(
                f"This cluster has version {__version__} of bottleneck, the job was sent by {expected}. Expected "
                "the same one, which checked the job's arguments. Renew the cluster's image, or send the code "
                "along: bottleneck submit --with-code."
            )
    if arguments[:1] in (["--help"], ["-h"]):
        try:
            _overview(sys.stdout)
        except BrokenPipeError:  # as of a job's help
            results.silence(sys.stdout)
        results.flush()
        return 0
    if arguments[:1] == [COMPLETION]:
        print(completion("".join(arguments[1:2]), JOBS), end="")
        return 0
    if not arguments:
        _overview(sys.stderr)
        raise UsageError("Expected the name of a job. Received: nothing.")
    check_name(arguments[0], JOBS)
    # A scheduler's "please end" is treated as a person's Ctrl-C: stop in order, say how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    job = importlib.import_module(f"jobs.{arguments[0]}")
    results.speak_of(options(job.Config, named=True))
    config = parse(job, with_environment(job, arguments[1:]))
    with contextlib.redirect_stdout(sys.stderr):  # Keras prints while it downloads; `results` keeps the real one
        return int(job.main(config))


def split_json(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--json` is among a job's arguments, and the others. What follows `--` is of another job."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own = [argument for argument in arguments[:end] if argument != JSON]
    return len(own) < end, own + arguments[end:]


def check_name(name: str, jobs: Sequence[str]) -> None:
    """Raise UsageError for what is no job, with the names that it may be meant for."""
    from bottleneck.errors import UsageError

    if name in jobs:
        return
    if name.startswith("-"):
        raise UsageError(f"Expected the name of a job before its options. Received: {name}.")
    near = difflib.get_close_matches(name, jobs, 3)
    meant = f", did you mean {' or '.join(near)}?" if near else "."
    raise UsageError(f"unknown job '{name}'{meant} The jobs are {', '.join(jobs)}.")


def _overview(stream: Any) -> None:
    from jobs.command_line import NOTE

    print("usage: bottleneck JOB ...   (bottleneck JOB --help shows its options)\n", file=stream)
    for name in JOBS:
        print(f"  {name:10} {_first_line(name)}", file=stream)
    print(f"\n{NOTE}", file=stream)


def _first_line(job: str) -> str:
    """Of a job's docstring, read without importing the job: all of them together take seconds."""
    path = os.path.join(os.path.dirname(__file__), job)
    path = os.path.join(path, "__init__.py") if os.path.isdir(path) else f"{path}.py"
    with open(path, encoding="utf-8") as file:
        return (ast.get_docstring(ast.parse(file.read())) or "").partition("\n")[0]


def _pydata_bottleneck() -> str:
    """pydata's package is imported under the same name, so only one of the two can be in an environment."""
    try:
        found = version("Bottleneck")
    except PackageNotFoundError:
        return ""
    return (
        f"pydata's package Bottleneck {found} is installed in this environment and is imported by the same name "
        "as this one. Expected an environment without it. `pip uninstall Bottleneck` and install this project again, "
        "or use another environment; pandas works without it."
    )


if __name__ == "__main__":
    sys.exit(main())
