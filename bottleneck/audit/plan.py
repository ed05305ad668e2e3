"""Check a plan with its extensions and revisions."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any

import pyarrow as pa

from bottleneck.audit.objects import FORMAT, Fields, Objects, Wrong, _short, check_fields, expect
from bottleneck.audit.tables import data_schema, read_tables
from bottleneck.errors import UsageError

_PLANNING: Fields = {
    int: "format images bytes shards",
    str: "fingerprint created listing_sha256",
    dict: "versions label_counts skipped",
    list: "parts",
}
_REVISION: Fields = {int: "replaced_bytes", dict: "limits replaced_label_counts", list: "revised"}
_SHARDS: Fields = {int: "shard_size"}
_SELECTION: Fields = {dict: "selection"}
_PLAN: Fields = {int: "shard_size", str: "source", dict: "spec limits reading"}
_PREDICTIONS: Fields = {int: "top", str: "head head_sha256 made_of"}
_PART: Fields = {int: "first_shard shards images", str: "name sha256"}
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


@dataclass(frozen=True)
class AuditedPlan:
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
        """The parts without revisions: every shard once."""
        grown = (document for document in self.documents.values() if "revised" not in document)
        return [part for document in grown for part in document["parts"]]

    @property
    def skipped(self) -> dict[str, int]:
        """What the last listing of the source found besides images, by suffix."""
        looks = [document["skipped"] for document in self.documents.values() if "revised" not in document]
        return looks[-1] if looks else {}

    @property
    def num_shards(self) -> int:
        return sum(part["shards"] for part in self.first_parts)

    @cached_property
    def planned_in(self) -> dict[int, list[int]]:
        """For each shard the numbers of its documents, as in footers: 0, then its revisions."""
        found: dict[int, list[int]] = {shard: [0] for shard in range(self.num_shards)}
        for number, document in enumerate(self.documents.values()):
            for shard in document.get("revised", []):
                found[shard].append(number)
        return found

    @property
    def sha256(self) -> str:
        """The digest that `_SUCCESS.json` has as `plan_sha256`."""
        return sha256_json({"fingerprint": self.fingerprint, "parts": [part["sha256"] for part in self.parts]})

    def data_name(self, shard: int) -> str:
        """The name of a shard's data file."""
        return f"data/s{shard:08d}-{self.fingerprint[:8]}.parquet"

    def extend(self, objects: Objects, name: str) -> "AuditedPlan":
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
        longer = AuditedPlan({**self.documents, name: document})
        longer._check_selection()
        return longer

    def _check_selection(self) -> None:
        """Check that a plan of some of the images has no more of them than it says; older plans say nothing."""
        said = [document for document in self.documents.values() if "selection" in document]
        for document in said:
            check_fields(document, _SELECTION)
        images = sum(part["images"] for part in self.first_parts)
        for name in ("limit", "sample"):
            most = said[-1]["selection"].get(name) if said else None
            if most is not None and (type(most) is not int or images > most):
                raise Wrong(f"has {images} images with a {name} of {most!r}, expected no more than that")

    def _check_revised(self, document: dict[str, Any]) -> None:
        """Check a revision's fields, and that it has known shards, each once and in order."""
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


def sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(document: dict[str, Any]) -> str:
    """The fingerprint of the features or predictions in a plan.json or footer."""
    features = sha256_json({key: value for key, value in document["spec"].items() if key != "weights"})
    if "predictions" not in document:
        return features
    predictions = document["predictions"]
    check_fields(predictions, _PREDICTIONS)
    decides = {"features": features, "head_sha256": predictions["head_sha256"], "top": predictions["top"]}
    proba, classes = predictions.get("proba", "top"), predictions.get("classes", [])  # the first outputs had neither
    if type(classes) is not list or not all(type(one) is str for one in classes) or len(set(classes)) < len(classes):
        raise Wrong(f"predictions name the classes {_short(classes)}, expected a list of texts, each once")
    expect("with proba its predictions have classes:", bool(classes), proba == "all")
    return sha256_json(decides if proba == "top" else {**decides, "proba": proba})
