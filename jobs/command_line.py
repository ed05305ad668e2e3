"""A job's command line, derived from its Config: parsing, help, defaults from the environment, tab completion."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import itertools
import logging
import os
import re
import sys
import typing
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

log = logging.getLogger(__name__)

NOTE = """Exit codes:

    0   done
    1   corrupt (diff: different)
    2   wrong usage
    3   incomplete: run the same command again
    4   the output has another fingerprint
    5   environment: store, credentials, weights, disk, cluster
    6   too many images rejected
    70  a defect of bottleneck itself

Results go to stdout, progress and logs to stderr. With --json, stdout has exactly one JSON object, however the job
ends, and everything else goes to stderr."""
VARIABLES = {"base": "BOTTLENECK_BASE", "weights": "BOTTLENECK_WEIGHTS"}
"""Options that may come from the environment, for the jobs that choose a network."""
SHELLS = ("bash", "zsh", "tcsh", "fish")


def parse(job: ModuleType, arguments: list[str]) -> Any:
    """A job's Config from its command line, which is derived from the Config's fields and their docstrings."""
    import tyro

    from bottleneck.errors import UsageError
    from jobs import results

    if hasattr(job, "check_arguments"):
        job.check_arguments(arguments)
    name = f"bottleneck {job.__name__.removeprefix('jobs.')}"
    told = io.StringIO()
    annotate(job.Config)
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                job.Config,
                prog=name,
                description=job.__doc__,
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as end:
        if end.code:
            raise UsageError(f"{_unboxed(told.getvalue())} See {name} --help.") from None
    except BrokenPipeError:  # `--help | head`
        results.silence(sys.stdout)
        raise SystemExit(0) from None
    # The help is out.
    try:
        print(f"\n{NOTE}")
    except BrokenPipeError:
        results.silence(sys.stdout)
    results.flush()
    raise SystemExit(0)


def with_environment(job: ModuleType, arguments: list[str]) -> list[str]:
    """Add `--base` and `--weights` from BOTTLENECK_BASE and BOTTLENECK_WEIGHTS where they are not given.

    Only for jobs that choose a network; those that continue with a head's or a dataset's know theirs.
    """
    chooses = "base" in options(job.Config) and not _has(arguments, "--head")
    added = []
    for option, variable in VARIABLES.items():
        value = os.environ.get(variable)
        if chooses and value and not _has(arguments, f"--{option}") and not {"-h", "--help"} & {*arguments}:
            log.info("--%s %s, from %s", option, value, variable)
            added += [f"--{option}", value]
    return [*arguments, *added]


def _has(arguments: list[str], option: str) -> bool:
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def annotate(config: type) -> None:
    """Have the help show `INT` for an option that may be left out, and no default where there is nothing to show.

    Changes the annotations of the Config and of the dataclasses in it; nothing but tyro reads what is added.
    """
    import tyro

    hints, docs = typing.get_type_hints(config, include_extras=True), docs_of(config)
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            annotate(typing.cast(type, kind))
            continue
        extras = getattr(kind, "__metadata__", ())
        if any(getattr(one, "help", None) for one in extras):
            continue  # annotated before
        known = next((one.metavar for one in extras if getattr(one, "metavar", None)), None)
        others = [one for one in extras if not hasattr(one, "metavar")]
        shown = tyro.conf.arg(
            metavar=known or _metavar(kind), help=docs[field.name], help_behavior_hint=_default(field)
        )
        owner = next(one for one in config.__mro__ if field.name in inspect.get_annotations(one))
        plain = get_args(kind)[0] if extras else kind
        owner.__annotations__[field.name] = Annotated[(plain, *others, shown)]


def docs_of(config: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of those it is derived from, as one line each."""
    docs: dict[str, str] = {}
    for owner in reversed(config.__mro__[:-1]):
        [definition] = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return docs


def _metavar(kind: Any) -> str | None:
    """How a value is shown: INT, STR, {a,b}, or with dots if there may be several. None for a flag."""
    if kind is bool:
        return None
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])} ..."
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    return "|".join(filter(None, (one.__name__.upper() if isinstance(one, type) else _metavar(one) for one in kinds)))


def _default(field: "dataclasses.Field[Any]") -> str:
    """`(default: 512)` or `(required)`; empty where the default is nothing, which the option's text explains."""
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "(required)"
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is None or value is False or value in ("", ()):
        return ""
    values = value if isinstance(value, tuple) else (value,)
    return f"(default: {' '.join(f'{one:g}' if isinstance(one, float) else str(one) for one in values)})"


def completion(shell: str, jobs: typing.Sequence[str]) -> str:
    """The script by which a shell completes jobs and their options. Raises UsageError for a shell it cannot be for."""
    import tyro

    from bottleneck.errors import UsageError

    if shell not in SHELLS:
        raise UsageError(f"Expected {', '.join(SHELLS)} after --completion. Received: {shell or 'nothing'}.")
    configs = {}
    for name in jobs:
        config = importlib.import_module(f"jobs.{name}").Config
        annotate(config)
        configs[name] = config
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            configs,
            prog="bottleneck",
            args=["--tyro-write-completion", shell, "-"],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    return told.getvalue()


def _unboxed(box: str) -> str:
    """The sentences of tyro's complaint, which comes in a box with a title, a frame and colours that terminals vary."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│]", "", box)
    told = " ".join(line.strip() for line in plain.strip().splitlines()[1:])  # without the title
    parts = [part.strip() for part in re.split(r"[─-]{10,}", told)]
    said = [part for part in parts if part and not part.startswith("For full helptext")]
    return " ".join(part if part.endswith((".", ")")) else f"{part}." for part in said)


def options(config: type, *, named: bool = False) -> list[str]:
    """The names of a Config's options, nested ones included.

    Args:
        named: leave out those that are told by their place.
    """
    from tyro.conf import Positional

    hints = typing.get_type_hints(config, include_extras=True)
    names = []
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            names += options(kind, named=named)  # type: ignore[arg-type]
        elif not (named and Positional in getattr(kind, "__metadata__", ())):
            names.append(field.name)
    return names
