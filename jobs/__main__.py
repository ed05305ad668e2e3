"""`python -m jobs NAME ...`; the installed command `bottleneck NAME ...` is the same table."""

import dataclasses
import gc
import importlib
import json
import logging
import os
import signal
import sys
import typing
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
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
    "describe",
    "export",
    "diff",
    "doctor",
    "demo",
    "benchmark",
    "submit",
)
EXPECT_VERSION = "--expect-version"
"""Before a job's name: what `submit` sends, so that a job is not run by another version than it was checked by."""

NOTE = """exit codes: 0 done, 1 corrupt or different, 2 usage, 3 incomplete, 4 other fingerprint, 5 environment, 6 too
many rejected
the last line on stdout is one JSON object; progress and logs go to stderr"""


def main(arguments: list[str] | None = None) -> int:
    """Run one job and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(
        50_000, 20, 50
    )  # by default a fifth of the time of importing goes into collections that find nothing
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the processes started: they cannot act on them
    if clash := _pydata_bottleneck():
        print(clash, file=sys.stderr)
        return 5
    from bottleneck import __version__
    from bottleneck.errors import BottleneckError, ClusterError

    if arguments[:1] in (["--version"], ["-V"]):
        print(__version__)
        return 0
    if arguments[:1] == [EXPECT_VERSION]:
        expected, arguments = "".join(arguments[1:2]), arguments[2:]
        if expected != __version__:
            return _failed(
                ClusterError(
                    f"This cluster has version {__version__} of bottleneck, the job was sent by {expected}. Expected "
                    "the same one, which checked the job's arguments. Renew the cluster's image, or send the code "
                    "along: bottleneck submit --with-code."
                )
            )
    if not arguments or arguments[0] not in JOBS:
        _overview(sys.stdout if arguments[:1] in (["--help"], ["-h"]) else sys.stderr)
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("bottleneck").setLevel(logging.INFO)
    logging.getLogger("jobs").setLevel(logging.INFO)
    # A scheduler's "please end" is treated as a person's Ctrl-C: stop in order, say how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        job = importlib.import_module(f"jobs.{arguments[0]}")
        return int(job.main(parse(job, arguments[1:])))
    except BottleneckError as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("interrupted: what is done is kept; run the same command again to go on.", file=sys.stderr)
        print(json.dumps({"error": "Interrupted", "message": "interrupted", "exit_code": 3}))
        sys.stdout.flush()
        sys.stderr.flush()
        # Without Python's own end: threads of Ray and pyarrow that were cut short can abort it, with another exit code.
        os._exit(3)


def parse(job: ModuleType, arguments: list[str]) -> Any:
    """A job's Config from its command line, which is derived from the Config's fields and their docstrings."""
    import tyro

    if hasattr(job, "check_arguments"):
        job.check_arguments(arguments)
    return tyro.cli(
        job.Config,
        prog=f"bottleneck {job.__name__.removeprefix('jobs.')}",
        description=f"{job.__doc__}\n{NOTE}",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def options(config: type) -> list[str]:
    """The names of a Config's options, nested ones included, for the tests of help and README."""
    hints = typing.get_type_hints(config)
    names = []
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        names += options(kind) if dataclasses.is_dataclass(kind) else [field.name]  # type: ignore[arg-type]
    return names


def _failed(error: Any) -> int:
    print(f"error: {error}", file=sys.stderr)
    print(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}))
    return int(error.exit_code)


def _overview(stream: Any) -> None:
    print("usage: bottleneck JOB ...   (bottleneck JOB --help shows its options)\n", file=stream)
    for name in JOBS:
        job = importlib.import_module(f"jobs.{name}")
        print(f"  {name:10} {(job.__doc__ or '').splitlines()[0]}", file=stream)
    print(f"\n{NOTE}", file=stream)


def _pydata_bottleneck() -> str:
    """pydata's package is imported under the same name, so only one of the two can be in an environment."""
    try:
        found = version("Bottleneck")
    except PackageNotFoundError:
        return ""
    return (
        f"error: pydata's package Bottleneck {found} is installed in this environment and is imported by the same name "
        "as this one. Expected an environment without it. `pip uninstall Bottleneck` and install this project again, "
        "or use another environment; pandas works without it."
    )


if __name__ == "__main__":
    sys.exit(main())
