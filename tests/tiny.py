"""Small real things to test with: pictures, folders of them, specs and plans of a network of a quarter's width."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from bottleneck.dataset.schema import IMAGE_FIELDS, data_schema
from bottleneck.spec import FeatureRequest, FeatureSpec

LAYERS = ("conv_pw_13_relu:avg",)
REQUEST = FeatureRequest(base="mobilenet_0.25", weights="random:0", precision="float32", dtype="float32")


def spec(**changes: Any) -> FeatureSpec:
    """A spec that no network stands behind, for all that computes no features."""
    fields: dict[str, Any] = {
        "base": "mobilenet_0.25",
        "weights": "random:0",
        "weights_sha256": "0" * 64,
        "layers": LAYERS,
        "dims": (256,),
        "image_size_px": 224,
        "resize": "squash",
        "interpolation": "bilinear",
        "exif": "apply",
        "decode": "exact",
        "precision": "float32",
        "dtype": "float32",
    }
    return FeatureSpec(**fields | changes)


@cache
def real_spec() -> FeatureSpec:
    """The spec of REQUEST; the first call imports Keras."""
    from bottleneck.networks.resolve import resolve

    return resolve(REQUEST, "float32")


def jpeg(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of its own for every number."""
    rng = np.random.default_rng(number)
    pixels_HWC = rng.integers(0, 256, (*reversed(size), 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write key -> bytes below a folder, and return it."""
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def photos(folder: Path, num_images: int, first: int = 0) -> Path:
    """A folder of pictures in two classes."""
    keys = {f"{'cats' if n % 2 else 'dogs'}/{n:04d}.jpg": jpeg(n) for n in range(first, first + num_images)}
    return write_files(folder, keys)


def data_rows(spec: FeatureSpec, keys: list[str], rejected: dict[str, str] | None = None, seed: int = 0) -> pa.Table:
    """Rows of a data file with random features, null for the rejected keys (key -> reason)."""
    rejected = rejected or {}
    rng = np.random.default_rng(seed)
    outcomes = [rejected.get(key) for key in keys]
    values: dict[str, list[Any]] = {
        "key": keys,
        "etag": [f"etag of {key}" for key in keys],
        "label": [key.rpartition("/")[0] or None for key in keys],
        "status": ["rejected" if reason else "ok" for reason in outcomes],
        "reason": outcomes,
        "width": [None if reason else 40 for reason in outcomes],
        "height": [None if reason else 30 for reason in outcomes],
        "mode": [None if reason else "RGB" for reason in outcomes],
        "sha256": [bytes([n % 256]) * 32 for n in range(len(keys))],
    }
    arrays = [pa.array(values[field.name], field.type) for field in IMAGE_FIELDS]
    schema = data_schema(spec)
    for layer, dim in zip(spec.layers, spec.dims, strict=True):
        features_ND = rng.standard_normal((len(keys), dim)).astype(spec.dtype)
        rows = [None if reason else list(row) for row, reason in zip(features_ND, outcomes, strict=True)]
        arrays.append(pa.array(rows, schema.field(layer).type))
    return pa.table(arrays, schema=schema)


def digits_folder(folder: Path, per_class: int) -> Path:
    """Ten class folders, `0` to `9`, with as many pictures each."""
    return write_files(folder, {f"{c}/{n:04d}.jpg": jpeg(10 * n + c) for c in range(10) for n in range(per_class)})


def saved_head(folder: Path, features_ND: np.ndarray, labels_N: np.ndarray, spec: FeatureSpec, layer: int = 0) -> Any:
    """A logistic head with scikit-learn's optimum, saved in a folder as if fitted on features of a spec."""
    from sklearn.linear_model import LogisticRegression

    from bottleneck.heads.head import Head, Origin

    class Fitted(Head):
        def fit(self, *_: Any) -> None:
            """What scikit-learn knows an estimator by, and Head may not have yet."""

    fitted = LogisticRegression(max_iter=1000).fit(features_ND.astype(np.float64), labels_N)
    head = Fitted()
    head.classes_, head.n_features_in_ = fitted.classes_.astype(object), features_ND.shape[1]
    head.coef_, head.intercept_ = fitted.coef_, fitted.intercept_
    head.save(str(folder), Origin(spec.layers[layer], spec, "features", "0" * 64))
    return Head.load(str(folder))
