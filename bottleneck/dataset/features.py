"""Read the features of an output as arrays, tables and batches."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bottleneck.dataset.footer import read_footer
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.schema import check_schema, ok_rows
from bottleneck.dataset.success import Success, finished
from bottleneck.errors import CorruptError, IncompleteError, UsageError
from bottleneck.spec import canonical_layer, layers_in
from bottleneck.storage.parquet import open_parquet
from bottleneck.storage.store import Entry, ObjectGoneError, Store, open_store
from bottleneck.text import counted


class Features:
    """The ok rows of an output. Made by `open_features`."""

    def __init__(
        self,
        plan: Plan,
        files: list[str],
        entries: dict[int, Entry] | None = None,
        success: Success | None = None,
    ) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.files = files
        """Names of the data files below the output, in shard order."""
        self.entries = plan.data_files() if entries is None else entries
        """The data files as they were listed when this was opened, by shard."""
        self.success = success
        """The content of `_SUCCESS.json`; None if the output was not finished."""

    @property
    def layers(self) -> tuple[str, ...]:
        return self.spec.layers

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield one table per shard, rejected rows included, with these columns or all."""
        for name in self.files:
            yield self.table(name, columns)

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One data file's rows, with these columns or all."""
        return read_table(open_store(self.plan.output), name, columns)

    def batches(self, layer: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the ok rows, shard by shard.

        Args:
            layer: as in the spec (`fc2` for `fc2:none`); may be left out where there is only one.

        Yields:
            features_ND in the stored dtype, labels_N (str, or None without labels).
        """
        for features_ND, labels_N, _ in self.keyed_batches(layer):
            yield features_ND, labels_N

    def arrays(self, layer: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read all ok rows into memory, in the order of `keys`.

        Args:
            layer: as in the spec (`fc2` for `fc2:none`); may be left out if there is only one.

        Returns:
            features_ND as float32 [N, D], labels_N as objects [N] (str, or None without a label).
        """
        dim = self.spec.dim_of(self.column(layer))
        features, labels = [np.empty((0, dim), np.float32)], [np.empty(0, object)]
        for features_ND, labels_N in self.batches(layer):
            features.append(features_ND.astype(np.float32))
            labels.append(labels_N)
        return np.concatenate(features), np.concatenate(labels)

    def keys(self) -> np.ndarray:
        """Read the keys of all ok rows, as objects [N] (str), in the order of `arrays`."""
        tables = self.tables(["key", "status"])
        keys = [_objects(ok_rows(table).column("key")) for table in tables]
        return np.concatenate([np.empty(0, object), *keys])

    def keyed_batches(self, layer: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Like `batches`, with keys_N (str) as the third array."""
        column = self.column(layer)
        for table in self.tables(["key", "label", "status", column]):
            ok = ok_rows(table)
            yield vectors(ok.column(column)), _objects(ok.column("label")), _objects(ok.column("key"))

    def column(self, layer: str | None) -> str:
        """The full name of a layer, which may be None if there is only one. Raises UsageError."""
        if layer is None and len(self.layers) == 1:
            return self.layers[0]
        known = ", ".join(self.layers)
        if layer is None:
            raise UsageError(f"{self.plan.output} has features of several layers. Expected `layer`, one of {known}.")
        if canonical_layer(layer) not in self.layers:
            raise UsageError(f"{self.plan.output} has no features of that layer. Expected {known}. Received: {layer}.")
        return canonical_layer(layer)


def open_features(output: str, *, allow_incomplete: bool = False) -> Features:
    """Open the features of an output.

    Args:
        allow_incomplete: also open an output whose extraction is not finished, with the shards it has; those that are
            to be done again as they were before.

    Raises:
        UsageError: if there is no plan, or one of predictions.
        IncompleteError: if shards are missing, unless allowed.
    """
    plan = load_plan(output)
    if plan is None:
        raise UsageError(f"{output} holds no features: it has no plan.json. Make some with `bottleneck extract`.")
    if plan.predictions:
        raise UsageError(
            f"{output} holds the predictions of the head {plan.predictions.head}, no features. Expected an output of "
            "`bottleneck extract`; predictions are read by whatever reads Parquet."
        )
    entries = plan.data_files()
    committed = plan.committed(entries)
    success = finished(plan, committed)
    if not allow_incomplete and success is None:
        done = len(committed)
        raise IncompleteError(
            f"{output} is not finished: {done:,} of {counted(plan.num_shards, 'shard')} done. Run its "
            "`bottleneck extract` command again, or take what there is with `allow_incomplete`."
        )
    return Features(plan, [plan.data_name(shard) for shard in sorted(entries)], entries, success)


def read_table(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read the rows of a data file, with these columns or all. Raises CorruptError."""
    try:
        data = store.read(name)
        # Without threads of pyarrow's, see `listing.read_images`; a layer is one column chunk, they gain nothing.
        with open_parquet(pa.BufferReader(data), page_checksum_verification=True) as file:
            check_schema(file.schema_arrow, columns or ())
            return file.read(columns=columns, use_threads=False)
    except ObjectGoneError:
        raise CorruptError(f"{store.uri}/{name} is gone since it was listed.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptError(
            f"{store.uri}/{name} is damaged: {error}. Look at it with `bottleneck verify`; delete it to have it done "
            "again."
        ) from error


def rows_of(features: Features) -> dict[str, int]:
    """The number of ok rows of every data file, from `_SUCCESS.json`, else from the footers."""
    if features.success is not None:
        return {features.plan.data_name(line["shard"]): line["ok"] for line in features.success["shards"]}
    store = open_store(features.plan.output)
    files = {entry.key: entry for entry in features.entries.values()}
    return {name: read_footer(store, files[name])[1]["statuses"].get("ok", 0) for name in features.files}


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A layer's column as features_ND in the stored dtype, without null rows."""
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    numbers = values.flatten().to_numpy(zero_copy_only=False)  # without those of null rows
    features_ND: np.ndarray = numbers.reshape(len(values) - values.null_count, column.type.list_size)
    return features_ND


def side_by_side(rows: pa.Table, layer: str) -> np.ndarray:
    """The features of ok rows, [N, D] in the stored dtype, of one layer or of several side by side."""
    parts = [vectors(rows.column(one)) for one in layers_in(layer)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
