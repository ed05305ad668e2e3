"""Ask an output what became of every image, after a fault: short, plain, and neither verify.py nor the code under test.

    python -m tests.oracle OUTPUT TRUTH.json [--features-of REFERENCE] [--unfinished]

TRUTH.json holds {key: "ok" or the reason it must be rejected for}. Meant for fixtures: all rows are held in memory.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KNOWN = re.compile(
    r"plan\.json|_SUCCESS\.json|plan/extension-[0-9]{5}\.json"
    r"|plan/[0-9a-f]{8}-[0-9]{8}-[0-9a-f]{8}\.parquet|data/s[0-9]{8}-[0-9a-f]{8}\.parquet"
)

LEFTOVER = re.compile(r"((plan|data)/)?\.[^/]+\.[0-9]+-[0-9a-f]{8}")
"""What a writer killed in a folder without unnamed files leaves: nobody takes it for an object."""


class Broken(AssertionError):
    """What the guarantee rules out was found."""

    def __init__(self, message: str, kind: str, count: int) -> None:
        super().__init__(message)
        self.found = Counter({kind: count})
        """By the matrix's names for it; see matrix.py."""


def check(
    output: str,
    truth: dict[str, str],
    *,
    features_of: str | None = None,
    finished: bool | None = True,
    tolerance: float | None = None,
) -> None:
    """Assert what RELIABILITY.md asks of an output (1 to 6); the message names the offending keys or objects.

    Args:
        truth: key -> "ok" or reason, for every image there is.
        features_of: a clean run's output; features must be equal byte for byte, or to `tolerance`.
        finished: every key must be there and `_SUCCESS.json` too. If False, some may lack, and it must not be there;
            None is for what was finished once and has grown since.
    """
    names = _names(output)
    _none("unknown objects", [name for name in names if not KNOWN.fullmatch(name)])
    assert finished in (None, "_SUCCESS.json" in names), f"_SUCCESS.json is there: {not finished}, expected: {finished}"

    rows, twice = _rows(output, names)
    _none("keys twice", twice, "doubled")
    _none("keys of no image", sorted(rows.keys() - truth.keys()))
    if finished:
        _none("keys lost", sorted(truth.keys() - rows.keys()), "lost")
    received = {key: row["reason"] or row["status"] for key, row in rows.items()}
    _none(
        "other statuses than expected",
        [f"{key}: {received[key]} for {truth[key]}" for key in rows if received[key] != truth[key]],
        "wrong status",
    )
    allowed = {("ok", False), ("rejected", True)}
    _none(
        "statuses without their reason",
        [k for k, row in rows.items() if (row["status"], bool(row["reason"])) not in allowed],
        "wrong status",
    )
    for key, row in rows.items():
        for layer, values in row["features"].items():
            assert (values is not None) == (row["status"] == "ok"), (
                f"{key}: {row['status']}, features in {layer}: {values}"
            )

    if features_of is not None:
        reference, _ = _rows(features_of, _names(features_of))
        _none("keys the reference lacks", sorted(rows.keys() - reference.keys()))
        pairs = [
            (key, row["features"], reference[key]["features"]) for key, row in rows.items() if row["status"] == "ok"
        ]
        _none(
            "features unlike the reference's",
            [key for key, ours, theirs in pairs if not _equal(ours, theirs, tolerance)],
        )


def _names(output: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(output)
    fs.invalidate_cache()
    names = (path.removeprefix(root.rstrip("/") + "/") for path in fs.find(root))
    return sorted(name for name in names if not LEFTOVER.fullmatch(name))


def _rows(output: str, names: list[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """All rows by key, and the keys met more than once. Every Parquet file is read whole, checksums included."""
    fs, root = fsspec.core.url_to_fs(output)
    rows: dict[str, dict[str, Any]] = {}
    twice = []
    for name in names:
        if not name.endswith(".parquet"):
            continue
        data = pa.BufferReader(fs.cat_file(f"{root.rstrip('/')}/{name}"))
        try:
            table = pq.ParquetFile(data, page_checksum_verification=True, pre_buffer=False).read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise AssertionError(f"{name} cannot be read whole: {error}") from error
        if not name.startswith("data/"):
            continue
        layers = table.column_names[table.column_names.index("sha256") + 1 :]  # or what was predicted from them
        assert layers, f"{name} has no features after sha256: {table.column_names}"
        features = {layer: _values(table[layer].combine_chunks()) for layer in layers}
        for number, row in enumerate(table.select(["key", "status", "reason"]).to_pylist()):
            if row["key"] in rows:
                twice.append(row["key"])
            rows[row["key"]] = {**row, "features": {layer: values[number] for layer, values in features.items()}}
    return rows, twice


def _values(column: pa.Array) -> list[np.ndarray[Any, Any] | None]:
    """One array for each row, None where it is null."""
    if not pa.types.is_fixed_size_list(column.type):
        return [None if value is None else np.array(value) for value in column.to_pylist()]
    values_ND = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    rest = iter(values_ND)
    return [next(rest) if valid else None for valid in column.is_valid().to_pylist()]


def _equal(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float | None) -> bool:
    if ours.keys() != theirs.keys() or any(value is None for value in theirs.values()):
        return False
    pairs = [(ours[layer], theirs[layer]) for layer in ours]
    if tolerance is None:
        return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
    return all(a.shape == b.shape and np.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs)


def _none(what: str, found: list[str], kind: str = "other") -> None:
    if found:
        raise Broken(f"{len(found)} {what}: {', '.join(map(repr, found[:10]))}", kind, len(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("truth", type=Path)
    parser.add_argument("--features-of")
    parser.add_argument("--unfinished", action="store_true")
    args = parser.parse_args()
    truth = json.loads(args.truth.read_text(encoding="utf-8"))
    check(args.output, truth, features_of=args.features_of, finished=not args.unfinished)
