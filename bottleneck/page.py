"""The one page of a report: its frame, its looks and the few lines of script that sort tables.

Everything a page shows comes in as text and is escaped here; nothing is loaded from anywhere.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --surface: #ffffff; --page: #f4f6f9; --text: #1b2230; --muted: #596273;
  --line: #d5dae3; --accent: #1f5fbf; --bar: #d6e4f8; --meter: #7ba6e6; --note: #fff3d6; --note-text: #553c00; }
@media (prefers-color-scheme: dark) { :root { --surface: #171b23; --page: #0f1218; --text: #e6e9ef; --muted: #a3acba;
  --line: #313846; --accent: #8ab8ff; --bar: #22406b; --meter: #4b7fc9; --note: #3a2f12; --note-text: #ffe3a1; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--surface); padding: .5rem 1rem; z-index: 2; }
header, main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: 0 0 .75rem; max-width: 44rem; }
.muted, figcaption, caption { color: var(--muted); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; list-style: none; padding: 0; margin: 1rem 0; }
nav a { display: inline-block; padding: .25rem 0; }
section { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem;
  margin: 0 0 1rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(8.5rem, 45%), 1fr)); gap: .75rem;
  margin: 0; }
.numbers div { border-left: 3px solid var(--accent); padding-left: .75rem; }
.numbers dt { color: var(--muted); font-size: .875rem; }
.numbers dd { margin: 0; font-size: 1.5rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.numbers dd small { display: block; font-size: .8125rem; font-weight: 400; color: var(--muted); }
.note { background: var(--note); color: var(--note-text); border-radius: 6px; padding: .6rem .9rem; max-width: none;
  overflow-wrap: anywhere; }
.scroll { overflow: auto; max-height: 44rem; border: 1px solid var(--line); border-radius: 6px; }
.scroll.picture { max-height: none; border: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .6rem; font-size: .875rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
thead th { position: sticky; top: 0; background: var(--surface); border-top: 0; font-size: .875rem; }
tbody th { font-weight: 500; }
td.bar { background: linear-gradient(var(--meter), var(--meter)) left bottom / var(--share) 3px no-repeat content-box; }
.sortable th { width: 17%; } .sortable th:first-child { width: 32%; }
tr.best { background: var(--bar); font-weight: 650; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: .2rem 0; cursor: pointer; }
th button::after { content: " \\2195"; color: var(--muted); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 0; }
.picture img { display: block; width: 100%; height: auto; border-radius: 6px; }
.confusion { max-width: 54rem; }
.calibration { max-width: 26rem; }
.pairs, .gallery { list-style: none; padding: 0; margin: 0; display: grid; gap: 1rem; }
.pairs { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.pairs > li { border: 1px solid var(--line); border-radius: 8px; padding: .75rem; min-width: 0; }
.pairs h3 { margin: 0 0 .5rem; }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; }
.gallery { grid-template-columns: repeat(auto-fill, minmax(min(8rem, 45%), 1fr)); }
.gallery figure, .three figure { min-width: 0; }
.thumb { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; background: var(--page);
  border: 1px solid var(--line); }
figcaption { font-size: .8125rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
figcaption b { color: var(--text); font-weight: 600; }
code, .key { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .8125rem;
  overflow-wrap: anywhere; }
details { margin: .4rem 0; }
summary { cursor: pointer; }
details ul { margin: .4rem 0; padding-left: 1.25rem; }
.made { display: grid; grid-template-columns: minmax(7rem, 14rem) minmax(0, 1fr); gap: .25rem 1rem; margin: 0; }
.made dt { color: var(--muted); overflow-wrap: anywhere; }
.made dd { margin: 0; overflow-wrap: anywhere; }
footer { padding-bottom: 2rem; font-size: .875rem; color: var(--muted); }
@media (max-width: 30rem) { section { padding: 1rem .8rem; } th, td { padding: .3rem .35rem; }
  table { font-size: .8125rem; } thead th { font-size: .75rem; } .numbers dd { font-size: 1.25rem; }
  .made { grid-template-columns: 1fr; gap: 0; } .made dd { margin-bottom: .4rem; } }
@media (min-width: 56rem) { .pairs { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { section { break-inside: avoid; } .scroll { max-height: none; overflow: visible; } nav { display: none; }
  }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort ? head.ariaSort === "ascending" : column > 0;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows], text = row => row.cells[column].textContent;
      const number = row => parseFloat(text(row).replaceAll(",", ""));
      rows.sort((a, b) => column ? number(a) - number(b) : text(a).localeCompare(text(b)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}
"""

_SCRIPT_SHA256 = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# The script is allowed by its hash and no other is, so that even a slip in the escaping could run nothing.
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_SHA256}'; "
    "base-uri 'none'; form-action 'none'"
)


def escape(text: Any) -> str:
    """Text, safe inside elements and quoted attributes."""
    return html.escape(str(text), quote=True)


def name(text: str) -> str:
    """A key or label inside text: its writing direction ends with it."""
    return f"<bdi>{escape(text)}</bdi>"


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole document.

    Args:
        title, subtitle, footer: text.
        sections: (id, heading, content) each, the content as HTML.
    """
    links = "".join(f'<li><a href="#{id_}">{escape(heading)}</a></li>' for id_, heading, _ in sections)
    body = "\n".join(
        f'<section id="{id_}" aria-labelledby="{id_}-heading"><h2 id="{id_}-heading">{escape(heading)}</h2>\n'
        f"{content}\n</section>"
        for id_, heading, content in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{escape(title)}</h1><p class="muted">{escape(subtitle)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main id="main" tabindex="-1">
{body}
</main>
<footer><p>{escape(footer)}</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[tuple[Sequence[str], str]],
    *,
    sortable: bool = False,
) -> str:
    """A table that scrolls inside its own region, by keyboard too.

    Args:
        rows: cells as HTML (`<td>` is put around them, the first is the row's heading), and the row's class or "".
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for cells, kind in rows:
        first, *rest = cells
        attribute = f' class="{escape(kind)}"' if kind else ""
        others = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr{attribute}><th scope="row">{first}</th>{others}</tr>')
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{kind}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def share_cell(value: float) -> str:
    """A cell with a number from 0 to 1 and a bar behind it."""
    return f'<td class="bar" style="--share:{100 * value:.0f}%">{value:.3f}</td>'


def picture(light: str, dark: str, alt: str, *, kind: str, min_width_px: int = 0) -> str:
    """A picture in two colourings; one that would be too small on a phone scrolls inside its own region."""
    style = f' style="min-width:{min_width_px}px"' if min_width_px else ""
    return (
        f'<div class="scroll picture {kind}" tabindex="0" role="region" aria-label="{escape(alt)}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}"{style}></picture></div>'
    )


def thumbnail(image: bytes | None, alt: str, caption: str) -> str:
    """A small picture with a caption (HTML); an empty frame where there is no picture."""
    shown = (
        f'<img class="thumb" src="{data_uri("image/jpeg", image)}" alt="{escape(alt)}" loading="lazy">'
        if image
        else '<div class="thumb" role="img" aria-label="no picture"></div>'
    )
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def definitions(values: dict[str, Any], kind: str = "made") -> str:
    """Names and values, one a line."""
    lines = (f"<dt>{escape(key)}</dt><dd>{escape(_shown(value))}</dd>" for key, value in values.items())
    return f'<dl class="{kind}">{"".join(lines)}</dl>'


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_shown(item) for item in value)
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
