"""Export features to files of other programs, with one data file in memory at a time.

Legend: N images of the file, D features of the layer, which may be a map of H x W positions and C channels; K labels.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from bottleneck.choices import check_choice
from bottleneck.dataset.contents import Contents, ExportOrder, label_names_of
from bottleneck.dataset.export_formats import WRITERS
from bottleneck.dataset.features import Features, rows_of
from bottleneck.errors import CorruptError, StoreError, UsageError
from bottleneck.networks.describe import layer_shape
from bottleneck.spec import split_layer
from bottleneck.storage.store import Store, normal_uri, place_of


def export_features(
    features: Features,
    file: str,
    layer: str | None = None,
    on_images: Callable[[int], None] = lambda images: None,
    *,
    order: ExportOrder = "shuffled",
    flat: bool = False,
) -> dict[str, Any]:
    """Write the ok rows of a dataset to a new file, which appears when it is complete.

    A kill leaves at most a folder `.bottleneck-export-*` beside it, which may be deleted.

    Args:
        file: a path or s3:// URI whose suffix is one of WRITERS; what goes to a bucket is written to a temporary file.
        layer: as in the spec; may be left out where there is only one.
        on_images: told how far the work is, as a number of images.
        order: `shuffled`, in the order of the keys' sha256, so that any slice is a random sample; or `plan`, in which
            the images of a class stand together.
        flat: write a map (`LAYER:none` of a layer with positions) as one vector an image, [N, H * W * C].

    Returns:
        A JSON object: how many images, labels and bytes.

    Raises:
        UsageError: for a file that is there already or within the dataset, a package that is missing, no ok image.
    """
    check_choice("order", order, ExportOrder)
    column = features.column(layer)
    write = WRITERS[suffix_of(file)]
    store, name = place_of(file)
    if normal_uri(file).startswith(f"{features.plan.output}/"):
        raise UsageError(
            f"{file} is inside {features.plan.output}, which holds its own files only. Give another place."
        )
    if suffix_of(file) == ".lance" and store.uri.startswith("s3://"):
        raise UsageError("Lance is written to a folder; copy it to the bucket then. Received an s3:// URI.")
    if store.exists(name):
        raise UsageError(f"{file} is there already. Give another name, or remove it.")
    store.try_writing(create_only=True)
    rows = rows_of(features)
    num_images = sum(rows[name] for name in features.files)
    if not num_images:
        raise UsageError(f"{features.plan.output} has no ok image, so there is nothing to export.")
    with scratch_beside(store) as folder:
        shape = _feature_shape(features, column, flat)
        contents = Contents(features, column, num_images, shape, order, label_names_of(features), folder, on_images)
        path = os.path.join(folder, "whole" + suffix_of(file))
        try:
            write(path, contents)
        except OSError as error:
            raise StoreError(
                f"Writing {path} failed: {error}. Nothing is left of it; mend the cause and run the same command again."
            ) from error
        num_bytes = _size_of(path)
        if not store.create_from_file(name, path):
            raise UsageError(f"Another job wrote {file} at the same time. Give another name.")
    return {
        "images": num_images,
        "labels": len(contents.label_names),
        "label_order": contents.label_order,
        "layer": column,
        "dim": math.prod(shape),
        "shape": list(contents.shape),
        "order": order,
        "dtype": features.spec.dtype,
        "bytes": num_bytes,
        "fingerprint": features.spec.fingerprint,
    }


def _feature_shape(features: Features, column: str, flat: bool) -> tuple[int, ...]:
    """Of one image's features. Builds the network where they may be a map, as the spec has their number only."""
    dim = features.spec.dim_of(column)
    layer, pooling = split_layer(column)
    if flat or pooling != "none":
        return (dim,)
    shape = layer_shape(features.spec.base, layer, features.spec.image_size_px)
    if math.prod(shape) != dim:
        raise CorruptError(
            f"{features.plan.output} says that {column} has {dim:,} values, the layer of {features.spec.base} here has "
            f"{' x '.join(map(str, shape))}. Export with `flat`, or use the version of Keras the "
            "features were made with, which their footers name."
        )
    return shape


def suffix_of(file: str) -> str:
    return os.path.splitext(file.rstrip("/"))[1].lower()


@contextlib.contextmanager
def scratch_beside(store: Store) -> Iterator[str]:
    """A temporary folder: beside the file, so that it need not be copied, or the system's for a bucket."""
    folder = None if store.uri.startswith("s3://") else store.uri
    try:
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".bottleneck-export-", dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise StoreError(f"{error.strerror or error} while making a folder in {folder}. Give another place.") from error
    with scratch as path:
        yield path


def _size_of(path: str) -> int:
    """The size of a file, or of all files of a folder, in bytes."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
