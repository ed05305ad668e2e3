"""Judge the objects of an output one by one: each is what the format says, or `Wrong` says why it is not.

With `audit_rows`, `audit_revisions` and `verify` a separate reader on purpose: fsspec, pyarrow and these four files,
none of the code that wrote the output, so that a mistake there cannot hide itself. What cannot be fetched is a
StoreError. Bytes that are none of ours may also raise what json and pyarrow raise; `verify` knows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.errors import StoreError, UsageError

FORMAT = 3

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
        "archived",
    )
)
"""Why an image may be rejected."""

Fields = dict[type, str]
"""The fields of a JSON object by type; it may have more."""
_PLANNING: Fields = {
    int: "format images bytes shards",
    str: "fingerprint created listing_sha256",
    dict: "versions label_counts skipped",
    list: "parts",
}
_REVISION: Fields = {int: "replaced_bytes", dict: "limits replaced_label_counts", list: "revised"}
_SHARDS: Fields = {int: "shard_size"}
_PLAN: Fields = {int: "shard_size", str: "source", dict: "spec limits reading"}
_PREDICTIONS: Fields = {int: "top", str: "head head_sha256 made_of"}
_PART: Fields = {int: "first_shard shards images", str: "name sha256"}
_FOOTER: Fields = {
    int: "format shard images",
    str: "fingerprint run_id written device sha256",
    dict: "spec statuses versions",
}
SUCCESS: Fields = {int: "format images ok", str: "fingerprint plan_sha256 finished", dict: "rejected", list: "shards"}
SUCCESS_SHARD: Fields = {int: "shard images ok bytes", dict: "rejected"}

_PART_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("object", pa.string()),
    ]
)
_IMAGE_FIELDS = [
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
_PREDICTION_FIELDS = [
    pa.field("predicted", pa.string()),
    pa.field("probability", pa.float32()),
    pa.field("top_labels", pa.list_(pa.string())),
    pa.field("top_probabilities", pa.list_(pa.float32())),
]
_OF_BYTES = "but that of its bytes (with zeros for these digits) is"
_TAIL_BYTES = 65_536
"""Fetched of every data file for its footer; a footer of ours takes some 5 KB, so one request is enough."""


class Wrong(Exception):
    """What is wrong with one object, in words; whoever catches it knows the object's name."""


def expect(what: str, received: object, expected: object, but: str = "expected") -> None:
    """Compare two values; `what` and `but` are the words before them. Raises Wrong."""
    if received != expected:
        raise Wrong(f"{what} {_short(received)}, {but} {_short(expected)}")


def check_fields(value: dict[str, Any], fields: Fields) -> None:
    """Find every field, and of its type. Raises TypeError."""
    words = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}
    for kind, names in fields.items():
        for name in names.split():
            if type(value.get(name)) is not kind:
                raise TypeError(f"{name} is {_short(value.get(name))}, expected {words[kind]}")


def check_counts(counts: dict[str, Any], known: frozenset[str] = REASONS) -> Counter[str]:
    """Take a JSON object for numbers of images by outcome. Raises Wrong."""
    for outcome, number in counts.items():
        if outcome not in known or type(number) is not int or number < 0:
            raise Wrong(f"counts {number!r} as {outcome!r}, expected whole numbers of {', '.join(sorted(known))}")
    return +Counter(counts)


@dataclass(frozen=True)
class Objects:
    """Every object under an output, and the way to read it."""

    fs: Any
    root: str
    sizes_bytes: dict[str, int]
    """By name under the output."""

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Fetch an object or a range of it. Raises StoreError, or Wrong where it was not listed."""
        if name not in self.sizes_bytes:
            raise Wrong("is not there")
        size = self.sizes_bytes[name]  # no more than was listed: a link may lead to a device without end
        path, start, end = f"{self.root}/{name}", start or 0, size if end is None else end
        try:
            if start >= end:  # a range S3 cannot be asked for; opening says whether it is there
                with self.fs.open(path) as file:
                    return bytes(file.read(0))
            return bytes(self.fs.cat_file(path, start=start, end=end))
        except Exception as error:  # stores have many kinds; none of them says that the object's content is wrong
            raise StoreError(
                f"{name} was listed but cannot be read: {type(error).__name__}: {error}. "
                "Check rights and network, and run verify again."
            ) from error

    def read_json(self, name: str) -> Any:
        """Fetch and parse a JSON document. Raises StoreError or Wrong."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise Wrong(f"is not JSON: {error}") from error


@dataclass(frozen=True)
class Plan:
    """plan.json, its extensions and its revisions, as read by `extend`."""

    documents: dict[str, dict[str, Any]]
    """By name, in order."""

    @property
    def fingerprint(self) -> str:
        return str(self.documents["plan.json"]["fingerprint"])

    @property
    def parts(self) -> list[dict[str, Any]]:
        return [part for document in self.documents.values() for part in document["parts"]]

    @property
    def first_parts(self) -> list[dict[str, Any]]:
        """Without those of revisions: every shard once."""
        grown = (document for document in self.documents.values() if "revised" not in document)
        return [part for document in grown for part in document["parts"]]

    @property
    def skipped(self) -> dict[str, int]:
        """What the last look at the source found beside images, by suffix."""
        looks = [document["skipped"] for document in self.documents.values() if "revised" not in document]
        return looks[-1] if looks else {}

    @property
    def num_shards(self) -> int:
        return sum(part["shards"] for part in self.first_parts)

    @cached_property
    def planned_in(self) -> dict[int, list[int]]:
        """By shard, the numbers of the documents it is in, as a footer says them: 0, then its revisions."""
        found: dict[int, list[int]] = {shard: [0] for shard in range(self.num_shards)}
        for number, document in enumerate(self.documents.values()):
            for shard in document.get("revised", []):
                found[shard].append(number)
        return found

    @property
    def sha256(self) -> str:
        """What `_SUCCESS.json` says as `plan_sha256`."""
        return _sha256_json({"fingerprint": self.fingerprint, "parts": [part["sha256"] for part in self.parts]})

    def data_name(self, shard: int) -> str:
        """Name the file of a shard."""
        return f"data/s{shard:08d}-{self.fingerprint[:8]}.parquet"

    def extend(self, objects: Objects, name: str) -> "Plan":
        """Read plan.json, or the extension or revision that follows.

        Raises:
            UsageError: plan.json is one of another version.
            StoreError: the document cannot be fetched.
            Wrong: it contradicts itself, or the plan so far.
        """
        document = objects.read_json(name)
        if not self.documents and document.get("format") != FORMAT:
            raise UsageError(
                f"This plan was written by another version of bottleneck: expected format {FORMAT}. Received: "
                f"{document.get('format')!r}. Verify it with the version that wrote it."
            )
        check_fields(document, _PLANNING)
        fingerprint = document["fingerprint"]
        if self.documents:
            expect("format is", document["format"], FORMAT)
            expect("fingerprint is", fingerprint, self.fingerprint)
            expect("extension is", document.get("extension"), len(self.documents))
        else:
            check_fields(document, _PLAN)
            expect("fingerprint is", fingerprint, _fingerprint(document), "but that of its spec is")
            data_schema(document)
        if "shard_size" in document:  # an extension may have another than the plan
            check_fields(document, _SHARDS)
        if "revised" in document:
            self._check_revised(document)
        shards = iter(document["revised"] if "revised" in document else count(self.num_shards))
        for part in document["parts"]:
            check_fields(part, _PART)
            first, *_ = of_part = list(islice(shards, part["shards"])) or [None]
            expect(f"{part['name']} begins at shard", part["first_shard"], first)
            expect(f"{part['name']} has shards", len(of_part), part["shards"])
            expect("names a part", part["name"], f"plan/{fingerprint[:8]}-{first:08d}-{part['sha256'][:8]}.parquet")
        if "revised" in document:
            expect("its parts have all but these of the shards it revises:", list(shards), [])
        return Plan({**self.documents, name: document})

    def _check_revised(self, document: dict[str, Any]) -> None:
        """Find a revision's own fields, and in it shards of the plan so far, each once and in order."""
        if not self.documents:
            raise Wrong("revises shards, but only an extension can")
        check_fields(document, _REVISION)
        before = -1
        for shard in document["revised"]:
            if type(shard) is not int or not before < shard < self.num_shards:
                raise Wrong(
                    f"revises shard {shard!r} after {before}, expected numbers below {self.num_shards}, each once and "
                    "in order"
                )
            before = shard

    def shards_of(self, name: str, part: dict[str, Any]) -> list[int]:
        """The numbers of a part's shards, in the order of its row groups."""
        first = part["first_shard"]
        revised = self.documents[name].get("revised")
        if revised is None:
            return list(range(first, first + part["shards"]))
        position = revised.index(first)
        return list(revised[position : position + part["shards"]])

    def read_part(
        self, objects: Objects, name: str, part: dict[str, Any], after: str
    ) -> Iterator[tuple[int, pa.Table]]:
        """Read and check a part.

        Args:
            name: of the document it is a part of.
            after: the key before the part's first one.

        Yields:
            Each shard and its images.

        Raises:
            StoreError: the part cannot be fetched.
            Wrong: it is not there, or not what the plan says.
        """
        data = objects.read(part["name"])
        expect("sha256 of its bytes is", hashlib.sha256(data).hexdigest(), part["sha256"])
        tables = read_tables(data, _PART_SCHEMA)
        num_shards, num_images = len(tables), sum(table.num_rows for table in tables)
        if (num_shards, num_images) != (part["shards"], part["images"]):
            raise Wrong(
                f"has {num_shards} row groups and {num_images} rows, "
                f"expected {part['shards']} shards and {part['images']} images"
            )
        document = self.documents[name]
        full = document.get("shard_size", self.documents["plan.json"]["shard_size"])
        last_shard = self.shards_of(name, document["parts"][-1])[-1]
        for shard, table in zip(self.shards_of(name, part), tables, strict=True):
            rows = table.num_rows
            if "revised" in document:
                after = ""  # the next shard may be one of another listing; its keys must be those it had before
            elif rows != full and not (shard == last_shard and 0 < rows < full):
                raise Wrong(f"shard {shard} has {rows} images, expected {full}, or 1 to {full} in the last one")
            if table["shard"].to_pylist() != [shard] * rows or table["index"].to_pylist() != list(range(rows)):
                raise Wrong(f"the rows of shard {shard} are not numbered as that shard's, from 0 without a gap")
            for key in table["key"].to_pylist():
                if key <= after:  # code points, which is the order of the UTF-8 bytes
                    raise Wrong(f"shard {shard}: key {key!r} follows {after!r}; expected each key once, in order")
                after = key
            yield shard, table


def check_footer(objects: Objects, plan: Plan, shard: int) -> tuple[Counter[str], int]:
    """Check the footer of a data file.

    Returns:
        Its numbers of images by outcome, ok or the reason of a rejection; and the revision of the shard it holds.

    Raises:
        StoreError: the file cannot be fetched.
        Wrong: it is not this shard's.
    """
    metadata = _read_metadata(objects, plan.data_name(shard))
    footer = json.loads((metadata.metadata or {})[b"bottleneck"])
    check_fields(footer, _FOOTER)
    expected = {"format": FORMAT, "fingerprint": plan.fingerprint, "shard": shard, "images": metadata.num_rows}
    for field, value in expected.items():
        expect(f"{field} in its footer is", footer[field], value)
    expect("the spec in its footer has fingerprint", _fingerprint(footer), plan.fingerprint)
    statuses = check_counts(footer["statuses"], REASONS | {"ok"})
    expect("statuses in its footer add up to", statuses.total(), metadata.num_rows, "but the number of its rows is")
    revision = footer.get("revision", 0)  # the first outputs had none
    if type(revision) is not int or revision not in plan.planned_in[shard]:
        known = ", ".join(map(str, plan.planned_in[shard]))
        raise Wrong(f"revision in its footer is {_short(revision)}, expected one of those planned: {known}")
    return statuses, revision


def check_bytes(data: bytes) -> None:
    """Find every byte of a data file as it was written, by the digest in its own footer. Raises Wrong.

    Page checksums leave headers, statistics, names and the footer itself open, which other readers trust.
    """
    digest = json.loads((pq.read_metadata(pa.BufferReader(data)).metadata or {})[b"bottleneck"])["sha256"].encode()
    before, field, after = data.rpartition(b'"sha256": "' + digest + b'"')
    unsealed = field.replace(digest, b"0" * len(digest))
    expect("sha256 in its footer is", digest.decode(), hashlib.sha256(before + unsealed + after).hexdigest(), _OF_BYTES)


def _read_metadata(objects: Objects, name: str) -> pq.FileMetaData:
    """Parse a Parquet footer from the last bytes of the object alone: PAR1 and the footer's length end the file."""
    size = objects.sizes_bytes[name]
    tail = objects.read(name, max(0, size - _TAIL_BYTES), size)
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise Wrong(f"ends ({size} bytes) without a Parquet footer: cut short or overwritten")
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed > size - 4:
        raise Wrong(f"has {size} bytes, but its footer alone says it needs {needed + 4}")
    if needed > len(tail):
        tail = objects.read(name, size - needed, size)
    return pq.read_metadata(pa.BufferReader(tail[-needed:]))


def read_tables(data: bytes, schema: pa.Schema) -> list[pa.Table]:
    """The row groups of a Parquet file with exactly this schema."""
    # Without pyarrow's threads, with which a process that ends soon after a read aborts now and then.
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False)
    for number, (received, expected) in enumerate(zip_longest(file.schema_arrow, schema)):
        if received is None or expected is None or received != expected:
            difference = f"its column {number} is {_field(received)}, expected {_field(expected)}"
            raise Wrong(f"has the columns of something else: {difference}")
    tables = [file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups)]
    for table in tables:
        table.validate(full=True)  # or a status that its dictionary lacks would be read from beyond its end
    return tables


def data_schema(document: dict[str, Any]) -> pa.Schema:
    """The schema of the data files of a plan.json."""
    spec = document["spec"]
    if "predictions" in document:
        return pa.schema(_IMAGE_FIELDS + _PREDICTION_FIELDS)
    value = {"float16": pa.float16(), "float32": pa.float32()}[spec["dtype"]]
    layers = zip(spec["layers"], spec["dims"], strict=True)
    return pa.schema(_IMAGE_FIELDS + [pa.field(layer, pa.list_(value, dim)) for layer, dim in layers])


def _sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(document: dict[str, Any]) -> str:
    """Of the features a plan.json or a footer describes, or of the predictions made of them."""
    features = _sha256_json({key: value for key, value in document["spec"].items() if key != "weights"})
    if "predictions" not in document:
        return features
    predictions = document["predictions"]
    check_fields(predictions, _PREDICTIONS)
    return _sha256_json({"features": features, "head_sha256": predictions["head_sha256"], "top": predictions["top"]})


def _field(field: pa.Field | None) -> str:
    return "not there" if field is None else f"{field.name} {field.type}" + (" not null" if not field.nullable else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "..."
