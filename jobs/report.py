"""Show what is in a features dataset, before any head: one self-contained page.

    bottleneck report features/ features.html
    bottleneck report s3://bucket/features features.html --layer block5_pool:avg

Counts every label, size and reason of rejection, and shows a gallery of each class, a map of the features with
pictures, near copies, and images unlike all others. The pictures come from the source, as far as it is still there;
map, outliers and, in large datasets, near copies are of a sample of 2,000 images. An existing page is replaced.
"""

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from bottleneck.console import Display, Progress, duration
from bottleneck.dataset.features import open_features
from bottleneck.errors import UsageError
from bottleneck.inspect.overview import overview_html, overview_of
from bottleneck.storage.store import place_of
from bottleneck.text import counted, size
from jobs.results import answer, show


@dataclass(frozen=True, kw_only=True)
class Config:
    features: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """An output of `bottleneck extract`."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A file or s3:// URI ending in .html for the page."""
    layer: str | None = None
    """Column of the features. Required if there are several."""
    allow_incomplete: bool = False
    """Also show unfinished features, with the shards that exist."""

    def __post_init__(self) -> None:
        if not self.file.endswith(".html"):
            raise UsageError(f"Expected a file ending in .html. Received: {self.file}.")


def main(config: Config) -> int:
    started = time.monotonic()
    features = open_features(config.features, allow_incomplete=config.allow_incomplete)
    layer = features.column(config.layer)
    store, name = place_of(config.file)
    store.try_writing()
    with Display("report") as display:
        found = overview_of(
            features, layer, lambda images: display.show(Progress(images, features.plan.num_images, 0, ""))
        )
    page = overview_html(features, layer, found).encode()
    store.replace(name, page)
    num_rejected = sum(one.images for one in found.rejected.values())
    labels = len([label for label in found.labels if label is not None])
    show(
        f"{config.file}: {counted(found.num_ok, 'image')}, {counted(labels, 'label')}, {num_rejected:,} rejected, "
        f"{counted(found.num_copies, 'group')} of near copies; {size(len(page))}, in "
        f"{duration(time.monotonic() - started)}"
    )
    answer(
        {
            "file": config.file,
            "layer": layer,
            "images": found.num_ok,
            "rejected": {reason: one.images for reason, one in found.rejected.items()},
            "labels": {label: count for label, count in found.labels.items() if label is not None},
            "unlabelled": found.labels[None],
            "near_copies": found.num_copies,
            "sample": len(found.keys),
            "bytes": len(page),
        }
    )
    return 0
