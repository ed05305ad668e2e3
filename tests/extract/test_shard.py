"""From a shard of the plan to its data file, and a whole small job in this process."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fixtures_s3 import use_environment
from proxy import FaultProxy
from servers import S3Server

from bottleneck.audit.verify import verify
from bottleneck.dataset.features import open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.success import finished
from bottleneck.dataset.write import Receipt
from bottleneck.errors import FingerprintError, TooManyRejectedError, UsageError
from bottleneck.extract.decode import Decoded, decode
from bottleneck.extract.local import extract_images
from bottleneck.extract.open_plan import check_request
from bottleneck.extract.prepare import prepare_shard
from bottleneck.extract.shard import extract_prepared, extract_shard
from bottleneck.extract.summary import Summary, Tally, pending_shards
from bottleneck.extract.work import Work
from bottleneck.networks.base import Base
from bottleneck.networks.weights import load_network
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import FeatureRequest
from bottleneck.storage.local import LEFTOVER_SECONDS
from bottleneck.storage.store import cached_store

BAD = {
    "bad/empty.jpg": (b"", "empty"),
    "bad/page.jpg": (b"<!DOCTYPE html><html>404</html>", "not_an_image"),
    "bad/cut.jpg": (tiny.jpeg(50)[:500], "truncated"),
    "bad/a b+%2F#?.tif": (b"II*\0" + bytes(100), "unsupported_format"),
}


@cache
def base() -> Base:
    return Base(tiny.real_spec(), 4)


def folder_of(path: Path, num_good: int = 6, bad: bool = True) -> Path:
    source = tiny.photos(path, num_good)
    return tiny.write_files(source, {key: data for key, (data, _) in BAD.items()} if bad else {})


def planned(source: Path, output: Path, **changes: Any) -> Plan:
    return make_plan(str(source), str(output), tiny.real_spec(), **{"shard_size": 4, **changes})


def extracted(source: Path, output: Path, **changes: Any) -> Summary:
    return extract_images(
        str(source), str(output), tiny.REQUEST, **{"shard_size": 4, "batch_size": 4, "max_rejected": 1.0, **changes}
    )


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    tables = open_features(str(output), allow_incomplete=True).tables()
    return {row["key"]: row for table in tables for row in table.to_pylist()}


def outcomes(output: Path) -> dict[str, str]:
    return {key: row["reason"] or row["status"] for key, row in rows_of(output).items()}


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file with its time of change and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


# The unit


def test_every_image_of_a_shard_has_one_row_in_the_order_of_the_plan(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "photos")
    plan = planned(source, tmp_path / "features", shard_size=100)
    [shard] = plan.shards()
    prepared = prepare_shard(Work.of(plan), shard)
    rows = prepared.rows.to_pylist()
    assert [row["key"] for row in rows] == sorted([*BAD, *tiny_keys(6)])
    assert prepared.pixels_NHWC.shape == (6, 224, 224, 3)
    for row in rows:
        data = (source / row["key"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).digest()
        assert row["label"] == row["key"].partition("/")[0]
        if row["key"] in BAD:
            assert (row["status"], row["reason"]) == ("rejected", BAD[row["key"]][1])
        else:
            assert (row["status"], row["reason"]) == ("ok", None)
            assert (row["width"], row["height"], row["mode"]) == (40, 30, "RGB")


def tiny_keys(num_images: int) -> list[str]:
    return [f"{'cats' if n % 2 else 'dogs'}/{n:04d}.jpg" for n in range(num_images)]


def test_a_row_has_the_features_of_its_own_image(tmp_path: Path) -> None:
    """The images of a shard are batched without the rejected ones: none may slip into its neighbour's row."""
    source = folder_of(tmp_path / "photos", 7)
    plan = planned(source, tmp_path / "features", shard_size=100)
    [shard] = plan.shards()
    receipt = extract_shard(Work.of(plan), base(), shard)
    assert receipt.statuses == {"ok": 7, **{reason: 1 for _, reason in BAD.values()}}
    for key, row in rows_of(tmp_path / "features").items():
        if key in BAD:
            assert row[tiny.LAYERS[0]] is None
            continue
        decoded = decode((source / key).read_bytes(), plan.spec, plan.limits)
        assert isinstance(decoded, Decoded)
        [features_ND] = base()(decoded.pixels_HWC[np.newaxis])
        np.testing.assert_allclose(row[tiny.LAYERS[0]], features_ND[0], rtol=1e-5, atol=1e-7)


def test_batches_are_told_as_they_are_done(tmp_path: Path) -> None:
    plan = planned(tiny.photos(tmp_path / "photos", 10), tmp_path / "features", shard_size=100)
    [shard] = plan.shards()
    done: list[int] = []
    work = Work.of(plan)
    receipt = extract_prepared(work, base(), prepare_shard(work, shard), done.append)
    assert done == [4, 8, 10]
    assert receipt.ok == 10


def test_a_shard_without_a_good_image_is_committed_too(tmp_path: Path) -> None:
    source = tiny.write_files(tmp_path / "photos", {key: data for key, (data, _) in BAD.items()})
    plan = planned(source, tmp_path / "features")
    [shard] = plan.shards()
    assert extract_shard(Work.of(plan), base(), shard).ok == 0
    assert outcomes(tmp_path / "features") == {key: reason for key, (_, reason) in BAD.items()}


def test_the_second_attempt_at_a_shard_changes_nothing(tmp_path: Path) -> None:
    plan = planned(tiny.photos(tmp_path / "photos", 4), tmp_path / "features")
    [shard] = plan.shards()
    work = Work.of(plan)
    assert not work.is_committed(shard)
    assert extract_shard(work, base(), shard).created
    assert work.is_committed(shard)
    before = snapshot(tmp_path / "features")
    assert not extract_shard(work, base(), shard).created
    assert snapshot(tmp_path / "features") == before


def test_images_that_went_or_changed_since_the_plan_are_rows(tmp_path: Path) -> None:
    source = tiny.photos(tmp_path / "photos", 6)
    plan = planned(source, tmp_path / "features", shard_size=100)
    (source / "dogs/0000.jpg").unlink()
    (source / "cats/0001.jpg").write_bytes(tiny.jpeg(99))
    [shard] = plan.shards()
    extract_shard(Work.of(plan), base(), shard)
    assert outcomes(tmp_path / "features") == {
        **dict.fromkeys(tiny_keys(6), "ok"),
        "dogs/0000.jpg": "missing",
        "cats/0001.jpg": "changed",
    }
    rows = rows_of(tmp_path / "features")
    assert rows["dogs/0000.jpg"]["sha256"] is None
    assert rows["cats/0001.jpg"]["sha256"] is None


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield proxy


def test_an_image_of_too_many_bytes_is_not_fetched(
    s3_server: S3Server,
    s3_environment: dict[str, str],
    bucket: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
    cached_store.cache_clear()
    s3_server.upload(bucket, {"photos/a.jpg": tiny.jpeg(0), "photos/b.jpg": tiny.jpeg(1) + bytes(50_000)})
    source, output = f"s3://{bucket}/photos", f"s3://{bucket}/features"
    plan = make_plan(source, output, tiny.real_spec(), limits=Limits(max_bytes=40_000))
    [shard] = plan.shards()
    receipt = extract_shard(Work.of(plan), base(), shard)
    cached_store.cache_clear()
    assert receipt.statuses == {"ok": 1, "too_many_bytes": 1}
    assert proxy.count("GET", "photos/a.jpg") == 1
    assert proxy.count("GET", "photos/b.jpg") == 0


def test_temporary_files_of_a_killed_run_neither_stop_the_next_nor_stay(tmp_path: Path) -> None:
    source, output = tiny.photos(tmp_path / "photos", 4), tmp_path / "features"
    young, old = output / ".plan.json.4711-0badcafe", output / "data" / ".s00000000-01234567.parquet.99-abcdef01"
    tiny.write_files(output, {str(file.relative_to(output)): b"half" for file in (young, old)})
    then = time.time() - 2 * LEFTOVER_SECONDS
    os.utime(old, (then, then))
    assert extracted(source, output).ok == 4
    assert young.exists()
    assert not old.exists()
    report = verify(str(output), full=True)
    assert (report.exit_code, report.leftovers) == (0, 1)


def test_work_travels_as_json_and_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    plan = planned(
        tiny.photos(tmp_path / "photos", 2), tmp_path / "features", limits=Limits(max_bytes=5, formats=("tiff",))
    )
    work = Work.of(plan)
    text = json.dumps(work.to_json())
    assert Work.from_json(json.loads(text)) == work
    assert "canary" not in text


def test_each_run_takes_the_pending_shards_in_an_order_of_its_own(tmp_path: Path) -> None:
    plan = planned(tiny.photos(tmp_path / "photos", 40), tmp_path / "features", shard_size=1)
    orders = [[shard.number for shard in pending_shards(plan, {3: 1, 5: 1})] for _ in range(3)]
    assert all(sorted(order) == [n for n in range(40) if n not in (3, 5)] for order in orders)
    assert orders[0] != orders[1] or orders[1] != orders[2]


# A whole job


def test_a_folder_becomes_a_table_of_features(tmp_path: Path) -> None:
    """With nothing there before: the plan is made too, by a process of its own."""
    source, output = folder_of(tmp_path / "photos"), tmp_path / "features"
    summary = extracted(source, output)
    expected = {**dict.fromkeys(tiny_keys(6), "ok"), **{key: reason for key, (_, reason) in BAD.items()}}
    assert outcomes(output) == expected
    assert (summary.images, summary.ok, sum(summary.rejected.values())) == (10, 6, 4)
    assert summary.rejected == {reason: 1 for _, reason in BAD.values()}
    assert (summary.shards, summary.done_before, summary.done_now) == (3, 0, 3)
    plan = load_plan(str(output))
    assert plan is not None
    assert plan.spec == tiny.real_spec()
    assert finished(plan)
    features_ND, labels_N = open_features(str(output)).arrays()
    keys_N = open_features(str(output)).keys()
    assert features_ND.shape == (6, 256)
    assert keys_N.tolist() == sorted(tiny_keys(6))
    assert labels_N.tolist() == ["cats"] * 3 + ["dogs"] * 3
    names = {name.partition("/")[0] for name in snapshot(output)}
    assert names == {"plan.json", "plan", "data", "_SUCCESS.json"}


def test_what_was_lost_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    source, output = tiny.photos(tmp_path / "photos", 12), tmp_path / "features"
    plan = planned(source, output)
    extracted(source, output)
    before, rows = snapshot(output), rows_of(output)
    (output / plan.data_name(1)).unlink()
    summary = extracted(source, output)
    assert (summary.done_before, summary.done_now, summary.ok) == (2, 1, 12)
    changed = {name for name, state in snapshot(output).items() if before[name] != state}
    assert changed - {"_SUCCESS.json"} == {plan.data_name(1)}
    assert rows_of(output) == rows
    assert finished(plan)


def test_a_finished_job_run_again_reads_no_image(tmp_path: Path) -> None:
    source, output = folder_of(tmp_path / "photos"), tmp_path / "features"
    planned(source, output)
    first = extracted(source, output)
    before = snapshot(output)
    source.rename(tmp_path / "gone")
    again = extracted(source, output)
    assert snapshot(output) == before
    assert (again.done_before, again.done_now) == (3, 0)
    assert (again.images, again.ok, again.rejected) == (first.images, first.ok, first.rejected)


def test_too_many_rejected_images_stop_the_run_which_then_goes_on(tmp_path: Path) -> None:
    source, output = folder_of(tmp_path / "photos"), tmp_path / "features"
    planned(source, output, shard_size=10)
    with pytest.raises(TooManyRejectedError, match=r"4 images rejected \(1 x empty.*39% .*`max_rejected`") as caught:
        extracted(source, output, shard_size=10, max_rejected=0.39)
    assert caught.value.exit_code == 6
    summary = extracted(source, output, shard_size=10, max_rejected=0.4)
    assert (summary.done_before, sum(summary.rejected.values())) == (1, 4)


def test_where_everything_is_rejected_a_higher_limit_is_no_advice(tmp_path: Path) -> None:
    source = tiny.write_files(tmp_path / "photos", {f"{n}.jpg": b"<html>" for n in range(4)})
    tally = Tally(make_plan(str(source), str(tmp_path / "features"), tiny.spec(), shard_size=2), 0.05)
    with pytest.raises(TooManyRejectedError, match="not one image could be used") as caught:
        tally.add(Receipt(0, {"not_an_image": 2}, 0, created=True))
    assert "higher" not in str(caught.value)
    with pytest.raises(TooManyRejectedError, match="a higher `max_rejected`"):
        tally.add(Receipt(1, {"not_an_image": 1, "ok": 1}, 0, created=True))


def test_rejections_of_earlier_runs_count(tmp_path: Path) -> None:
    source, output = folder_of(tmp_path / "photos"), tmp_path / "features"
    planned(source, output)
    extracted(source, output)
    with pytest.raises(TooManyRejectedError):
        extracted(source, output, max_rejected=0.39)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    plan = planned(tiny.photos(tmp_path / "photos", 2), tmp_path / "features")
    with pytest.raises(UsageError, match=f"`max_rejected`.*Received: {share}"):
        Tally(plan, share)


def test_a_tally_adds_up_receipts(tmp_path: Path) -> None:
    plan = planned(tiny.photos(tmp_path / "photos", 20), tmp_path / "features")
    tally = Tally(plan, 0.1)
    tally.add(Receipt(0, {"ok": 3, "empty": 1}, 10))
    tally.add(Receipt(1, {"ok": 3, "truncated": 1}, 10))
    assert (tally.images, tally.rejected, tally.reasons) == (8, 2, {"empty": 1, "truncated": 1})
    with pytest.raises(TooManyRejectedError, match="3 images rejected"):
        tally.add(Receipt(2, {"ok": 3, "empty": 1}, 10))


# Another request than the plan's


OTHER_REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({"base": "mobilenet_0.5"}, {}),
    "layers": ({"layers": ("conv_pw_13_relu:max",)}, {}),
    "resize": ({"resize": "crop"}, {}),
    "interpolation": ({"interpolation": "nearest"}, {}),
    "exif": ({"exif": "ignore"}, {}),
    "decode": ({"decode": "draft"}, {}),
    "precision": ({"precision": "bfloat16"}, {}),
    "dtype": ({"dtype": "float16"}, {}),
    "weights_sha256": ({"weights": "random:1"}, {}),
    "max_bytes": ({}, {"limits": Limits(max_bytes=7)}),
    "max_pixels": ({}, {"limits": Limits(max_pixels=7)}),
    "formats": ({}, {"limits": Limits(formats=("tiff",))}),
    "labels": ({}, {"reading": Reading(labels="none")}),
    "source_format": ({}, {"reading": Reading(source_format="webdataset")}),
    "image_column": ({}, {"reading": Reading(image_column="picture")}),
    "label_column": ({}, {"reading": Reading(label_column="class")}),
    "roots": ({}, {"reading": Reading(roots=("s3://bucket/photos",))}),
    "follow_links": ({}, {"reading": Reading(follow_links=True)}),
    "label_names": ({}, {"reading": Reading(label_names=("cat", "dog"))}),
    "accept_cut": ({}, {"reading": Reading(accept_cut=True)}),
    "shard_size": ({}, {"shard_size": 5}),
    "source": ({}, {}),
}


@pytest.mark.matrix(9)
@pytest.mark.parametrize("field", OTHER_REQUESTS)
def test_a_run_with_another_setting_is_refused_by_its_name(tmp_path: Path, field: str) -> None:
    source, output = tiny.photos(tmp_path / "photos", 5), tmp_path / "features"
    planned(source, output)
    before = snapshot(output)
    request, options = OTHER_REQUESTS[field]
    words = rf"Differing: {field}: planned [^;]*, requested [^;]*\. (Give|Leave)"
    with pytest.raises(FingerprintError, match=words) as caught:
        extract_images(
            str(tmp_path if field == "source" else source),
            str(output),
            FeatureRequest(**{**vars(tiny.REQUEST), **request}),
            **options,
        )
    assert caught.value.exit_code == 4
    assert snapshot(output) == before


def test_every_field_of_request_and_limits_is_tried_above() -> None:
    names = {*vars(tiny.REQUEST), *vars(Limits()), *vars(Reading()), "source", "shard_size"}
    assert {"weights" if name == "weights_sha256" else name for name in OTHER_REQUESTS} == names - {"input"}
    # What an ONNX file takes is compared in test_onnx_file.py.


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_same_weights_by_another_name_are_accepted(tmp_path: Path) -> None:
    source, output = tiny.photos(tmp_path / "photos", 5), tmp_path / "features"
    plan = planned(source, output)
    weights = str(tmp_path / "copy.weights.h5")
    load_network("mobilenet_0.25", "random:0", ()).save_weights(weights)
    request = FeatureRequest(**{**vars(tiny.REQUEST), "weights": weights})
    check_request(plan, str(source), request, limits=Limits(), reading=Reading(), shard_size=None)


def test_the_same_request_in_other_words_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = tiny.photos(tmp_path / "photos", 5), tmp_path / "features"
    plan = planned(source, output)
    monkeypatch.chdir(tmp_path)
    for words in ("photos", "photos/", "./photos", f"file://{source}"):
        for changes in ({}, {"precision": "auto"}, {"layers": tiny.LAYERS}):
            request = FeatureRequest(**{**vars(tiny.REQUEST), **changes})
            check_request(plan, words, request, limits=Limits(), reading=Reading(), shard_size=None)
