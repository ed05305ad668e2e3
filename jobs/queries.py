"""The images that `similar` is asked about: files, folders and keys, with their features."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bottleneck.dataset.features import Features
from bottleneck.errors import UsageError
from bottleneck.extract.decode import Decoded, Rejected, decode
from bottleneck.inspect.similar import stored_image
from bottleneck.sources.open import open_source
from bottleneck.sources.reading import Reading
from bottleneck.storage.store import ObjectError, normal_uri, place_of

BATCH_SIZE = 32


@dataclass(frozen=True)
class Query:
    """An image asked about."""

    image: str
    """As it was given, or its name in the folder that was."""
    features_D: np.ndarray | None
    """None if it was rejected."""
    is_key: bool = False
    own_key: str | None = None
    """Its key in the dataset, if it is in it."""
    sha256: bytes | None = None
    reason: str = ""
    """Why it was rejected."""


def find_queries(
    images: Sequence[str], features: Features, layer: str, weights: str | None, *, only_one: bool = False
) -> list[Query]:
    """Find the images asked about, and their features: of a key those stored, of a file by the dataset's network.

    Args:
        images: files or s3:// URIs, folders of images, and keys of the dataset.
        weights: of the network, if they have moved.
        only_one: refuse several images.

    Raises:
        UsageError: for a name that is none of these, or a single image that cannot be decoded.
    """
    is_folder = {image: os.path.isdir(os.path.expanduser(image)) for image in images}
    is_file = {image: not is_folder[image] and _exists(image) for image in images}
    keys = features.plan.find(image for image in images if not is_folder[image] and not is_file[image])
    files: list[tuple[str, bool]] = []
    """With whether it is a key."""
    for image in images:
        if is_file[image] or image in keys:
            files.append((image, image in keys))
        elif is_folder[image] or "://" in image:
            files += [(file, False) for file in _listed(image, features)]
        else:
            raise _not_found(image, features)
    if only_one and len(files) > 1:
        raise UsageError(f"--sheet shows the images like one. Received: {len(files):,} images. Leave it out.")
    asked = iter(_extracted([file for file, is_key in files if not is_key], features, layer, weights))
    queries = [_stored(file, features, layer) if is_key else next(asked) for file, is_key in files]
    if len(queries) == 1 and queries[0].reason:
        raise UsageError(f"{images[0]} cannot be used: {queries[0].reason}. Expected an image that decodes.")
    return queries


def _exists(image: str) -> bool:
    store, name = place_of(image)
    return store.exists(name)


def _listed(folder: str, features: Features) -> list[str]:
    """The images of a folder or prefix."""
    source = open_source(folder, Reading(source_format="files"))
    found = [f"{folder.rstrip('/')}/{image.key}" for image in source.images(Counter())]
    if not found:
        raise _not_found(folder, features)
    return found


def _not_found(image: str, features: Features) -> UsageError:
    return UsageError(
        f"There is no image file {image}, no folder with images, and no image of that key in {features.plan.output}. "
        "Expected an image file, an s3:// URI, a folder of images, or a key as the dataset has it."
    )


def _stored(key: str, features: Features, layer: str) -> Query:
    found = stored_image(features, key, layer)
    assert found is not None  # it was found in the plan
    return Query(key, found[0], is_key=True, own_key=key, sha256=found[1])


def _extracted(files: list[str], features: Features, layer: str, weights: str | None) -> Iterator[Query]:
    """Extract the features of files as the dataset's were."""
    if not files:
        return
    spec, limits = features.plan.spec, features.plan.limits
    own = own_keys(features, files)
    base = None
    for start in range(0, len(files), BATCH_SIZE):
        batch = files[start : start + BATCH_SIZE]
        decoded: list[Decoded | Rejected] = []
        digests: list[bytes | None] = []
        for file in batch:
            store, name = place_of(file)
            try:
                data = store.read(name)
            except ObjectError as error:
                decoded.append(Rejected(error.reason))
                digests.append(None)
                continue
            decoded.append(decode(data, spec, limits))
            digests.append(hashlib.sha256(data).digest())
        pixels = [one.pixels_HWC for one in decoded if isinstance(one, Decoded)]
        if pixels and base is None:  # the network is not needed for what cannot be decoded
            from bottleneck.networks.base import Base

            base = Base(replace(spec, weights=weights or spec.weights), min(BATCH_SIZE, len(files)))
        rows = iter(base(np.stack(pixels))[features.layers.index(layer)] if pixels and base else ())
        for file, one, digest in zip(batch, decoded, digests, strict=True):
            if isinstance(one, Rejected):
                yield Query(file, None, reason=one.reason)
            else:
                yield Query(file, next(rows), own_key=own.get(file), sha256=digest)


def own_keys(features: Features, files: Sequence[str]) -> dict[str, str]:
    """The keys of files that are in the dataset, by file."""
    plan = features.plan
    # Below the source, below the folder of a list, or a whole URI, which a list may hold too.
    roots = (plan.source, plan.source.rpartition("/")[0]) if plan.reading.source_format == "list" else (plan.source,)
    uris = {file: normal_uri(file) for file in files}
    keys = {file: [*(uri.removeprefix(f"{root}/") for root in roots), uri] for file, uri in uris.items()}
    found = plan.find({key for some in keys.values() for key in some})
    own = {file: next((key for key in some if key in found), None) for file, some in keys.items()}
    return {file: key for file, key in own.items() if key is not None}
