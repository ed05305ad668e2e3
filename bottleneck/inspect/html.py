"""Render pages from templates: what they show is escaped, and they load nothing."""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
_PARTS = re.compile(r"[^-_./\\]*[-_./\\]+|[^-_./\\]+")
"""`lily_valley/0001.jpg` -> `lily_`, `valley/`, `0001.`, `jpg`."""


def page(template: str, title: str, subtitle: str, sections: Sequence[tuple[str, str]], **context: Any) -> str:
    """Render a whole document.

    Args:
        template: the folder in `templates` with a file `ID.html.j2` for each section.
        title, subtitle: text.
        sections: (id, heading) of each.
        context: what the sections show.
    """
    from markupsafe import Markup

    style, script = ((TEMPLATES / name).read_text() for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The script is allowed by its hash and no other is, so that even a slip in the escaping could run nothing.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    ours = {"policy": Markup(policy), "style": Markup(style), "script": Markup(script)}  # noqa: S704  # files of this package
    values = {"template": template, "title": title, "subtitle": subtitle, "sections": sections, **ours, **context}
    text: str = _environment().get_template("page.html.j2").render(values)
    return text


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, "data_uri": _data_uri_of, "as_text": as_text}
    return environment


def breakable(text: str) -> Any:
    """A key or label as markup: its writing direction ends with it, and lines break between its parts."""
    from markupsafe import Markup

    parts = Markup("<wbr>").join(_PARTS.findall(text))
    return Markup("<bdi>{}</bdi>").format(parts)


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _data_uri_of(data: bytes, kind: str) -> str:
    return data_uri(kind, data)


def as_text(value: Any) -> str:
    """A value of any JSON type as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(as_text(item) for item in value)
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
