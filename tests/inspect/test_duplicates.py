"""Near-duplicates: exactly the pairs that comparing all images in float64 finds, however they are cut into blocks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report import Outside
from tiny import data_rows, jpeg, spec, write_files

from bottleneck.dataset.features import Features, open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan_parts import read_images
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import CorruptError, UsageError
from bottleneck.inspect import duplicates
from bottleneck.inspect.contact_sheet import duplicates_sheet
from bottleneck.inspect.duplicate_groups import DuplicateGroup, grouped
from bottleneck.inspect.duplicates import near_duplicates
from bottleneck.inspect.report_sections import Thumbnails
from bottleneck.storage.store import open_store
from jobs.__main__ import main


def dataset(folder: Path, values_ND: np.ndarray, shard_size: int = 4, rejected: bool = False) -> Features:
    """Finished features with given values; of each shard the first image may be rejected besides."""
    per_shard = shard_size - rejected
    num_shards = -(-len(values_ND) // per_shard)
    keys = [f"{n:04d}.jpg" for n in range(len(values_ND) + (num_shards if rejected else 0))]
    write_files(folder / "photos", dict.fromkeys(keys, jpeg(0)))
    asked = spec(dtype=str(values_ND.dtype), dims=values_ND.shape[1:])
    plan = make_plan(str(folder / "photos"), str(folder / "features"), asked, shard_size=shard_size)
    values, layer = iter(values_ND), asked.layers[0]
    store = open_store(plan.output)
    for shard in plan.shards():
        part = [image.key for image in read_images(store, shard)]
        rows = data_rows(asked, part, {part[0]: "truncated"} if rejected else {})
        column = [None if is_null else list(next(values)) for is_null in rows[layer].is_null().to_pylist()]
        at = rows.schema.get_field_index(layer)
        rows = rows.set_column(at, rows.field(at), [pa.array(column, rows.field(at).type)])
        write_shard(store, plan.data_name(shard.number), asked, shard.number, rows, run_id="test", device="none")
    finish(plan)
    return open_features(plan.output)


def clustered(num_images: int, dim: int, dtype: str) -> np.ndarray:
    """Vectors around a few means, so that cosines are everywhere between 0 and 1."""
    rng = np.random.default_rng(3)
    means_KD = rng.standard_normal((6, dim))
    noise_N1 = rng.uniform(0.02, 2, (num_images, 1))
    values_ND: np.ndarray = means_KD[rng.integers(6, size=num_images)] + noise_N1 * rng.standard_normal(
        (num_images, dim)
    )
    return values_ND.astype(dtype)


def expected(values_ND: np.ndarray, min_cosine: float) -> dict[tuple[int, int], float]:
    wide_ND = values_ND.astype(np.float64)
    wide_ND /= np.linalg.norm(wide_ND, axis=1)[:, None]
    cosines_NN = np.round(wide_ND @ wide_ND.T, 9)
    pairs = itertools.combinations(range(len(values_ND)), 2)
    return {pair: float(cosines_NN[pair]) for pair in pairs if cosines_NN[pair] >= min_cosine}


def found(features: Features, min_cosine: float) -> dict[tuple[int, int], float]:
    pairs = near_duplicates(features, min_cosine)
    numbers = list(zip(pairs.first_P.tolist(), pairs.second_P.tolist(), strict=True))
    assert numbers == sorted(set(numbers))
    return dict(zip(numbers, pairs.cosines_P.tolist(), strict=True))


def same(pairs: dict[tuple[int, int], float], truth: dict[tuple[int, int], float]) -> None:
    """The same pairs, in order; their cosines may be rounded to another last digit."""
    assert list(pairs) == list(truth)
    np.testing.assert_allclose(list(pairs.values()), list(truth.values()), rtol=0, atol=1.1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pairs_are_those_of_all_images_however_they_are_cut(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values_ND = clustered(100, 24, dtype)
    features = dataset(tmp_path, values_ND, shard_size=8, rejected=True)
    truth = expected(values_ND, -0.999)
    some = [cosine - 2e-9 for cosine in sorted(truth.values())[-600::120]]  # nearer to a pair than float32 can tell
    for strip_rows, chunk_rows, block_rows in ((1000, 4096, 512), (1, 3, 2), (21, 5, 7), (30, 64, 64)):
        monkeypatch.setattr(duplicates, "STRIP_VALUES", strip_rows * 24)
        monkeypatch.setattr(duplicates, "CHUNK_ROWS", chunk_rows)
        monkeypatch.setattr(duplicates, "BLOCK_ROWS", block_rows)
        for min_cosine in [*some, -0.999]:
            same(found(features, min_cosine), {pair: one for pair, one in truth.items() if one >= min_cosine})


def test_a_bound_is_met_that_float32_cannot_tell(tmp_path: Path) -> None:
    """Forty vectors whose cosines to the first are within 1e-7 of the bound, on either side."""
    rng, dim = np.random.default_rng(0), 4000
    first_D, other_D = np.linalg.qr(rng.standard_normal((dim, 2)))[0].T
    angles_N1 = np.arccos(0.95) + np.linspace(-3e-7, 3e-7, 40)[:, None]
    values_ND = np.vstack([first_D, np.cos(angles_N1) * first_D + np.sin(angles_N1) * other_D]).astype(np.float32)
    truth = expected(values_ND, 0.95)
    near = [cosine for pair, cosine in expected(values_ND, 0.9).items() if pair[0] == 0]
    assert len(near) == 40
    assert min(abs(cosine - 0.95) for cosine in near) > 1.5e-9
    assert max(abs(cosine - 0.95) for cosine in near) < 2e-7
    assert 10 < sum(pair[0] == 0 for pair in truth) < 30
    same(found(dataset(tmp_path, values_ND, 8), 0.95), truth)


def test_progress_ends_with_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = dataset(tmp_path, clustered(30, 8, "float16"))
    monkeypatch.setattr(duplicates, "STRIP_VALUES", 12 * 8)
    seen: list[int] = []
    near_duplicates(features, 0.9, on_images=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 30


def test_zeros_are_in_no_pair_and_are_counted(tmp_path: Path) -> None:
    features = dataset(tmp_path, np.array([[0, 0], [1, 0], [0, 0], [2, 0], [0, -1]], np.float16))
    assert found(features, 1) == {(1, 3): 1.0}
    assert found(features, -0.5) == {(1, 3): 1.0, (1, 4): 0.0, (3, 4): 0.0}
    assert near_duplicates(features, 0.5).num_zeros == 2


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_the_largest_values_do_not_overflow(kind: str, tmp_path: Path) -> None:
    values_ND = np.full((2, 1000), np.finfo(kind).max, kind)
    assert found(dataset(tmp_path, values_ND), 1) == {(0, 1): 1.0}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_damage(value: float, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="NaN or infinite"):
        near_duplicates(dataset(tmp_path, np.array([[1, 2], [value, 1]], np.float16)), 0.9)


def test_rows_that_are_missing_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = dataset(tmp_path, clustered(12, 8, "float16"))
    whole = Features.table
    monkeypatch.setattr(Features, "table", lambda self, name, columns: whole(self, name, columns).slice(1))
    with pytest.raises(CorruptError, match="features of 3 images, expected 4"):
        near_duplicates(features, 0.9)


def test_more_pairs_than_memory_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = dataset(tmp_path, np.ones((9, 2), np.float16))
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 36)
    assert len(found(features, 0.99)) == 36
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 35)
    with pytest.raises(UsageError, match=r"More than 35 pairs .* Raise `min_cosine`"):
        near_duplicates(features, 0.99)


def turned(*degrees: float) -> np.ndarray:
    angles_N = np.deg2rad(degrees)
    return np.stack([np.cos(angles_N), np.sin(angles_N)], axis=1).astype(np.float32)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = main(["--json", "duplicates", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


def test_the_job_writes_pairs_with_their_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 0, 15 and 30 degrees are a chain; 100 and 110 a pair, of which the first came before the chain's end.
    features = dataset(tmp_path, turned(0, 100, 15, 200, 110, 30), shard_size=2)
    file, sheet = tmp_path / "pairs.parquet", tmp_path / "sheet.html"
    code, result, told = run(capsys, features.plan.output, file, "--min-cosine", "0.95", "--sheet", sheet)
    assert (code, result["pairs"], result["groups"], result["images_in_groups"], result["images"]) == (0, 3, 2, 5, 6)
    table = pq.read_table(file)
    assert table.drop_columns("cosine").to_pylist() == [
        {"key_a": "0000.jpg", "key_b": "0002.jpg", "group": "0000.jpg"},
        {"key_a": "0001.jpg", "key_b": "0004.jpg", "group": "0001.jpg"},
        {"key_a": "0002.jpg", "key_b": "0005.jpg", "group": "0000.jpg"},
    ]
    cosines = np.cos(np.deg2rad([15, 10, 15]))
    np.testing.assert_allclose(table["cosine"].to_numpy(), cosines, atol=1e-7)
    about = json.loads(pq.read_metadata(file).metadata[b"bottleneck"])
    assert (about["min_cosine"], about["plan_sha256"]) == (0.95, features.plan.sha256)
    assert "3 images, cosine 0.9659 or more: 0000.jpg, 0002.jpg, 0005.jpg\n" in told
    assert "5 images in 2 groups, of 6 images" in told
    assert sheet.read_text().count("data:image/jpeg") == 5
    file.unlink()
    assert run(capsys, features.plan.output, file, "--min-cosine", "0.999")[1]["pairs"] == 0
    assert pq.read_table(file).num_rows == 0
    code, refused, _ = run(capsys, features.plan.output, file)
    assert (code, "is there already" in refused["message"]) == (2, True)


def test_the_largest_groups_come_first_and_long_ones_are_cut(tmp_path: Path) -> None:
    features = dataset(tmp_path, turned(0, 1, 90, 91, 92, 93, 180, 181))
    groups = grouped(features, near_duplicates(features, 0.999)).largest(2, 3)
    assert [(group.keys, group.num_images) for group in groups] == [
        (("0002.jpg", "0003.jpg", "0004.jpg"), 4),
        (("0000.jpg", "0001.jpg"), 2),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{features}", "x.parquet", "--min-cosine", "-1"], "above -1, and 1 at most. Received: -1.0"),
        (["{features}", "x.parquet", "--min-cosine", "1.01"], "--min-cosine takes"),
        (["{features}", "x.parquet", "--min-cosine", "nan"], "--min-cosine takes"),
        (["{features}", "x.csv"], "ending in .parquet"),
        (["{features}", "{features}/data/x.parquet"], "holds its own files only"),
        (["{features}", "x.parquet", "--sheet", "x.pdf"], "ending in .html"),
        (["{features}", "x.parquet", "--layer", "fc2"], "has no features of that layer"),
        (["{photos}", "x.parquet"], "no plan.json"),
    ],
)
def test_what_is_wrong_is_said_before_the_work(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    features = dataset(tmp_path, turned(0, 1))
    before = sorted(tmp_path.rglob("*"))
    code, refused, _ = run(capsys, *(one.format(features=features.plan.output, photos="photos") for one in arguments))
    assert (code, words in refused["message"]) == (2, True), refused
    assert sorted(tmp_path.rglob("*")) == before


def test_of_several_layers_one_has_to_be_named(tmp_path: Path) -> None:
    asked = spec(layers=("a:avg", "b:avg"), dims=(2, 2))
    write_files(tmp_path / "photos", {"x.jpg": jpeg(0)})
    plan = make_plan(str(tmp_path / "photos"), str(tmp_path / "features"), asked)
    write_shard(open_store(plan.output), plan.data_name(0), asked, 0, data_rows(asked, ["x.jpg"]), run_id="", device="")
    finish(plan)
    with pytest.raises(UsageError, match="Expected `layer`, one of a:avg, b:avg"):
        near_duplicates(open_features(plan.output), 0.9)
    assert len(near_duplicates(open_features(plan.output), 0.9, "b:avg").first_P) == 0


def test_names_never_become_markup() -> None:
    hostile = "<script>alert(1)</script>\"' onload='x"
    groups = [DuplicateGroup((hostile, "b"), 9, 0.96)]
    parser = Outside()
    parser.feed(text := duplicates_sheet(groups, 3, Thumbnails({}, hostile), {hostile: hostile}))
    assert parser.tags.count("script") == 1
    assert "The 1 largest of 3 groups" in text
    assert "and 7 more" in text
