"""Write a contact sheet: an image and those most similar to it, as one page."""

from collections.abc import Sequence
from typing import Any

from bottleneck.inspect import html
from bottleneck.inspect.html import escape, name
from bottleneck.inspect.report_sections import Thumbnails
from bottleneck.inspect.similar import Neighbour
from bottleneck.text import counted


def contact_sheet(
    image: str,
    picture: bytes | None,
    neighbours: Sequence[Neighbour],
    thumbnails: Thumbnails,
    details: dict[str, Any],
) -> str:
    """The page as text.

    Args:
        image: the name of the image asked about.
        picture: its JPEG, if it can be had.
        neighbours: best first.
        thumbnails: of the neighbours, by key; an empty frame stands for one that is not there.
        details: what was searched, name -> value.
    """
    asked = html.thumbnail(picture, image, f'<span class="key">{name(image)}</span>')
    absent = f'<p class="note" role="note">{escape(thumbnails.missing)}</p>' if thumbnails.missing else ""
    items = "".join(
        f"<li>{_figure(rank, one, thumbnails.images.get(one.key))}</li>" for rank, one in enumerate(neighbours, 1)
    )
    sections = [
        ("image", "The image", f'<div class="gallery">{asked}</div>'),
        ("similar", "Most like it", f'{absent}<ol class="gallery">{items}</ol>'),
        ("made", "How they were found", html.definitions(details)),
    ]
    title = f"{counted(len(neighbours), 'image')} like {image}"
    subtitle = "By the cosine of their features, largest first"
    return html.page(title, subtitle, sections, "Everything on this page is inside this file; it loads nothing.")


def _figure(rank: int, one: Neighbour, picture: bytes | None) -> str:
    label = f"<br>{name(one.label)}" if one.label is not None else ""
    words = f'<b>{rank}. cosine {one.cosine:.4f}</b>{label}<br><span class="key">{name(one.key)}</span>'
    return html.thumbnail(picture, f"{rank}: {one.key}", words)
