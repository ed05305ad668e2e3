"""Predictions are what the head says of the features, wherever these come from, under the protocol of an extraction."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import tiny
from servers import S3Server
from test_jobs import run
from test_verify import write_data

from bottleneck.audit.verify import verify
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.features import open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.schema import PREDICTION_FIELDS
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import FingerprintError, UsageError
from bottleneck.extract.prepare import prepare_shard
from bottleneck.extract.shard import extract_prepared, extract_shard
from bottleneck.extract.summary import pending_shards
from bottleneck.extract.work import Work
from bottleneck.heads.head import Head
from bottleneck.heads.predict import Predictor
from bottleneck.heads.prediction_plan import prediction_spec
from bottleneck.networks.base import Base
from bottleneck.spec import PredictionSpec
from bottleneck.storage.store import open_store
from jobs.__main__ import main
from jobs.benchmark import predict as benchmark_predict
from jobs.requeue import command

SHARD_SIZE = 4
BAD = {"0/0000 empty.jpg": (b"", "empty"), "7/page.jpg": (b"<html>404</html>", "not_an_image")}
PREDICTED = [field.name for field in PREDICTION_FIELDS]
GONE = "/no/such/folder/network.weights.h5"


class World(NamedTuple):
    """Photos, their features, and heads on them; tests only read it."""

    photos: Path
    features: Path
    head: Path
    other_head: Path


@cache
def base() -> Base:
    return Base(tiny.real_spec(), 32)


def extract(photos: Path, features: Path) -> None:
    """What the job `extract` does, in this process and with one network for all tests."""
    plan = load_plan(str(features)) or make_plan(str(photos), str(features), tiny.real_spec(), shard_size=SHARD_SIZE)
    for shard in pending_shards(plan, plan.committed()):
        extract_shard(Work.of(plan), base(), shard)
    finish(plan)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    photos = tiny.digits_folder(folder / "photos", per_class=2)
    tiny.write_files(photos, {key: data for key, (data, _) in BAD.items()})
    extract(photos, folder / "features")
    features_ND, labels_N = open_features(str(folder / "features")).arrays()
    # The weights were in a file that is not on this machine: other words for those of the features.
    spec = replace(tiny.real_spec(), weights=GONE)
    tiny.saved_head(folder / "head", features_ND, labels_N, spec)
    tiny.saved_head(folder / "other", features_ND, np.roll(labels_N, 1), spec)
    return World(photos, folder / "features", folder / "head", folder / "other")


Answer = tuple[int, dict[str, Any]]
Do = Callable[..., Answer]


@pytest.fixture
def do(capsys: pytest.CaptureFixture[str]) -> Iterator[Do]:
    """Run a job in this process: exit code and JSON line."""

    def job(*arguments: object) -> Answer:
        code = main(["--json", *[str(argument) for argument in arguments]])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return job


@pytest.fixture
def predictions(world: World, do: Do, tmp_path: Path) -> Path:
    """A finished output of predictions from features."""
    assert do("predict", world.features, world.head, tmp_path / "out", "--max-rejected", "1")[0] == 0
    return tmp_path / "out"


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    found = [row for path in sorted(output.glob("data/*")) for row in pq.read_table(path).to_pylist()]
    rows = {row["key"]: row for row in found}
    assert len(rows) == len(found)
    return rows


def expected(world: World) -> dict[str, dict[str, float]]:
    """Every good key with the probability of each class, by the head's arrays and a softmax written out."""
    head = Head.load(str(world.head))
    features_ND, _ = open_features(str(world.features)).arrays()
    keys_N = open_features(str(world.features)).keys()
    powers_NK = np.exp(features_ND.astype(np.float64) @ head.coef_.T + head.intercept_)
    probabilities_NK = powers_NK / powers_NK.sum(axis=1, keepdims=True)
    classes = list(head.classes_)
    return {key: dict(zip(classes, row, strict=True)) for key, row in zip(keys_N, probabilities_NK, strict=True)}


def plan_of(output: Path) -> Plan:
    plan = load_plan(str(output))
    assert plan is not None
    return plan


def data_files(output: Path) -> list[Path]:
    return sorted((output / "data").iterdir())


# What a prediction is


def test_predictions_from_features_are_the_heads(world: World, predictions: Path) -> None:
    rows, truth, features = rows_of(predictions), expected(world), rows_of(world.features)
    assert rows.keys() == features.keys()
    assert len(rows) == 20 + len(BAD)
    for key, row in rows.items():
        image = [name for name in row if name not in PREDICTED]
        assert [row[name] for name in image] == [features[key][name] for name in image]
        if key in BAD:
            assert (row["status"], row["reason"]) == ("rejected", BAD[key][1])
            assert [row[name] for name in PREDICTED] == [None] * 4
            continue
        best = sorted(truth[key].items(), key=lambda pair: -pair[1])[:5]
        assert row["top_labels"] == [label for label, _ in best]
        np.testing.assert_allclose(row["top_probabilities"], [value for _, value in best], rtol=1e-6)
        assert (row["predicted"], row["probability"]) == (row["top_labels"][0], row["top_probabilities"][0])


def test_what_was_predicted_is_counted_by_class_and_against_labels(
    world: World, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ok = [row for row in rows_of(predictions).values() if row["status"] == "ok"]
    classes = Counter(row["predicted"] for row in ok)
    right = sum(row["predicted"] == row["label"] for row in ok)
    arguments = [str(one) for one in ("predict", world.features, world.head, predictions, "--max-rejected", "1")]
    assert main(["--json", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["predicted"], told["labelled"], told["accuracy"]) == (classes, 20, right / 20)
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"accuracy {5 * right:.2f} % on 20 labelled images\n" in shown
    label, count = classes.most_common(1)[0]
    assert f"  {count}  {label}\n" in shown


def test_predictions_of_images_are_those_of_their_features(world: World, predictions: Path, tmp_path: Path) -> None:
    """The unit that an actor runs, shard by shard, without Ray."""
    head = Head.load(str(world.head))
    output = str(tmp_path / "of images")
    spec = prediction_spec(head, str(world.head), 5, str(world.photos), None)
    assert spec.made_of == "images"
    plan = make_plan(str(world.photos), output, spec, shard_size=SHARD_SIZE)
    work = Work.from_json(json.loads(json.dumps(Work.of(plan).to_json())))
    predictor = Predictor(spec)
    for shard in plan.shards():
        extract_prepared(work, base(), prepare_shard(work, shard), columns=predictor)
    finish(plan)
    assert rows_of(Path(output)) == rows_of(predictions)
    assert [path.name for path in data_files(Path(output))] == [path.name for path in data_files(predictions)]
    assert verify(output, full=True).exit_code == 0


def test_a_shard_of_nothing_but_rejected_images_is_predicted_too(world: World) -> None:
    head = Head.load(str(world.head))
    predictor = Predictor(prediction_spec(head, str(world.head), 5, str(world.photos), None), head)
    columns = predictor([np.empty((0, 256), np.float32)], np.array([False, False]))
    assert [column.to_pylist() for column in columns] == [[None, None]] * 4


def test_of_several_layers_the_heads_own_is_asked(tmp_path: Path, do: Do) -> None:
    spec = tiny.spec(layers=("conv_pw_1_relu:avg", "conv_pw_13_relu:avg"), dims=(3, 6), dtype="float16")
    source = tiny.photos(tmp_path / "photos", 10)
    plan = make_plan(str(source), str(tmp_path / "features"), spec, shard_size=4)
    store = open_store(plan.output)
    for shard in plan.shards():
        rows = tiny.data_rows(spec, [image.key for image in read_images(store, shard)], seed=shard.number)
        write_shard(store, plan.data_name(shard.number), spec, shard.number, rows, run_id="test", device="none")
    finish(plan)
    features_ND, labels_N = open_features(plan.output).arrays(spec.layers[1])
    keys_N = open_features(plan.output).keys()
    head = tiny.saved_head(tmp_path / "head", features_ND, labels_N, spec, layer=1)
    assert do("predict", plan.output, tmp_path / "head", tmp_path / "out", "--top", "1")[0] == 0
    rows = rows_of(tmp_path / "out")
    wanted = head.predictions(features_ND, 1).to_pylist()
    assert [{name: rows[key][name] for name in PREDICTED} for key in keys_N] == wanted


def test_the_fingerprint_is_that_of_features_head_and_top(world: World) -> None:
    spec = prediction_spec(Head.load(str(world.head)), str(world.head), 5, str(world.photos), None)
    same: list[dict[str, Any]] = [{"head": "elsewhere"}, {"made_of": "features"}]
    other: list[dict[str, Any]] = [
        {"top": 4},
        {"proba": "all", "classes": ("a", "b")},
        {"head_sha256": "0" * 64},
        {"features": replace(spec.features, resize="crop")},
    ]
    assert {replace(spec, **change).fingerprint for change in same} == {spec.fingerprint}
    assert len({spec.fingerprint, spec.features.fingerprint, *(replace(spec, **c).fingerprint for c in other)}) == 6
    golden = PredictionSpec(features=tiny.spec(), head="h", head_sha256="1" * 64, top=5, made_of="images")
    assert golden.fingerprint == "9d773c334b27f1b0e04ab3ae8ff13307ee697e9a28141be2fb8a29db1593ee61"


# The probability of every class


@pytest.fixture
def with_all(world: World, do: Do, tmp_path: Path) -> Path:
    """Predictions with the probability of every class."""
    assert do("predict", world.features, world.head, tmp_path / "all", "--max-rejected", "1", "--proba", "all")[0] == 0
    return tmp_path / "all"


def test_the_probabilities_of_all_classes_are_the_heads(world: World, predictions: Path, with_all: Path) -> None:
    truth, rows, of_top = expected(world), rows_of(with_all), rows_of(predictions)
    classes = plan_of(with_all).predictions.classes  # type: ignore[union-attr]
    assert list(classes) == list(Head.load(str(world.head)).classes_)
    for key, row in rows.items():
        values = row.pop("probabilities")
        assert row == of_top[key]
        if key in BAD:
            assert values is None
        else:
            np.testing.assert_allclose(values, [truth[key][one] for one in classes], rtol=1e-6)
    for path in data_files(with_all):
        assert pq.read_schema(path).field("probabilities").type == pa.list_(pa.float32(), 10)
        footer = json.loads(pq.read_metadata(path).metadata[b"bottleneck"])
        assert footer["predictions"]["classes"] == list(classes)
    assert verify(str(with_all), full=True).exit_code == 0


def test_workers_give_all_probabilities_too(world: World, with_all: Path) -> None:
    work = Work.from_json(json.loads(json.dumps(Work.of(plan_of(with_all)).to_json())))
    assert work.predictions is not None
    features_ND = next(open_features(str(world.features)).batches())[0]
    columns = Predictor(work.predictions).columns(features_ND, np.ones(len(features_ND), bool))
    first = pq.read_table(data_files(with_all)[0])
    ok = first.filter(pa.compute.is_valid(first["predicted"]))
    assert columns[-1].to_pylist() == ok["probabilities"].to_pylist()


def test_an_output_keeps_to_top_or_all(world: World, predictions: Path, with_all: Path, do: Do) -> None:
    for output, asked, words in (
        (predictions, ["--proba", "all"], "Differing: proba: planned top, requested all. "),
        (with_all, [], "Differing: proba: planned all, requested top. "),
    ):
        code, refused = do("predict", world.features, world.head, output, *asked)
        assert (code, words in refused["message"]) == (4, True), refused
    for path in [*data_files(with_all)[::2], with_all / "_SUCCESS.json"]:
        path.unlink()
    arguments = ("predict", world.features, world.head, with_all, "--max-rejected", "1", "--proba", "all")
    assert do(*arguments)[1]["done_now"] == 3
    assert command(plan_of(with_all)).endswith("--top 5 --proba all")


def test_of_two_classes_both_have_a_probability(tmp_path: Path) -> None:
    features_ND = np.random.default_rng(0).standard_normal((20, 256)).astype(np.float32)
    head = tiny.saved_head(tmp_path / "head", features_ND, np.array(["a", "b"] * 10, object), tiny.spec())
    found = np.array(head.predictions(features_ND, 1, "all")["probabilities"].to_pylist())
    np.testing.assert_allclose(found, head.predict_proba(features_ND), rtol=1e-6)
    assert head.predictions(features_ND[:0], 1, "all").schema == head.predictions(features_ND, 1, "all").schema


# The protocol, from features


def test_a_run_does_what_is_missing_and_a_finished_one_nothing(world: World, predictions: Path, do: Do) -> None:
    rows = rows_of(predictions)
    for path in [*data_files(predictions)[::2], predictions / "_SUCCESS.json"]:
        path.unlink()
    arguments = ("predict", world.features, world.head, predictions, "--max-rejected", "1")
    code, summary = do(*arguments)
    assert (code, summary["done_before"], summary["done_now"]) == (0, 3, 3)
    assert rows_of(predictions) == rows
    before = {path: path.stat().st_mtime_ns for path in predictions.rglob("*")}
    assert do(*arguments)[1]["done_now"] == 0
    assert {path: path.stat().st_mtime_ns for path in predictions.rglob("*")} == before


def test_a_finished_output_needs_no_features(world: World, do: Do, tmp_path: Path) -> None:
    shutil.copytree(world.features, tmp_path / "features")
    arguments = ("predict", tmp_path / "features", world.head, tmp_path / "out", "--max-rejected", "1")
    assert do(*arguments)[0] == 0
    shutil.rmtree(tmp_path / "features")
    assert do(*arguments)[1]["done_now"] == 0
    data_files(tmp_path / "out")[0].unlink()
    # ... and one that is not finished does not take them for images that have gone.
    assert do(*arguments)[0] == 2


def test_a_head_may_move(world: World, predictions: Path, do: Do, tmp_path: Path) -> None:
    shutil.copytree(world.head, tmp_path / "moved")
    data_files(predictions)[0].unlink()
    assert do("predict", world.features, tmp_path / "moved", predictions, "--max-rejected", "1")[1]["done_now"] == 1


def test_another_head_or_top_is_refused(world: World, predictions: Path, do: Do) -> None:
    planned, asked = (Head.load(str(uri)).sha256_ for uri in (world.head, world.other_head))
    code, refused = do("predict", world.features, world.other_head, predictions)
    assert (code, refused["error"]) == (4, "FingerprintError")
    assert f"head_sha256: planned {planned}, requested {asked}" in refused["message"]
    code, refused = do("predict", world.features, world.head, predictions, "--top", "2")
    assert code == 4
    assert "top: planned 5, requested 2" in refused["message"]
    code, refused = do("predict", world.photos, world.head, predictions, "--top", "2")
    assert code == 4
    assert f"source: planned {world.features}, requested {world.photos}" in refused["message"]


def test_a_head_that_was_replaced_meanwhile_is_refused(world: World, tmp_path: Path) -> None:
    """Workers load the head by themselves, and later than the driver."""
    head = Head.load(str(world.head))
    spec = prediction_spec(head, str(world.head), 5, str(world.photos), None)
    with pytest.raises(FingerprintError, match=f"planned {head.sha256_}, found "):
        Predictor(replace(spec, head=str(world.other_head)))


def test_features_of_another_fingerprint_are_refused(world: World, do: Do, tmp_path: Path) -> None:
    spec = replace(tiny.real_spec(), interpolation="nearest")
    tiny.saved_head(tmp_path / "head", *open_features(str(world.features)).arrays(), spec)
    code, refused = do("predict", world.features, tmp_path / "head", tmp_path / "out")
    assert code == 4
    assert "interpolation: head nearest, features bilinear" in refused["message"]
    assert not (tmp_path / "out").exists()


def test_unfinished_features_are_refused_unless_allowed(world: World, do: Do, tmp_path: Path) -> None:
    features = shutil.copytree(world.features, tmp_path / "features")
    lost = data_files(features)[1]
    kept = lost.rename(tmp_path / lost.name)
    arguments = ("predict", features, world.head, tmp_path / "out", "--max-rejected", "1")
    code, refused = do(*arguments)
    assert (code, refused["error"]) == (3, "IncompleteError")
    assert "--allow-incomplete" in refused["message"]
    assert not (tmp_path / "out").exists()
    code, left = do(*arguments, "--allow-incomplete")
    assert code == 3
    assert "No features yet for 1 of 6 shards" in left["message"]
    assert len(rows_of(tmp_path / "out")) == 22 - SHARD_SIZE
    assert verify(str(tmp_path / "out"), full=True).exit_code == 3
    kept.rename(lost)
    assert do(*arguments)[1]["done_now"] == 1
    assert verify(str(tmp_path / "out"), full=True).exit_code == 0


def test_too_many_rejected_images_stop_a_run(world: World, do: Do, tmp_path: Path) -> None:
    code, refused = do("predict", world.features, world.head, tmp_path / "out", "--max-rejected", "0.05")
    assert code == 6
    assert "--max-rejected" in refused["message"]


def test_an_output_is_extended_as_its_features_were(world: World, do: Do, tmp_path: Path) -> None:
    features, photos = tmp_path / "features", shutil.copytree(world.photos, tmp_path / "photos")
    extract(photos, features)
    arguments = ("predict", features, world.head, tmp_path / "out", "--max-rejected", "1")
    assert do(*arguments)[0] == 0
    tiny.write_files(photos, {f"3/new {n}.jpg": tiny.jpeg(500 + n) for n in range(6)})
    extend_plan(plan_of(features))
    assert do(*arguments)[1]["images"] == 22  # nothing is added unasked, and the features are not needed
    assert do(*arguments, "--extend")[0] == 3  # they are not there yet
    extract(photos, features)
    code, summary = do(*arguments, "--extend")
    assert (code, summary["images"], summary["done_now"], summary["extended"]["added"]) == (0, 28, 2, 6)
    assert do(*arguments, "--extend")[1]["extended"]["added"] == 0
    assert verify(str(tmp_path / "out"), full=True).exit_code == 0
    # A new output takes all there is at once.
    assert do("predict", features, world.head, tmp_path / "new", "--max-rejected", "1")[1]["images"] == 28
    assert rows_of(tmp_path / "new") == rows_of(tmp_path / "out")


def test_shards_that_were_requeued_are_predicted_again(
    world: World, do: Do, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features, photos = tmp_path / "features", shutil.copytree(world.photos, tmp_path / "photos")
    extract(photos, features)
    arguments = ("predict", features, world.head, tmp_path / "out", "--max-rejected", "1")
    assert do(*arguments)[0] == 0
    before = rows_of(tmp_path / "out")
    tiny.write_files(photos, {"3/0000.jpg": tiny.jpeg(900), "7/page.jpg": tiny.jpeg(901)})
    requeued = do("requeue", features, "--reason", "not_an_image", "--changed")[1]
    assert (requeued["shards"], requeued["images"]) == (2, 2)
    caplog.set_level("INFO")
    assert do(*arguments)[1]["done_now"] == 0  # nothing is done again unasked, but it is told
    assert "predicted again with `extend`: 2 shards" in caplog.text
    # Of a shard that was lost meanwhile there are still the features that were planned, until they are replaced.
    revised = sorted(plan_of(features).revised)
    data_files(tmp_path / "out")[revised[0]].unlink()
    assert do(*arguments, "--allow-incomplete")[1]["done_now"] == 1
    extract(photos, features)
    data_files(tmp_path / "out")[revised[0]].unlink()
    code, refused = do(*arguments)
    assert code == 3
    assert "The features of 1 shard were requeued" in refused["message"]
    assert "--extend" in refused["message"]
    code, summary = do(*arguments, "--extend")
    assert (code, summary["done_now"], summary["extended"]["added"], summary["ok"]) == (0, 2, 0, 21)
    after = rows_of(tmp_path / "out")
    assert {key for key in after if after[key] != before[key]} == {"3/0000.jpg", "7/page.jpg"}
    assert do(*arguments, "--extend")[1]["done_now"] == 0
    assert verify(str(tmp_path / "out"), full=True).exit_code == 0
    code, refused = do("requeue", tmp_path / "out", "--changed")
    assert code == 2
    assert f"bottleneck predict {features} {world.head} {tmp_path / 'out'} --extend" in refused["message"]
    # A new output takes all there is at once.
    assert do("predict", features, world.head, tmp_path / "new", "--max-rejected", "1")[0] == 0
    assert rows_of(tmp_path / "new") == after


def test_predictions_of_images_are_requeued_as_features_are(world: World, do: Do, tmp_path: Path) -> None:
    photos, output = shutil.copytree(world.photos, tmp_path / "photos"), tmp_path / "out"
    spec = prediction_spec(Head.load(str(world.head)), str(world.head), 5, str(photos), None)
    plan, predictor = make_plan(str(photos), str(output), spec, shard_size=SHARD_SIZE), Predictor(spec)

    def predict(plan: Plan) -> None:
        work = Work.of(plan)
        for shard in pending_shards(plan, plan.committed()):
            assert extract_prepared(work, base(), prepare_shard(work, shard), columns=predictor).created
        finish(plan)

    predict(plan)
    before = rows_of(output)
    tiny.write_files(photos, {"7/page.jpg": tiny.jpeg(901)})
    code, requeued = do("requeue", output, "--reason", "not_an_image")
    assert (code, requeued["images"]) == (0, 1)
    assert requeued["command"] == f"bottleneck predict {photos} {world.head} {output} --top 5"
    predict(plan_of(output))
    after = rows_of(output)
    assert {key for key in after if after[key] != before[key]} == {"7/page.jpg"}
    assert after["7/page.jpg"]["predicted"] is not None
    assert verify(str(output), full=True).exit_code == 0


def test_features_made_anew_of_other_images_are_refused(world: World, do: Do, tmp_path: Path) -> None:
    features = shutil.copytree(world.features, tmp_path / "features")
    assert do("predict", features, world.head, tmp_path / "out", "--max-rejected", "1")[0] == 0
    data_files(tmp_path / "out")[0].unlink()
    shutil.rmtree(features)
    others = tiny.digits_folder(tmp_path / "photos", per_class=1)
    extract(others, features)
    code, refused = do("predict", features, world.head, tmp_path / "out")
    assert code == 4
    assert "listing_sha256: planned" in refused["message"]


def test_an_output_holds_features_or_predictions(world: World, predictions: Path, do: Do, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds the predictions of the head"):
        open_features(str(predictions))
    asked = ("--base", "mobilenet_0.25", "--weights", "random:0")
    for code, refused in (
        do("extract", world.photos, predictions, *asked),
        do("plan", world.photos, predictions, *asked),
        do("predict", world.features, world.head, world.features),
        do("predict", world.photos, world.head, world.features),
        do("predict", predictions, world.head, tmp_path / "new"),
        do("verify", predictions, "--recompute", "3"),
        do("predict", world.features, world.head, tmp_path / "new", "--shard-size", "8"),
        do("predict", world.features, world.head, tmp_path / "new", "--top", "0"),
        do("predict", world.features, world.head, tmp_path / "new", "--proba", "none"),
        do("predict", world.features, world.photos, tmp_path / "new"),
        do("predict", world.features, world.head, world.photos),
    ):
        assert (code, refused["error"]) == (2, "UsageError"), refused
    assert not (tmp_path / "new").exists()


def test_features_head_and_predictions_may_be_in_a_bucket(
    world: World, predictions: Path, do: Do, s3_server: S3Server, bucket: str, s3_environment: dict[str, str]
) -> None:
    s3_server.upload_folder(world.features, bucket, "features/")
    s3_server.upload_folder(world.head, bucket, "head/")
    features, head, output = (f"s3://{bucket}/{name}" for name in ("features", "head", "out"))
    code, summary = do("predict", features, head, output, "--max-rejected", "1")
    assert (code, summary["ok"], summary["done_now"]) == (0, 20, 6)
    assert summary["fingerprint"] == plan_of(predictions).holds.fingerprint
    assert verify(output, full=True).exit_code == 0
    assert do("predict", features, head, output, "--max-rejected", "1")[1]["done_now"] == 0


# Verify


Change = Callable[[list[dict[str, Any]]], object]


def first_ok(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["status"] == "ok")


def setting(**fields: Any) -> Change:
    return lambda rows: first_ok(rows).update(fields)


def rewrite(output: Path, change: Change) -> str:
    """Write the first data file with a rejected row again, as faulty code would have; its name."""
    path = next(path for path in data_files(output) if "rejected" in pq.read_table(path)["status"].to_pylist())
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    footer = json.loads(pq.read_metadata(path).metadata[b"bottleneck"])
    write_data(path, pa.Table.from_pylist(rows, table.schema.remove_metadata()), footer)
    success = json.loads((output / "_SUCCESS.json").read_text())
    success["shards"][int(path.name[1:9])]["bytes"] = path.stat().st_size
    (output / "_SUCCESS.json").write_text(json.dumps(success))
    return f"data/{path.name}"


def test_a_good_output_is_good_also_when_written_again(predictions: Path) -> None:
    assert verify(str(predictions)).exit_code == 0
    rewrite(predictions, lambda rows: None)
    assert verify(str(predictions), full=True).exit_code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting(predicted="9"), "but the first of top_labels is"),
        (setting(probability=0.5), "but the first of top_probabilities is"),
        (setting(probability=None), "is ok, but has no probability"),
        (setting(top_probabilities=[0.9, 0.5, 0.2, 0.1, 1.5]), "expected numbers from 0 to 1"),
        (setting(top_probabilities=[0.9, 0.5, float("nan"), 0.1, 0.1]), "expected numbers from 0 to 1"),
        (setting(top_probabilities=[0.1, 0.2, 0.3, 0.4, 0.5]), "expected the highest first"),
        (setting(top_labels=["1", "1", "2", "3", "4"]), "expected each class once"),
        (setting(top_labels=list("012345"), top_probabilities=[0.1] * 6), "expected 1 to 5 of both"),
        (setting(top_labels=["1"]), "1 top_labels with 5 top_probabilities"),
        (
            lambda rows: next(row for row in rows if row["status"] == "rejected").update(predicted="1"),
            "is rejected, but has predicted",
        ),
        (lambda rows: rows.reverse(), "key is"),
    ],
)
def test_a_wrong_prediction_is_named(predictions: Path, change: Change, words: str) -> None:
    name = rewrite(predictions, change)
    assert verify(str(predictions)).exit_code == 0  # nothing of it shows in a footer
    report = verify(str(predictions), full=True)
    assert report.exit_code == 1
    [(corrupt, problem)] = report.corrupt
    assert (corrupt, words in problem) == (name, True), problem


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (lambda values: None, "is ok, but has no probabilities"),
        (lambda values: [0.0] * 10, "add up to 0.0, expected 1"),
        (lambda values: [float("nan"), *values[1:]], "expected numbers from 0 to 1"),
        (lambda values: values[::-1], "but in probabilities they are"),
    ],
)
def test_wrong_probabilities_are_named(with_all: Path, values: Callable[[list[float]], Any], words: str) -> None:
    name = rewrite(with_all, lambda rows: first_ok(rows).update(probabilities=values(first_ok(rows)["probabilities"])))
    [(corrupt, problem)] = verify(str(with_all), full=True).corrupt
    assert (corrupt, words in problem) == (name, True), problem


def test_predictions_of_another_head_are_named(world: World, predictions: Path, do: Do, tmp_path: Path) -> None:
    assert do("predict", world.features, world.other_head, tmp_path / "other", "--max-rejected", "1")[0] == 0
    shutil.copy(data_files(tmp_path / "other")[0], data_files(predictions)[0])
    [*_, (name, problem)] = verify(str(predictions)).corrupt
    assert name == f"data/{data_files(predictions)[0].name}"
    assert "fingerprint in its footer is" in problem
    shutil.copy(data_files(tmp_path / "other")[1], predictions / "data")
    assert verify(str(predictions)).foreign == (f"data/{data_files(tmp_path / 'other')[1].name}",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top": 3}, "fingerprint is"),
        ({"head_sha256": "0" * 64}, "fingerprint is"),
        ({"top": "5"}, "a whole number"),
        ({"proba": "all", "classes": ["a"]}, "fingerprint is"),
        ({"proba": "all"}, "predictions have classes"),
        ({"classes": ["a", "a"]}, "each once"),
    ],
)
def test_a_changed_plan_is_named(predictions: Path, change: dict[str, Any], words: str) -> None:
    plan = json.loads((predictions / "plan.json").read_text())
    plan["predictions"] |= change
    (predictions / "plan.json").write_text(json.dumps(plan))
    [(name, problem)] = verify(str(predictions)).corrupt
    assert (name, words in problem) == ("plan.json", True), problem


# Its speed


def test_the_rate_is_measured_on_made_up_features(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--num-images", "2000", "--dim", "8", "--classes", "3"]
    assert main(["--json", "benchmark", "--what", "predict", *arguments]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["predict"]["images"] == result["images"] == 2000
    assert 0 < result["predict"]["predict_seconds"] < result["predict"]["seconds"]
    assert any("images/s" in line for line in benchmark_predict.table(result))


# The job on images, on Ray


def test_the_job_predicts_images_resumes_and_extends(world: World, predictions: Path, do: Do, tmp_path: Path) -> None:
    photos, output = shutil.copytree(world.photos, tmp_path / "photos"), tmp_path / "of images"
    arguments = ("predict", str(photos), str(world.head), str(output), "--max-rejected", "1")
    code, refused = do(*arguments)
    assert code == 5
    assert GONE in refused["message"]
    assert "--weights" in refused["message"]

    arguments = (*arguments, "--weights", "random:0")
    code, summary, told = run(*arguments, "--shard-size", str(SHARD_SIZE))
    assert code == 0, told
    assert (summary["ok"], summary["rejected"]) == (20, {"empty": 1, "not_an_image": 1})
    assert (summary["done_now"], summary["fingerprint"]) == (6, plan_of(predictions).holds.fingerprint)
    assert "predict: 22 of 22" in told
    told_from_features = rows_of(predictions)
    for key, row in rows_of(output).items():
        assert {**row, "etag": ""} == {**told_from_features[key], "etag": ""}

    assert run(*arguments, RAY_ADDRESS="127.0.0.1:1")[1]["done_now"] == 0  # needs no Ray at all

    for path in [*data_files(output)[:3], output / "_SUCCESS.json"]:
        path.unlink()
    tiny.write_files(photos, {"3/new.jpg": tiny.jpeg(500), "new.jpg": b"no image"})
    code, summary, told = run(*arguments, "--extend")
    assert code == 0, told
    assert (summary["done_before"], summary["done_now"], summary["extended"]["added"]) == (3, 4, 2)
    rows = rows_of(output)
    assert len(rows) == 24
    assert {key: row["predicted"] for key, row in rows.items() if key in told_from_features} == {
        key: row["predicted"] for key, row in told_from_features.items()
    }
    assert (rows["new.jpg"]["reason"], rows["new.jpg"]["predicted"]) == ("not_an_image", None)
    assert run("verify", str(output), "--full")[0] == 0


def test_other_weights_than_the_heads_are_refused(world: World, tmp_path: Path) -> None:
    code, refused, _ = run(
        "predict", str(world.photos), str(world.head), str(tmp_path / "out"), "--weights", "random:1"
    )
    assert code == 4
    assert "weights_sha256: head" in refused["message"]
    assert not (tmp_path / "out").exists()
