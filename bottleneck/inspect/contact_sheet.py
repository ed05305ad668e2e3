"""Write contact sheets: images like one, or groups of near-duplicates, as one page."""

from collections.abc import Sequence
from typing import Any

from bottleneck.inspect.duplicate_groups import DuplicateGroup
from bottleneck.inspect.html import page
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
    title = f"{counted(len(neighbours), 'image')} like {image}"
    sections = [("image", "The image"), ("similar", "Most like it"), ("made", "How they were found")]
    return page(
        "contact_sheet",
        title,
        "By the cosine of their features, largest first",
        sections,
        image=image,
        picture=picture,
        neighbours=neighbours,
        thumbnails=thumbnails,
        details=details,
    )


def duplicates_sheet(
    groups: Sequence[DuplicateGroup], num_groups: int, thumbnails: Thumbnails, details: dict[str, Any]
) -> str:
    """The page of the largest groups of near-duplicates as text.

    Args:
        groups: those shown, the largest first.
        num_groups: of the whole dataset.
        thumbnails: of their keys; an empty frame stands for one that is not there.
        details: what was compared, name -> value.
    """
    return page(
        "duplicates",
        counted(num_groups, "group of near-duplicates", "groups of near-duplicates"),
        "By the cosine of their features, the largest groups first",
        [("groups", "The largest groups"), ("made", "How they were found")],
        groups=groups,
        num_groups=num_groups,
        thumbnails=thumbnails,
        details=details,
    )
