"""The frame, style and script of a page, and its elements.

Everything a page shows comes in as text and is escaped here; nothing is loaded from anywhere.
"""

import base64
import hashlib
import html
import re
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
.frame { position: relative; }
.frame.more::after { content: "\\203a"; position: absolute; inset: 1px 1px 1px auto; width: 2.5rem;
  padding-right: .3rem; display: flex; align-items: center; justify-content: flex-end; font-size: 2rem;
  font-weight: 700; color: var(--accent);
  background: linear-gradient(to right, transparent, var(--surface) 70%); border-radius: 6px; pointer-events: none; }
.scroll { overflow: auto; max-height: 44rem; border: 1px solid var(--line); border-radius: 6px;
  container-type: inline-size; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .875rem; }
caption span { display: inline-block; position: sticky; left: 0; padding: .5rem .6rem;
  max-width: calc(100cqi - 2.5rem); }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; position: sticky;
  left: 0; background: var(--surface); }
thead th { position: sticky; top: 0; background: var(--surface); border-top: 0; font-size: .875rem; }
thead th:first-child { z-index: 1; }
tbody th { font-weight: 500; }
td.bar { background: linear-gradient(var(--meter), var(--meter)) left bottom / var(--share) 3px no-repeat content-box; }
.sortable th { width: 17%; } .sortable th:first-child { width: 32%; }
tr.best, tr.best th { background: var(--bar); font-weight: 650; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: .2rem 0; cursor: pointer; }
th button::after { content: " \\2195"; color: var(--muted); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 0; }
.open { display: block; width: 100%; padding: 0; border: 0; background: none; font: inherit; color: inherit;
  cursor: zoom-in; }
.picture img { display: block; width: 100%; height: auto; border-radius: 6px; }
dialog { max-width: calc(100vw - 1rem); max-height: calc(100vh - 1rem); padding: 1rem; overflow: auto;
  border: 1px solid var(--line); border-radius: 10px; background: var(--surface); color: var(--text);
  cursor: zoom-out; }
dialog::backdrop { background: rgb(0 0 0 / .6); }
dialog img { display: block; width: min(28rem, 100vw - 4rem); min-width: var(--large-width); height: auto;
  margin-top: .6rem; }
dialog button { position: sticky; top: 0; left: 0; font: inherit; padding: .3rem .8rem; border-radius: 6px;
  border: 1px solid var(--line); background: var(--page); color: inherit; cursor: pointer; }
.pairs, .gallery { list-style: none; padding: 0; margin: 0; display: grid; gap: 1rem; }
.pairs { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.pairs > li { border: 1px solid var(--line); border-radius: 8px; padding: .75rem; min-width: 0; }
.pairs h3 { margin: 0 0 .5rem; }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; }
.gallery { grid-template-columns: repeat(auto-fill, minmax(min(8rem, 45%), 1fr)); }
.gallery figure, .three figure { min-width: 0; }
.thumb { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; background: var(--page);
  border: 1px solid var(--line); }
.absent { display: grid; place-items: center; padding: .4rem; text-align: center; font-size: .8125rem; line-height: 1.3;
  color: var(--muted); }
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
@media (max-width: 40rem) { .sortable, .sortable thead, .sortable tbody, .sortable caption { display: block; }
  .sortable tr { display: grid; grid-template-columns: repeat(4, 1fr); border-top: 1px solid var(--line); }
  .sortable th, .sortable td { border: 0; width: auto; min-width: 0; }
  .sortable th:first-child { grid-column: 1 / -1; width: auto; }
  .sortable tbody th { padding-bottom: 0; } .sortable thead { position: sticky; top: 0; z-index: 1; } }
@media (max-width: 30rem) { section { padding: 1rem .8rem; } th, td { padding: .3rem .35rem; }
  table { font-size: .8125rem; } thead th { font-size: .75rem; } .numbers dd { font-size: 1.25rem; }
  .made { grid-template-columns: 1fr; gap: 0; } .made dd { margin-bottom: .4rem; } }
@media (max-width: 23rem) { .three { grid-template-columns: 1fr; }
  .three figure { display: grid; grid-template-columns: 5rem 1fr; gap: .5rem; align-items: center; } }
@media (min-width: 56rem) { .pairs { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { section { break-inside: avoid; } .scroll { max-height: none; overflow: visible; }
  nav, dialog, .frame.more::after { display: none; }
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
for (const scroll of document.querySelectorAll(".scroll")) {
  const mark = () => scroll.parentElement.classList.toggle(
    "more", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 1);
  mark();
  scroll.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(scroll);
}
const dialog = document.querySelector("dialog");
document.addEventListener("click", event => {
  const opener = event.target.closest(".open"), close = document.createElement("button"), large = new Image();
  if (!opener) return;
  const small = opener.querySelector("img"), caption = opener.parentElement.querySelector("figcaption");
  close.type = "button";
  close.textContent = "Close";
  large.src = small.currentSrc;
  large.alt = small.alt;
  large.style.setProperty("--large-width", opener.dataset.width ?? "0");
  dialog.replaceChildren(close, large, ...(caption ? [caption.cloneNode(true)] : []));
  dialog.showModal();
});
dialog.addEventListener("click", event => event.target.closest("figcaption") || dialog.close());
"""

_SCRIPT_SHA256 = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# The script is allowed by its hash and no other is, so that even a slip in the escaping could run nothing.
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_SHA256}'; "
    "base-uri 'none'; form-action 'none'"
)
_PARTS = re.compile(r"[^-_./\\]*[-_./\\]+|[^-_./\\]+")
"""`lily_valley/0001.jpg` -> `lily_`, `valley/`, `0001.`, `jpg`."""


def escape(text: Any) -> str:
    """Text, safe inside elements and quoted attributes."""
    return html.escape(str(text), quote=True)


def name(text: str) -> str:
    """A key or label inside text: its writing direction ends with it, and lines are broken between its parts."""
    return f"<bdi>{'<wbr>'.join(escape(part) for part in _PARTS.findall(text))}</bdi>"


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
<dialog aria-label="The picture, enlarged"></dialog>
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
    """A table that scrolls inside its own region, by keyboard too, and says so where columns are hidden.

    A sortable one has five columns, and where the screen is narrow the first is a line of its own.

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
        f'<div class="frame"><div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table{kind}><caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div></div>"
    )


def share_cell(value: float) -> str:
    """A cell with a number from 0 to 1 and a bar behind it."""
    return f'<td class="bar" style="--share:{100 * value:.0f}%">{value:.3f}</td>'


def picture(light: str, dark: str, alt: str, *, max_width_px: int, large_width_px: int = 0) -> str:
    """A picture in two colourings, no wider than the screen; a click shows it as large as it is worth looking at.

    Args:
        max_width_px: on the page.
        large_width_px: enlarged, where it scrolls; 0 for what fits the screen.
    """
    return (
        f'<button type="button" class="open picture" style="max-width:{max_width_px}px" title="Enlarge" '
        f'data-width="{large_width_px}px"><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}"></picture></button>'
    )


def thumbnail(image: bytes | None, alt: str, caption: str, absent: str = "no picture") -> str:
    """A small picture, which a click enlarges, with a caption (HTML); where there is none, a frame that says why."""
    shown = (
        f'<button type="button" class="open" title="Enlarge"><img class="thumb" src="{data_uri("image/jpeg", image)}" '
        f'alt="{escape(alt)}"></button>'
        if image
        else f'<div class="thumb absent">{escape(absent)}</div>'
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
