"""Two outputs side by side: rows meet by key whatever their shards, and what differs is counted exactly."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny import REQUEST, data_rows, photos, spec, write_files

from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.features import Features, open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import CorruptError
from bottleneck.extract.local import extract_images
from bottleneck.inspect.diff import diff_features
from bottleneck.inspect.layer_diff import LayerDiff
from bottleneck.sources.reading import Reading
from bottleneck.spec import FeatureRequest
from bottleneck.storage.store import open_store
from jobs.__main__ import main

LAYER = spec().layers[0]
DIM = 16


def keys_of(*numbers: int) -> list[str]:
    return [f"{'cats' if n % 2 else 'dogs'}/{n:04d}.jpg" for n in numbers]


def values_of(key: str) -> np.ndarray:
    """The features of an image, as A has them."""
    return np.random.default_rng(int(key[5:9])).random(DIM).astype(np.float16).astype(np.float64)


def output(
    place: Path,
    keys: list[str],
    added: list[str] | None = None,
    shard_size: int = 7,
    rejected: dict[str, str] | None = None,
    noise: float = 0.0,
    device: str = "cpu",
    labels: Any = "folder",
    **changes: Any,
) -> Features:
    """A finished output of made-up features, with an extension where images are added."""
    rejected = rejected or {}
    write_files(place / "photos", dict.fromkeys(keys, b"an image, by its name"))
    settings = spec(**{"dims": (DIM,), **changes})
    plan = make_plan(
        str(place / "photos"), str(place / "features"), settings, shard_size=shard_size, reading=Reading(labels=labels)
    )
    if added:
        write_files(place / "photos", dict.fromkeys(added, b"an image, by its name"))
        plan, _ = extend_plan(plan)
    store = open_store(plan.output)
    for shard in plan.shards():
        images = read_images(store, shard)
        own = [image.key for image in images]
        table = data_rows(plan.spec, own, rejected)
        column = plan.spec.layers[0]
        rng = np.random.default_rng(shard.number)
        rows = [None if key in rejected else values_of(key) + noise * rng.random(DIM) for key in own]
        kind = np.dtype(plan.spec.dtype)
        values = pa.array(
            [None if row is None else list(row.astype(kind)) for row in rows], table.schema.field(column).type
        )
        table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)
        label = pa.array([image.label for image in images], pa.string())
        table = table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), label)
        name = plan.data_name(shard.number)
        write_shard(store, name, plan.spec, shard.number, table, run_id="test", device=device)
    finish(plan)
    return open_features(plan.output)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(["--json", "diff", *arguments])
    shown = capsys.readouterr()
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


def test_an_output_is_like_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = output(tmp_path, keys_of(*range(40)), rejected={"cats/0001.jpg": "truncated"})
    code, result, _ = run(capsys, one.plan.output, one.plan.output)
    assert (code, result["images"], result["exit_code"]) == (0, 40, 0)
    layer = result["layers"][LAYER]
    assert (layer["images"], layer["equal"], layer["min"], layer["worst"]) == (39, 39, 1.0, [])
    assert (result["settings"], result["made_with"], result["outcomes"]) == ({}, {}, [])


@pytest.mark.parametrize("sizes", [(7, 7), (7, 100), (3, 16)])
def test_rows_meet_by_key_whatever_their_shards(sizes: tuple[int, int], tmp_path: Path) -> None:
    everything = range(60)
    a = output(tmp_path / "a", keys_of(*everything), shard_size=sizes[0])
    # The same images, of which every third was added by an extension, and six others.
    later = [n for n in everything if n % 3 == 1]
    first = [n for n in range(4, 66) if n not in later]
    b = output(tmp_path / "b", keys_of(*first), keys_of(*later), shard_size=sizes[1], dtype="float32", noise=1e-3)
    seen: list[int] = []
    found = diff_features(a, b, top=500, on_images=seen.append)
    common = sorted({*keys_of(*everything)} & {*keys_of(*first, *later)})
    only_a, only_b = sorted(set(keys_of(*everything)) - set(common)), keys_of(*range(60, 66))
    assert (found.num_images, found.only_a.images, found.only_b.images) == (len(common), len(only_a), 6)
    assert found.only_a.keys == only_a[:5]
    assert set(found.only_b.keys) < set(only_b)
    assert seen[-1] == 2 * len(common) + len(only_a) + 6
    layer = found.layers[LAYER]
    rows_a, rows_b = (dict(zip(one.keys(), one.arrays()[0], strict=True)) for one in (a, b))
    cosines = {key: cosine(rows_a[key], rows_b[key]) for key in common}
    assert layer.equal == 0
    assert {key: value for value, key in layer.worst} == pytest.approx(cosines, abs=1e-12)
    assert [value for value, _ in layer.worst] == sorted(value for value, _ in layer.worst)
    assert (layer.min, layer.mean) == pytest.approx((min(cosines.values()), np.mean(list(cosines.values()))))
    difference = max(np.abs(rows_a[key].astype(float) - rows_b[key]).max() for key in common)
    assert layer.max_difference == pytest.approx(difference)
    assert found.labels.images == 0


def cosine(a_D: np.ndarray, b_D: np.ndarray) -> float:
    a_D, b_D = a_D.astype(np.float64), b_D.astype(np.float64)
    return float(a_D @ b_D / np.linalg.norm(a_D) / np.linalg.norm(b_D))


def test_what_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = keys_of(*range(20))
    a = output(tmp_path / "a", keys, rejected={keys[0]: "truncated", keys[1]: "truncated", keys[2]: "empty"})
    b = output(
        tmp_path / "b",
        keys,
        rejected={keys[0]: "truncated", keys[1]: "too_many_pixels", keys[3]: "truncated"},
        precision="bfloat16",
        device="another",
        labels="none",
    )
    code, result, _ = run(capsys, a.plan.output, b.plan.output)
    assert code == result["exit_code"] == 1
    assert {(one["a"], one["b"], *one["keys"]) for one in result["outcomes"]} == {
        ("truncated", "too_many_pixels", keys[1]),
        ("empty", "ok", keys[2]),
        ("ok", "truncated", keys[3]),
    }
    assert result["layers"][LAYER]["images"] == result["layers"][LAYER]["equal"] == 16
    assert result["labels"]["images"] == 20
    assert result["settings"]["precision"] == {"a": "float32", "b": "bfloat16"}
    assert result["made_with"] == {"device": {"a": ["cpu"], "b": ["another"]}}
    assert (result["below"], result["min_cosine"]) == (0, 0.999)


def test_the_verdict_is_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = keys_of(*range(30))
    a, b = output(tmp_path / "a", keys), output(tmp_path / "b", keys, noise=0.05)
    code, result, _ = run(capsys, a.plan.output, b.plan.output, "--top", "3")
    assert code == 1
    assert result["below"] > 0
    assert len(result["layers"][LAYER]["worst"]) == 3
    assert run(capsys, a.plan.output, b.plan.output, "--min-cosine", "0.9")[0] == 0


def test_real_features_in_another_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", 12)
    extract_images(str(tmp_path / "photos"), str(tmp_path / "a"), REQUEST)
    half = FeatureRequest(base=REQUEST.base, weights=REQUEST.weights, precision="float32", dtype="float16")
    extract_images(str(tmp_path / "photos"), str(tmp_path / "b"), half)
    code, result, told = run(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 0, told
    assert result["settings"] == {"dtype": {"a": "float32", "b": "float16"}}
    assert result["layers"][LAYER]["min"] > 0.99999


@pytest.mark.parametrize("spread", [1e-9, 1e-4, 0.3, 2.0])
def test_percentiles_are_near_the_exact_ones(spread: float) -> None:
    rng = np.random.default_rng(0)
    layer = LayerDiff(5, 0.999)
    a_ND = rng.standard_normal((5000, 4))
    b_ND = a_ND + spread * rng.standard_normal((5000, 4))
    for start in range(0, 5000, 700):
        layer.add(
            [str(n) for n in range(start, min(start + 700, 5000))], a_ND[start : start + 700], b_ND[start : start + 700]
        )
    cosines_N = np.array([cosine(a, b) for a, b in zip(a_ND, b_ND, strict=True)])
    for percent in (1, 50):
        exact = 1 - np.percentile(cosines_N, percent)
        assert 1 - layer.percentile(percent) == pytest.approx(exact, rel=0.03, abs=1e-12)
    assert layer.min == pytest.approx(cosines_N.min(), abs=1e-15)
    assert layer.below == (cosines_N < 0.999).sum()
    assert [int(key) for _, key in layer.worst] == np.argsort(cosines_N)[:5].tolist() or spread < 1e-6


def test_zeros_are_like_zeros_only() -> None:
    layer = LayerDiff(5, 0.999)
    layer.add(["a", "b", "c"], np.zeros((3, 2), np.float16), np.array([[0, 0], [1, 0], [0, 0]], np.float16))
    assert (layer.equal, layer.worst, layer.max_relative_difference) == (2, [(0.0, "b")], 1.0)
    assert layer.to_json()["min"] == 0


def test_memory_holds_a_data_file_of_each(tmp_path: Path) -> None:
    alive: list[weakref.ref[pa.Table]] = []

    class Counted(Features):
        def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
            table = super().table(name, columns)
            alive.append(weakref.ref(table))
            assert sum(one() is not None for one in alive) <= 4
            return table

    a, b = (output(tmp_path / name, keys_of(*range(150)), shard_size=size) for name, size in (("a", 5), ("b", 6)))
    found = diff_features(Counted(a.plan, a.files), Counted(b.plan, b.files))
    assert (found.num_images, len(alive)) == (150, 30 + 25)
    assert found.layers[LAYER].equal == 150


def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    one = output(tmp_path, keys_of(*range(6)))
    rows = one.table(one.files[0])
    turned = Features(one.plan, one.files)
    turned.table = lambda name, columns=None: rows.take([1, 0, 2]).select(columns)  # type: ignore[method-assign]
    with pytest.raises(CorruptError, match="out of order"):
        diff_features(one, turned)


@pytest.mark.usefixtures("s3_environment")
def test_one_may_be_in_a_bucket(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = output(tmp_path, keys_of(*range(20)))
    store = open_store(f"s3://{bucket}/x")
    for entry in open_store(one.plan.output).list():
        store.create(entry.key, (tmp_path / "features" / entry.key).read_bytes())
    code, result, _ = run(capsys, one.plan.output, f"s3://{bucket}/x")
    assert (code, result["layers"][LAYER]["equal"]) == (0, 20)


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = output(tmp_path / "one", keys_of(*range(9)), shard_size=4)
    wider = output(tmp_path / "wider", keys_of(*range(9)), dims=(DIM, 2), layers=("other:avg", LAYER))
    others = output(tmp_path / "others", keys_of(*range(10, 19)))
    uri = one.plan.output
    for arguments, words in (
        ([uri, wider.plan.output], "have no layer in common"),
        ([uri, others.plan.output], "have no image in common"),
        ([uri, str(tmp_path / "nothing")], "no plan.json"),
        ([uri, uri, "--top", "-1"], "from 0 up"),
        ([uri, uri, "--min-cosine", "2"], "from -1 to 1"),
    ):
        code, _, told = run(capsys, *arguments)
        assert code == 2
        assert words in told
    (tmp_path / "one" / "features" / one.files[0]).unlink()
    assert run(capsys, uri, uri)[0] == 3
    code, result, _ = run(capsys, uri, uri, "--allow-incomplete")
    assert (code, result["images"]) == (0, 5)


def test_predictions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bottleneck.spec import PredictionSpec

    one = output(tmp_path / "one", keys_of(*range(4)))
    answers = PredictionSpec(features=spec(), head="head", head_sha256="0" * 64, top=1, made_of="images")
    make_plan(one.plan.source, str(tmp_path / "predictions"), answers)
    code, _, told = run(capsys, one.plan.output, str(tmp_path / "predictions"))
    assert code == 2
    assert "holds the predictions of the head" in told


def test_an_image_rejected_everywhere_has_no_cosine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [key] = keys_of(3)
    one = output(tmp_path, [key], rejected={key: "empty"})
    code, result, _ = run(capsys, one.plan.output, one.plan.output)
    assert (code, result["images"], result["layers"][LAYER]["images"]) == (0, 1, 0)
