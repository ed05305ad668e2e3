"""Find the near-duplicates of a dataset: every pair of images whose features are nearly the same.

    bottleneck duplicates features/ duplicates.parquet
    bottleneck duplicates features/ s3://bucket/duplicates.parquet --min-cosine 0.98 --sheet duplicates.html

Compares all pairs by the exact cosine of their stored features, so the time grows with the square of the images:
100,000 of 512 dimensions take a minute on two cores, a million an hour. Writes the pairs as a table, with the
groups they form, and prints the largest groups. A run that is killed leaves nothing and starts from the beginning.
"""

import time
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from bottleneck.console import Display, Progress, duration
from bottleneck.dataset.features import Features, open_features, rows_of
from bottleneck.errors import UsageError
from bottleneck.inspect.duplicate_groups import DuplicateGroup, check_table, grouped, write_table
from bottleneck.inspect.duplicates import check_min_cosine, near_duplicates
from bottleneck.storage.store import place_of
from bottleneck.text import counted, size
from jobs.results import answer, show

NUM_GROUPS = 10
"""Largest groups to show."""
NUM_KEYS = 6
"""Images to show of each group: sixty pictures are a page of a megabyte."""


@dataclass(frozen=True, kw_only=True)
class Config:
    features: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """The dataset to search: an output of `bottleneck extract`."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A new file or s3:// URI ending in .parquet for the pairs."""
    min_cosine: float = 0.95
    """Least cosine of a pair, above -1 and 1 at most."""
    layer: str | None = None
    """Column of the features. Required if there are several."""
    sheet: str | None = None
    """Also write a contact sheet of the largest groups, one self-contained page, to this file or s3:// URI ending in
    .html."""
    allow_incomplete: bool = False
    """Also search unfinished features, with the shards that exist."""

    def __post_init__(self) -> None:
        check_min_cosine(self.min_cosine)
        if self.sheet and not self.sheet.endswith(".html"):
            raise UsageError(f"--sheet takes a file ending in .html. Received: {self.sheet}.")


def main(config: Config) -> int:
    features = open_features(config.features, allow_incomplete=config.allow_incomplete)
    layer = features.column(config.layer)
    check_table(features, config.file)
    if config.sheet:
        place_of(config.sheet)[0].try_writing()
    started = time.monotonic()
    num_images = sum(rows_of(features)[name] for name in features.files)
    with Display("duplicates") as display:
        pairs = near_duplicates(
            features,
            config.min_cosine,
            layer,
            lambda images: display.show(Progress(images, num_images, 0, "")),
        )
    found = grouped(features, pairs)
    num_bytes = write_table(features, layer, config.min_cosine, found, config.file)
    seconds = time.monotonic() - started
    largest = found.largest(NUM_GROUPS, NUM_KEYS)
    num_groups, num_alike = found.num_groups, len(found.keys_M)
    for group in largest:
        show(line_of(group))
    if num_groups > len(largest):
        show(f"... and {counted(num_groups - len(largest), 'smaller group')}")
    show(f"{counted(num_alike, 'image')} in {counted(num_groups, 'group')}, of {pairs.num_images:,} images")
    if pairs.num_zeros:
        show(f"features that are all zeros, which are like nothing: {counted(pairs.num_zeros, 'image')}")
    show(
        f"{config.file}: {counted(len(pairs.first_P), 'pair')}, {size(num_bytes)}, in {duration(seconds)}",
    )
    if config.sheet:
        details = {"layer": layer, "images": f"{pairs.num_images:,}", "least cosine": config.min_cosine}
        write_sheet(config.sheet, features, largest, num_groups, details)
        show(f"sheet: {config.sheet}")
    answer(
        {
            "features": config.features,
            "file": config.file,
            "layer": layer,
            "min_cosine": config.min_cosine,
            "images": pairs.num_images,
            "zeros": pairs.num_zeros,
            "pairs": len(pairs.first_P),
            "groups": num_groups,
            "images_in_groups": num_alike,
            "bytes": num_bytes,
            "seconds": round(seconds, 3),
            "sheet": config.sheet,
        }
    )
    return 0


def line_of(group: DuplicateGroup) -> str:
    """A group as a line."""
    more = ", ..." if group.num_images > len(group.keys) else ""
    return f"{group.num_images:>7,} images, cosine {group.least_cosine:.4f} or more: {', '.join(group.keys)}{more}"


def write_sheet(
    sheet: str, features: Features, groups: list[DuplicateGroup], num_groups: int, details: dict[str, Any]
) -> None:
    """Write the contact sheet; thumbnails come from the source."""
    from bottleneck.inspect.contact_sheet import duplicates_sheet
    from bottleneck.inspect.report import thumbnails_of

    plan = features.plan
    thumbnails = thumbnails_of(plan, [key for group in groups for key in group.keys])
    details = {"features": plan.output, "source": plan.source, **details, "fingerprint": plan.spec.fingerprint}
    store, name = place_of(sheet)
    store.replace(name, duplicates_sheet(groups, num_groups, thumbnails, details).encode())
