"""Write HDF5, NumPy and TFRecord, and choose the writer of a file."""

import json
import math
import os
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from bottleneck.console import quiet_start
from bottleneck.dataset.contents import Contents
from bottleneck.dataset.export_tables import write_csv, write_lance, write_matlab, write_parquet
from bottleneck.errors import UsageError

CHUNK_BYTES = 1 << 20
"""Of an HDF5 chunk, which is the size of h5py's cache of them."""


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
    """Write the matrix alone."""
    with open(path, "wb") as file:  # not a memory map: on a full disk, writing to one kills the process with SIGBUS
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


WRITERS: dict[str, Callable[[str, Contents], None]] = {
    ".h5": _write_hdf5,
    ".hdf5": _write_hdf5,
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".tfrecord": _write_tfrecord,
    ".tfrecords": _write_tfrecord,
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".mat": write_matlab,
    ".lance": write_lance,
}
"""By the suffix of the file."""
