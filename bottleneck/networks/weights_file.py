"""Check the structure of an HDF5 weights file before its values are read.

HDF5 is a file system in a file: links and datasets may lead to other files of this machine, and a dataset of a few
bytes may declare terabytes. Keras looks at what it reads itself; here the whole file is looked at, once.
"""

import math
import os
from typing import Any

MAX_EXPANSION = 4
"""Bytes of values for each byte of the file. Keras does not compress, and weights that are compressed hardly shrink."""
FREE_BYTES = 1_000_000
"""What a file may declare in any case: fill values of small weights are not stored."""
MAX_DEPTH = 32
"""Of groups; a file of Keras' networks is about ten deep. A group that holds itself has no end."""
MAX_OBJECTS = 50_000
"""NASNetLarge, whose file has the most, has about 5,000."""


def check_hdf5(path: str) -> None:
    """Look at every link, dataset and attribute of a file, without reading their values.

    Raises:
        ValueError: if one leads out of the file, is no array of numbers, or they declare more than the file can hold.
        OSError: if it is no HDF5 file.
    """
    import h5py

    left_bytes = MAX_EXPANSION * os.path.getsize(path) + FREE_BYTES
    num_objects = 0
    with h5py.File(path, "r") as file:
        groups: list[tuple[Any, int]] = [(file, 0)]
        left_bytes -= _attributes_bytes(file)
        while groups:
            group, depth = groups.pop()
            num_objects += len(group)
            if depth > MAX_DEPTH or num_objects > MAX_OBJECTS:
                raise ValueError(f"it holds more than {MAX_OBJECTS:,} objects, or groups more than {MAX_DEPTH} deep")
            for name in group:
                where = f"{group.name.rstrip('/')}/{name}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{where} is a link to something else; expected the weights themselves")
                thing = group[name]
                left_bytes -= _attributes_bytes(thing)
                if isinstance(thing, h5py.Group):
                    groups.append((thing, depth + 1))
                else:
                    left_bytes -= _values_bytes(thing, where)
                if left_bytes < 0:
                    raise ValueError(f"its values, up to {where}, would take far more bytes than the file has")


def _values_bytes(thing: Any, where: str) -> int:
    """Bytes a dataset's values take in memory."""
    import h5py

    if not isinstance(thing, h5py.Dataset) or thing.shape is None:
        raise ValueError(f"{where} is no array of numbers")
    if thing.external or thing.is_virtual:
        raise ValueError(f"the values of {where} are in another file; expected them in this one")
    # V, bytes without a meaning, is what bfloat16 is stored as.
    if thing.dtype.kind not in "biufV" or thing.dtype.fields or thing.dtype.subdtype:
        raise ValueError(f"{where} has the type {thing.dtype}; expected numbers")
    return int(math.prod(thing.shape)) * int(thing.dtype.itemsize)


def _attributes_bytes(thing: Any) -> int:
    """Bytes an object's attributes take in memory; texts of any length count as their places."""
    attributes = (thing.attrs.get_id(name) for name in thing.attrs)
    sizes = (math.prod(one.shape or ()) * one.dtype.itemsize for one in attributes)
    return sum(map(int, sizes))
