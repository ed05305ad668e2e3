"""Find the images of a dataset that are most similar to one image, or to each of several.

    bottleneck similar daisy.jpg features/
    bottleneck similar daisy/0001.jpg s3://bucket/features --top 20 --sheet similar.html
    bottleneck similar new-photos/ tulip.jpg features/ --top 3 --exclude-copies

Compares the cosine similarity of every stored row, once for all images. IMAGE is a file or s3:// URI, whose features
are extracted first, a folder of such images, or the key of an image of the dataset, whose stored features are used. The
image itself is not listed. Of several images, one that cannot be decoded gets a line with the reason, and the exit code
is 6.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import tyro

from bottleneck.console import Display, Progress
from bottleneck.dataset.features import Features, open_features
from bottleneck.errors import TooManyRejectedError, UsageError
from bottleneck.inspect.similar import Neighbour, nearest_of_each
from bottleneck.storage.store import place_of
from bottleneck.text import counted, printable
from jobs.queries import Query, find_queries
from jobs.results import answer, show
from jobs.table_file import check_table_file, write_table_file

log = logging.getLogger(__name__)

TABLE = pa.schema(
    [
        pa.field("image", pa.string()),
        pa.field("rank", pa.int64()),
        pa.field("cosine", pa.float64()),
        pa.field("label", pa.string()),
        pa.field("key", pa.string()),
        pa.field("reason", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Config:
    places: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE... FEATURES")]
    """Images, then the dataset to search, an output of `bottleneck extract`. An image is a file or s3:// URI, a folder
    of images, or the key of an image of the dataset."""
    top: int = 10
    """Images to show, the most similar first."""
    exclude_copies: bool = False
    """Leave out images with the same bytes as the one asked about, under whatever name."""
    layer: str | None = None
    """Column of the features. Required if there are several."""
    sheet: str | None = None
    """For one image: also write a contact sheet, one self-contained page, to this file or s3:// URI ending in .html."""
    table: str | None = None
    """Also write the result to this new file or s3:// URI ending in .csv or .parquet, a row for each similar image."""
    weights: str | None = None
    """Weights of the network, if they have moved since the extraction; their sha256 must be the same."""
    allow_incomplete: bool = False
    """Also search unfinished features, with the shards that exist."""

    def __post_init__(self) -> None:
        if len(self.places) < 2:
            raise UsageError(
                f"Expected at least one image, and the dataset to search after it. Received: {' '.join(self.places)}."
            )
        if self.top < 1:
            raise UsageError(f"--top takes a number of images from 1 up. Received: {self.top}.")
        if self.sheet and not self.sheet.endswith(".html"):
            raise UsageError(f"--sheet takes a file ending in .html. Received: {self.sheet}.")


def main(config: Config) -> int:
    *images, place = config.places
    features = open_features(place, allow_incomplete=config.allow_incomplete)
    layer = features.column(config.layer)
    check_table_file(config.table)
    if config.sheet:
        place_of(config.sheet)[0].try_writing()
    queries = find_queries(images, features, layer, config.weights, only_one=bool(config.sheet))
    started = time.monotonic()
    found, num_images = search(features, queries, config.top, layer, config.exclude_copies)
    seconds = time.monotonic() - started
    for query, neighbours in zip(queries, found, strict=True):
        tell(query, neighbours, is_only=len(queries) == 1)
    log.info("%s compared in %.1f s", counted(num_images, "image"), seconds)
    if config.sheet:
        write_sheet(config.sheet, queries[0], features, found[0], {"layer": layer, "images": f"{num_images:,}"})
        show(f"sheet: {config.sheet}")
    write_table_file(config.table, TABLE, (_rows(*pair) for pair in zip(queries, found, strict=True)))
    num_rejected = sum(bool(query.reason) for query in queries)
    exit_code = TooManyRejectedError.exit_code if num_rejected else 0
    answer(
        {
            "features": place,
            "layer": layer,
            "images": num_images,
            "seconds": round(seconds, 3),
            "queries": [as_json(*pair) for pair in zip(queries, found, strict=True)],
            "rejected": num_rejected,
            "sheet": config.sheet,
            "table": config.table,
            "exit_code": exit_code,
        }
    )
    return exit_code


def search(
    features: Features, queries: Sequence[Query], top: int, layer: str, exclude_copies: bool
) -> tuple[list[list[Neighbour]], int]:
    """Find the neighbours without the images themselves, and the number of images compared, with progress on stderr."""
    asked = [query for query in queries if query.features_D is not None]
    if not asked:
        return [[] for _ in queries], 0
    seen = 0
    with Display("similar") as display:

        def show(images: int) -> None:
            nonlocal seen
            seen = images
            display.show(Progress(images, features.plan.num_images, 0, ""))

        found = iter(
            nearest_of_each(
                features,
                np.stack([query.features_D for query in asked if query.features_D is not None]),
                top,
                layer,
                show,
                without=[query.own_key for query in asked],
                copies_of=[query.sha256 for query in asked] if exclude_copies else (),
            )
        )
    return [[] if query.features_D is None else next(found) for query in queries], seen


def tell(query: Query, found: Sequence[Neighbour], *, is_only: bool) -> None:
    """Show what was found for an image, of several after its name."""
    if query.features_D is None:
        show(f"{query.image}: {query.reason}")
        return
    if not is_only:
        show(query.image)
    for line in table(found):
        show(line)
    if not query.features_D.any():
        log.warning("The features of %s are all zeros, so no image is more like it than another.", query.image)


def _rows(query: Query, found: Sequence[Neighbour]) -> list[dict[str, Any]]:
    """The rows of the table, of a rejected image one with the reason."""
    if query.features_D is None:
        return [{"image": query.image, "reason": query.reason}]
    return [
        {"image": query.image, "rank": rank, "cosine": one.cosine, "label": one.label, "key": one.key}
        for rank, one in enumerate(found, 1)
    ]


def as_json(query: Query, found: Sequence[Neighbour]) -> dict[str, Any]:
    """An image asked about as a JSON object: with those like it, or with the reason of its rejection."""
    if query.features_D is None:
        return {"image": query.image, "reason": query.reason}
    return {"image": query.image, "is_key": query.is_key, "similar": [asdict(one) for one in found]}


def table(found: Sequence[Neighbour]) -> list[str]:
    """The result as lines."""
    labels = ["" if one.label is None else printable(one.label) for one in found]
    width = max(map(len, ["label", *labels]))
    return [
        f"{'rank':>4}  {'cosine':>8}  {'label':{width}}  key",
        *(
            f"{rank:4}  {one.cosine:8.5f}  {label:{width}}  {printable(one.key)}"
            for rank, (one, label) in enumerate(zip(found, labels, strict=True), 1)
        ),
    ]


def write_sheet(
    sheet: str, query: Query, features: Features, found: Sequence[Neighbour], details: dict[str, Any]
) -> None:
    """Write the contact sheet; thumbnails come from the source, a file's own from its bytes."""
    from bottleneck.inspect.contact_sheet import contact_sheet
    from bottleneck.inspect.report import thumbnail, thumbnails_of

    plan, image = features.plan, query.image
    thumbnails = thumbnails_of(plan, [one.key for one in found])
    store, name = place_of(image)
    picture = thumbnails_of(plan, [image]).images.get(image) if query.is_key else thumbnail(store.read(name), plan)
    details = {"features": plan.output, "source": plan.source, **details, "fingerprint": plan.spec.fingerprint}
    page = contact_sheet(image, picture, found, thumbnails, details)
    store, name = place_of(sheet)
    store.replace(name, page.encode())
