"""Prove that an output is what its plan says: nothing lost, nothing twice, nothing strange.

A separate reader on purpose: fsspec, pyarrow and this file, none of the code that wrote the output, so that a mistake
there cannot hide itself. Whatever cannot be fetched is a StoreError; whatever was fetched and is not as it should be is
named in the report.
"""

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise, zip_longest
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bottleneck.errors import StoreError, UsageError

REASONS = frozenset(
    (
        "empty",
        "not_an_image",
        "unsupported_format",
        "truncated",
        "too_many_pixels",
        "too_many_bytes",
        "decoder_crash",
        "decode_timeout",
        "missing",
        "changed",
    )
)
"""Why an image may be rejected."""

_EXTENSION = re.compile(r"plan/extension-[0-9]{5}\.json")
_PART = re.compile(r"plan/[0-9a-f]{8}-[0-9]{8}-[0-9a-f]{8}\.parquet")
_PART_COLUMNS = {
    "shard": pa.int32(),
    "index": pa.int32(),
    "key": pa.string(),
    "size": pa.int64(),
    "etag": pa.string(),
    "label": pa.string(),
    "offset": pa.int64(),
    "length": pa.int64(),
}
_TAIL_BYTES = 65_536
"""Fetched of every data file for its footer; a footer of ours takes some 5 KB, so one request is enough."""
_NUM_THREADS = 16
_NUM_NAMES = 20
"""Missing files that the JSON line lists; all of them may be missing, and the report itself names them all."""

Problems = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found. Where nothing is corrupt, planned = ok + the sum of rejected + missing."""

    level: str
    """`footers`, or `full`: every value of every row was read."""
    planned: int
    ok: int
    rejected: dict[str, int]
    """Images by reason."""
    missing: int
    """Images of the shards that have no file; running the extraction again makes them."""
    missing_files: tuple[str, ...]
    foreign: tuple[str, ...]
    """Objects under the output that belong to nothing in the plan."""
    corrupt: tuple[tuple[str, str], ...]
    """(name, problem) of the objects that are not what they should be; the images of such a file are not counted."""
    unused_parts: int
    """Harmless leftovers of a planning that was killed."""
    unfinished: str
    """Why `finished` is false, in words; else empty."""

    @property
    def finished(self) -> bool:
        """There is a `_SUCCESS.json`, it is of the whole plan, and it agrees with the files."""
        return not self.unfinished

    @property
    def exit_code(self) -> int:
        """0 good, 1 corrupt or foreign, 3 incomplete."""
        if self.corrupt or self.foreign:
            return 1
        return 3 if self.missing_files or not self.finished else 0

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "missing_files": list(self.missing_files[:_NUM_NAMES]),
            "foreign": list(self.foreign),
            "corrupt": [{"name": name, "problem": problem} for name, problem in self.corrupt],
            "finished": self.finished,
        }


class _Problem(Exception):
    """What is wrong with one object, in words; whoever catches it knows the object's name."""


@dataclass(frozen=True)
class _Objects:
    """Every object under the output, and the way to read it."""

    fs: Any
    root: str
    sizes_bytes: dict[str, int]
    """By name under the output."""

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}", start=start, end=end))
        except Exception as error:  # stores have many kinds; none of them says that the object's content is wrong
            raise StoreError(
                f"{name} was listed but cannot be read: {type(error).__name__}: {error}. "
                "Check rights and network, and run verify again."
            ) from error

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self.read(name))
        except ValueError as error:
            raise _Problem(f"is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise _Problem(f"holds {type(value).__name__}, expected a JSON object")
        return value


@dataclass(frozen=True)
class _Part:
    name: str
    first_shard: int
    shards: int
    images: int
    sha256: str


@dataclass(frozen=True)
class _Run:
    """One planning: plan.json, or an extension of it."""

    name: str
    images: int
    bytes: int
    shards: int
    label_counts: dict[str, int]
    listing_sha256: str
    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class _Plan:
    fingerprint: str
    spec: dict[str, Any]
    shard_size: int
    runs: tuple[_Run, ...]

    @property
    def shards(self) -> int:
        return sum(run.shards for run in self.runs)

    @property
    def parts(self) -> list[_Part]:
        return [part for run in self.runs for part in run.parts]

    def data_name(self, shard: int) -> str:
        return f"data/s{shard:08d}-{self.fingerprint[:8]}.parquet"

    def digest(self, runs: int) -> str:
        """The `plan_sha256` of the first so many runs."""
        parts = [part.sha256 for run in self.runs[:runs] for part in run.parts]
        return _sha256_json({"fingerprint": self.fingerprint, "parts": parts})


def verify(output: str, full: bool = False, on_shard: Callable[[int, int], None] | None = None) -> Report:
    """Compare an output with its plan.

    Args:
        output: a folder or the URI of one, as it was given to the jobs that filled it.
        full: read every value (page checksums verified) and compare it with the plan, not only footers and totals.
        on_shard: called after each data file with the number of files done and their total.

    Raises:
        UsageError: there is no plan here, or one of another version.
        StoreError: something that is there cannot be fetched, so nothing can be said of it.
    """
    objects = _list_objects(output)
    corrupt: Problems = []
    plan = _read_plan(objects, corrupt)
    if plan is None:
        return _report(objects, None, {}, {}, corrupt, full, "the plan is corrupt, nothing else was checked")
    images = _check_parts(objects, plan, corrupt)
    statuses = _check_footers(objects, plan, images, corrupt, None if full else on_shard)
    unfinished = _check_success(objects, plan, images, statuses, corrupt)
    if full:
        _check_keys_unique(objects, plan, corrupt)
        _check_all_rows(objects, plan, statuses, corrupt, on_shard)
    return _report(objects, plan, images, statuses, corrupt, full, unfinished)


def _report(
    objects: _Objects,
    plan: _Plan | None,
    images: dict[int, int],
    statuses: dict[int, Counter[str]],
    corrupt: Problems,
    full: bool,
    unfinished: str,
) -> Report:
    names = {plan.data_name(shard): shard for shard in range(plan.shards)} if plan else {}
    missing = [name for name in names if name not in objects.sizes_bytes]
    known = {"plan.json", "_SUCCESS.json", *names}
    known |= {run.name for run in plan.runs} | {part.name for part in plan.parts} if plan else set()
    others = [name for name in objects.sizes_bytes if name not in known] if plan else []
    totals = sum(statuses.values(), Counter[str]())
    return Report(
        level="full" if full else "footers",
        planned=sum(part.images for part in plan.parts) if plan else 0,
        ok=totals["ok"],
        rejected={reason: count for reason, count in sorted(totals.items()) if reason != "ok"},
        missing=sum(images.get(names[name], 0) for name in missing),
        missing_files=tuple(missing),
        foreign=tuple(sorted(name for name in others if not _PART.fullmatch(name))),
        corrupt=tuple(sorted(corrupt)),
        unused_parts=sum(_PART.fullmatch(name) is not None for name in others),
        unfinished="; ".join(filter(None, [f"{len(missing)} shards have no file" if missing else "", unfinished])),
    )


def _list_objects(output: str) -> _Objects:
    try:
        fs, root = fsspec.core.url_to_fs(output)
    except (ValueError, ImportError) as error:
        raise UsageError(f"Cannot read outputs like {output}: {error}. Give a folder or an s3:// URI.") from error
    root = root.rstrip("/")
    try:
        fs.invalidate_cache()
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        found = {}
    except Exception as error:  # as in _Objects.read
        raise StoreError(
            f"{output} cannot be listed: {type(error).__name__}: {error}. Check its name, rights and network."
        ) from error
    sizes = {path[len(root) + 1 :]: info["size"] or 0 for path, info in sorted(found.items())}
    if "plan.json" not in sizes:
        examples = ", ".join(list(sizes)[:3])
        received = f"{len(sizes)} other objects ({examples}, ...)" if sizes else "nothing"
        raise UsageError(
            f"There is no plan in {output}: expected a plan.json. Received: {received}. "
            "Check the name of the output, or plan it first (`bottleneck plan`)."
        )
    return _Objects(fs, root, sizes)


# The plan


def _read_plan(objects: _Objects, corrupt: Problems) -> _Plan | None:
    """plan.json and its extensions, or None where they are so wrong that nothing can be compared with them."""
    name = "plan.json"
    try:
        value = objects.read_json(name)
        if value.get("format") != 1:
            raise UsageError(
                f"This plan was written by another version of bottleneck: expected format 1. Received: "
                f"{value.get('format')!r}. Verify it with the version that wrote it."
            )
        fingerprint, spec, shard_size = value["fingerprint"], value["spec"], _whole(value, "shard_size")
        if _fingerprint(spec) != fingerprint:
            raise _Problem(f"fingerprint is {fingerprint}, but that of its spec is {_fingerprint(spec)}")
        _schema(spec)
        runs = [_read_run(name, value)]
        extensions = [name for name in objects.sizes_bytes if _EXTENSION.fullmatch(name)]
        for number in range(1, len(extensions) + 1):
            name = f"plan/extension-{number:05d}.json"
            if name not in extensions:
                raise _Problem(f"is not there, though {max(extensions)} is")
            value = objects.read_json(name)
            expected = {"format": 1, "fingerprint": fingerprint, "extension": number}
            for field, wanted in expected.items():
                if value.get(field) != wanted:
                    raise _Problem(f"{field} is {value.get(field)!r}, expected {wanted!r}")
            runs.append(_read_run(name, value))
        plan = _Plan(fingerprint, spec, shard_size, tuple(runs))
        _check_part_list(plan, corrupt)
        return plan
    except _Problem as problem:
        corrupt.append((name, str(problem)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        corrupt.append((name, f"does not have the fields of a plan: {type(error).__name__} {error}"))
    return None


def _read_run(name: str, value: dict[str, Any]) -> _Run:
    parts = [
        _Part(
            str(part["name"]),
            _whole(part, "first_shard"),
            _whole(part, "shards"),
            _whole(part, "images"),
            str(part["sha256"]),
        )
        for part in value["parts"]
    ]
    images, num_bytes, shards = (_whole(value, field) for field in ("images", "bytes", "shards"))
    counts, digest = dict(value["label_counts"]), str(value["listing_sha256"])
    return _Run(name, images, num_bytes, shards, counts, digest, tuple(parts))


def _check_part_list(plan: _Plan, corrupt: Problems) -> None:
    """The parts follow each other without a gap, through all extensions, and add up to what their plan says."""
    shard = 0
    for run in plan.runs:
        for part in run.parts:
            name = f"plan/{plan.fingerprint[:8]}-{part.first_shard:08d}-{part.sha256[:8]}.parquet"
            if part.name != name:
                corrupt.append((run.name, f"names a part {part.name}, expected {name}"))
            if part.first_shard != shard:
                corrupt.append((run.name, f"{part.name} begins at shard {part.first_shard}, expected {shard}"))
            shard = part.first_shard + part.shards
        for field in ("shards", "images"):
            total = sum(getattr(part, field) for part in run.parts)
            if getattr(run, field) != total:
                corrupt.append((run.name, f"{field} is {getattr(run, field)}, but its parts have {total}"))


def _check_parts(objects: _Objects, plan: _Plan, corrupt: Problems) -> dict[int, int]:
    """Read every part of the plan. Returns the number of images of each shard, but for those of corrupt parts."""
    images: dict[int, int] = {}
    for run in plan.runs:
        num_bytes, labels, listing = 0, Counter[str](), hashlib.sha256()
        last_key, whole = None, True
        for part in run.parts:
            try:
                for shard, table in _part_shards(objects, part, check_sha256=True):
                    _check_part_shard(plan, shard, table, last_key)
                    last_key = table["key"][-1].as_py()
                    images[shard] = table.num_rows
                    columns = (table[name].to_pylist() for name in ("key", "size", "etag", "label"))
                    for key, size, etag, label in zip(*columns, strict=True):
                        num_bytes += size
                        listing.update(f"{key}\0{size}\0{etag}\n".encode())
                        if label is not None:
                            labels[label] += 1
            except _Problem as problem:
                corrupt.append((part.name, str(problem)))
                whole = False
        sums = {"bytes": num_bytes, "label_counts": dict(sorted(labels.items())), "listing_sha256": listing.hexdigest()}
        for field, expected in sums.items():
            if whole and (received := getattr(run, field)) != expected:
                corrupt.append((run.name, f"{field} is {_short(received)}, but its parts have {_short(expected)}"))
    return images


def _part_shards(objects: _Objects, part: _Part, check_sha256: bool = False) -> Iterator[tuple[int, pa.Table]]:
    """(shard, its images) of one part; only that part's bytes are held."""
    if part.name not in objects.sizes_bytes:
        raise _Problem("is not there, though the plan names it")
    data = objects.read(part.name)
    if check_sha256 and (received := hashlib.sha256(data).hexdigest()) != part.sha256:
        raise _Problem(f"sha256 of its bytes is {received}, expected {part.sha256}")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        columns = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
        tables = (file.read_row_group(group) for group in range(file.num_row_groups))
        if columns != _PART_COLUMNS:
            raise _Problem(f"has the columns {_short(file.schema_arrow.names)}, expected {_short([*_PART_COLUMNS])}")
        if (file.num_row_groups, file.metadata.num_rows) != (part.shards, part.images):
            raise _Problem(
                f"has {file.num_row_groups} row groups and {file.metadata.num_rows} rows, "
                f"expected {part.shards} shards and {part.images} images"
            )
        yield from enumerate(tables, part.first_shard)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _Problem(f"is not readable Parquet: {error}") from error


def _check_part_shard(plan: _Plan, shard: int, table: pa.Table, last_key: str | None) -> None:
    if not 0 < table.num_rows <= plan.shard_size:
        raise _Problem(f"shard {shard} has {table.num_rows} images, expected 1 to {plan.shard_size}")
    if set(table["shard"].to_pylist()) != {shard} or table["index"].to_pylist() != list(range(table.num_rows)):
        raise _Problem(f"the rows of shard {shard} are not numbered as that shard's, from 0 without a gap")
    keys = table["key"].to_pylist()
    if any(table[name].null_count for name in ("key", "size", "etag")):
        raise _Problem(f"shard {shard} has an image without key, size or etag")
    for before, after in pairwise(keys if last_key is None else [last_key, *keys]):
        if before >= after:  # code points, which is the order of the UTF-8 bytes
            raise _Problem(f"shard {shard}: key {after!r} follows {before!r}; expected each key once, in order")


def _check_keys_unique(objects: _Objects, plan: _Plan, corrupt: Problems) -> None:
    """No key in two runs. Within a run the order was checked, so merging the runs keeps memory flat."""
    broken = {name for name, _ in corrupt}
    if len(plan.runs) == 1 or broken & {part.name for part in plan.parts}:
        return

    def keys(run: _Run) -> Iterator[tuple[str, str]]:
        for part in run.parts:
            for _, table in _part_shards(objects, part):
                yield from ((key, run.name) for key in table["key"].to_pylist())

    for (key, first), (other, second) in pairwise(heapq.merge(*map(keys, plan.runs))):
        if key == other:
            corrupt.append((second, f"plans {key!r}, which {first} planned before"))


# The data files


def _schema(spec: dict[str, Any]) -> pa.Schema:
    value = {"float16": pa.float16(), "float32": pa.float32()}[spec["dtype"]]
    columns = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("sha256", pa.binary(32)),
    ]
    layers = zip(spec["layers"], spec["dims"], strict=True)
    return pa.schema(columns + [pa.field(layer, pa.list_(value, dim)) for layer, dim in layers])


def _check_footers(
    objects: _Objects,
    plan: _Plan,
    images: dict[int, int],
    corrupt: Problems,
    on_shard: Callable[[int, int], None] | None,
) -> dict[int, Counter[str]]:
    """Read the footers of all data files. Returns the number of images by status or reason of every good one."""

    def check(shard: int) -> Counter[str] | _Problem:
        try:
            return _check_footer(objects, plan, shard, images.get(shard))
        except _Problem as problem:
            return problem

    present = [shard for shard in range(plan.shards) if plan.data_name(shard) in objects.sizes_bytes]
    good: dict[int, Counter[str]] = {}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for done, (shard, found) in enumerate(zip(present, pool.map(check, present), strict=True), 1):
            if isinstance(found, _Problem):
                corrupt.append((plan.data_name(shard), str(found)))
            else:
                good[shard] = found
            if on_shard:
                on_shard(done, len(present))
    return good


def _check_footer(objects: _Objects, plan: _Plan, shard: int, images: int | None) -> Counter[str]:
    metadata = _read_footer(objects, plan.data_name(shard))
    try:
        footer = json.loads((metadata.metadata or {})[b"bottleneck"])
        statuses = Counter({str(status): _whole(footer["statuses"], status) for status in footer["statuses"]})
        received = {field: footer[field] for field in ("format", "fingerprint", "shard", "images")}
        spec_fingerprint = _fingerprint(footer["spec"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Problem(f"its footer does not have our fields: {type(error).__name__} {error}") from error
    expected = {"format": 1, "fingerprint": plan.fingerprint, "shard": shard, "images": metadata.num_rows}
    for field, value in expected.items():
        if received[field] != value:
            raise _Problem(f"{field} in its footer is {received[field]!r}, expected {value!r}")
    if spec_fingerprint != plan.fingerprint:
        raise _Problem(f"the spec in its footer has fingerprint {spec_fingerprint}, expected {plan.fingerprint}")
    if images is not None and metadata.num_rows != images:
        raise _Problem(f"has {metadata.num_rows} rows, expected the {images} images of the plan")
    if odd := sorted(set(statuses) - REASONS - {"ok"}):
        raise _Problem(f"statuses in its footer has {', '.join(map(repr, odd))}, expected ok or a known reason")
    if min(statuses.values(), default=0) < 0 or statuses.total() != metadata.num_rows:
        raise _Problem(f"statuses in its footer add up to {statuses.total()}, but it has {metadata.num_rows} rows")
    return +statuses


def _read_footer(objects: _Objects, name: str) -> pq.FileMetaData:
    """Parse a Parquet footer from the last bytes of the object alone: PAR1 and the footer's length end the file."""
    size = objects.sizes_bytes[name]
    tail = objects.read(name, max(0, size - _TAIL_BYTES), size)
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise _Problem(f"ends ({size} bytes) without a Parquet footer: cut short or overwritten")
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed > size - 4:
        raise _Problem(f"has {size} bytes, but its footer alone says it needs {needed + 4}")
    if needed > len(tail):
        tail = objects.read(name, size - needed, size)
    try:
        return pq.read_metadata(pa.BufferReader(tail[-needed:]))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _Problem(f"its Parquet footer is not readable: {error}") from error


def _check_all_rows(
    objects: _Objects,
    plan: _Plan,
    statuses: dict[int, Counter[str]],
    corrupt: Problems,
    on_shard: Callable[[int, int], None] | None,
) -> None:
    """Compare every good file with the plan, row by row, one shard in memory at a time."""
    broken = {name for name, _ in corrupt}
    schema, done = _schema(plan.spec), 0
    for part in plan.parts:
        if part.name in broken:
            continue
        for shard, expected in _part_shards(objects, part):
            if shard not in statuses:
                continue
            name = plan.data_name(shard)
            try:
                table = _read_table(objects, name, schema)
                _check_rows(table, expected, statuses[shard])
                for layer in plan.spec["layers"]:
                    _check_features(table, layer)
            except _Problem as problem:
                corrupt.append((name, str(problem)))
            done += 1
            if on_shard:
                on_shard(done, len(statuses))


def _read_table(objects: _Objects, name: str, schema: pa.Schema) -> pa.Table:
    data = objects.read(name)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        for number, (received, expected) in enumerate(zip_longest(file.schema_arrow, schema)):
            if received is None or expected is None or received != expected:
                raise _Problem(f"its column {number} is {_field(received)}, expected {_field(expected)}")
        table = file.read()
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _Problem(f"cannot be read whole: {error}") from error


def _check_rows(table: pa.Table, expected: pa.Table, statuses: Counter[str]) -> None:
    counts = Counter[str]()
    images = expected.select(["key", "etag", "label"]).to_pylist()
    rows = table.select(table.column_names[:9]).to_pylist()
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        status, reason = row["status"], row["reason"]
        # A rejected image may have been gone or another one when it was read, so its etag is not the plan's.
        for field in ("key", "label", "etag") if status == "ok" else ("key", "label"):
            if row[field] != image[field]:
                raise _Problem(f"row {number}: {field} is {row[field]!r}, expected {image[field]!r} as in the plan")
        if (status, reason) != ("ok", None) and not (status == "rejected" and reason in REASONS):
            raise _Problem(f"row {number}: status {status!r} with reason {reason!r}, expected ok or a known reason")
        if status == "ok" and (empty := [name for name in ("width", "height", "mode", "sha256") if row[name] is None]):
            raise _Problem(f"row {number}: ok, but without {', '.join(empty)}")
        counts[reason or "ok"] += 1
    if counts != statuses:
        raise _Problem(f"its rows are {dict(counts)}, but its footer says {dict(statuses)}")


def _check_features(table: pa.Table, layer: str) -> None:
    """Features where, and only where, a row is ok, and all of them finite."""
    ok = [status == "ok" for status in table["status"].to_pylist()]
    column = table[layer].combine_chunks()
    for number, (is_ok, has_features) in enumerate(zip(ok, column.is_valid().to_pylist(), strict=True)):
        if is_ok != has_features:
            state = "ok, but has no" if is_ok else "rejected, but has"
            raise _Problem(f"row {number} is {state} features in {layer}")
    finite = pc.is_finite(column.flatten()).fill_null(False)
    if (position := finite.index(False).as_py()) >= 0:
        nth, dim = divmod(position, column.type.list_size)
        number = [number for number, is_ok in enumerate(ok) if is_ok][nth]
        raise _Problem(f"row {number}: value {dim} of {layer} is NaN, infinite or null")


# The end


def _check_success(
    objects: _Objects, plan: _Plan, images: dict[int, int], statuses: dict[int, Counter[str]], corrupt: Problems
) -> str:
    """Compare `_SUCCESS.json` with plan and footers. Returns why the output is not finished, or nothing."""
    name = "_SUCCESS.json"
    if name not in objects.sizes_bytes:
        return f"there is no {name}"
    try:
        value = objects.read_json(name)
        for field, expected in {"format": 1, "fingerprint": plan.fingerprint}.items():
            if value[field] != expected:
                raise _Problem(f"{field} is {value[field]!r}, expected {expected!r}")
        digests = [plan.digest(runs) for runs in range(1, len(plan.runs) + 1)]
        if value["plan_sha256"] not in digests:
            raise _Problem(f"plan_sha256 is {value['plan_sha256']}, expected {digests[-1]}")
        known_runs = digests.index(value["plan_sha256"]) + 1
        _check_success_lines(objects, plan, value, known_runs, images, statuses, corrupt)
    except _Problem as problem:
        corrupt.append((name, str(problem)))
        return f"{name} does not match"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        corrupt.append((name, f"does not have its fields: {type(error).__name__} {error}"))
        return f"{name} does not match"
    if known_runs < len(plan.runs):  # not corrupt: this is how an output looks between an extension and its extraction
        return f"{name} was written before {plan.runs[known_runs].name}"
    return ""


def _check_success_lines(
    objects: _Objects,
    plan: _Plan,
    value: dict[str, Any],
    known_runs: int,
    images: dict[int, int],
    statuses: dict[int, Counter[str]],
    corrupt: Problems,
) -> None:
    num_shards = list(accumulate(run.shards for run in plan.runs))[known_runs - 1]
    lines = value["shards"]
    if [line["shard"] for line in lines] != list(range(num_shards)):
        raise _Problem(f"has {len(lines)} lines of shards, expected one for each of 0 to {num_shards - 1}, in order")
    total = Counter[str]()
    for shard, line in enumerate(lines):
        received = _success_statuses(line, f"shard {shard}: ")
        total += received
        if line["images"] != images.get(shard, line["images"]):
            raise _Problem(f"shard {shard}: images is {line['images']}, expected {images[shard]} as in the plan")
        name = plan.data_name(shard)
        if shard in statuses and received != statuses[shard]:
            raise _Problem(f"shard {shard}: {dict(received)}, but the footer of {name} says {dict(statuses[shard])}")
        num_bytes = _whole(line, "bytes")
        if shard in statuses and num_bytes != objects.sizes_bytes[name]:
            corrupt.append((name, f"has {objects.sizes_bytes[name]} bytes, but _SUCCESS.json says {num_bytes}"))
    if (received := _success_statuses(value, "")) != total:
        raise _Problem(f"totals are {dict(received)}, but its shards add up to {dict(total)}")


def _success_statuses(value: dict[str, Any], where: str) -> Counter[str]:
    """The ok and rejected of a line or of the totals, as one count."""
    rejected = {str(reason): _whole(value["rejected"], reason) for reason in value["rejected"]}
    statuses = Counter({**rejected, "ok": _whole(value, "ok")})
    if min(statuses.values()) < 0 or statuses.total() != _whole(value, "images"):
        raise _Problem(f"{where}images is {value['images']}, but ok and rejected add up to {statuses.total()}")
    return +statuses


def _sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(spec: dict[str, Any]) -> str:
    return _sha256_json({key: value for key, value in spec.items() if key != "weights"})


def _whole(value: dict[str, Any], field: str) -> int:
    if type(number := value[field]) is not int:
        raise _Problem(f"{field} is {number!r}, expected a whole number")
    return number


def _field(field: pa.Field | None) -> str:
    return "not there" if field is None else f"{field.name} {field.type}" + (" not null" if not field.nullable else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 300 else text[:300] + "..."
