"""Images are done again, and only these: shards are replaced whole, and whoever reads meanwhile sees each key once."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from fixtures_s3 import use_environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy import Fault, FaultProxy
from servers import S3Server

from bottleneck.audit.verify import verify
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.features import open_features, read_table
from bottleneck.dataset.footer import read_footer
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.requeue import Requeued, requeue_plan
from bottleneck.dataset.success import finish, finished
from bottleneck.dataset.write import write_shard
from bottleneck.distributed.stages import _message, _unpacked
from bottleneck.errors import IncompleteError, UsageError
from bottleneck.extract.prepare import Prepared, prepare_shard
from bottleneck.extract.shard import extract_prepared
from bottleneck.extract.summary import pending_shards
from bottleneck.extract.work import Work
from bottleneck.inspect.diff import diff_features
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureSpec
from bottleneck.storage.store import cached_store, open_store

SPEC = tiny.spec(layers=("conv_pw_1_relu:avg", "conv_pw_13_relu:avg"), dims=(3, 6), dtype="float16", image_size_px=8)


class MeanBase:
    """Stands in for a network: the features of an image follow from its pixels alone; counts what it is shown."""

    batch_size, device = 4, "none"

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self.num_images = 0

    def stream(self, pixels_NHWC: np.ndarray) -> Iterator[list[np.ndarray]]:
        self.num_images += len(pixels_NHWC)
        for start in range(0, len(pixels_NHWC), self.batch_size):
            batch_NHWC = pixels_NHWC[start : start + self.batch_size]
            flat_NP = batch_NHWC.reshape(len(batch_NHWC), -1).astype(np.float32) / 256
            yield [flat_NP[:, :dim].astype(self.spec.dtype) for dim in self.spec.dims]


class World:
    """A source and its output, which may be extracted in this process."""

    def __init__(self, folder: Path, files: dict[str, bytes], shard_size: int = 4, **changes: Any) -> None:
        self.source, self.output = tiny.write_files(folder / "photos", files), folder / "features"
        make_plan(str(self.source), str(self.output), SPEC, shard_size=shard_size, **changes)

    @property
    def plan(self) -> Plan:
        plan = load_plan(str(self.output))
        assert plan is not None
        return plan

    def extract(self, plan: Plan | None = None) -> Counter[str]:
        """Do what is pending and finish; returns how many images were shown to the network, and shards committed."""
        plan = plan or self.plan
        base, done = MeanBase(SPEC), Counter[str]()
        for shard in pending_shards(plan, plan.committed()):
            done["shards"] += extract(plan, shard.number, base)
        finish(plan)
        return done + Counter(images=base.num_images)

    def requeue(self, *reasons: str, **changes: Any) -> Requeued:
        return requeue_plan(self.plan, reasons, **changes)[1]

    def rows(self) -> dict[str, dict[str, Any]]:
        tables = [pq.read_table(path) for path in sorted((self.output / "data").iterdir())]
        rows = [row for table in tables for row in table.to_pylist()]
        assert len({row["key"] for row in rows}) == len(rows)
        return {row["key"]: row for row in rows}

    def outcomes(self) -> dict[str, str]:
        return {key: row["reason"] or row["status"] for key, row in self.rows().items()}

    def revisions(self) -> list[int]:
        store = open_store(str(self.output))
        return [read_footer(store, entry)[1]["revision"] for entry in self.plan.data_files().values()]

    def put(self, key: str, data: bytes) -> None:
        tiny.write_files(self.source, {key: data})


def extract(plan: Plan, number: int, base: MeanBase) -> bool:
    shard = next(shard for shard in plan.shards() if shard.number == number)
    work = Work.of(plan)
    return extract_prepared(work, base, prepare_shard(work, shard)).created  # type: ignore[arg-type]


def keys(num_images: int) -> list[str]:
    return [f"{n:02d}.jpg" for n in range(num_images)]


def pictures(num_images: int) -> dict[str, bytes]:
    return {key: tiny.jpeg(n) for n, key in enumerate(keys(num_images))}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Ten images in three shards; 01 is gone before it is read, 02 another one, 08 no image."""
    world = World(tmp_path, pictures(10) | {"08.jpg": b"<html>"})
    (world.source / "01.jpg").unlink()
    world.put("02.jpg", tiny.jpeg(102))
    world.extract()
    assert world.outcomes() == dict.fromkeys(keys(10), "ok") | {
        "01.jpg": "missing",
        "02.jpg": "changed",
        "08.jpg": "not_an_image",
    }
    return world


def good(world: World) -> None:
    report = verify(str(world.output), full=True)
    assert (report.exit_code, report.corrupt, report.foreign) == (0, (), ())
    assert report.planned == world.plan.num_images == len(world.rows())


# What is planned again


def test_rejected_images_are_found_again_where_they_have_come_back(world: World) -> None:
    before = world.rows()
    world.put("01.jpg", tiny.jpeg(1))
    requeued = world.requeue("missing", "changed")
    assert requeued == Requeued(1, 2, {"missing": 1, "changed": 1}, 2, ["01.jpg", "02.jpg"], 0, [])
    assert finished(world.plan) is None
    assert world.extract() == Counter(shards=1, images=2)
    after = world.rows()
    assert (after["01.jpg"]["status"], after["02.jpg"]["status"]) == ("ok", "ok")
    assert {key: row for key, row in after.items() if key not in ("01.jpg", "02.jpg")} == {
        key: row for key, row in before.items() if key not in ("01.jpg", "02.jpg")
    }
    assert world.revisions() == [1, 0, 0]
    assert finished(world.plan)
    good(world)


def test_what_is_still_missing_is_missing_again(world: World) -> None:
    assert world.requeue("missing") == Requeued(1, 1, {"missing": 1}, 0, [], 1, ["01.jpg"])
    # 02 is in the same shard and rejected, so it is read again too, but planned as it was.
    world.extract()
    assert (world.outcomes()["01.jpg"], world.outcomes()["02.jpg"]) == ("missing", "changed")
    good(world)


@pytest.mark.matrix(15, "requeue")
def test_changed_images_are_done_again_and_gone_ones_keep_their_features(world: World) -> None:
    before = world.rows()
    (world.source / "04.jpg").unlink()
    world.put("05.jpg", tiny.jpeg(205))
    requeued = world.requeue(changed=True)
    assert (requeued.shards, requeued.images, requeued.rejected) == (2, 2, {})
    assert (requeued.changed_keys, requeued.gone_keys) == (["02.jpg", "05.jpg"], ["01.jpg", "04.jpg"])
    (world.source / "06.jpg").unlink()  # also gone, but its features are there
    assert world.extract() == Counter(shards=2, images=2)
    after = world.rows()
    assert {key for key in after if after[key] != before[key]} == {"02.jpg", "05.jpg"}
    assert after["05.jpg"]["sha256"] != before["05.jpg"]["sha256"]
    assert world.outcomes()["04.jpg"] == "ok"
    good(world)


def test_an_image_that_changed_and_cannot_be_used_is_rejected(world: World) -> None:
    world.put("05.jpg", b"<html>")
    world.requeue(changed=True)
    world.extract()
    assert world.outcomes()["05.jpg"] == "not_an_image"
    good(world)


def test_nothing_to_requeue_writes_nothing(world: World) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.output.rglob("*")}
    assert world.requeue("truncated", "empty").shards == 0
    world.put("02.jpg", tiny.jpeg(102))
    assert {path: path.stat().st_mtime_ns for path in world.output.rglob("*")} == before
    world.requeue("missing", changed=True)
    before = {path: path.stat().st_mtime_ns for path in world.output.rglob("*")}
    again = world.requeue("missing", "changed", changed=True)  # what is in the queue already
    assert (again.shards, again.gone) == (0, 1)
    assert {path: path.stat().st_mtime_ns for path in world.output.rglob("*")} == before


def test_what_is_in_the_queue_is_planned_anew_when_it_changes_once_more(world: World) -> None:
    world.requeue("missing")
    world.put("01.jpg", tiny.jpeg(1))
    assert world.requeue("missing").images == 1
    assert world.plan.revised[0].revision == 2
    world.extract()
    assert world.outcomes()["01.jpg"] == "ok"
    assert world.revisions() == [2, 0, 0]
    good(world)


def test_shards_that_were_never_extracted_are_planned_again_when_images_changed(tmp_path: Path) -> None:
    world = World(tmp_path, pictures(6))
    world.put("00.jpg", tiny.jpeg(100))
    world.requeue(changed=True)
    assert world.extract() == Counter(shards=2, images=6)
    assert set(world.outcomes().values()) == {"ok"}
    assert world.revisions() == [1, 0]
    good(world)


def test_higher_limits_are_the_plans_from_then_on(tmp_path: Path) -> None:
    large = tiny.jpeg(3) + bytes(50_000)
    world = World(tmp_path, pictures(6) | {"03.jpg": large}, limits=Limits(max_bytes=40_000))
    world.extract()
    assert world.outcomes()["03.jpg"] == "too_many_bytes"
    limits = replace(world.plan.limits, max_bytes=60_000)
    assert world.requeue("too_many_bytes", limits=limits).images == 1
    assert world.plan.limits == limits
    world.extract()
    assert world.outcomes()["03.jpg"] == "ok"
    assert world.requeue(changed=True).shards == 0
    assert world.plan.limits == limits
    good(world)


@pytest.mark.parametrize(
    ("reasons", "options", "message"),
    [
        ((), {}, "--reason REASON.*--changed"),
        (("ugly", "empty"), {}, "empty, not_an_image.*Received: ugly"),
        (("too_many_bytes",), {"limits": Limits(max_bytes=7)}, "--max-bytes can only be raised.*Received: 7"),
        (("missing",), {"limits": Limits(max_pixels=10**9)}, "Expected --reason too_many_pixels.*Received: missing"),
        (
            (),
            {"changed": True, "limits": Limits(formats=("tiff",))},
            "--reason unsupported_format.*Received: no --reason",
        ),
    ],
)
def test_what_cannot_be_requeued_is_refused(
    world: World, reasons: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        requeue_plan(world.plan, reasons, **options)
    assert len(world.plan.listings) == 1


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_of_a_container_that_was_rewritten_all_images_are_done_again_where_they_are_now(tmp_path: Path) -> None:
    files = pictures(6)
    world = World(tmp_path, {"a.tar": tar_of(files), "b.tar": tar_of(files)}, shard_size=3)
    assert world.extract()["images"] == 12
    before = world.rows()
    world.put("a.tar", tar_of({"00.jpg": tiny.jpeg(77, (60, 50))} | {key: files[key] for key in keys(6)[2:]}))
    requeued = world.requeue(changed=True)
    assert (requeued.images, requeued.shards, requeued.gone_keys) == (5, 2, ["a.tar/01.jpg"])
    assert world.extract() == Counter(shards=2, images=5)
    after = world.rows()
    [layer, _] = SPEC.layers
    for key, row in after.items():
        assert (row[layer] == before[key][layer]) == (key != "a.tar/00.jpg")
        assert (row["etag"] == before[key]["etag"]) == (key.startswith("b.tar") or key == "a.tar/01.jpg")
    good(world)


def test_of_a_list_what_it_names_and_is_not_there_is_gone(tmp_path: Path) -> None:
    names = "\n".join(["uri,label", *(f"{key},one" for key in keys(4)), "none.jpg,one"])
    photos = tiny.write_files(tmp_path / "photos", pictures(4) | {"list.csv": names.encode()})
    plan = make_plan(str(photos / "list.csv"), str(tmp_path / "features"), SPEC, shard_size=3, max_rejected=0.2)
    for shard in plan.shards():
        extract(plan, shard.number, MeanBase(SPEC))
    (photos / "00.jpg").unlink()
    (photos / "list.csv").write_text(names.replace(",one", ",two"))
    assert requeue_plan(plan, changed=True)[1] == Requeued(gone=2, gone_keys=["00.jpg", "none.jpg"])
    (photos / "none.jpg").write_bytes(tiny.jpeg(9))
    plan, requeued = requeue_plan(plan, ("missing",))
    assert (requeued.images, requeued.gone) == (1, 1)
    # Where the list labels an image otherwise now, that is taken over with it.
    assert plan.label_counts == {"one": 4, "two": 1}
    assert extract(plan, 1, MeanBase(SPEC))
    assert {
        row["key"]: row["label"] for row in pq.read_table(tmp_path / "features" / plan.data_name(1)).to_pylist()
    } == {
        "03.jpg": "one",
        "none.jpg": "two",
    }


# The plan


def test_a_revised_plan_counts_every_image_once(world: World) -> None:
    labelled = tiny.write_files(world.source, {"cats/1.jpg": tiny.jpeg(50), "cats/2.jpg": tiny.jpeg(51)})
    first = world.plan
    extend_plan(first)
    digests = {first.sha256, world.plan.sha256}
    world.extract()
    for number in range(3):
        (labelled / "cats/1.jpg").write_bytes(tiny.jpeg(60 + number, (40 + number, 30)))
        (labelled / "09.jpg").write_bytes(tiny.jpeg(70 + number))
        requeued = world.requeue(changed=True)
        assert requeued.changed_keys == (["02.jpg"] if number == 0 else []) + ["09.jpg", "cats/1.jpg"]
        plan = world.plan
        digests.add(plan.sha256)
        assert (plan.num_images, plan.num_shards, plan.label_counts) == (12, 4, {"cats": 2})
        assert [plan.images_in(shard) for shard in range(4)] == [4, 4, 2, 2]
        shards = list(plan.shards())
        assert [shard.number for shard in shards] == [0, 1, 2, 3]
        assert [shard.revision for shard in shards] == [2, 0, number + 2, number + 2]
        images = list(plan.images())
        assert [image.key for image in images] == [*keys(10), "cats/1.jpg", "cats/2.jpg"]
        in_shards = [image for shard in shards for image in read_images(open_store(plan.output), shard)]
        assert sorted(in_shards) == sorted(images)
        now = {entry.key: (entry.size, entry.etag) for entry in open_store(plan.source).list()}
        assert all((image.size, image.etag) == now[image.key] for image in images if image.key != "01.jpg")
        assert plan.num_bytes == sum(image.size for image in images)
    assert len(digests) == 5
    world.extract()
    good(world)


def test_extensions_and_revisions_follow_each_other(world: World) -> None:
    for number in range(3):
        world.put(f"more {number}.jpg", tiny.jpeg(300 + number))
        world.put("05.jpg", tiny.jpeg(400 + number))
        plan, extended = extend_plan(world.plan)
        assert (extended.added, extended.changed) == (1, 2 if number == 0 else 1)
        assert world.requeue(changed=True).changed >= 1
        assert extend_plan(world.plan)[1].changed == 0
        world.extract()
        good(world)
    assert len(world.plan.listings) == 7
    assert plan.num_images == 13


def test_of_several_at_once_each_gets_a_number_of_its_own(world: World) -> None:
    world.put("01.jpg", tiny.jpeg(1))
    world.put("05.jpg", tiny.jpeg(205))
    world.put("more.jpg", tiny.jpeg(300))
    plan = world.plan
    with ThreadPoolExecutor(4) as pool:
        extended = pool.submit(extend_plan, plan)
        requeued = [pool.submit(requeue_plan, plan, ("missing",), changed=True) for _ in range(3)]
        assert extended.result()[1].added == 1
        assert sorted(one.result()[1].images for one in requeued) == [0, 0, 3]
    assert len(world.plan.listings) == 3
    world.extract()
    assert set(world.outcomes().values()) == {"ok", "not_an_image"}
    good(world)


def test_revised_shards_fill_several_parts(tmp_path: Path) -> None:
    world = World(tmp_path, pictures(80), shard_size=1)
    world.extract()
    for key in keys(80)[::2]:
        world.put(key, tiny.jpeg(500))
    assert world.requeue(changed=True).shards == 40
    assert [part.shards for part in world.plan.listings[1].parts] == [32, 8]
    assert world.extract() == Counter(shards=40, images=40)
    assert world.revisions() == [1, 0] * 40
    good(world)


# Commits


def test_a_revision_is_committed_once(world: World) -> None:
    world.requeue("missing")
    plan = world.plan
    assert plan.committed().keys() == {1, 2}
    assert plan.data_files().keys() == {0, 1, 2}
    work, [shard] = Work.of(plan), pending_shards(plan, plan.committed())
    assert not work.is_committed(shard)
    first, second = prepare_shard(work, shard), prepare_shard(work, shard)
    base: Any = MeanBase(SPEC)
    assert extract_prepared(work, base, first).created
    before = (world.output / plan.data_name(0)).read_bytes()
    assert work.is_committed(shard)
    assert not extract_prepared(work, base, second).created
    assert (world.output / plan.data_name(0)).read_bytes() == before


def test_a_worker_of_an_older_plan_makes_the_shard_pending_again(world: World) -> None:
    old = world.plan
    world.requeue("missing")
    world.requeue("missing", limits=replace(old.limits), changed=True)
    plan = world.plan
    world.extract()
    assert not extract(old, 0, MeanBase(SPEC))  # a file is there, and revision 0 only creates
    (world.output / plan.data_name(0)).unlink()
    assert extract(old, 0, MeanBase(SPEC))
    assert 0 not in plan.committed()
    assert finished(plan) is None
    with pytest.raises(IncompleteError, match="1 of 3 shards"):
        finish(plan)
    report = verify(str(world.output), full=True)
    assert (report.exit_code, report.missing, report.corrupt) == (3, 0, ())
    assert "shards to be done again: 1" in report.unfinished
    world.extract()
    good(world)


def test_a_plan_knows_no_files_of_an_extension_that_it_has_not_read(world: World) -> None:
    old = world.plan
    world.put("99.jpg", tiny.jpeg(99))
    new = extend_plan(old)[0]
    world.extract()
    assert new.data_files().keys() == new.committed().keys() == {0, 1, 2, 3}
    assert old.data_files().keys() == old.committed().keys() == {0, 1, 2}
    (world.output / old.data_name(1)).unlink()
    assert [shard.number for shard in pending_shards(old, old.committed())] == [1]


def test_a_run_ends_well_where_another_has_put_a_larger_file_in_place_of_one_that_it_listed(tmp_path: Path) -> None:
    world = World(tmp_path, pictures(10))
    world.extract()
    old, done = world.plan, world.plan.committed()
    world.put("08.jpg", b"<html>")
    world.requeue(changed=True)
    world.extract()
    assert world.plan.committed()[2] > done[2]
    assert (finish(old, done=done)["ok"], finish(old, done=done)["rejected"]) == (9, {"not_an_image": 1})
    world.extract()
    good(world)


def test_unfinished_features_are_read_as_they_were(world: World) -> None:
    before = open_features(str(world.output)).keys().tolist()
    world.requeue("missing")
    with pytest.raises(IncompleteError, match="2 of 3 shards done"):
        open_features(str(world.output))
    assert open_features(str(world.output), allow_incomplete=True).keys().tolist() == before


@pytest.mark.parametrize("bits", ["float16", "float32"])
def test_features_are_taken_over_bit_by_bit(tmp_path: Path, bits: str) -> None:
    """Written as no network would, so that only a copy can have them; among rejected rows."""
    spec = replace(SPEC, dtype=bits)
    source, output = tiny.write_files(tmp_path / "photos", pictures(6) | {"03.jpg": b"x"}), str(tmp_path / "features")
    plan = make_plan(str(source), output, spec)
    store, [shard] = open_store(output), plan.shards()
    images = read_images(store, shard)
    rows = tiny.data_rows(spec, keys(6), {"03.jpg": "not_an_image"})
    rows = rows.set_column(1, rows.schema.field("etag"), pa.array([image.etag for image in images]))
    rows = rows.set_column(2, rows.schema.field("label"), pa.nulls(6, pa.string()))
    write_shard(store, plan.data_name(0), spec, 0, rows, run_id="test", device="none")
    (source / "03.jpg").write_bytes(tiny.jpeg(3))
    (source / "05.jpg").write_bytes(tiny.jpeg(305))
    plan, _ = requeue_plan(plan, ("not_an_image",), changed=True)
    base = MeanBase(spec)
    assert extract(plan, 0, base)
    assert base.num_images == 2
    after = read_table(store, plan.data_name(0))
    assert after.schema.equals(rows.schema)
    stayed = [0, 1, 2, 4]
    assert after.take(stayed).combine_chunks().equals(rows.take(stayed).combine_chunks())
    [short, long] = (after.column(layer).to_pylist() for layer in spec.layers)
    assert len(set(map(len, short))) == len(set(map(len, long))) == 1


def test_a_shard_prepared_again_travels_between_the_stages(world: World) -> None:
    world.requeue("missing", "changed")
    plan = world.plan
    shard = plan.revised[0]
    prepared = prepare_shard(Work.of(plan), shard)
    assert prepared.kept_rows is not None
    assert (prepared.pixels_of_row.tolist(), prepared.kept_rows.index_of_row.tolist()) == (
        [-1, -1, 0, -1],
        [0, -1, -1, 1],
    )
    same = _unpacked(_message(prepared), shard, SPEC.image_size_px)
    assert_equal(same, prepared)
    fresh = prepare_shard(Work.of(plan), list(plan.shards())[1])
    assert fresh.kept_rows is None
    assert_equal(_unpacked(_message(fresh), fresh.shard, SPEC.image_size_px), fresh)


def assert_equal(one: Prepared, other: Prepared) -> None:
    assert (one.shard, one.rows) == (other.shard, other.rows)
    np.testing.assert_array_equal(one.pixels_NHWC, other.pixels_NHWC)
    np.testing.assert_array_equal(one.pixels_of_row, other.pixels_of_row)
    assert (one.kept_rows is None) == (other.kept_rows is None)
    if one.kept_rows and other.kept_rows:
        assert one.kept_rows.columns == other.kept_rows.columns
        np.testing.assert_array_equal(one.kept_rows.index_of_row, other.kept_rows.index_of_row)


# Byte-identical images


def test_identical_images_are_decoded_and_extracted_once(tmp_path: Path) -> None:
    picks = [0, 1, 0, 2, 1, 0, 3, 3]
    files = {key: tiny.jpeg(pick) for key, pick in zip(keys(8), picks, strict=True)}
    world = World(tmp_path, files | {"08.jpg": b"<html>", "09.jpg": b"<html>"}, shard_size=100)
    decoded: list[bytes] = []

    def decode(data: bytes, spec: FeatureSpec, limits: Limits) -> Any:
        from bottleneck.extract.decode import decode as real

        decoded.append(data)
        return real(data, spec, limits)

    work, [shard] = Work.of(world.plan), world.plan.shards()
    prepared = prepare_shard(work, shard, decode)
    assert len(decoded) == len(set(decoded)) == 5
    assert len(prepared.pixels_NHWC) == 4
    base: Any = MeanBase(SPEC)
    extract_prepared(work, base, prepared)
    assert base.num_images == 4
    rows = world.rows()
    for layer in SPEC.layers:
        values = [rows[key][layer] for key in keys(8)]
        assert values == [values[picks.index(pick)] for pick in picks]
        assert len({tuple(value) for value in values}) == 4
    finish(world.plan)
    good(world)


# Whoever reads meanwhile


class Poller:
    """Reads all data files again and again; each look must find each key once."""

    def __init__(self, output: str, expected: list[str]) -> None:
        self.output, self.expected = output, expected
        self.looks, self.wrong = 0, list[str]()
        self.contents: set[str] = set()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Poller:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        assert not self.wrong, self.wrong[:3]
        assert self.looks > 2

    def _poll(self) -> None:
        while not self.stop.is_set():
            try:
                features = open_features(self.output, allow_incomplete=True)
                found = pa.concat_tables(features.tables(["key", "etag"]))
            except Exception as error:
                self.wrong.append(repr(error))
                return
            if sorted(found.column("key").to_pylist()) != self.expected:
                self.wrong.append(f"look {self.looks}: {found.column('key').to_pylist()}")
            self.contents.add(str(found.column("etag").to_pylist()))
            self.looks += 1


def requeue_again_and_again(source_put: Callable[[str, bytes], None], plan: Plan, rounds: int) -> None:
    base = MeanBase(SPEC)
    for number in range(rounds):
        for key in keys(12)[number % 2 :: 2]:
            source_put(key, tiny.jpeg(1000 * (number + 1)))
        plan, requeued = requeue_plan(plan, changed=True)
        assert requeued.images == 6
        for shard in pending_shards(plan, plan.committed()):
            extract(plan, shard.number, base)
        finish(plan)


@pytest.mark.matrix(15, "requeue")
def test_a_reader_that_polls_a_folder_sees_every_key_once(tmp_path: Path) -> None:
    world = World(tmp_path, pictures(12))
    world.extract()
    with Poller(str(world.output), keys(12)) as poller:
        requeue_again_and_again(world.put, world.plan, rounds=8)
        time.sleep(0.05)
    assert len(poller.contents) > 2, "it saw files before, during and after"
    good(world)


@pytest.mark.matrix(15, "requeue")
def test_a_reader_that_polls_a_bucket_sees_every_key_once(
    s3_server: S3Server, s3_environment: dict[str, str], bucket: str
) -> None:
    cached_store.cache_clear()
    s3_server.upload(bucket, {f"photos/{key}": data for key, data in pictures(12).items()})
    output = f"s3://{bucket}/features"
    plan = make_plan(f"s3://{bucket}/photos", output, SPEC, shard_size=4)
    for shard in plan.shards():
        extract(plan, shard.number, MeanBase(SPEC))
    finish(plan)

    def put(key: str, data: bytes) -> None:
        s3_server.upload(bucket, {f"photos/{key}": data})

    with Poller(output, keys(12)) as poller:
        requeue_again_and_again(put, plan, rounds=3)
    assert len(poller.contents) > 2
    assert verify(output, full=True).exit_code == 0
    cached_store.cache_clear()


def test_two_runs_replace_a_shard_of_a_bucket_once(
    s3_server: S3Server, s3_environment: dict[str, str], bucket: str
) -> None:
    cached_store.cache_clear()
    s3_server.upload(bucket, {f"photos/{key}": data for key, data in pictures(4).items()})
    plan = make_plan(f"s3://{bucket}/photos", f"s3://{bucket}/features", SPEC, shard_size=4)
    assert extract(plan, 0, MeanBase(SPEC))
    s3_server.upload(bucket, {"photos/00.jpg": tiny.jpeg(77)})
    plan, _ = requeue_plan(plan, changed=True)
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda _: extract(plan, 0, MeanBase(SPEC)), range(8)))
    assert sum(created) == 1
    assert plan.committed().keys() == {0}
    cached_store.cache_clear()


def test_an_archived_image_is_rejected_alone_and_done_again_once_restored(
    s3_server: S3Server, s3_environment: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived = Fault("answer", methods="GET", path="photos/01.jpg$", status=403, code="InvalidObjectState")
    with FaultProxy(s3_server.endpoint_url, [archived]) as proxy:
        use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
        cached_store.cache_clear()
        s3_server.upload(bucket, {f"photos/{key}": data for key, data in pictures(4).items()})
        output = f"s3://{bucket}/features"
        plan = make_plan(f"s3://{bucket}/photos", output, SPEC, shard_size=4)
        assert extract(plan, 0, MeanBase(SPEC))
        assert finish(plan)["rejected"] == {"archived": 1}
        assert verify(output, full=True).rejected == {"archived": 1}
        proxy.inject()
        plan, requeued = requeue_plan(plan, ["archived"])
        assert requeued.rejected == {"archived": 1}
        assert extract(plan, 0, MeanBase(SPEC))
        assert finish(plan)["rejected"] == {}
    cached_store.cache_clear()


# Whatever happens in whichever order


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "change", "delete", "bring back", "spoil", "extend", "requeue", "extract", "lose"]),
        st.integers(0, 8),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_after_any_history_every_image_has_one_row_and_is_what_it_was_planned_as(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("history"), pictures(6), shard_size=2)
    history = dict.fromkeys(keys(6), 1)
    for serial, (step, number) in enumerate(steps):
        key = f"{number:02d}.jpg"
        if step in ("add", "change", "bring back"):
            world.put(key, tiny.jpeg(100 + serial))
        elif step == "spoil":
            world.put(key, b"<html>" + bytes(serial))
        elif step == "delete":
            (world.source / key).unlink(missing_ok=True)
        elif step == "extend":
            extend_plan(world.plan)
        elif step == "requeue":
            world.requeue("missing", "changed", "not_an_image", changed=True)
        elif step == "lose":
            files = sorted((world.output / "data").glob("*")) if (world.output / "data").exists() else []
            for path in files[number : number + 1]:
                path.unlink()
        else:
            world.extract()
    # At the end all that can be mended is.
    plan, _ = extend_plan(world.plan)
    world.requeue("missing", "changed", changed=True)
    world.extract()
    rows, there = world.rows(), {entry.key: entry for entry in open_store(str(world.source)).list()}
    assert rows.keys() == {image.key for image in plan.images()} >= history.keys()
    for key, row in rows.items():
        if key in there:
            html = (world.source / key).read_bytes().startswith(b"<html>")
            assert (row["status"], row["reason"]) == (("rejected", "not_an_image") if html else ("ok", None))
            assert row["etag"] == there[key].etag
        else:
            assert row["reason"] in (None, "missing", "not_an_image", "changed")
    good(world)


# What reads an output with revisions


def test_outputs_with_revisions_and_extensions_are_compared_row_by_row(tmp_path: Path) -> None:
    files = pictures(10)
    one = World(tmp_path / "one", files)
    one.extract()
    for number, key in enumerate(["05a.jpg", "07a.jpg"]):
        if not number:
            for changed in ("00.jpg", "04.jpg", "08.jpg"):
                one.put(changed, tiny.jpeg(50))
            assert one.requeue(changed=True).shards == 3
        one.put(key, tiny.jpeg(60 + number))
        extend_plan(one.plan)
    one.extract()
    other = World(tmp_path / "other", {path.name: path.read_bytes() for path in one.source.iterdir()})
    other.extract()
    found = diff_features(open_features(str(one.output)), open_features(str(other.output)))
    assert (found.num_images, found.only_a.images, found.only_b.images) == (12, 0, 0)
    assert all(layer.equal == 12 for layer in found.layers.values())


def test_what_is_there_is_exported_before_a_revision_is_done(tmp_path: Path) -> None:
    """Also under labels that the plan has no more."""
    from bottleneck.dataset.export import export_features

    (tmp_path / "photos").mkdir()
    listed = tmp_path / "photos" / "list.csv"
    listed.write_text("uri,label\n00.jpg,zebra\n01.jpg,ant\n")
    tiny.write_files(tmp_path / "photos", pictures(2))
    output = str(tmp_path / "features")
    plan = make_plan(str(listed), output, SPEC)
    extract(plan, 0, MeanBase(SPEC))
    finish(plan)
    listed.write_text("uri,label\n00.jpg,bee\n01.jpg,ant\n")
    tiny.write_files(tmp_path / "photos", {"00.jpg": tiny.jpeg(70)})
    requeue_plan(plan, (), changed=True)
    features = open_features(output, allow_incomplete=True)
    export_features(features, str(tmp_path / "a.npz"), SPEC.layers[0])
    with np.load(tmp_path / "a.npz") as arrays:
        assert [arrays["label_names"][code] for code in arrays["labels"]] == ["zebra", "ant"]
