"""The most similar images: exactly those that comparing with every image finds, and a page that shows them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import DARK, ask, screenshot
from PIL import Image
from test_report import Outside
from tiny import REQUEST, data_rows, jpeg, photos, spec, write_files

from bottleneck.dataset.features import Features, open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.success import finish
from bottleneck.dataset.write import write_shard
from bottleneck.errors import CorruptError, UsageError
from bottleneck.extract.local import extract_images
from bottleneck.inspect import similar
from bottleneck.inspect.similar import cosines, features_of, nearest, nearest_of_each, stored_image
from bottleneck.sources.reading import Reading
from bottleneck.storage.store import open_store
from jobs.__main__ import main
from jobs.benchmark import similar as benchmark_similar
from jobs.queries import own_keys

HOSTILE = "<script>document.title='taken'</script>\"' onload='x"
LAYER = spec().layers[0]


def made_up(folder: Path, dtype: str = "float16", num_images: int = 90, **changes: Any) -> Features:
    """Finished features of 90 images in shards of 25, of which the first of each shard is rejected."""
    keys = [f"{'cats' if n % 2 else 'dogs'}/{n:04d}.jpg" for n in range(num_images)]
    write_files(folder / "photos", {key: jpeg(n) for n, key in enumerate(keys)})
    asked = spec(dtype=dtype, dims=(16,), **changes)
    plan = make_plan(str(folder / "photos"), str(folder / "features"), asked, shard_size=25)
    planned = [image.key for image in plan.images()]
    for shard in range(plan.num_shards):
        part = planned[shard * 25 : (shard + 1) * 25]
        rows = data_rows(plan.spec, part, {part[0]: "truncated"}, seed=shard)
        write_shard(
            open_store(plan.output), plan.data_name(shard), plan.spec, shard, rows, run_id="test", device="none"
        )
    finish(plan)
    return open_features(plan.output)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return made_up(tmp_path_factory.mktemp("similar"))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures through a network of a quarter's width, and one that is not among them."""
    folder = tmp_path_factory.mktemp("extracted")
    photos(folder / "photos", 12)
    extract_images(str(folder / "photos"), str(folder / "features"), REQUEST)
    write_files(folder, {"other.jpg": jpeg(99), "text.jpg": b"no image"})
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(["--json", "similar", *arguments])
    shown = capsys.readouterr()
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("top", [1, 7, 500])
def test_the_nearest_are_those_of_all_pairs(dtype: str, top: int, tmp_path: Path) -> None:
    dataset = made_up(tmp_path, dtype)
    features_ND, labels_N = dataset.arrays()
    keys_N = dataset.keys()
    query_D = np.random.default_rng(5).standard_normal(16)
    wide_ND = features_ND.astype(np.float64)
    expected_N = wide_ND @ query_D / np.linalg.norm(wide_ND, axis=1) / np.linalg.norm(query_D)
    order_N = np.argsort(-expected_N)[:top]
    seen: list[int] = []
    found = nearest(dataset, query_D, top, on_images=seen.append)
    assert [one.key for one in found] == keys_N[order_N].tolist()
    assert [one.label for one in found] == labels_N[order_N].tolist()
    assert [one.cosine for one in found] == pytest.approx(expected_N[order_N].tolist(), abs=1e-9)
    assert len(found) == min(top, 86)
    assert seen == [24, 48, 72, 86]


def test_an_image_of_the_dataset_is_most_like_itself(features: Features) -> None:
    for _, _, keys_N in features.keyed_batches():
        query_D = features_of(features, keys_N[3])
        assert query_D is not None
        assert nearest(features, query_D, 1)[0] == similar.Neighbour(1.0, keys_N[3], keys_N[3][:4])


def test_an_image_asked_about_takes_no_place(features: Features) -> None:
    for _, _, keys_N in features.keyed_batches():
        query_D = features_of(features, keys_N[3])
        assert query_D is not None
        with_itself = nearest(features, query_D, 8)
        assert nearest(features, query_D, 7, without=keys_N[3]) == with_itself[1:]
        assert nearest(features, query_D, 8, without="another") == with_itself


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_of_many_vectors_each_gets_what_it_gets_alone(dtype: str, tmp_path: Path) -> None:
    dataset = made_up(tmp_path, dtype)
    keys = dataset.keys()[[3, 30, 55]].tolist()
    queries_QD = np.random.default_rng(5).standard_normal((3, 16))
    alone = [nearest(dataset, query_D, 9, without=key) for query_D, key in zip(queries_QD, keys, strict=True)]
    assert nearest_of_each(dataset, queries_QD, 9, without=keys) == alone
    with pytest.raises(UsageError, match="vector of the 16 values"):
        nearest_of_each(dataset, queries_QD[:, :5], 9)


def test_copies_take_no_place(tmp_path: Path) -> None:
    """The made-up rows of a shard have the numbers of their rows as sha256, so each image has a copy in each shard."""
    dataset = made_up(tmp_path)
    keys_N = dataset.keys()
    found = stored_image(dataset, keys_N[3])
    assert found is not None
    query_D, digest = found
    assert digest == bytes([4]) * 32
    copies = {image.key for number, image in enumerate(dataset.plan.images()) if number % 25 == 4}
    every = nearest(dataset, query_D, 86)
    [without_copies] = nearest_of_each(dataset, query_D[None], 86, copies_of=[digest])
    assert without_copies == [one for one in every if one.key not in copies]
    assert len(without_copies) == 86 - len(copies) == 82
    assert nearest_of_each(dataset, query_D[None], 5, copies_of=[digest]) == [without_copies[:5]]


def test_of_equal_images_the_first_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made_up(tmp_path, num_images=60)
    rows = dataset.table(dataset.files[0])
    same = pa.array([list(range(16))] * 24 + [None], rows.schema.field(LAYER).type)
    rows = rows.set_column(rows.schema.get_field_index(LAYER), rows.schema.field(LAYER), same)
    monkeypatch.setattr(Features, "table", lambda self, name, columns=None: rows.select(columns))
    monkeypatch.setattr(similar, "BLOCK_VALUES", 7 * 16)
    found = nearest(dataset, np.arange(16.0), 30)
    keys = rows.column("key").to_pylist()[:24]
    assert [one.key for one in found] == [*keys, *keys[:6]]
    assert {one.cosine for one in found} == {1.0}


def test_vectors_of_zeros_are_like_nothing() -> None:
    features_ND = np.array([[0, 0], [1, 2], [-1, -2]], np.float16)
    assert cosines(features_ND, np.array([2.0, 4.0])).tolist() == pytest.approx([0, 1, -1])
    assert cosines(features_ND, np.zeros(2)).tolist() == [0, 0, 0]


def test_the_largest_values_do_not_overflow() -> None:
    for kind in (np.float16, np.float32):
        features_ND = np.full((2, 5000), np.finfo(kind).max)
        features_ND[1] *= -1
        assert cosines(features_ND, features_ND[0]).tolist() == pytest.approx([1, -1])


def test_rejected_unknown_and_pending_images_have_no_features(features: Features, tmp_path: Path) -> None:
    assert features_of(features, "nowhere.jpg") is None
    with pytest.raises(UsageError, match="rejected as truncated"):
        features_of(features, "cats/0001.jpg")
    with pytest.raises(UsageError, match="its shard 1 is not done"):
        features_of(Features(features.plan, features.files[:1]), "cats/0055.jpg")
    other = Features(features.plan, features.files)
    other.table = lambda name, columns=None: features.table(features.files[3], columns)  # type: ignore[method-assign]
    with pytest.raises(CorruptError, match="does not hold cats/0003"):
        features_of(other, "cats/0003.jpg")


def test_a_planned_image_is_found_without_reading_all(tmp_path: Path) -> None:
    dataset = made_up(tmp_path)
    keys = [image.key for image in dataset.plan.images()]
    found = dataset.plan.find([*keys[20:30], "cats/", "zebra"])
    assert list(found) == keys[20:30]
    assert Counter(shard for shard, _ in found.values()) == {0: 5, 1: 5}
    assert found[keys[25]][1] == list(dataset.plan.images())[25]
    assert dataset.plan.find([]) == {}


def test_an_image_file_is_extracted_as_the_dataset_was(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, itself = str(extracted / "features"), extracted / "photos" / "dogs" / "0004.jpg"
    copy = extracted / "copy.jpg"
    copy.write_bytes(itself.read_bytes())
    code, result, _ = run(capsys, str(copy), features, "--top", "4")
    [query] = result["queries"]
    assert (code, query["is_key"], result["images"]) == (0, False, 12)
    first, *others = query["similar"]
    assert first == {"cosine": pytest.approx(1, abs=1e-6), "key": "dogs/0004.jpg", "label": "dogs"}
    by_key = run(capsys, "dogs/0004.jpg", features, "--top", "3")[1]["queries"]
    assert by_key[0]["is_key"]
    by_path = run(capsys, str(itself), features, "--top", "3")[1]["queries"]
    without_copies = run(capsys, str(copy), features, "--top", "3", "--exclude-copies")[1]["queries"]
    for [other] in (by_key, by_path, without_copies):
        assert [one["key"] for one in other["similar"]] == [one["key"] for one in others]
    assert len(run(capsys, str(extracted / "other.jpg"), features)[1]["queries"][0]["similar"]) == 10
    code, result, _ = run(capsys, str(copy), features, "--weights", "random:1")
    assert (code, result["exit_code"]) == (4, 4)
    assert "weights_sha256" in result["message"]


def test_many_images_are_asked_about_at_once(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, folder = str(extracted / "features"), str(extracted / "photos" / "cats")
    names = ["dogs/0004.jpg", str(extracted / "text.jpg"), folder, str(extracted / "other.jpg")]
    code, result, told = run(capsys, *names, features, "--top", "2")
    assert (code, result["exit_code"], result["rejected"]) == (6, 6, 1)
    images = [names[0], names[1], *(f"{folder}/{n:04d}.jpg" for n in range(1, 12, 2)), names[3]]
    assert [one["image"] for one in result["queries"]] == images
    assert f"{names[1]}: not_an_image\n" in told
    for one in result["queries"]:
        if one["image"] != names[1]:
            assert [one] == run(capsys, one["image"], features, "--top", "2")[1]["queries"]
    assert result["queries"][1] == {"image": names[1], "reason": "not_an_image"}
    code, result, _ = run(capsys, names[1], names[1], features)
    assert (code, result["images"], result["rejected"]) == (6, 0, 2)


def test_a_listed_image_is_known_by_its_path_too(tmp_path: Path) -> None:
    write_files(tmp_path, {"here/a.jpg": jpeg(1), "there/b.jpg": jpeg(2), "here/list.csv": b"file,label\na.jpg,x\n"})
    with open(tmp_path / "here/list.csv", "a") as file:
        file.write(f"{tmp_path}/there/b.jpg,y\n")
    reading = Reading(source_format="list", roots=(str(tmp_path / "there"),))
    plan = make_plan(str(tmp_path / "here/list.csv"), str(tmp_path / "features"), spec(), reading=reading)
    opened = Features(plan, [])
    here, there = str(tmp_path / "here" / "a.jpg"), str(tmp_path / "there" / "b.jpg")
    # The third is another one, in the current folder.
    assert own_keys(opened, [here, there, "a.jpg"]) == {here: "a.jpg", there: f"{tmp_path}/there/b.jpg"}


@pytest.mark.usefixtures("s3_environment")
def test_dataset_image_sheet_and_pairs_in_a_bucket(
    bucket: str, extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(f"s3://{bucket}/x")
    for entry in open_store(str(extracted)).list():
        store.create(entry.key, (extracted / entry.key).read_bytes())
    uri = f"s3://{bucket}/x"
    code, result, told = run(capsys, f"{uri}/other.jpg", f"{uri}/features", "--sheet", f"{uri}/sheet.html")
    assert code == 0, told
    local = run(capsys, str(extracted / "other.jpg"), str(extracted / "features"))[1]
    assert result["queries"][0]["similar"] == local["queries"][0]["similar"]
    assert store.exists("sheet.html")
    assert main(["duplicates", f"{uri}/features", f"{uri}/pairs.parquet", "--min-cosine", "0.5"]) == 0
    capsys.readouterr()
    assert (
        main(["duplicates", str(extracted / "features"), str(tmp_path / "pairs.parquet"), "--min-cosine", "0.5"]) == 0
    )
    capsys.readouterr()
    pairs = pq.read_table(tmp_path / "pairs.parquet")
    assert pairs.num_rows
    assert pq.read_table(pa.BufferReader(store.read("pairs.parquet"))).equals(pairs)
    in_folder = run(capsys, f"{uri}/photos/cats", f"{uri}/features", "--top", "1")[1]["queries"]
    assert [one["image"] for one in in_folder] == [f"{uri}/photos/cats/{n:04d}.jpg" for n in range(1, 12, 2)]


def test_the_sheet_shows_thumbnails_and_frames_for_those_that_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = made_up(tmp_path)
    (tmp_path / "photos/cats/0003.jpg").unlink()
    sheet = tmp_path / "sheet.html"
    code, result, _ = run(capsys, "cats/0005.jpg", dataset.plan.output, "--top", "86", "--sheet", str(sheet))
    assert (code, result["sheet"]) == (0, str(sheet))
    text = sheet.read_text()
    assert text.count("data:image/jpeg") == 1 + 84
    assert text.count(">no picture</div>") == 1
    assert "1 of 85 pictures missing" in text
    assert ask(sheet, tmp_path, "document.documentElement.scrollWidth", 320, 1280) == ["320", "1280"]
    for options in ((), (DARK,)):
        with Image.open(screenshot(sheet, 1000, 1200, tmp_path, *options)) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"))
        assert len(np.unique(pixels_HWC.reshape(-1, 3), axis=0)) > 200, "blank"
        assert (pixels_HWC[5, 5].mean() < 100) == bool(options)


def test_names_never_become_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bottleneck.inspect.contact_sheet import contact_sheet
    from bottleneck.inspect.report_sections import Thumbnails

    found = [similar.Neighbour(0.5, f"{HOSTILE}\n日本", HOSTILE), similar.Neighbour(0.25, "x" * 300, None)]
    sheet = tmp_path / "sheet.html"
    sheet.write_text(contact_sheet(HOSTILE, None, found, Thumbnails({}, HOSTILE), {HOSTILE: HOSTILE}))
    parser = Outside()
    parser.feed(sheet.read_text())
    assert parser.tags.count("script") == 1
    assert all(one.startswith(("data:", "#")) for one in parser.asked)
    assert ask(sheet, tmp_path, "document.title.includes('<script>')") == ["true"]
    assert ask(sheet, tmp_path, "document.documentElement.scrollWidth", 320) == ["320"]


def test_the_table_upsets_no_terminal() -> None:
    from jobs.similar import table

    lines = table([similar.Neighbour(0.5, "a\x1b[2J\nb", "日本"), similar.Neighbour(-0.25, "plain key", None)])
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert lines[2].split() == ["2", "-0.25000", "plain", "key"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jpg", "{features}"], "no image of that key"),
        (["{empty}", "{features}"], "no folder with images"),
        (["x.jpg"], "the dataset to search after it"),
        (["{photos}", "{features}", "--sheet", "x.html"], "--sheet shows the images like one. Received: 12 images"),
        (["{text}", "{features}"], "cannot be used: not_an_image"),
        (["x.jpg", "{features}", "--top", "0"], "from 1 up"),
        (["x.jpg", "{features}", "--sheet", "x.pdf"], "ending in .html"),
        (["x.jpg", "{features}", "--layer", "fc2"], "has no features of that layer"),
        (["x.jpg", "{photos}"], "no plan.json"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], words: str, extracted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: extracted / name for name in ("features", "photos", "empty")} | {"text": extracted / "text.jpg"}
    places["empty"].mkdir(exist_ok=True)
    code = main(["similar", *(one.format(**places) for one in arguments)])
    assert code == 2
    assert words in capsys.readouterr().err


def test_the_search_is_measured_on_made_up_features(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--json", "benchmark", "--what", "similar", "--num-images", "2000", "--dim", "8", "--classes", "3"]) == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["similar"]["images"] == result["images"] == 2000
    assert 0 < result["similar"]["search_seconds"] < result["similar"]["seconds"]
    assert any("whole command" in line for line in benchmark_similar.table(result))
