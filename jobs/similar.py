"""Find the images of a dataset that are most similar to one image.

    bottleneck similar daisy.jpg features/
    bottleneck similar daisy/0001.jpg s3://bucket/features --top 20 --sheet similar.html

Compares the cosine similarity of every stored row. IMAGE is a file or s3:// URI, whose features are extracted first, or
the key of an image of the dataset, whose stored features are used. The image itself is not listed.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import tyro

from bottleneck.console import Display, Progress
from bottleneck.dataset.features import Features, open_features
from bottleneck.errors import UsageError
from bottleneck.extract.decode import Rejected, decode
from bottleneck.inspect.similar import Neighbour, features_of, nearest
from bottleneck.storage.store import ObjectGoneError, normal_uri, place_of
from bottleneck.text import counted, printable
from jobs.results import answer, show

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    image: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """A file or s3:// URI, or the key of an image of the dataset."""
    features: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """The dataset to search: an output of `bottleneck extract`."""
    top: int = 10
    """Images to show, the most similar first."""
    layer: str | None = None
    """Column of the features. Required if there are several."""
    sheet: str | None = None
    """Also write a contact sheet, one self-contained page, to this file or s3:// URI ending in .html."""
    weights: str | None = None
    """Weights of the network, if they have moved since the extraction; their sha256 must be the same."""
    allow_incomplete: bool = False
    """Also search unfinished features, with the shards that exist."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"--top takes a number of images from 1 up. Received: {self.top}.")
        if self.sheet and not self.sheet.endswith(".html"):
            raise UsageError(f"--sheet takes a file ending in .html. Received: {self.sheet}.")


def main(config: Config) -> int:
    features = open_features(config.features, allow_incomplete=config.allow_incomplete)
    layer = features.column(config.layer)
    if config.sheet:
        place_of(config.sheet)[0].try_writing()
    data = read_image(config.image)
    query_D = stored(features, config.image, layer) if data is None else extracted(data, config, features, layer)
    started = time.monotonic()
    own = config.image if data is None else own_key(features, config.image)
    found, num_images = search(features, query_D, config.top, layer, own)
    seconds = time.monotonic() - started
    for line in table(found):
        show(line)
    if not query_D.any():
        log.warning("The features of %s are all zeros, so no image is more like it than another.", config.image)
    log.info("%s compared in %.1f s", counted(num_images, "image"), seconds)
    result: dict[str, Any] = {
        "image": config.image,
        "is_key": data is None,
        "features": config.features,
        "layer": layer,
        "images": num_images,
        "seconds": round(seconds, 3),
        "similar": [asdict(one) for one in found],
        "sheet": config.sheet,
    }
    if config.sheet:
        write_sheet(config.sheet, config.image, data, features, found, {"layer": layer, "images": f"{num_images:,}"})
        show(f"sheet: {config.sheet}")
    answer(result)
    return 0


def read_image(image: str) -> bytes | None:
    """Read a file or object; None if it does not exist."""
    store, name = place_of(image)
    try:
        return store.read(name)
    except ObjectGoneError:
        return None


def stored(features: Features, key: str, layer: str) -> np.ndarray:
    """The query for an image of the dataset."""
    found_D = features_of(features, key, layer)
    if found_D is None:
        raise UsageError(
            f"There is no file {key}, and no image of that key in {features.plan.output}. Expected an image file, an "
            "s3:// URI, or a key as the dataset has it."
        )
    return found_D


def extracted(data: bytes, config: Config, features: Features, layer: str) -> np.ndarray:
    """The query for another image, whose features are extracted as the dataset's were."""
    plan = features.plan
    decoded = decode(data, plan.spec, plan.limits)
    if isinstance(decoded, Rejected):
        raise UsageError(f"{config.image} cannot be used: {decoded.reason}. Expected an image that decodes.")
    from bottleneck.networks.base import Base

    base = Base(replace(plan.spec, weights=config.weights or plan.spec.weights), batch_size=1)
    found_D: np.ndarray = base(decoded.pixels_HWC[None])[features.layers.index(layer)][0]
    return found_D


def own_key(features: Features, image: str) -> str | None:
    """The key of a file in the dataset; None if it is not in it."""
    uri, plan = normal_uri(image), features.plan
    # Below the source, below the folder of a list, or a whole URI, which a list may hold too.
    roots = (plan.source, plan.source.rpartition("/")[0]) if plan.reading.source_format == "list" else (plan.source,)
    keys = [*(uri.removeprefix(f"{root}/") for root in roots), uri]
    found = plan.find(keys)
    return next((key for key in keys if key in found), None)


def search(
    features: Features, query_D: np.ndarray, top: int, layer: str, own: str | None
) -> tuple[list[Neighbour], int]:
    """Find the neighbours without the image itself, and the number of images compared, with progress on stderr."""
    seen = 0
    with Display("similar") as display:

        def show(images: int) -> None:
            nonlocal seen
            seen = images
            display.show(Progress(images, features.plan.num_images, 0, ""))

        return nearest(features, query_D, top, layer, show, without=own), seen


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
    sheet: str, image: str, data: bytes | None, features: Features, found: Sequence[Neighbour], details: dict[str, Any]
) -> None:
    """Write the contact sheet; thumbnails come from the source, a file's own from its bytes."""
    from bottleneck.inspect.contact_sheet import contact_sheet
    from bottleneck.inspect.report import thumbnail, thumbnails_of

    plan = features.plan
    thumbnails = thumbnails_of(plan, [one.key for one in found])
    picture = thumbnails_of(plan, [image]).images.get(image) if data is None else thumbnail(data, plan)
    details = {"features": plan.output, "source": plan.source, **details, "fingerprint": plan.spec.fingerprint}
    page = contact_sheet(image, picture, found, thumbnails, details)
    store, name = place_of(sheet)
    store.replace(name, page.encode())
