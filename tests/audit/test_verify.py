"""A good output is called good, and every kind of tampering is named.

`write_output` writes an output with nothing but pyarrow and json: it is the golden example of the format.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import fsspec
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import servers

from bottleneck.audit.objects import REASONS
from bottleneck.audit.report import Report
from bottleneck.audit.verify import verify
from bottleneck.dataset import schema as rows
from bottleneck.errors import StoreError, UsageError
from bottleneck.spec import FeatureSpec

# The golden example

SHARD_SIZE = 4
SHARDS_PER_PART = 3
SPEC: dict[str, Any] = {
    "base": "vgg16",
    "weights": "random:0",
    "weights_sha256": "ab" * 32,
    "layers": ["block5_pool:avg", "fc1:none"],
    "dims": [3, 2],
    "image_size_px": 224,
    "resize": "squash",
    "interpolation": "bilinear",
    "exif": "apply",
    "decode": "exact",
    "precision": "float32",
    "dtype": "float16",
}


def sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def data_name(shard: int) -> str:
    return f"data/s{shard:08d}-{FP8}.parquet"


FINGERPRINT = sha256_json({key: value for key, value in SPEC.items() if key != "weights"})
FP8 = FINGERPRINT[:8]
DATA_0, DATA_1, DATA_2, DATA_3, DATA_4 = map(data_name, range(5))
PART_0, PART_3 = (f"plan/{FP8}-{first_shard:08d}" for first_shard in (0, 3))
PART_SCHEMA = pa.schema(
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
DATA_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("sha256", pa.binary(32)),
        pa.field("block5_pool:avg", pa.list_(pa.float16(), 3)),
        pa.field("fc1:none", pa.list_(pa.float16(), 2)),
    ]
)


class Image(NamedTuple):
    key: str
    size: int
    etag: str
    label: str | None
    outcome: str
    """ok, or the reason it is rejected for."""


def image(key: str, outcome: str = "ok") -> Image:
    label = key.rpartition("/")[0] or None
    return Image(key, 100 + len(key), f"etag of {key}", label, outcome)


IMAGES = [
    *(image(f"cats/{n:02d}.jpg") for n in range(5)),
    image("cats/a b+%2F#?.jpg"),
    image("cats/cut.jpg", "truncated"),
    image("cats/replaced.jpg", "changed"),
    *(image(f"dogs/{n:02d}.jpg") for n in range(3)),
    image("dogs/gone.jpg", "missing"),
    image("dogs/\u00fc \U0001f415.jpg"),
    image("loose.jpg"),
]
"""14 images: shards of 4, 4, 4 and 2, in parts of 3 shards and 1."""
LATER = [image("cats/00b.jpg"), image("cats/99.jpg", "truncated"), image("dogs/00b.jpg"), image("a.jpg")]
TRUTH = {found.key: found.outcome for found in IMAGES}


def write_output(folder: Path, images: list[Image] = IMAGES) -> None:
    """A finished output: plan, data files, _SUCCESS.json."""
    (folder / "plan").mkdir(parents=True)
    (folder / "data").mkdir()
    plan = {
        "format": 3,
        "fingerprint": FINGERPRINT,
        "spec": SPEC,
        "limits": {"max_bytes": 100_000_000, "max_pixels": 100_000_000, "tiff": False},
        "reading": {"labels": "folder"},
        "shard_size": SHARD_SIZE,
        "source": "file:///images",
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"bottleneck": "0.1.0"},
        **write_parts(folder, images, first_shard=0),
    }
    write_json(folder / "plan.json", plan)
    write_shards(folder, images, first_shard=0)
    write_success(folder)


def extend(folder: Path, images: list[Image], number: int = 1) -> None:
    """What planning again leaves: an extension that nobody has extracted yet."""
    first_shard = sum(run["shards"] for run in read_runs(folder) if "revised" not in run)
    document = {
        "format": 3,
        "fingerprint": FINGERPRINT,
        "extension": number,
        "created": "2026-01-02T00:00:00+00:00",
        "versions": {"bottleneck": "0.1.0"},
        **write_parts(folder, sorted(images, key=lambda found: found.key.encode()), first_shard),
    }
    write_json(folder / f"plan/extension-{number:05d}.json", document)


REVISION = "plan/extension-00001.json"
NEW = {"cats/cut.jpg", "loose.jpg"}
REVISED = {
    number: [i._replace(etag=f"new {i.etag}", size=i.size + 1, outcome="ok") if i.key in NEW else i for i in images]
    for number, images in {1: IMAGES[4:8], 3: IMAGES[12:]}.items()
}
"""Shards of two parts as a revision has them, with two images that the source has otherwise now."""


def revise(folder: Path, shards: dict[int, list[Image]] = REVISED, number: int = 1, **fields: Any) -> None:
    """What `requeue` leaves: a revision that nobody has extracted yet."""
    images = [i for of_shard in shards.values() for i in of_shard]
    before = [i for number in shards for i in in_shards(IMAGES)[number]]
    document = {
        "format": 3,
        "fingerprint": FINGERPRINT,
        "extension": number,
        "created": "2026-01-02T00:00:00+00:00",
        "versions": {"bottleneck": "0.1.0"},
        "revised": list(shards),
        "limits": {"max_bytes": 200_000_000, "max_pixels": 100_000_000, "tiff": False},
        "replaced_bytes": sum(i.size for i in before),
        "replaced_label_counts": Counter(i.label for i in before if i.label is not None),
        **write_parts(folder, images, 0, shards),
    }
    write_json(folder / f"plan/extension-{number:05d}.json", {**document, **fields})


def revised(folder: Path, **fields: Any) -> None:
    """... and that somebody has."""
    revise(folder, **fields)
    write_revised(folder)
    write_success(folder)


def write_revised(folder: Path, shards: dict[int, list[Image]] = REVISED, revision: int = 1) -> None:
    for number, images in shards.items():
        write_shards(folder, images, number, revision)


def write_parts(
    folder: Path, images: list[Image], first_shard: int, revised: dict[int, list[Image]] | None = None
) -> dict[str, Any]:
    shards = list(revised.items()) if revised else list(enumerate(in_shards(images), first_shard))
    parts = []
    for start in range(0, len(shards), SHARDS_PER_PART):
        batch = shards[start : start + SHARDS_PER_PART]
        path = folder / "plan/part"
        with pq.ParquetWriter(path, PART_SCHEMA) as writer:
            for number, shard in batch:
                rows_of_shard = [{"shard": number, "index": index, **i._asdict()} for index, i in enumerate(shard)]
                writer.write_table(pa.Table.from_pylist(rows_of_shard, PART_SCHEMA))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        name = f"plan/{FP8}-{batch[0][0]:08d}-{sha256[:8]}.parquet"
        path.rename(folder / name)
        num_images = sum(len(shard) for _, shard in batch)
        part = {"name": name, "first_shard": batch[0][0], "shards": len(batch), "images": num_images}
        parts.append({**part, "sha256": sha256})
    return {
        "images": len(images),
        "bytes": sum(i.size for i in images),
        "shards": len(shards),
        "label_counts": Counter(i.label for i in images if i.label is not None),
        "skipped": {".txt": 1},
        "listing_sha256": hashlib.sha256(
            "".join(f"{i.key}\0{i.size}\0{i.etag}\n" for i in images).encode()
        ).hexdigest(),
        "parts": parts,
    }


def write_shards(folder: Path, images: list[Image], first_shard: int, revision: int = 0) -> None:
    for number, shard in enumerate(in_shards(images), first_shard):
        footer = {
            "format": 3,
            "fingerprint": FINGERPRINT,
            "spec": SPEC,
            "shard": number,
            "revision": revision,
            "images": len(shard),
            "statuses": Counter(i.outcome for i in shard),
            "run_id": "golden",
            "written": "2026-01-01T00:00:00+00:00",
            "versions": {"bottleneck": "0.1.0"},
            "device": "cpu",
        }
        write_data(folder / data_name(number), pa.Table.from_pylist([data_row(i) for i in shard], DATA_SCHEMA), footer)


def data_row(found: Image) -> dict[str, Any]:
    row: dict[str, Any] = {"key": found.key, "etag": found.etag, "label": found.label}
    if found.outcome == "changed":
        row["etag"] = "that of another image"
    if found.outcome != "ok":
        return {**row, "status": "rejected", "reason": found.outcome}
    digest = hashlib.sha256(found.key.encode()).digest()
    features = {
        "block5_pool:avg": [value / 16 for value in digest[:3]],
        "fc1:none": [value / 16 for value in digest[3:5]],
    }
    return {**row, "status": "ok", "width": 640, "height": 480, "mode": "RGB", "sha256": digest, **features}


def write_data(path: Path, table: pa.Table, footer: dict[str, Any]) -> None:
    """The footer's sha256 is that of the file with 64 zeros in its place."""
    table = table.replace_schema_metadata({"bottleneck": json.dumps({**footer, "sha256": "0" * 64})})
    pq.write_table(table, path, write_page_checksum=True)
    data = path.read_bytes()
    before, zeros, after = data.rpartition(b'"sha256": "' + b"0" * 64)
    path.write_bytes(before + zeros.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode()) + after)


def write_success(folder: Path) -> None:
    """Count what the data files' footers say."""
    lines = []
    for path in sorted((folder / "data").iterdir()):
        footer = read_footer(path)
        rejected = {status: count for status, count in footer["statuses"].items() if status != "ok"}
        line = {"shard": footer["shard"], "images": footer["images"], "ok": footer["statuses"].get("ok", 0)}
        lines.append({**line, "rejected": rejected, "bytes": path.stat().st_size})
    parts = [part["sha256"] for run in read_runs(folder) for part in run["parts"]]
    success = {
        "format": 3,
        "fingerprint": FINGERPRINT,
        "plan_sha256": sha256_json({"fingerprint": FINGERPRINT, "parts": parts}),
        "images": sum(line["images"] for line in lines),
        "ok": sum(line["ok"] for line in lines),
        "rejected": sum((Counter(line["rejected"]) for line in lines), Counter()),
        "shards": lines,
        "finished": "2026-01-01T01:00:00+00:00",
    }
    write_json(folder / "_SUCCESS.json", success)


def in_shards(images: list[Image]) -> list[list[Image]]:
    return [images[start : start + SHARD_SIZE] for start in range(0, len(images), SHARD_SIZE)]


def read_runs(folder: Path) -> list[Any]:
    return [read_json(folder / "plan.json"), *map(read_json, sorted(folder.glob("plan/extension-*.json")))]


def read_footer(path: Path) -> Any:
    return json.loads(pq.read_metadata(path).metadata[b"bottleneck"])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_output(tmp_path / "out")
    return tmp_path / "out"


# Good and unfinished outputs


@pytest.mark.parametrize("full", [False, True])
def test_a_finished_output_is_good(output: Path, full: bool) -> None:
    report = verify(str(output), full)
    assert report == Report(
        level="full" if full else "footers",
        planned=14,
        ok=11,
        rejected={"changed": 1, "missing": 1, "truncated": 1},
        skipped={".txt": 1},
        missing=0,
        missing_files=(),
        foreign=(),
        corrupt=(),
        unused_parts=0,
        leftovers=0,
        unfinished="",
    )
    assert report.finished
    assert report.exit_code == 0


def test_the_golden_example_has_the_spec_and_schema_of_the_library() -> None:
    spec = FeatureSpec.from_json(SPEC)
    assert spec.short_fingerprint == FP8
    assert rows.data_schema(spec) == DATA_SCHEMA
    assert set(get_args(rows.Reason)) == REASONS


@pytest.mark.parametrize("full", [False, True])
def test_an_unfinished_output_is_incomplete_but_sound(output: Path, full: bool) -> None:
    (output / "_SUCCESS.json").unlink()
    assert_incomplete(verify(str(output), full), missing=0, unfinished="there is no _SUCCESS.json")
    (output / DATA_1).unlink()
    (output / DATA_3).unlink()
    report = verify(str(output), full)
    assert_incomplete(report, missing=6, unfinished="shards without a file: 2")
    assert report.missing_files == (DATA_1, DATA_3)
    assert report.planned == report.ok + sum(report.rejected.values()) + report.missing


@pytest.mark.parametrize("full", [False, True])
def test_a_success_older_than_the_extension_is_incomplete_until_it_is_written_again(output: Path, full: bool) -> None:
    extend(output, LATER)
    assert_incomplete(verify(str(output), full), missing=4, unfinished="written before plan/extension-00001.json")
    write_shards(output, sorted(LATER), first_shard=4)
    assert_incomplete(verify(str(output), full), missing=0, unfinished="written before plan/extension-00001.json")
    write_success(output)
    report = verify(str(output), full)
    assert (report.exit_code, report.planned, report.ok) == (0, 18, 14)


@pytest.mark.parametrize("full", [False, True])
def test_a_revision_is_incomplete_until_its_shards_are_replaced(output: Path, full: bool) -> None:
    revise(output)
    assert_incomplete(verify(str(output), full), missing=0, unfinished="shards to be done again: 2")
    write_revised(output, {1: REVISED[1]})  # its _SUCCESS.json still speaks of the file before
    report = verify(str(output), full)
    assert_incomplete(report, missing=0, unfinished="shards to be done again: 1; _SUCCESS.json was written before")
    assert (report.planned, report.ok, report.rejected) == (14, 12, {"changed": 1, "missing": 1})
    write_revised(output)
    assert_incomplete(verify(str(output), full), missing=0, unfinished="written before plan/extension-00001.json")
    write_success(output)
    report = verify(str(output), full)
    assert (report.exit_code, report.planned, report.ok, report.corrupt) == (0, 14, 12, ())


@pytest.mark.parametrize("full", [False, True])
def test_revisions_and_extensions_follow_each_other(output: Path, full: bool) -> None:
    revised(output)
    extend(output, LATER, 2)
    again = {1: [i._replace(etag=f"newest {i.etag}") for i in REVISED[1]]}
    replaced = {"replaced_bytes": sum(i.size for i in REVISED[1]), "replaced_label_counts": {"cats": 4}}
    revise(output, again, 3, **replaced)
    report = verify(str(output), full)
    assert_incomplete(report, missing=4, unfinished="shards without a file: 1; shards to be done again: 1")
    write_shards(output, sorted(LATER), first_shard=4)
    write_revised(output, again, 3)
    write_success(output)
    assert verify(str(output), full).exit_code == 0


@pytest.mark.parametrize("full", [False, True])
def test_a_file_replaced_by_an_older_one_is_to_be_done_again(output: Path, full: bool) -> None:
    revised(output)
    write_shards(output, IMAGES[4:8], 1)
    assert_incomplete(verify(str(output), full), missing=0, unfinished="shards to be done again: 1")


def assert_incomplete(report: Report, missing: int, unfinished: str) -> None:
    assert (report.exit_code, report.missing, report.finished) == (3, missing, False)
    assert (report.corrupt, report.foreign) == ((), ())
    assert unfinished in report.unfinished


def test_a_footer_of_any_length_is_read(output: Path) -> None:
    rewrite(output, 1, versions={"many": "x" * 100_000})
    assert verify(str(output)).exit_code == 0


def test_parts_of_a_killed_planning_are_counted_and_harmless(output: Path) -> None:
    (output / "plan/01234567-00000000-89abcdef.parquet").write_bytes(b"")
    report = verify(str(output))
    assert (report.unused_parts, report.exit_code) == (1, 0)


def test_temporary_files_of_a_killed_writer_are_counted_and_harmless(output: Path) -> None:
    for name in (".plan.json.4711-0badcafe", f"data/.{Path(DATA_1).name}.1-00000000", "plan/.a.parquet.12-abcdef01"):
        (output / name).write_bytes(b"half")
    report = verify(str(output), full=True)
    assert (report.leftovers, report.foreign, report.exit_code) == (3, (), 0)
    (output / "data/.plan.json.4711-0badcaf").write_bytes(b"")
    assert verify(str(output)).foreign == ("data/.plan.json.4711-0badcaf",)


@pytest.mark.parametrize("name", ["plan.json", "_SUCCESS.json", DATA_1])
def test_no_more_is_read_than_was_listed(output: Path, name: str) -> None:
    (output / name).unlink()
    (output / name).symlink_to("/dev/zero")
    assert [found for found, _ in verify(str(output), full=True).corrupt] == [name]


def test_the_report_becomes_one_line_of_json(output: Path) -> None:
    (output / DATA_1).unlink()
    (output / DATA_2).write_bytes(b"no Parquet")
    line = json.loads(json.dumps(verify(str(output)).to_json()))
    assert line["missing_files"] == [DATA_1]
    assert line["corrupt"][0]["name"] == DATA_2
    assert line["finished"] is False


@pytest.mark.parametrize("full", [False, True])
def test_progress_is_told_for_every_data_file(output: Path, full: bool) -> None:
    calls: list[tuple[int, int]] = []
    verify(str(output), full, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Other stores


def test_an_output_in_another_file_system_is_read(output: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(f"{output}/", "/verify/out", recursive=True)
    try:
        assert verify("memory://verify/out/", full=True).exit_code == 0
        fs.rm(f"/verify/out/{DATA_1}")
        assert verify("memory://verify/out").missing == 4
    finally:
        fs.rm("/verify", recursive=True)


def test_an_output_in_a_bucket_is_read(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.make_server("moto") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # they keep the endpoint they were made with
        server.create_bucket("features")
        server.upload_folder(output, "features", "some/out/")
        assert verify("s3://features/some/out", full=True).exit_code == 0
        server.client.delete_object(Bucket="features", Key=f"some/out/{DATA_1}")
        server.client.put_object(Bucket="features", Key="some/out/data/x", Body=b"")
        report = verify("s3://features/some/out/")
        assert (report.missing, report.foreign) == (4, ("data/x",))
        with pytest.raises(UsageError, match="Received: nothing"):
            verify("s3://no-such-bucket/out")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_place_without_a_plan_is_a_wrong_argument(tmp_path: Path, output: Path) -> None:
    with pytest.raises(UsageError, match="Received: nothing"):
        verify(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="Received: 4 other objects"):
        verify(str(output / "data"))
    with pytest.raises(UsageError, match="Cannot read outputs like"):
        verify("nosuchprotocol://x")


def test_a_plan_of_a_newer_version_is_refused(output: Path) -> None:
    edit(output / "plan.json", format=4)
    with pytest.raises(UsageError, match="expected format 3"):
        verify(str(output))


def test_what_cannot_be_fetched_is_not_called_corrupt(output: Path) -> None:
    (output / DATA_2).unlink()
    (output / DATA_2).symlink_to(output / "nowhere")
    with pytest.raises(StoreError, match="s00000002"):
        verify(str(output))


# Tampering

Tamper = Callable[[Path], object]
"""What is done to a good output."""


def edit(path: Path, **fields: Any) -> None:
    write_json(path, {**read_json(path), **fields})


def editing(name: str, **fields: Any) -> Tamper:
    return lambda out: edit(out / name, **fields)


def edit_line(folder: Path, shard: int, **fields: Any) -> None:
    lines = read_json(folder / "_SUCCESS.json")["shards"]
    lines[shard] |= fields
    edit(folder / "_SUCCESS.json", shards=lines)


def rewrite(
    folder: Path, shard: int, change: Callable[[pa.Table], pa.Table] = lambda table: table, **fields: Any
) -> None:
    """Write a data file again, as faulty code would have: `_SUCCESS.json` knows its new size."""
    path = folder / data_name(shard)
    footer = {**read_footer(path), **fields}
    write_data(path, change(pq.read_table(path)), footer)
    edit_line(folder, shard, bytes=path.stat().st_size)


def rewriting(shard: int, change: Callable[[pa.Table], pa.Table] = lambda table: table, **fields: Any) -> Tamper:
    return lambda out: rewrite(out, shard, change, **fields)


def with_rows(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        found = table.to_pylist()
        change(found)
        return pa.Table.from_pylist(found, DATA_SCHEMA)

    return changed


def set_in_row(number: int, **fields: Any) -> Callable[[pa.Table], pa.Table]:
    return with_rows(lambda found: found[number].update(fields))


def replan(folder: Path, images: list[Image]) -> None:
    """Another plan, as faulty code would have cut it, with all its data."""
    shutil.rmtree(folder / "plan")
    (folder / "plan").mkdir()
    edit(folder / "plan.json", **write_parts(folder, images, first_shard=0))
    write_shards(folder, images, first_shard=0)
    write_success(folder)


def rewriting_part(change: Callable[[pa.Table], pa.Table]) -> Tamper:
    """Another last part (of shard 3), and a plan that names it."""

    def rewrite_part(folder: Path) -> None:
        path = part_path(folder, 1)
        table = change(pq.read_table(path))
        path.unlink()
        pq.write_table(table, folder / "part")
        name_part(folder)

    return rewrite_part


def name_part(folder: Path) -> None:
    """Make the file `part` the plan's last part."""
    sha256 = hashlib.sha256((folder / "part").read_bytes()).hexdigest()
    edit_part(folder, name=f"{PART_3}-{sha256[:8]}.parquet", sha256=sha256)
    (folder / "part").rename(part_path(folder, 1))
    write_success(folder)


def no_parquet_part(folder: Path) -> None:
    part_path(folder, 1).unlink()
    (folder / "part").write_bytes(b"no Parquet")
    name_part(folder)


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def flip_a_feature(folder: Path) -> None:
    column = pq.read_metadata(folder / DATA_1).row_group(0).column(9)
    start = column.dictionary_page_offset or column.data_page_offset
    flip(folder / DATA_1, start + column.total_compressed_size - 1)


def flip_the_writer(folder: Path) -> None:
    flip(folder / DATA_1, (folder / DATA_1).read_bytes().rindex(b"parquet-cpp"))


def part_path(folder: Path, number: int) -> Path:
    return folder / str(read_json(folder / "plan.json")["parts"][number]["name"])


def edit_part(folder: Path, **fields: Any) -> None:
    parts = read_json(folder / "plan.json")["parts"]
    parts[1] |= fields
    edit(folder / "plan.json", parts=parts)


def extended(folder: Path, images: list[Image], number: int = 1) -> None:
    extend(folder, images, number)
    write_shards(folder, sorted(images), first_shard=4)
    write_success(folder)


def add_a_folder(folder: Path) -> None:
    (folder / "old").mkdir()
    (folder / "old/plan.json").write_text("x")


def edit_line_and_total(folder: Path) -> None:
    edit_line(folder, 0, ok=3, rejected={"empty": 1})
    edit(folder / "_SUCCESS.json", ok=10, rejected={"empty": 1, "changed": 1, "missing": 1, "truncated": 1})


def renumber_extension(folder: Path) -> None:
    extended(folder, LATER)
    (folder / EXTENSION).rename(folder / "plan/extension-00002.json")


def editing_extension(**fields: Any) -> Tamper:
    def edit_extension(folder: Path) -> None:
        extended(folder, LATER)
        edit(folder / EXTENSION, **fields)

    return edit_extension


def rename_part(folder: Path) -> None:
    name = f"{PART_3}-01234567.parquet"
    part_path(folder, 1).rename(folder / name)
    edit_part(folder, name=name)


def edit_line_of_a_missing_file(folder: Path) -> None:
    (folder / DATA_3).unlink()
    edit_line(folder, 3, images=3, ok=3)
    edit(folder / "_SUCCESS.json", images=15, ok=12)


def infinity_after_rejected_rows(folder: Path) -> None:
    """Rows of nulls have no values of their own, so the fourth row's are the second ones."""
    mixed = [i._replace(outcome=o) for i, o in zip(IMAGES[8:12], REJECTED_FIRST, strict=True)]
    replan(folder, [*IMAGES[:8], *mixed, *IMAGES[12:]])
    rewrite(folder, 2, set_in_row(3, **{"fc1:none": [float("inf"), 1.0]}))


NO_DIGEST = "0" * 64
EXTENSION = "plan/extension-00001.json"
COPY_OF_3 = f"data/s00000003-{FP8} copy.parquet"
REJECTED_FIRST = ["empty", "ok", "truncated", "ok"]

FOREIGN: dict[str, tuple[Tamper, str]] = {
    "duplicate": (lambda out: shutil.copy(out / DATA_3, out / COPY_OF_3), COPY_OF_3),
    "rename": (lambda out: (out / DATA_3).rename(out / "data/s00000003.parquet"), "data/s00000003.parquet"),
    "shard beyond the plan": (lambda out: shutil.copy(out / DATA_3, out / DATA_4), DATA_4),
    "file of another fingerprint": (
        lambda out: shutil.copy(out / DATA_3, out / "data/s00000003-01234567.parquet"),
        "data/s00000003-01234567.parquet",
    ),
    "object in data": (lambda out: (out / "data/notes.txt").write_text("x"), "data/notes.txt"),
    "object at the top": (lambda out: (out / "notes.txt").write_text("x"), "notes.txt"),
    "temporary file": (lambda out: (out / "data/.s00000003.tmp").write_text("x"), "data/.s00000003.tmp"),
    "folder": (add_a_folder, "old/plan.json"),
}


@pytest.mark.matrix(14, "verify")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_objects_are_named(output: Path, kind: str, full: bool) -> None:
    tamper, name = FOREIGN[kind]
    tamper(output)
    report = verify(str(output), full)
    assert (report.foreign, report.exit_code, report.corrupt) == ((name,), 1, ())
    assert report.missing_files == ((DATA_3,) if kind == "rename" else ())


CORRUPT: dict[str, tuple[Tamper, str, str]] = {
    "truncate": (lambda out: cut(out / DATA_1, 100), DATA_1, "without a Parquet footer"),
    "empty": (lambda out: (out / DATA_1).write_bytes(b""), DATA_1, "without a Parquet footer"),
    "truncate in the footer": (
        lambda out: (out / DATA_1).write_bytes((out / DATA_1).read_bytes()[-300:]),
        DATA_1,
        "has 300 bytes, but its footer alone",
    ),
    "swap": (lambda out: shutil.copy(out / DATA_1, out / DATA_2), DATA_2, "shard in its footer is 1, expected 2"),
    "another size": (
        lambda out: (out / DATA_1).write_bytes(b"PAR1" + (out / DATA_1).read_bytes()),
        DATA_1,
        "_SUCCESS.json says",
    ),
    "flip a byte in the footer": (lambda out: flip(out / DATA_1, (out / DATA_1).stat().st_size - 20), DATA_1, "footer"),
    "no footer of ours": (
        lambda out: pq.write_table(pq.read_table(out / DATA_1).replace_schema_metadata(), out / DATA_1),
        DATA_1,
        "does not have our fields",
    ),
    "fingerprint in a footer": (
        rewriting(1, fingerprint=NO_DIGEST),
        DATA_1,
        f"fingerprint in its footer is '{NO_DIGEST}', expected",
    ),
    "spec in a footer": (
        rewriting(1, spec={**SPEC, "exif": "ignore"}),
        DATA_1,
        "the spec in its footer has fingerprint",
    ),
    "drop a row": (rewriting(1, lambda table: table[:3]), DATA_1, "images in its footer is 4, expected 3"),
    "drop a row everywhere": (
        rewriting(2, lambda table: table[:3], images=3, statuses={"ok": 3}),
        DATA_2,
        "has 3 rows, expected the 4 images of the plan",
    ),
    "statuses in a footer": (rewriting(1, statuses={"ok": 5}), DATA_1, "add up to 5"),
    "unknown reason in a footer": (rewriting(1, statuses={"ok": 3, "ugly": 1}), DATA_1, "'ugly'"),
    "fewer than no images in a footer": (rewriting(2, statuses={"ok": 5, "empty": -1}), DATA_2, "-1 as 'empty'"),
    "half an image in a footer": (rewriting(2, statuses={"ok": 3.5, "empty": 0.5}), DATA_2, "counts 3.5 as 'ok'"),
    "no device in a footer": (rewriting(1, device=None), DATA_1, "device is None, expected a text"),
    "ok as a reason in _SUCCESS": (
        lambda out: edit_line(out, 3, ok=1, rejected={"ok": 1}),
        "_SUCCESS.json",
        "counts 1 as 'ok', expected whole numbers of archived",
    ),
    "total in _SUCCESS": (editing("_SUCCESS.json", ok=12, images=15), "_SUCCESS.json", "add up to"),
    "images in _SUCCESS": (editing("_SUCCESS.json", images=13), "_SUCCESS.json", "images is 13"),
    "line and total in _SUCCESS": (
        edit_line_and_total,
        "_SUCCESS.json",
        "shard 0: {'empty': 1, 'ok': 3}, but the footer",
    ),
    "line missing in _SUCCESS": (
        lambda out: edit(out / "_SUCCESS.json", shards=read_json(out / "_SUCCESS.json")["shards"][:3]),
        "_SUCCESS.json",
        "3 lines",
    ),
    "line of a missing file in _SUCCESS": (
        edit_line_of_a_missing_file,
        "_SUCCESS.json",
        "shard 3: images is 3, expected 2",
    ),
    "bytes of a line in _SUCCESS": (
        lambda out: edit_line(out, 3, bytes="many"),
        "_SUCCESS.json",
        "bytes is 'many', expected a whole number",
    ),
    "format in _SUCCESS": (editing("_SUCCESS.json", format=4), "_SUCCESS.json", "format is 4, expected 3"),
    "end in _SUCCESS": (editing("_SUCCESS.json", finished=None), "_SUCCESS.json", "finished is None, expected a text"),
    "digest in _SUCCESS": (editing("_SUCCESS.json", plan_sha256=NO_DIGEST), "_SUCCESS.json", "plan_sha256"),
    "fingerprint in _SUCCESS": (editing("_SUCCESS.json", fingerprint=NO_DIGEST), "_SUCCESS.json", "fingerprint"),
    "_SUCCESS cut": (lambda out: cut(out / "_SUCCESS.json", 9), "_SUCCESS.json", "not JSON"),
    "_SUCCESS without fields": (
        lambda out: write_json(out / "_SUCCESS.json", {"format": 3}),
        "_SUCCESS.json",
        "fields",
    ),
    "plan cut": (lambda out: cut(out / "plan.json", 9), "plan.json", "not JSON"),
    "fingerprint in plan": (editing("plan.json", fingerprint=NO_DIGEST), "plan.json", "that of its spec is"),
    "spec in plan": (editing("plan.json", spec={**SPEC, "dims": [3, 4]}), "plan.json", "of its spec"),
    "images in plan": (editing("plan.json", images=13), "plan.json", "images is 13, but its parts have 14"),
    "spec without layers": (
        editing("plan.json", spec={"dims": []}, fingerprint=sha256_json({"dims": []})),
        "plan.json",
        "fields of a plan",
    ),
    "bytes in plan": (editing("plan.json", bytes=13), "plan.json", "bytes is 13, but its parts"),
    "shards in plan": (editing("plan.json", shards="4"), "plan.json", "expected a whole number"),
    "labels in plan": (editing("plan.json", label_counts={"cats": 14}), "plan.json", "label_counts"),
    "listing in plan": (editing("plan.json", listing_sha256=NO_DIGEST), "plan.json", "listing_sha256"),
    "limits not in plan": (editing("plan.json", limits=None), "plan.json", "limits is None, expected an object"),
    "part not listed": (editing("plan.json", parts=None), "plan.json", "fields of a plan"),
    "part without its number of shards": (
        lambda out: edit_part(out, shards=True),
        "plan.json",
        "shards is True, expected a whole number",
    ),
    "part named otherwise": (rename_part, "plan.json", f"names a part '{PART_3}-01234567.parquet', expected"),
    "part deleted": (lambda out: part_path(out, 1).unlink(), PART_3, "is not there"),
    "part changed": (lambda out: flip(part_path(out, 1), 40), PART_3, "sha256 of its bytes"),
    "extension renumbered": (
        renumber_extension,
        EXTENSION,
        "is not there, though plan/extension-00002.json is",
    ),
    "part is no Parquet": (no_parquet_part, PART_3, "is not readable Parquet"),
    "part without a column": (rewriting_part(lambda table: table.drop_columns("etag")), PART_3, "has the columns"),
    "part without a row": (
        rewriting_part(lambda table: table[:1]),
        PART_3,
        "1 row groups and 1 rows, expected 1 shards and 2 images",
    ),
    "part that allows nulls": (
        rewriting_part(lambda table: table.cast(pa.schema([field.with_nullable(True) for field in PART_SCHEMA]))),
        PART_3,
        "column 0 is shard int32, expected shard int32 not null",
    ),
    "part not numbered in order": (
        rewriting_part(lambda table: table.set_column(1, PART_SCHEMA.field(1), pa.array([1, 0], pa.int32()))),
        PART_3,
        "not numbered",
    ),
    "shard larger than planned": (editing("plan.json", shard_size=3), PART_0, "1 to 3"),
    "shard smaller than planned": (editing("plan.json", shard_size=5), PART_0, "shard 0 has 4 images, expected 5"),
    "extension numbered wrongly": (lambda out: extended(out, LATER, 2), EXTENSION, "is not there"),
    "fingerprint in extension": (editing_extension(fingerprint=NO_DIGEST), EXTENSION, "fingerprint is"),
    "format in extension": (editing_extension(format=4), EXTENSION, "format is 4, expected 3"),
    "number in extension": (editing_extension(extension=2), EXTENSION, "extension is 2, expected 1"),
    "key twice in the plan": (lambda out: replan(out, [IMAGES[0], *IMAGES[:-1]]), PART_0, "expected each key once"),
    "keys out of order over parts": (lambda out: replan(out, [*IMAGES[1:], IMAGES[0]]), PART_3, "follows"),
}


@pytest.mark.matrix(14, "verify")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", CORRUPT)
def test_corruption_is_named_from_listing_and_footers(output: Path, kind: str, full: bool) -> None:
    tamper, name, problem = CORRUPT[kind]
    tamper(output)
    report = verify(str(output), full)
    assert report.exit_code == 1
    assert {found[: len(name)] for found, _ in report.corrupt} == {name}, report.corrupt
    assert any(problem in words for _, words in report.corrupt), report.corrupt
    assert report.foreign == ()


def revising(**fields: Any) -> Tamper:
    return lambda out: revised(out, **fields)


def revise_and(tamper: Tamper) -> Tamper:
    def both(folder: Path) -> None:
        revised(folder)
        tamper(folder)

    return both


def with_image(number: int, **fields: Any) -> dict[int, list[Image]]:
    """The revision with another image in its first shard."""
    return {**REVISED, 1: [i._replace(**fields) if n == number else i for n, i in enumerate(REVISED[1])]}


CORRUPT_REVISION: dict[str, tuple[Tamper, str, str]] = {
    "revision in a footer": (
        revise_and(rewriting(1, revision=2)),
        DATA_1,
        "revision in its footer is 2, expected one of those planned: 0, 1",
    ),
    "revision in a footer of another shard": (revise_and(rewriting(2, revision=1)), DATA_2, "those planned: 0"),
    "revision in a footer is no number": (revise_and(rewriting(1, revision=True)), DATA_1, "is True"),
    "a shard that is not planned": (
        revising(revised=[1, 4]),
        REVISION,
        "revises shard 4 after 1, expected numbers below 4",
    ),
    "a shard twice": (revising(revised=[1, 1]), REVISION, "revises shard 1 after 1"),
    "shards out of order": (revising(revised=[3, 1]), REVISION, "revises shard 1 after 3"),
    "a shard that is no number": (revising(revised=["1", 3]), REVISION, "revises shard '1'"),
    "another shard than its part": (revising(revised=[0, 3]), REVISION, "begins at shard 1, expected 0"),
    "a shard that is not in its parts": (revising(revised=[1, 2, 3]), REVISION, "[3], expected []"),
    "a shard less than its parts": (revising(revised=[1]), REVISION, "has shards 1, expected 2"),
    "no shards": (revising(revised=None), REVISION, "revised is None, expected a list"),
    "no limits": (revising(limits=None), REVISION, "limits is None, expected an object"),
    "a key changed": (
        lambda out: revise(out, with_image(1, key="cats/b.jpg")),
        REVISION,
        "shard 1: keys are",
    ),
    "an image more": (lambda out: revise(out, {**REVISED, 1: IMAGES[4:9]}), REVISION, "shard 1: keys are"),
    "replaced bytes": (revising(replaced_bytes=1), REVISION, "replaced_bytes is 1, but before its shards have"),
    "replaced labels": (revising(replaced_label_counts={}), REVISION, "replaced_label_counts is {}"),
    "a plan that revises": (editing("plan.json", revised=[0]), "plan.json", "only an extension can"),
    "a revision renumbered": (
        revise_and(lambda out: (out / REVISION).rename(out / "plan/extension-00002.json")),
        REVISION,
        "is not there, though",
    ),
    "its part deleted": (
        revise_and(lambda out: (out / read_json(out / REVISION)["parts"][0]["name"]).unlink()),
        f"plan/{FP8}-00000001",
        "is not there",
    ),
}


@pytest.mark.matrix(14, "verify")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", CORRUPT_REVISION)
def test_corruption_of_a_revision_is_named(output: Path, kind: str, full: bool) -> None:
    tamper, name, problem = CORRUPT_REVISION[kind]
    tamper(output)
    report = verify(str(output), full)
    assert report.exit_code == 1
    assert {found[: len(name)] for found, _ in report.corrupt} == {name}, report.corrupt
    assert any(problem in words for _, words in report.corrupt), report.corrupt


def test_rows_are_those_of_the_revision_that_their_file_holds(output: Path) -> None:
    revised(output)
    write_shards(output, IMAGES[4:8], 1, revision=1)
    edit_line(output, 1, bytes=(output / DATA_1).stat().st_size, ok=2, rejected={"changed": 1, "truncated": 1})
    edit(output / "_SUCCESS.json", ok=11, rejected={"changed": 1, "missing": 1, "truncated": 1})
    assert verify(str(output)).exit_code == 0
    assert verify(str(output), full=True).corrupt == ()  # a rejected row may have any etag
    rewrite(output, 3, set_in_row(1, etag="etag of loose.jpg"))
    [(name, problem)] = verify(str(output), full=True).corrupt
    assert name == DATA_3
    assert "row 1: etag is 'etag of loose.jpg', expected 'new etag of loose.jpg'" in problem


def nan_in(folder: Path) -> None:
    rewrite(folder, 0, set_in_row(2, **{"fc1:none": [1.0, float("nan")]}))


CORRUPT_INSIDE: dict[str, tuple[Tamper, str, str]] = {
    "flip a byte in a page": (flip_a_feature, DATA_1, "sha256 in its footer is"),
    "flip a byte that pyarrow does not look at": (flip_the_writer, DATA_1, "sha256 in its footer is"),
    "reorder rows": (
        rewriting(1, with_rows(lambda found: found.reverse())),
        DATA_1,
        "row 0: key is 'cats/replaced.jpg', expected 'cats/04.jpg'",
    ),
    "another key": (rewriting(1, set_in_row(1, key="x")), DATA_1, "row 1: key is 'x', expected 'cats/a b"),
    "a row twice": (
        rewriting(2, with_rows(lambda found: found.__setitem__(1, found[0]))),
        DATA_2,
        "row 1: key is 'dogs/00.jpg'",
    ),
    "another etag": (rewriting(1, set_in_row(0, etag="x")), DATA_1, "row 0: etag is 'x'"),
    "another label": (rewriting(3, set_in_row(1, label="x")), DATA_3, "label is 'x', expected None"),
    "unknown status": (rewriting(1, set_in_row(0, status="fine")), DATA_1, "status 'fine'"),
    "unknown reason": (rewriting(1, set_in_row(2, reason="ugly")), DATA_1, "reason 'ugly'"),
    "ok with a reason": (rewriting(1, set_in_row(0, reason="empty")), DATA_1, "reason 'empty'"),
    "another reason than the footer": (
        rewriting(1, set_in_row(2, reason="empty")),
        DATA_1,
        "its rows are {'ok': 2, 'empty': 1, 'changed': 1}, but its footer says",
    ),
    "ok without sha256": (rewriting(1, set_in_row(0, sha256=None)), DATA_1, "ok, but without sha256"),
    "NaN": (nan_in, DATA_0, "row 2: value 1 of fc1:none is NaN"),
    "infinity after rejected rows": (infinity_after_rejected_rows, DATA_2, "row 3: value 0 of fc1:none"),
    "no features": (
        rewriting(1, set_in_row(0, **{"fc1:none": None})),
        DATA_1,
        "row 0 is ok, but has no features in fc1:none",
    ),
    "features of a rejected row": (
        rewriting(1, set_in_row(2, **{"fc1:none": [1.0, 2.0]})),
        DATA_1,
        "row 2 is rejected, but has features in fc1:none",
    ),
    "another D": (
        rewriting(3, lambda t: t.set_column(10, "fc1:none", pa.array([[1, 2, 3]] * 2, pa.list_(pa.float16(), 3)))),
        DATA_3,
        "its column 10 is fc1:none fixed_size_list",
    ),
    "a column less": (rewriting(3, lambda t: t.drop_columns("fc1:none")), DATA_3, "column 10 is not there"),
    "a column more": (
        rewriting(3, lambda t: t.append_column("x", pa.array([1, 2]))),
        DATA_3,
        "column 11 is x int64, expected not there",
    ),
    "a key planned again": (
        lambda out: extended(out, [*LATER, IMAGES[7]._replace(outcome="ok")]),
        EXTENSION,
        "plans 'cats/replaced.jpg', which plan.json planned before",
    ),
}


@pytest.mark.matrix(14, "verify")
@pytest.mark.parametrize("kind", CORRUPT_INSIDE)
def test_corruption_of_values_is_named_by_the_full_level(output: Path, kind: str) -> None:
    tamper, name, problem = CORRUPT_INSIDE[kind]
    tamper(output)
    assert verify(str(output)).exit_code == 0
    report = verify(str(output), full=True)
    assert report.exit_code == 1
    assert [found for found, _ in report.corrupt] == [name], report.corrupt
    assert problem in report.corrupt[0][1]
    assert report.planned == report.ok + sum(report.rejected.values())


def test_parts_that_do_not_follow_each_other_are_named(output: Path) -> None:
    edit_part(output, first_shard=4)
    problems = [problem for name, problem in verify(str(output)).corrupt if name == "plan.json"]
    assert any("begins at shard 4, expected 3" in problem for problem in problems)


@pytest.mark.matrix(14, "verify")
def test_several_faults_are_all_named(output: Path) -> None:
    (output / DATA_0).unlink()
    cut(output / DATA_1, 8)
    shutil.copy(output / DATA_3, output / DATA_2)
    edit(output / "_SUCCESS.json", ok=0)
    (output / "x").touch()
    report = verify(str(output), full=True)
    assert report.missing_files == (DATA_0,)
    assert [name for name, _ in report.corrupt] == ["_SUCCESS.json", DATA_1, DATA_2]
    assert report.foreign == ("x",)


# The oracle of the fault tests must itself be able to fail.


def test_the_oracle_passes_a_good_output(output: Path, tmp_path: Path) -> None:
    write_output(tmp_path / "clean")
    oracle.check(str(output), TRUTH, features_of=str(tmp_path / "clean"))
    (output / "_SUCCESS.json").unlink()
    (output / DATA_1).unlink()
    oracle.check(str(output), TRUTH, features_of=str(tmp_path / "clean"), finished=False)


ORACLE: dict[str, tuple[Tamper, str]] = {
    "lost": (lambda out: (out / DATA_2).unlink(), "4 keys lost: 'dogs/00.jpg'"),
    "twice": (lambda out: shutil.copy(out / DATA_3, out / DATA_4), "2 keys twice: 'dogs/"),
    "of no image": (rewriting(3, set_in_row(0, key="x")), "1 keys of no image: 'x'"),
    "other status": (
        rewriting(1, set_in_row(2, reason="empty")),
        "1 other statuses than expected: 'cats/cut.jpg: empty for truncated'",
    ),
    "features changed": (
        rewriting(3, set_in_row(0, **{"fc1:none": [1.0, 2.0]})),
        "1 features unlike the reference's: 'dogs/",
    ),
    "features of a rejected image": (
        rewriting(1, set_in_row(2, **{"fc1:none": [1.0, 2.0]})),
        "cats/cut.jpg: rejected, features in fc1:none",
    ),
    "unknown object": (lambda out: (out / "data/.tmp").touch(), "1 unknown objects: 'data/.tmp'"),
    "partial file": (lambda out: cut(out / DATA_2, 50), f"{DATA_2} cannot be read whole"),
    "no _SUCCESS.json": (lambda out: (out / "_SUCCESS.json").unlink(), "_SUCCESS.json is there: False"),
}


@pytest.mark.parametrize("kind", ORACLE)
def test_the_oracle_names_what_is_wrong(output: Path, tmp_path: Path, kind: str) -> None:
    write_output(tmp_path / "clean")
    tamper, message = ORACLE[kind]
    tamper(output)
    with pytest.raises(AssertionError) as failed:
        oracle.check(str(output), TRUTH, features_of=str(tmp_path / "clean"))
    assert message in str(failed.value)


def test_the_oracle_compares_features_within_a_tolerance(output: Path, tmp_path: Path) -> None:
    write_output(tmp_path / "clean")
    first = pq.read_table(output / DATA_3)["fc1:none"][0].as_py()
    rewrite(output, 3, set_in_row(0, **{"fc1:none": [first[0] + 0.05, first[1]]}))
    oracle.check(str(output), TRUTH, features_of=str(tmp_path / "clean"), tolerance=0.1)
    with pytest.raises(AssertionError, match="1 features unlike"):
        oracle.check(str(output), TRUTH, features_of=str(tmp_path / "clean"), tolerance=0.01)


def test_the_oracle_is_a_command(output: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    write_json(truth, TRUTH)
    command = [sys.executable, "-m", "tests.oracle", str(output), str(truth)]
    root = Path(__file__).parents[2]
    assert subprocess.run(command, cwd=root, check=False).returncode == 0
    write_json(truth, {**TRUTH, "cats/cut.jpg": "ok"})
    failed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "cats/cut.jpg: truncated for ok" in failed.stderr
