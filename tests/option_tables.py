"""The option tables of jobs/README.md, generated from the jobs' Configs.

python tests/option_tables.py            rewrites them
python tests/option_tables.py --check    fails if they are stale
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import typing
from pathlib import Path

from jobs.__main__ import JOBS
from jobs.command_line import docs_of

DOCUMENT = Path(__file__).resolve().parents[1] / "jobs/README.md"
MARKED = re.compile(r"<!-- options of (\w+) -->\n.*?<!-- end of options -->\n", re.DOTALL)


def default_of(field: dataclasses.Field[typing.Any]) -> str:
    """The default as it is typed, empty for none."""
    value = field.default_factory() if callable(field.default_factory) else field.default
    if value is dataclasses.MISSING or value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    return f"`{value}`" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else f"{value:,}"


def rows_of(config: type) -> list[tuple[str, str, str]]:
    """Option, meaning and default, nested dataclasses included, without arguments that are given by their place."""
    from tyro.conf import Positional

    hints, docs, rows = typing.get_type_hints(config, include_extras=True), docs_of(config), []
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            rows += rows_of(typing.cast(type, kind))
        elif Positional not in getattr(kind, "__metadata__", ()):
            rows.append((f"`--{field.name.replace('_', '-')}`", docs.get(field.name, ""), default_of(field)))
    return rows


def table_of(job: str) -> str:
    lines = ["| option | meaning | default |", "|---|---|---|"]
    for option, meaning, default in rows_of(importlib.import_module(f"jobs.{job}").Config):
        lines.append(f"| {option} | {meaning.replace('|', chr(92) + '|')} | {default} |")
    return "\n".join(lines) + "\n"


def renewed(document: str) -> str:
    """The document with every marked table as the Configs are now."""
    return MARKED.sub(
        lambda found: f"<!-- options of {found[1]} -->\n{table_of(found[1])}<!-- end of options -->\n", document
    )


if __name__ == "__main__":
    old = DOCUMENT.read_text()
    if "--print" in sys.argv:
        for job in JOBS:
            print(f"## {job}\n{table_of(job)}")
    elif "--check" in sys.argv:
        sys.exit(old != renewed(old))
    else:
        DOCUMENT.write_text(renewed(old))
