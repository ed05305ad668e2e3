"""Check a data file: its footer, its bytes and its schema."""

import hashlib
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from bottleneck.audit.objects import FORMAT, REASONS, Fields, Objects, Wrong, _short, check_counts, check_fields, expect
from bottleneck.audit.plan import AuditedPlan, _fingerprint
from bottleneck.audit.tables import read_metadata

_FOOTER: Fields = {
    int: "format shard images",
    str: "fingerprint run_id written device sha256",
    dict: "spec statuses versions",
}
_OF_BYTES = "but that of its bytes (with zeros for these digits) is"


def check_footer(objects: Objects, plan: AuditedPlan, shard: int) -> tuple[Counter[str], int]:
    """Check the footer of a data file.

    Returns:
        Its numbers of images by outcome, ok or the reason of a rejection; and the revision of the shard it holds.

    Raises:
        StoreError: the file cannot be fetched.
        Wrong: it is not this shard's.
    """
    metadata = read_metadata(objects, plan.data_name(shard))
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
    """Check every byte of a data file against the digest in its footer. Raises Wrong.

    Page checksums do not cover headers, statistics, names and the footer.
    """
    digest = json.loads((pq.read_metadata(pa.BufferReader(data)).metadata or {})[b"bottleneck"])["sha256"].encode()
    before, field, after = data.rpartition(b'"sha256": "' + digest + b'"')
    unsealed = field.replace(digest, b"0" * len(digest))
    expect("sha256 in its footer is", digest.decode(), hashlib.sha256(before + unsealed + after).hexdigest(), _OF_BYTES)
