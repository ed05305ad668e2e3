"""Group near-duplicates, and write their table.

Legend: P pairs, M images that are in a pair.
"""

import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.dataset.features import Features
from bottleneck.dataset.plan import versions
from bottleneck.dataset.schema import ok_rows
from bottleneck.errors import CorruptError, UsageError
from bottleneck.inspect.duplicates import Pairs
from bottleneck.storage.store import normal_uri, place_of

SCHEMA = pa.schema(
    [
        pa.field("key_a", pa.string(), nullable=False),
        pa.field("key_b", pa.string(), nullable=False),
        pa.field("cosine", pa.float64(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
    ]
)
"""Of the table: two images, key_a the one that the plan has first, and the first image of their group."""
ROW_GROUP = 1 << 17
"""Pairs encoded at once, some 30 MB with their keys."""
NUM_READERS = 8


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are connected by pairs, each with the next; two of them may be less alike than a pair is."""

    keys: tuple[str, ...]
    """In the order of the plan, but of a large group only the first."""
    num_images: int
    least_cosine: float
    """Of its pairs."""


@dataclass(frozen=True)
class Grouped:
    """Pairs with the groups they form."""

    pairs: Pairs
    keys_M: pa.Array
    """Of the images in pairs, in the order of the plan."""
    first_P: np.ndarray
    """Positions in keys_M, as the next two."""
    second_P: np.ndarray
    group_P: np.ndarray
    """The first image of the pair's group."""
    group_M: np.ndarray
    """The first image of each image's group."""

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.group_M))

    def largest(self, num_groups: int, num_keys: int) -> list[DuplicateGroup]:
        """The groups of the most images, of equal ones the first, with the first keys of each."""
        heads, sizes = np.unique(self.group_M, return_counts=True)
        found = []
        for position in np.argsort(-sizes, kind="stable")[:num_groups].tolist():
            members = np.flatnonzero(self.group_M == heads[position])[:num_keys]
            least = self.pairs.cosines_P[self.group_P == heads[position]].min()
            keys = tuple(self.keys_M.take(pa.array(members)).to_pylist())
            found.append(DuplicateGroup(keys, int(sizes[position]), float(least)))
        return found


def grouped(features: Features, pairs: Pairs) -> Grouped:
    """Find the groups of pairs, and read the keys of the images in them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    images_M, positions = np.unique(np.concatenate([pairs.first_P, pairs.second_P]), return_inverse=True)
    first_P, second_P = np.split(positions, 2)
    size = len(images_M)
    graph = coo_array((np.ones(len(first_P), np.int8), (first_P, second_P)), shape=(size, size))
    # Of each component the first image, as images are in order.
    components_M = connected_components(graph, directed=False)[1] if size else np.empty(0, np.int64)
    _, heads = np.unique(components_M, return_index=True)
    group_M = heads[components_M]
    return Grouped(pairs, _keys_of(features, pairs, images_M), first_P, second_P, group_M[first_P], group_M)


def check_table(features: Features, file: str) -> None:
    """Raise UsageError for a table that cannot be written there, StoreError where nothing can be."""
    if not file.endswith(".parquet"):
        raise UsageError(f"Expected a file ending in .parquet for the table of pairs. Received: {file}.")
    if normal_uri(file).startswith(f"{features.plan.output}/"):
        raise UsageError(
            f"{file} is inside {features.plan.output}, which holds its own files only. Give another place."
        )
    store, name = place_of(file)
    if store.exists(name):
        raise UsageError(f"{file} is there already. Give another name, or remove it.")
    store.try_writing(create_only=True)


def write_table(features: Features, layer: str, min_cosine: float, found: Grouped, file: str) -> int:
    """Write the pairs with SCHEMA as a new Parquet file, created whole; returns its bytes.

    Raises:
        UsageError: if another job has written it meanwhile.
    """
    plan = features.plan
    about = {
        "features": plan.output,
        "layer": layer,
        "fingerprint": plan.spec.fingerprint,
        "plan_sha256": plan.sha256,
        "min_cosine": min_cosine,
        "images": found.pairs.num_images,
        "zeros": found.pairs.num_zeros,
        "versions": versions(),
    }
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, max(1, len(found.first_P)), ROW_GROUP):
            part = slice(start, start + ROW_GROUP)
            keys = [found.keys_M.take(pa.array(at[part])) for at in (found.first_P, found.second_P, found.group_P)]
            arrays = [*keys[:2], pa.array(found.pairs.cosines_P[part]), keys[2]]
            writer.write_table(pa.table(arrays, schema=SCHEMA))
        writer.add_key_value_metadata({"bottleneck": json.dumps(about, ensure_ascii=False)})
    store, name = place_of(file)
    data = buffer.getvalue()
    if not store.create(name, data):
        raise UsageError(f"Another job wrote {file} at the same time. Give another name.")
    return len(data)


def _keys_of(features: Features, pairs: Pairs, images_M: np.ndarray) -> pa.Array:
    """Read the keys of some images, given by their numbers in order; only files that hold some are read."""

    def read(number: int) -> list[pa.Array]:
        start, end = pairs.starts[number], pairs.starts[number + 1]
        some = images_M[slice(*np.searchsorted(images_M, [start, end]))]
        if not len(some):
            return []
        keys = ok_rows(features.table(features.files[number], ["key", "status"])).column("key").combine_chunks()
        if len(keys) != end - start:
            raise CorruptError(
                f"{features.files[number]} of {features.plan.output} has {len(keys):,} ok images, expected "
                f"{end - start:,}. Look with `bottleneck verify --full`."
            )
        return [keys.take(pa.array(some - start))]

    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = list(itertools.chain.from_iterable(pool.map(read, range(len(features.files)))))
    return pa.concat_arrays(found) if found else pa.array([], pa.string())
