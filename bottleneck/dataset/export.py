"""Features as files of other programs: HDF5, NumPy, TFRecord, Lance. One data file is in memory at a time.

Legend: N images of the file, D features of the layer, which may be a map of H x W positions and C channels; K labels.
"""

import contextlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from bottleneck.choices import check_choice, check_choices
from bottleneck.console import quiet_start
from bottleneck.dataset.features import Features, rows_of, vectors
from bottleneck.dataset.schema import ok_rows
from bottleneck.dataset.shuffle import shuffled
from bottleneck.errors import CorruptError, StoreError, UsageError
from bottleneck.networks.describe import layer_shape
from bottleneck.sources.labels import are_numbers, numbered
from bottleneck.spec import split_layer
from bottleneck.storage.store import Store, normal_uri, place_of

Order = Literal["shuffled", "plan"]

UNLABELLED = -1
"""The number of no label."""
CHUNK_BYTES = 1 << 20
"""Of an HDF5 chunk, which is the size of h5py's cache of them."""


class Batch(NamedTuple):
    """Some ok rows."""

    features: np.ndarray
    """In the stored dtype: [rows, D], or [rows, H, W, C] of a map."""
    codes_N: np.ndarray
    """int64, the number of the label among the label names, or UNLABELLED."""
    labels: Sequence[str | None]
    keys: Sequence[str]


@dataclass(frozen=True)
class Contents:
    """What is written: the shape of the whole is known before its rows are read."""

    features: Features
    layer: str
    num_images: int
    feature_shape: tuple[int, ...]
    """Of one image's features: (D,), or (H, W, C) of a map."""
    order: Order
    label_names: list[str]
    """All labels of the plan, in order, so that a label's number does not depend on which images are ok."""
    scratch: str
    """A folder for temporary files."""
    on_images: Callable[[int], None]

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def label_order(self) -> str:
        """How the labels are ordered: `number` where all are numbers, so that 10 follows 9; else `text`."""
        return "number" if are_numbers(self.label_names) else "text"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.features.spec.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.num_images, *self.feature_shape

    @property
    def attributes(self) -> dict[str, Any]:
        """What a reader should know of the file, as JSON values."""
        spec = self.features.spec
        return {
            "layer": self.layer,
            "shape": list(self.feature_shape),
            "order": self.order,
            "label_order": self.label_order,
            "fingerprint": spec.fingerprint,
            "spec": spec.to_json(),
        }

    def batches(self) -> Iterator[Batch]:
        """Every ok row, in the order asked for. Raises CorruptError if their number is another."""
        numbers = {label: code for code, label in enumerate(self.label_names)}
        num_written = 0
        for table, num_read in self._rows():
            labels = table.column("label").to_pylist()
            if unknown := set(labels) - {None} - numbers.keys():
                raise CorruptError(
                    f"{self.features.plan.output} has a label that is not in its plan: {min(unknown)!r}."
                )
            codes = [UNLABELLED if label is None else numbers[label] for label in labels]
            features = np.ascontiguousarray(vectors(table.column(self.layer))).reshape(-1, *self.feature_shape)
            yield Batch(features, np.array(codes, np.int64), labels, table.column("key").to_pylist())
            num_written += table.num_rows
            self.on_images((num_read + num_written) // 2)

    def _rows(self) -> Iterator[tuple[pa.Table, int]]:
        """Tables of ok rows in the order asked for, and how many rows are read by then."""
        num_read = 0

        def tables() -> Iterator[pa.Table]:
            nonlocal num_read
            for table in self.features.tables(["key", "label", "status", self.layer]):
                ok = ok_rows(table)
                num_read += ok.num_rows
                if num_read > self.num_images:
                    break
                if ok.num_rows:
                    yield ok.select(["key", "label", self.layer])
                if self.order != "plan":
                    self.on_images(num_read // 2)
            if num_read != self.num_images:
                raise CorruptError(
                    f"{self.features.plan.output} says that it has {self.num_images:,} ok images, and its rows are "
                    "more or fewer. Look at it with `bottleneck verify --full`."
                )

        for table in tables() if self.order == "plan" else shuffled(tables(), self.scratch):
            yield table, num_read


def _labels(features: Features) -> list[str]:
    """All labels in the order of their codes; while shards are to be done again also those that only old files have."""
    plan = features.plan
    known = set(plan.label_counts)
    if features.success is None:
        known.update(*(listing.label_counts for listing in plan.listings))
    return numbered(known)


def export_features(
    features: Features,
    file: str,
    layer: str | None = None,
    on_images: Callable[[int], None] = lambda images: None,
    *,
    order: Order = "shuffled",
    flat: bool = False,
) -> dict[str, Any]:
    """Write the ok rows of a dataset to a new file, which appears under its name when it is whole.

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
    check_choice("order", order, Order)
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
    with _scratch(store) as folder:
        shape = _feature_shape(features, column, flat)
        contents = Contents(features, column, num_images, shape, order, _labels(features), folder, on_images)
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
    shape = layer_shape(features.spec.base, layer)
    if math.prod(shape) != dim:
        raise CorruptError(
            f"{features.plan.output} says that {column} has {dim:,} values, the layer of {features.spec.base} here has "
            f"{' x '.join(map(str, shape))}. Export with `flat`, or use the version of Keras the "
            "features were made with, which their footers name."
        )
    return shape


def suffix_of(file: str) -> str:
    return os.path.splitext(file.rstrip("/"))[1].lower()


def _write_hdf5(path: str, contents: Contents) -> None:
    """`features`, `labels` and `label_names` as the tutorials' writer has them, and `keys`."""
    import h5py

    num_images, *shape = contents.shape
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        rows = max(1, min(num_images, CHUNK_BYTES // (math.prod(shape) * contents.dtype.itemsize)))
        features = file.create_dataset("features", contents.shape, contents.dtype, chunks=(rows, *shape))
        labels = file.create_dataset("labels", (num_images,), np.int64)
        keys = file.create_dataset("keys", (num_images,), text)
        names = np.array(contents.label_names, object)
        file.create_dataset("label_names", names.shape, text, data=names)
        file.attrs.update({**contents.attributes, "spec": json.dumps(contents.attributes["spec"])})
        start = 0
        for batch in contents.batches():
            rows_written = slice(start, start := start + len(batch.keys))
            features[rows_written] = batch.features
            labels[rows_written] = batch.codes_N
            if odd := next((key for key in batch.keys if "\0" in key), None):
                raise UsageError(f"HDF5 holds no text with a NUL in it, as the key {odd!r}. Export to another format.")
            keys[rows_written] = np.array(batch.keys, object)


def _write_npy(path: str, contents: Contents) -> None:
    """The matrix alone."""
    with open(path, "wb") as file:
        _write_header(file, contents.dtype, contents.shape)
        for batch in contents.batches():
            file.write(batch.features.data)


def _write_npz(path: str, contents: Contents) -> None:
    """`features`, `labels`, `label_names`, `keys` and `attributes`, .npy without pickles in a zip without compression.

    Text is of a fixed width, that of the longest key, which is known when all have been read: until then keys wait in
    a file beside, and labels (8 bytes each) in memory.
    """
    codes: list[np.ndarray] = []
    width = 1
    with zipfile.ZipFile(path, "w") as archive, open(f"{path}.keys", "w+b") as waiting:
        with archive.open("features.npy", "w", force_zip64=True) as entry:
            _write_header(entry, contents.dtype, contents.shape)
            for batch in contents.batches():
                entry.write(batch.features.data)
                codes.append(batch.codes_N)
                if batch.keys:
                    width = max(width, *map(len, batch.keys))
                    np.save(waiting, np.array(batch.keys, str), allow_pickle=False)
        waiting.seek(0)
        with archive.open("keys.npy", "w", force_zip64=True) as entry:
            kind = np.dtype(f"<U{width}")
            _write_header(entry, kind, (contents.num_images,))
            written = 0
            while written < contents.num_images:
                keys_N = np.load(waiting, allow_pickle=False).astype(kind)
                entry.write(keys_N.tobytes())
                written += len(keys_N)
        rest = {
            "labels": np.concatenate(codes),
            "label_names": np.array(contents.label_names, str),
            "attributes": np.array(json.dumps(contents.attributes)),
        }
        for name, values in rest.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)
    os.unlink(f"{path}.keys")


def _write_header(file: IO[bytes], kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_tfrecord(path: str, contents: Contents) -> None:
    """One tf.train.Example an image: `features` (float list), `label` (int64), `label_name` and `key` (bytes)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet_start():
            import tensorflow as tf
    except ImportError as error:
        raise UsageError(
            f"Writing TFRecord needs TensorFlow: `pip install bottleneck-features[cpu]` ({error}). Or export to a file "
            "ending in .h5 or .npz."
        ) from error
    train = tf.train
    with tf.io.TFRecordWriter(path) as writer:
        for batch in contents.batches():
            for features_D, code, label, key in zip(
                batch.features.reshape(len(batch.keys), -1),
                batch.codes_N.tolist(),
                batch.labels,
                batch.keys,
                strict=True,
            ):
                feature = {
                    "features": train.Feature(float_list=train.FloatList(value=features_D.tolist())),
                    "label": train.Feature(int64_list=train.Int64List(value=[code])),
                    "label_name": train.Feature(bytes_list=train.BytesList(value=[(label or "").encode()])),
                    "key": train.Feature(bytes_list=train.BytesList(value=[key.encode()])),
                }
                example = train.Example(features=train.Features(feature=feature))
                writer.write(example.SerializeToString(deterministic=True))


def _write_lance(path: str, contents: Contents) -> None:
    """A Lance dataset, which is a folder, with `key`, `label` and `features`."""
    try:
        import lance
    except ImportError as error:
        raise UsageError(
            f"Writing Lance needs its package: `pip install pylance` ({error}). Or read the output itself: it is "
            "Parquet."
        ) from error
    dim = math.prod(contents.feature_shape)
    vector = pa.list_(pa.from_numpy_dtype(contents.dtype), dim)
    columns = [pa.field("key", pa.string()), pa.field("label", pa.string()), pa.field("features", vector)]
    schema = pa.schema(columns, metadata={"bottleneck": json.dumps(contents.attributes)})

    def record_batches() -> Iterator[pa.RecordBatch]:
        for batch in contents.batches():
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch.features.reshape(-1)), dim)
            columns = [pa.array(batch.keys, pa.string()), pa.array(batch.labels, pa.string()), vectors]
            yield pa.record_batch(columns, schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, record_batches()), path)


WRITERS: dict[str, Callable[[str, Contents], None]] = {
    ".h5": _write_hdf5,
    ".hdf5": _write_hdf5,
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".tfrecord": _write_tfrecord,
    ".tfrecords": _write_tfrecord,
    ".lance": _write_lance,
}
"""By the suffix of the file."""


@contextlib.contextmanager
def _scratch(store: Store) -> Iterator[str]:
    """A folder that goes away again: beside the file, so that it need not be copied, or the system's for a bucket."""
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
    """Of a file, or of all files of a folder, in bytes."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
