"""Data files are written whole and read by anyone; an output is open when every shard is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from bottleneck import __version__
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.features import open_features
from bottleneck.dataset.footer import TAIL_BYTES, read_footer
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.schema import data_schema
from bottleneck.dataset.success import SUCCESS, finish, finished
from bottleneck.dataset.write import Receipt, write_shard
from bottleneck.errors import CorruptError, IncompleteError, UsageError
from bottleneck.spec import FeatureSpec
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import Entry, open_store

LAYERS = {"layers": ("conv_pw_13_relu:avg", "conv_pw_1_relu:max"), "dims": (6, 3)}
REJECTED = {"cats/00001.jpg": "truncated", "dogs/00000.jpg": "empty"}


def planned(tmp_path: Path, spec: FeatureSpec, num_images: int = 10) -> Plan:
    keys = [f"{'cats' if n % 3 else 'dogs'}/{n:05d}.jpg" for n in range(num_images)]
    source = tiny.write_files(tmp_path / "photos", dict.fromkeys(keys, b"x"))
    return make_plan(str(source), str(tmp_path / "features"), spec, shard_size=4)


def write(plan: Plan, shard: int, *, seed: int | None = None) -> Receipt:
    """Commit a shard with random features."""
    store = open_store(plan.output)
    images = read_images(store, list(plan.shards())[shard])
    rows = tiny.data_rows(plan.spec, [image.key for image in images], REJECTED, shard if seed is None else seed)
    return write_shard(store, plan.data_name(shard), plan.spec, shard, rows, run_id="test", device="none")


def written(tmp_path: Path, spec: FeatureSpec) -> Plan:
    """A finished output of ten images in three shards."""
    plan = planned(tmp_path, spec)
    finish(plan, {shard: write(plan, shard) for shard in range(plan.num_shards)})
    return plan


def expected_rows(plan: Plan) -> pa.Table:
    tables = []
    for shard in plan.shards():
        keys = [image.key for image in read_images(open_store(plan.output), shard)]
        tables.append(tiny.data_rows(plan.spec, keys, REJECTED, shard.number))
    return pa.concat_tables(tables)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


@pytest.fixture(params=["float16", "float32"])
def spec(request: pytest.FixtureRequest) -> FeatureSpec:
    return tiny.spec(**LAYERS, dtype=request.param)


@pytest.fixture
def plan(tmp_path: Path, spec: FeatureSpec) -> Plan:
    return written(tmp_path, spec)


# What is written


def test_rows_come_back_with_nulls_where_an_image_was_rejected(plan: Plan) -> None:
    found = pa.concat_tables(open_features(plan.output).tables())
    assert found.schema.equals(data_schema(plan.spec))
    assert found.combine_chunks().equals(expected_rows(plan).combine_chunks())
    for layer in plan.spec.layers:
        nulls = {row["key"]: row[layer] is None for row in found.to_pylist()}
        assert {key for key, is_null in nulls.items() if is_null} == set(REJECTED)


def test_a_receipt_counts_what_was_written(plan: Plan, tmp_path: Path) -> None:
    receipt = write(planned(tmp_path / "other", plan.spec), 0)
    name = plan.data_name(0)
    assert receipt == Receipt(
        0, {"ok": 3, "truncated": 1}, (tmp_path / "other/features" / name).stat().st_size, created=True
    )
    assert (receipt.images, receipt.ok, receipt.rejected) == (4, 3, {"truncated": 1})


def test_the_second_to_write_a_shard_gets_a_receipt_and_changes_nothing(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "features" / plan.data_name(0)
    before = path.read_bytes()
    receipt = write(plan, 0, seed=99)
    assert not receipt.created
    assert receipt.statuses == {"ok": 3, "truncated": 1}
    assert path.read_bytes() == before


def test_the_footer_says_what_the_file_is(plan: Plan) -> None:
    store = open_store(plan.output)
    _, footer = read_footer(store, plan.data_files()[1])
    assert footer["fingerprint"] == plan.spec.fingerprint
    assert FeatureSpec.from_json(footer["spec"]) == plan.spec
    assert (footer["shard"], footer["images"], footer["run_id"], footer["device"]) == (1, 4, "test", "none")
    assert sum(footer["statuses"].values()) == 4
    assert footer["versions"]["bottleneck"] == __version__


def test_files_hold_no_extension_types_and_one_row_group(plan: Plan, tmp_path: Path) -> None:
    for shard in range(plan.num_shards):
        file = pq.ParquetFile(tmp_path / "features" / plan.data_name(shard))
        assert file.num_row_groups == 1
        assert not any(isinstance(one.type, pa.ExtensionType) for one in file.schema_arrow)


@pytest.mark.parametrize("spec", ["float16", "float32"], indirect=True)
def test_one_changed_byte_in_the_pages_is_noticed(plan: Plan, tmp_path: Path) -> None:
    name = plan.data_name(0)
    path = tmp_path / "features" / name
    intact = path.read_bytes()
    metadata = pq.ParquetFile(path).metadata
    for number in range(metadata.num_columns):
        column = metadata.row_group(0).column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        path.write_bytes(intact)
        flip(path, start + column.total_compressed_size - 1)  # the last byte of a page, behind its header
        with pytest.raises(CorruptError, match=f"{name} is damaged"):
            open_features(plan.output).table(name)
    path.write_bytes(intact)
    open_features(plan.output).table(name)


@pytest.mark.parametrize("size", [0, 3, 8, 100, TAIL_BYTES + 1000])
def test_a_file_that_is_no_data_file_is_named(tmp_path: Path, size: int) -> None:
    store = FolderStore(str(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"\xff" * size)
    with pytest.raises(CorruptError, match=r"x.parquet is no data file"):
        read_footer(store, Entry("x.parquet", size, ""))


def test_a_file_that_was_replaced_since_the_listing_is_read_as_it_is_now(plan: Plan, tmp_path: Path) -> None:
    store, [listed, other, _] = open_store(plan.output), plan.data_files().values()
    for size in (listed.size, 10 * listed.size):
        assert read_footer(store, Entry(listed.key, size, "another"))[0] == listed
    (tmp_path / "features" / other.key).replace(tmp_path / "features" / listed.key)
    assert read_footer(store, listed)[1]["shard"] == 1


def test_a_file_that_is_gone_since_the_listing_is_named(plan: Plan, tmp_path: Path) -> None:
    entry = plan.data_files()[0]
    (tmp_path / "features" / entry.key).unlink()
    with pytest.raises(CorruptError, match=f"{entry.key} is gone"):
        read_footer(open_store(plan.output), entry)


def test_a_foreign_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(CorruptError, match="no data file"):
        read_footer(FolderStore(str(tmp_path)), Entry("x.parquet", (tmp_path / "x.parquet").stat().st_size, ""))


def test_a_footer_larger_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    spec = tiny.spec(layers=tuple(f"layer_{n:04d}:avg" for n in range(600)), dims=(1,) * 600)
    store = FolderStore(str(tmp_path))
    rows = tiny.data_rows(spec, ["a.jpg"])
    receipt = write_shard(store, "wide.parquet", spec, 0, rows, run_id="test", device="none")
    tail = (tmp_path / "wide.parquet").read_bytes()[-8:-4]
    assert int.from_bytes(tail, "little") > TAIL_BYTES
    assert read_footer(store, Entry("wide.parquet", receipt.bytes, ""))[1]["shard"] == 0


# Finishing


@pytest.mark.parametrize("with_receipts", [True, False])
def test_finishing_accounts_for_every_image(tmp_path: Path, with_receipts: bool) -> None:
    plan = planned(tmp_path, tiny.spec(**LAYERS))
    receipts = {shard: write(plan, shard) for shard in range(plan.num_shards)}
    document = finish(plan, receipts if with_receipts else None)
    assert (document["images"], document["ok"], document["rejected"]) == (10, 8, {"empty": 1, "truncated": 1})
    assert [line["images"] for line in document["shards"]] == [4, 4, 2]
    assert sum(line["ok"] for line in document["shards"]) == 8
    assert {line["shard"]: line["bytes"] for line in document["shards"]} == plan.committed()
    assert document["plan_sha256"] == plan.sha256
    assert finished(plan) == document == json.loads((tmp_path / "features" / SUCCESS).read_text())


def test_a_receipt_of_a_file_that_another_wrote_is_not_believed(tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny.spec(**LAYERS))
    receipts = {shard: write(plan, shard) for shard in range(plan.num_shards)}
    receipts[0] = Receipt(0, {"missing": 4}, 1, created=False)
    assert finish(plan, receipts)["rejected"] == {"empty": 1, "truncated": 1}


def test_a_file_of_this_run_counts_where_its_answer_was_lost(tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny.spec(**LAYERS))
    told = {shard: write(plan, shard) for shard in range(plan.num_shards)}
    receipts = {0: told[0], 1: Receipt(1, {}, 0, created=False)}
    finish(plan, receipts, run_id="test")
    assert receipts == told
    receipts = {0: told[0]}
    finish(plan, receipts, run_id="another")
    assert list(receipts) == [0]


def test_missing_shards_are_not_finished(tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny.spec(**LAYERS))
    write(plan, 1)
    with pytest.raises(IncompleteError, match=r"2 of 3 shards .*the first of them 0"):
        finish(plan)
    assert finished(plan) is None
    assert not (tmp_path / "features" / SUCCESS).exists()


@pytest.mark.parametrize("change", ["deleted", "size", "digest", "no JSON", "another JSON", "absent", "extended"])
def test_finished_notices_what_has_changed_since(tmp_path: Path, change: str) -> None:
    plan = written(tmp_path, tiny.spec(**LAYERS))
    output = tmp_path / "features"
    document = json.loads((output / SUCCESS).read_text())
    assert finished(plan) == document
    if change == "deleted":
        (output / plan.data_name(1)).unlink()
    elif change == "size":
        with open(output / plan.data_name(1), "ab") as file:
            file.write(b"x")
    elif change == "digest":
        (output / SUCCESS).write_text(json.dumps({**document, "plan_sha256": "0" * 64}))
    elif change == "no JSON":
        (output / SUCCESS).write_text("{")
    elif change == "another JSON":
        (output / SUCCESS).write_text("[1, 2]")
    elif change == "absent":
        (output / SUCCESS).unlink()
    else:
        tiny.write_files(tmp_path / "photos", {"new.jpg": b"new"})
        plan, _ = extend_plan(plan)
    assert finished(plan) is None


# Reading


def test_features_are_read_as_arrays(plan: Plan) -> None:
    features = open_features(plan.output)
    rows = [row for row in expected_rows(plan).to_pylist() if row["status"] == "ok"]
    for layer, dim in zip(plan.spec.layers, plan.spec.dims, strict=True):
        features_ND, labels_N = features.arrays(layer)
        keys_N = features.keys()
        assert (features_ND.shape, features_ND.dtype) == ((8, dim), np.dtype("float32"))
        assert keys_N.tolist() == [row["key"] for row in rows]
        assert labels_N.tolist() == [row["label"] for row in rows]
        np.testing.assert_array_equal(features_ND, np.array([row[layer] for row in rows], plan.spec.dtype))
        batches = list(features.batches(layer))
        assert [len(batch_ND) for batch_ND, _ in batches] == [3, 3, 2]
        np.testing.assert_array_equal(np.concatenate([batch_ND for batch_ND, _ in batches]), features_ND)


def test_a_layer_must_be_named_where_there_are_several(plan: Plan) -> None:
    features = open_features(plan.output)
    known = "conv_pw_13_relu:avg, conv_pw_1_relu:max"
    for layer in (None, "conv_pw_13_relu", "conv_pw_13_relu:max", "fc2"):
        told = f"Expected {known}. Received: {layer}" if layer else f"Expected `layer`, one of {known}"
        with pytest.raises(UsageError, match=told):
            features.arrays(layer)
        with pytest.raises(UsageError, match=told):
            list(features.batches(layer))


def test_the_only_layer_needs_no_name(tmp_path: Path) -> None:
    plan = written(tmp_path, tiny.spec(layers=("fc2:none",), dims=(4,)))
    features = open_features(plan.output)
    np.testing.assert_array_equal(features.arrays()[0], features.arrays("fc2")[0])


def test_an_output_whose_images_are_all_rejected_is_empty(tmp_path: Path) -> None:
    source = tiny.write_files(tmp_path / "photos", dict.fromkeys(REJECTED, b""))
    plan = make_plan(str(source), str(tmp_path / "features"), tiny.spec(), shard_size=1)
    finish(plan, {shard: write(plan, shard) for shard in range(2)})
    features_ND, labels_N = open_features(plan.output).arrays()
    keys_N = open_features(plan.output).keys()
    assert (features_ND.shape, len(labels_N), len(keys_N)) == ((0, 256), 0, 0)
    assert features_ND.dtype == np.float32


def test_unfinished_output_is_opened_only_when_asked(tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny.spec(layers=("fc2:none",), dims=(4,)))
    write(plan, 1)
    with pytest.raises(IncompleteError, match=r"1 of 3 shards"):
        open_features(plan.output)
    assert len(open_features(plan.output, allow_incomplete=True).arrays()[0]) == 3


def test_unfinished_features_stay_what_they_were_when_they_were_opened(tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny.spec(layers=("fc2:none",), dims=(4,)))
    write(plan, 1)
    features = open_features(plan.output, allow_incomplete=True)
    before = features.keys().tolist()
    write(plan, 0)
    assert (features.keys().tolist(), features.success) == (before, None)
    later = open_features(plan.output, allow_incomplete=True).keys().tolist()
    assert set(before) < set(later)


def test_what_has_no_plan_has_no_features(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no features"):
        open_features(str(tmp_path))


# Readers of others; the README shows these


def same(plan: Plan, keys: list[str], statuses: list[str], column: dict[str, list[Any]]) -> None:
    """What another reader found equals what was written; its rows may come in any order."""
    expected = {row["key"]: row for row in expected_rows(plan).to_pylist()}
    assert sorted(keys) == sorted(expected)
    for layer, values in column.items():
        for key, status, value in zip(keys, statuses, values, strict=True):
            assert status == expected[key]["status"]
            if status == "rejected":
                assert value is None
            else:
                np.testing.assert_array_equal(np.asarray(value, np.float32), np.float32(expected[key][layer]))


def test_pyarrow_reads_the_folder(plan: Plan, tmp_path: Path) -> None:
    table = pq.read_table(tmp_path / "features/data")
    columns = {layer: table.column(layer).to_pylist() for layer in plan.spec.layers}
    same(plan, table.column("key").to_pylist(), table.column("status").to_pylist(), columns)


def test_pandas_reads_the_folder(plan: Plan, tmp_path: Path) -> None:
    frame = pd.read_parquet(tmp_path / "features/data")
    same(plan, list(frame["key"]), list(frame["status"]), {layer: list(frame[layer]) for layer in plan.spec.layers})
    assert np.stack(frame[frame.status == "ok"][plan.spec.layers[0]]).shape == (8, 6)


def test_polars_reads_the_folder(plan: Plan, tmp_path: Path) -> None:
    frame = pl.read_parquet(tmp_path / "features/data/*.parquet")
    columns = {layer: frame[layer].to_list() for layer in plan.spec.layers}
    same(plan, frame["key"].to_list(), frame["status"].cast(pl.String).to_list(), columns)
    assert frame.filter(pl.col("status") == "ok")[plan.spec.layers[0]].to_numpy().shape == (8, 6)


def test_duckdb_reads_the_folder(plan: Plan, tmp_path: Path) -> None:
    files = f"'{tmp_path}/features/data/*.parquet'"
    layers = ", ".join(f'"{layer}"' for layer in plan.spec.layers)
    keys, statuses, *columns = zip(*duckdb.sql(f"select key, status, {layers} from {files}").fetchall(), strict=True)
    same(plan, list(keys), list(statuses), dict(zip(plan.spec.layers, map(list, columns), strict=True)))
    counted = duckdb.sql(f"select coalesce(reason, 'ok') as outcome, count(*) from {files} group by outcome order by 1")
    assert counted.fetchall() == [("empty", 1), ("ok", 8), ("truncated", 1)]
