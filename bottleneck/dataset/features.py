"""Data files: written whole, read by anyone; and the dataset of an output as (features, labels).

Legend: N images, D features of a layer.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.dataset.footer import read_footer, revision_in
from bottleneck.dataset.plan import FORMAT, Plan, json_bytes, load_plan, versions
from bottleneck.dataset.schema import check_schema, data_schema, ok_rows
from bottleneck.errors import CorruptError, IncompleteError, UsageError
from bottleneck.spec import FeatureSpec, OutputSpec, canonical_layer
from bottleneck.storage.parquet import open_parquet
from bottleneck.storage.store import Entry, ObjectGoneError, Store, open_store
from bottleneck.text import counted

SUCCESS = "_SUCCESS.json"

_UNSEALED = b'"sha256": "%064d"' % 0
"""The footer's digest of the file it is in, while that is not known."""


@dataclass(frozen=True)
class Receipt:
    """The small proof that a shard is committed."""

    shard: int
    statuses: dict[str, int]
    """Rows by outcome: `ok`, or the reason of a rejection."""
    bytes: int
    """Of the data file."""
    created: bool = True
    """False where another attempt had committed it first."""

    @property
    def images(self) -> int:
        return sum(self.statuses.values())

    @property
    def ok(self) -> int:
        return self.statuses.get("ok", 0)

    @property
    def rejected(self) -> dict[str, int]:
        return {reason: count for reason, count in sorted(self.statuses.items()) if reason != "ok"}


def write_shard(
    store: Store,
    name: str,
    spec: OutputSpec,
    shard: int,
    rows: pa.Table,
    *,
    run_id: str,
    device: str,
    revision: int = 0,
) -> Receipt:
    """Encode a shard's rows and commit its data file, whole or not at all.

    Args:
        rows: in the schema `rows.data_schema(spec)`, in the plan's order.
        device: what the values were computed on, for the footer.
        revision: 0 creates the file; a higher one replaces a file of a lower one.

    Returns:
        The receipt; not `created` if another attempt was faster.
    """
    statuses = outcomes(rows)
    data = encode(rows, spec, shard, statuses, run_id=run_id, device=device, revision=revision)
    created = _commit(store, name, data, revision) if revision else store.create(name, data)
    return Receipt(shard, statuses, len(data), created)


def _commit(store: Store, name: str, data: bytes, revision: int) -> bool:
    """Write a revision of a data file; False if it, or a later one, is there already."""
    while True:
        there = store.stat(name)
        if there is None:
            if store.create(name, data):
                return True
        elif revision_in(store, there) >= revision:
            return False
        elif store.replace(name, data, there.etag):
            return True
        # Another run wrote it since this one looked: look again at what it holds.


def outcomes(rows: pa.Table) -> dict[str, int]:
    """Count rows by outcome: `ok`, or the reason of a rejection."""
    counts = Counter("ok" if reason is None else reason for reason in rows.column("reason").to_pylist())
    return dict(sorted(counts.items()))


def encode(
    rows: pa.Table,
    spec: OutputSpec,
    shard: int,
    statuses: dict[str, int],
    *,
    run_id: str,
    device: str,
    revision: int = 0,
) -> bytes:
    """The bytes of a data file."""
    footer = {
        "format": FORMAT,
        "fingerprint": spec.fingerprint,
        **spec.described(),
        "shard": shard,
        "revision": revision,
        "images": rows.num_rows,
        "statuses": statuses,
        "run_id": run_id,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": device,
        "sha256": "0" * 64,  # the last field, see _seal
    }
    buffer = io.BytesIO()
    # Splitting the bytes of numbers into streams before zstd makes files smaller (MobileNet on flowers: float32 by 3 %,
    # float16 by 7 %), but DuckDB 2.0 cannot read float16 written so. Level 3 of zstd gains nothing over 1: 1,222 bytes
    # a row of 768 float16 against 1,215, at half again the time; 25,088 values four fifths zero take 14,800 of 50,176.
    encodings, dictionaries = {}, ["label", "status", "reason", "mode"]
    if isinstance(spec, FeatureSpec):
        encoding = "BYTE_STREAM_SPLIT" if spec.dtype == "float32" else "PLAIN"
        encodings = {f"{layer}.list.element": encoding for layer in spec.layers}
    else:
        dictionaries += ["predicted", "top_labels.list.element"]
    with pq.ParquetWriter(
        buffer,
        data_schema(spec),
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionaries,
        column_encoding=encodings or None,
        write_statistics=["key", "label", "status", "reason"],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(rows, row_group_size=max(1, rows.num_rows))
        writer.add_key_value_metadata({"bottleneck": json.dumps(footer, ensure_ascii=False)})
    return _seal(buffer.getvalue())


def _seal(data: bytes) -> bytes:
    """Put the sha256 of a data file with zeros for it into its footer: `verify --full` then knows every byte of it."""
    before, _, after = data.rpartition(_UNSEALED)
    digest = hashlib.sha256(data).hexdigest().encode()
    return b"".join((before, _UNSEALED.replace(b"0" * 64, digest), after))


def finish(
    plan: Plan,
    receipts: dict[int, Receipt] | None = None,
    run_id: str = "",
    done: dict[int, int] | None = None,
) -> dict[str, Any]:
    """Account for every shard and write `_SUCCESS.json`.

    Args:
        receipts: this run's, by shard. The footers of all other shards are read, and those of reprocessed ones.
        run_id: this run's. A shard whose footer has it, but whose receipt was lost with its worker, is added to
            `receipts`, so that the run counts what it did.
        done: `plan.committed()` as this run found it at its start. Default: `data/` is listed.

    Returns:
        The content of `_SUCCESS.json`.

    Raises:
        IncompleteError: if shards are missing.
    """
    store = open_store(plan.output)
    ours = {shard: receipt for shard, receipt in (receipts or {}).items() if receipt.created}
    committed = plan.committed() if done is None else done

    def account(shard: int) -> Receipt | None:
        """Return the shard's receipt, or None if its file is missing or of an earlier revision."""
        name = plan.data_name(shard)
        revised = plan.revised.get(shard)
        if shard in ours and not revised:  # another run may have replaced a reprocessed one
            return ours[shard]
        if shard in committed:
            listed: Entry | None = Entry(name, committed[shard], "")
        else:  # another run's, if this one did not list `data/` a moment ago
            listed = None if done is None else store.stat(name)
        if listed is None:
            return None
        entry, footer = read_footer(store, listed)
        if revised and footer.get("revision", 0) < revised.revision:
            return None
        return Receipt(shard, footer["statuses"], entry.size, created=footer.get("run_id") == run_id)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(account, range(plan.num_shards)))
    accounts = [receipt for receipt in found if receipt is not None]
    if missing := [shard for shard, receipt in enumerate(found) if receipt is None]:
        raise IncompleteError(
            f"{plan.output} is not finished: {len(missing):,} of {counted(plan.num_shards, 'shard')} left to do, the "
            f"first of them {missing[0]}. Run the same command again: it does only that."
        )
    if receipts is not None:
        receipts.update((one.shard, one) for one in accounts if one.created)
    totals = sum((Counter(receipt.statuses) for receipt in accounts), Counter())
    document = {
        "format": FORMAT,
        "fingerprint": plan.holds.fingerprint,
        "plan_sha256": plan.sha256,
        "images": plan.num_images,
        "ok": totals.pop("ok", 0),
        "rejected": dict(sorted(totals.items())),
        "shards": [
            {"shard": one.shard, "images": one.images, "ok": one.ok, "rejected": one.rejected, "bytes": one.bytes}
            for one in accounts
        ],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.replace(SUCCESS, json_bytes(document))
    return document


def finished(plan: Plan, committed: dict[int, int] | None = None) -> dict[str, Any] | None:
    """`_SUCCESS.json`, if it speaks of this plan and every data file is there in the size it says; else None.

    Args:
        committed: `plan.committed()`, where that is known already.
    """
    store = open_store(plan.output)
    try:
        document: dict[str, Any] = json.loads(store.read(SUCCESS))
        sizes = {line["shard"]: line["bytes"] for line in document["shards"]}
        if document["plan_sha256"] != plan.sha256:
            return None
        return document if sizes == (plan.committed() if committed is None else committed) else None
    except (ObjectGoneError, ValueError, KeyError, TypeError, RecursionError):
        return None


class Features:
    """The rows of an output whose images are ok. Made by `open_features`."""

    def __init__(
        self,
        plan: Plan,
        files: list[str],
        entries: dict[int, Entry] | None = None,
        success: dict[str, Any] | None = None,
    ) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.files = files
        """Names of the data files below the output, in shard order."""
        self.entries = entries or {}
        """The data files as they were listed when this was opened, by shard."""
        self.success = success
        """The content of `_SUCCESS.json`; None if the output was not finished."""

    @property
    def layers(self) -> tuple[str, ...]:
        return self.spec.layers

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield one table a shard, rejected rows included, with these columns or all."""
        for name in self.files:
            yield self.table(name, columns)

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One data file's rows, with these columns or all."""
        return read_table(open_store(self.plan.output), name, columns)

    def batches(self, layer: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the ok rows of one shard after the other.

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
        """`batches` with keys_N (str) as the third of each."""
        column = self.column(layer)
        for table in self.tables(["key", "label", "status", column]):
            ok = ok_rows(table)
            yield vectors(ok.column(column)), _objects(ok.column("label")), _objects(ok.column("key"))

    def column(self, layer: str | None) -> str:
        """The full name of a layer; may be left out where there is only one. Raises UsageError."""
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
    """The rows of a data file, with these columns or all. Raises CorruptError."""
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
    """Ok images of every data file, from `_SUCCESS.json`, or where there is none from the footers."""
    if features.success is not None:
        return {features.plan.data_name(line["shard"]): line["ok"] for line in features.success["shards"]}
    store = open_store(features.plan.output)
    files = {entry.key: entry for entry in features.entries.values()}
    return {name: read_footer(store, files[name])[1]["statuses"].get("ok", 0) for name in features.files}


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """features_ND of a layer's column, in the stored dtype and without the rows that have none."""
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    numbers = values.flatten().to_numpy(zero_copy_only=False)  # without those of null rows
    features_ND: np.ndarray = numbers.reshape(len(values) - values.null_count, column.type.list_size)
    return features_ND


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
