"""Parquet files of images as sources, as Hugging Face datasets export them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from bottleneck.audit.verify import verify
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.features import open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.errors import UsageError
from bottleneck.extract.local import extract_images
from bottleneck.sources import parquet as tables
from bottleneck.sources.image import Image
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Reading
from bottleneck.storage.store import ObjectChangedError, ObjectGoneError, open_store

NAMES = ["bluebell", "daisy", "tulip"]
HUGGING_FACE = {
    "huggingface": json.dumps(
        {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}}}
    )
}


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, row_group_size: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)


def hugging_face(path: Path, numbers: range, **others: Any) -> None:
    """A shard of a dataset with an image, its path and a class."""
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    schema = pa.schema([pa.field("image", image), pa.field("label", pa.int64())], metadata=HUGGING_FACE)
    rows = [{"image": {"bytes": tiny.jpeg(n), "path": f"{n}.jpg"}, "label": n % 3, **others} for n in numbers]
    write_table(path, rows, schema)


def found(source: Path, **reading: Any) -> tuple[list[Image], Counter[str]]:
    skipped: Counter[str] = Counter()
    asked = Reading(**reading)
    return list(open_source(str(source), resolve_reading(str(source), asked)).images(skipped)), skipped


def test_a_row_is_an_image_with_its_path_and_the_name_of_its_class(tmp_path: Path) -> None:
    hugging_face(tmp_path / "data" / "train-00000-of-00002.parquet", range(7))
    hugging_face(tmp_path / "data" / "train-00001-of-00002.parquet", range(7, 9))
    (tmp_path / "README.md").write_text("a card")
    images, skipped = found(tmp_path)
    assert [image.key for image in images[:2]] == [
        "data/train-00000-of-00002.parquet/000000000/0.jpg",
        "data/train-00000-of-00002.parquet/000000001/1.jpg",
    ]
    assert [image.label for image in images] == [NAMES[n % 3] for n in range(9)]
    assert [image.offset for image in images] == [*range(7), 0, 1]
    assert skipped == {".md": 1}
    source = open_source(str(tmp_path), resolve_reading(str(tmp_path), Reading()))
    assert list(source.read(images)) == [tiny.jpeg(n) for n in range(9)]
    assert list(source.read(images[1::3])) == [tiny.jpeg(n) for n in (1, 4, 7)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize(("label", "expected"), [(pa.string(), "tulip"), (pa.int32(), "7"), (pa.bool_(), "True")])
def test_plain_columns_of_bytes_and_labels(
    tmp_path: Path, kind: pa.DataType, label: pa.DataType, expected: str
) -> None:
    value = {"tulip": "tulip", "7": 7, "True": True}[expected]
    schema = pa.schema([pa.field("picture", kind), pa.field("label", label), pa.field("width", pa.int32())])
    rows = [{"picture": tiny.jpeg(n), "label": value if n else None, "width": 40} for n in range(4)]
    write_table(tmp_path / "a.parquet", rows, schema)
    images, _ = found(tmp_path / "a.parquet")
    assert [image.key for image in images] == [f"a.parquet/{n:09d}" for n in range(4)]
    assert [image.label for image in images] == [None, expected, expected, expected]
    source = open_source(str(tmp_path / "a.parquet"), Reading())
    assert list(source.read(images)) == [tiny.jpeg(n) for n in range(4)]


def test_numbers_without_names_and_the_unlabelled(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("image", pa.binary()), pa.field("label", pa.int64())], metadata=HUGGING_FACE)
    write_table(tmp_path / "a.parquet", [{"image": b"x", "label": n} for n in (-1, 0, 2, None)], schema)
    assert [image.label for image in found(tmp_path)[0]] == [None, "bluebell", "tulip", None]
    assert {image.label for image in found(tmp_path, labels="none")[0]} == {None}
    named = found(tmp_path, label_names=("a", "b", "c"))[0]
    assert [image.label for image in named] == [None, "a", "c", None]


def test_a_label_that_cannot_be_used_names_its_row(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("image", pa.binary()), pa.field("label", pa.int64())], metadata=HUGGING_FACE)
    write_table(tmp_path / "a.parquet", [{"image": b"x", "label": n} for n in (0, 1, 2, 0, 9)], schema)
    with pytest.raises(UsageError, match=r"a\.parquet, row 4: label 9 has no name: there are 3"):
        found(tmp_path)
    lists_of_labels = pa.schema([pa.field("image", pa.binary()), pa.field("label", pa.list_(pa.int64()))])
    rows = [{"image": b"x", "label": one} for one in ([2, 1], [], None)]
    write_table(tmp_path / "a.parquet", rows, lists_of_labels)
    assert [image.label for image in found(tmp_path)[0]] == ["1;2", ";", None]
    pairs = pa.schema([pa.field("image", pa.binary()), pa.field("label", pa.struct([("a", pa.int64())]))])
    write_table(tmp_path / "a.parquet", [{"image": b"x", "label": {"a": 1}}], pairs)
    with pytest.raises(UsageError, match=r"labels of type struct<.*or lists of them"):
        found(tmp_path)
    assert found(tmp_path, labels="none")[0][0].label is None


def test_floats_of_pandas_are_the_numbers_they_were(tmp_path: Path) -> None:
    """A column of whole numbers with gaps becomes floats and NaN."""
    schema = pa.schema([pa.field("image", pa.binary()), pa.field("Label", pa.float64())])
    write_table(tmp_path / "a.parquet", [{"image": b"x", "Label": n} for n in (1.0, float("nan"), 10.0)], schema)
    assert [image.label for image in found(tmp_path)[0]] == ["1", None, "10"]


def test_columns_are_named_where_they_cannot_be_told(tmp_path: Path) -> None:
    schema = pa.schema([pa.field(name, pa.binary()) for name in ("left", "right")] + [pa.field("kind", pa.string())])
    write_table(tmp_path / "a.parquet", [{"left": b"l", "right": b"r", "kind": "k"}], schema)
    with pytest.raises(UsageError, match=r"several columns .* `image_column` to name one of: left, right"):
        found(tmp_path)
    with pytest.raises(UsageError, match="Received: column 'kind' of type string"):
        found(tmp_path, image_column="kind")
    with pytest.raises(UsageError, match=r"no column 'middle'.* left, right, kind"):
        found(tmp_path, image_column="middle")
    with pytest.raises(UsageError, match="no column 'class'"):
        found(tmp_path, image_column="left", label_column="class")
    images, _ = found(tmp_path, image_column="right", label_column="kind")
    reading = Reading(source_format="parquet", image_column="right")
    assert list(open_source(str(tmp_path), reading).read(images)) == [b"r"]
    assert images[0].label == "k"


FILE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
SPARK = pa.struct([pa.field(n, pa.int32()) for n in ("height", "width", "mode")] + [pa.field("data", pa.binary())])


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (pa.list_(FILE), [], "several images in a row.*a row for each.*type list<"),
        (pa.large_list(pa.binary()), [], "several images in a row"),
        (SPARK, None, r"decoded pixels, as Spark's.*binaryFile"),
        (pa.struct([pa.field("path", pa.string())]), None, "paths of images without their bytes.*`source_format` list"),
        (pa.string(), "a.jpg", r"no column of image bytes.*Received: the columns image, number"),
        (
            FILE,
            {"bytes": None, "path": "img/7.jpg"},
            r"paths of its images \('img/7.jpg', \.\.\.\) and no bytes.*Embed",
        ),
    ],
)
def test_images_that_are_not_bytes_are_told_for_what_they_are(
    tmp_path: Path, kind: pa.DataType, value: Any, words: str
) -> None:
    schema = pa.schema([pa.field("image", kind), pa.field("number", pa.int32())])
    write_table(tmp_path / "a.parquet", [{"image": value, "number": n} for n in range(4)], schema, row_group_size=2)
    sources = [tmp_path] if kind == pa.string() else [tmp_path, tmp_path / "a.parquet"]
    for source in sources:
        with pytest.raises(UsageError, match=words):
            make_plan(str(source), str(tmp_path / "out"), tiny.spec())


@pytest.mark.parametrize("statistics", [True, False])
def test_some_rows_without_bytes_are_rows_all_the_same(tmp_path: Path, statistics: bool) -> None:
    rows: list[dict[str, Any]] = [{"image": {"bytes": None, "path": f"{n}.jpg"}} for n in range(6)]
    table = pa.Table.from_pylist(rows, schema=pa.schema([pa.field("image", FILE)]))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, write_statistics=statistics)
    with pytest.raises(UsageError, match="no bytes"):
        found(tmp_path)
    rows[4]["image"]["bytes"] = b"x"
    table = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, write_statistics=statistics)
    assert len(found(tmp_path)[0]) == 6


def test_paths_of_a_table_are_a_list_when_asked(tmp_path: Path) -> None:
    tiny.photos(tmp_path, 3)
    rows = [
        {"image": {"bytes": None, "path": f"{'cats' if n % 2 else 'dogs'}/000{n}.jpg"}, "label": n} for n in range(3)
    ]
    schema = pa.schema([pa.field("image", FILE), pa.field("label", pa.int64())], metadata=HUGGING_FACE)
    write_table(tmp_path / "a.parquet", rows, schema)
    images, _ = found(tmp_path / "a.parquet", source_format="list")
    assert [(image.key, image.label, image.size > 0) for image in images] == [
        ("cats/0001.jpg", "daisy", True),
        ("dogs/0000.jpg", "bluebell", True),
        ("dogs/0002.jpg", "tulip", True),
    ]


def test_columns_that_may_hold_labels_are_suggested(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schema = pa.schema(
        [pa.field("img", pa.binary()), *(pa.field(n, pa.int64()) for n in ("fine_label", "Target", "n"))]
    )
    write_table(tmp_path / "a.parquet", [{"img": b"x", "fine_label": 1, "Target": 2, "n": 3}], schema)
    with caplog.at_level("INFO", "bottleneck"):
        assert found(tmp_path)[0][0].label is None
        assert caplog.text.count("`label_column` for labels from another: fine_label, Target.") == 1
        caplog.clear()
        assert found(tmp_path, label_column="Target")[0][0].label == "2"
        assert not caplog.text


def test_a_file_without_its_footer_was_cut(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", range(3))
    whole = (tmp_path / "a.parquet").read_bytes()
    for source in (tmp_path, tmp_path / "a.parquet"):
        for end in (100, len(whole) // 2, -1):
            (tmp_path / "a.parquet").write_bytes(whole[:end])
            with pytest.raises(UsageError, match="no footer at its end, so it was cut off or is still being written"):
                found(source)
    with pytest.raises(UsageError, match="no footer at its end"):
        found(tmp_path / "a.parquet", source_format="list")


def test_what_is_no_parquet_stops_the_plan(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(UsageError, match="is no Parquet file"):
        found(tmp_path)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", range(3))
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-200] + bytes(190) + whole[-10:])
    with pytest.raises(UsageError, match="is no Parquet file"):
        found(tmp_path)
    with pytest.raises(UsageError, match="is no Parquet file"):
        make_plan(str(tmp_path / "a.parquet"), str(tmp_path / "out"), tiny.spec())


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    columns = [pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "label", "label"]), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="several columns called label"):
        found(tmp_path)


def test_images_that_are_null_have_no_bytes(tmp_path: Path) -> None:
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    rows = [{"image": None}, {"image": {"bytes": None, "path": "a.jpg"}}, {"image": {"bytes": b"x", "path": None}}]
    write_table(tmp_path / "a.parquet", rows, pa.schema([pa.field("image", image)]))
    images, _ = found(tmp_path)
    assert [image.key for image in images] == [
        "a.parquet/000000000",
        "a.parquet/000000001/a.jpg",
        "a.parquet/000000002",
    ]
    assert list(open_source(str(tmp_path), Reading(source_format="parquet")).read(images)) == [b"", b"", b"x"]


def test_a_file_that_changed_or_went_since_rejects_its_images_alone(tmp_path: Path) -> None:
    for n in range(3):
        hugging_face(tmp_path / f"{n}.parquet", range(3 * n, 3 * n + 3))
    images, _ = found(tmp_path)
    hugging_face(tmp_path / "0.parquet", range(5))
    (tmp_path / "2.parquet").unlink()
    data = list(open_source(str(tmp_path), Reading(source_format="parquet")).read(images))
    assert [type(one) for one in data] == [ObjectChangedError] * 3 + [bytes] * 3 + [ObjectGoneError] * 3


def test_a_shard_reads_little_more_than_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row group larger than a shard, no more is in memory than a buffer."""
    monkeypatch.setattr(tables, "BUFFER_BYTES", 20_000)
    schema = pa.schema([pa.field("image", pa.binary()), pa.field("label", pa.int64())])
    rows = [{"image": bytes([n % 256]) * 10_000, "label": 1} for n in range(400)]
    pages = {"data_page_size": 20_000, "write_batch_size": 1, "use_dictionary": False, "compression": "none"}
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "a.parquet", **pages)
    images, _ = found(tmp_path)
    store = open_store(str(tmp_path))
    asked: list[int] = []

    class Counting:
        uri, stat = store.uri, store.stat

        def get(self, wanted: Any) -> bytes:
            asked.append(wanted.length)
            return store.get(wanted)

    source = tables.Table(Counting(), None, Reading())  # type: ignore[arg-type]
    monkeypatch.setattr("bottleneck.sources.containers.STORE_BLOCK_BYTES", 20_000)
    assert list(source.read(images[40:60])) == [row["image"] for row in rows[40:60]]
    assert max(asked) < 1_000_000
    assert sum(asked) < 2_500_000  # of 4,000,000


def test_from_a_dataset_to_features(tmp_path: Path) -> None:
    hugging_face(tmp_path / "source" / "train.parquet", range(9))
    summary = extract_images(str(tmp_path / "source"), str(tmp_path / "out"), tiny.REQUEST, shard_size=4)
    assert (summary.images, summary.ok) == (9, 9)
    from_table, labels = open_features(str(tmp_path / "out")).arrays()
    keys = open_features(str(tmp_path / "out")).keys()
    assert list(labels) == [NAMES[n % 3] for n in range(9)]
    assert keys[8] == "train.parquet/000000008/8.jpg"
    assert verify(str(tmp_path / "out"), full=True).exit_code == 0
    files = tiny.write_files(tmp_path / "files", {f"{n}.jpg": tiny.jpeg(n) for n in range(9)})
    extract_images(str(files), str(tmp_path / "files-out"), tiny.REQUEST, shard_size=4)
    assert (open_features(str(tmp_path / "files-out")).arrays()[0] == from_table).all()


def test_images_over_the_cap_are_rejected_when_they_are_read(tmp_path: Path) -> None:
    """Their sizes are not known before: those of a row group are taken to be alike."""
    from bottleneck.sources.reading import Limits

    schema = pa.schema([pa.field("image", pa.binary())])
    rows = [{"image": tiny.jpeg(1)}, {"image": tiny.jpeg(2) + bytes(100_000)}, {"image": tiny.jpeg(3)}]
    write_table(tmp_path / "source" / "a.parquet", rows, schema)
    limits = Limits(max_bytes=20_000)
    summary = extract_images(
        str(tmp_path / "source"), str(tmp_path / "out"), tiny.REQUEST, limits=limits, max_rejected=1.0
    )
    assert (summary.ok, summary.rejected) == (2, {"too_many_bytes": 1})


def test_new_files_extend_a_plan(tmp_path: Path) -> None:
    hugging_face(tmp_path / "source" / "1.parquet", range(5))
    plan = make_plan(str(tmp_path / "source"), str(tmp_path / "out"), tiny.spec(), shard_size=2)
    hugging_face(tmp_path / "source" / "0.parquet", range(5, 7))
    plan, extended = extend_plan(plan)
    assert (extended.added, extended.changed, extended.gone) == (2, 0, 0)
    assert next(image.key for image in plan.images()) == "0.parquet/000000000/5.jpg"


def test_tables_in_a_bucket(tmp_path: Path, bucket: str, s3_environment: dict[str, str]) -> None:
    hugging_face(tmp_path / "a.parquet", range(7))
    store = open_store(f"s3://{bucket}/hf")
    store.create("data/a.parquet", (tmp_path / "a.parquet").read_bytes())
    source = open_source(store.uri, resolve_reading(store.uri, Reading()))
    images = list(source.images(Counter()))
    assert list(source.read(images[2:])) == [tiny.jpeg(n) for n in range(2, 7)]
