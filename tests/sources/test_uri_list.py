"""CSV and Parquet lists as sources: order, labels, what they may name, and lists longer than the memory."""

from __future__ import annotations

import gzip
import json
import logging
import random
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
from bottleneck.sources import list_names, list_order
from bottleneck.sources.image import Image
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Reading
from bottleneck.storage.store import ObjectGoneError, open_store


def found(source: Path | str, **reading: Any) -> tuple[list[Image], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(open_source(str(source), resolve_reading(str(source), Reading(**reading))).images(skipped)), skipped


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tiny.photos(tmp_path / "place", 6)


def write_list(photos: Path, text: str) -> Path:
    path = photos / "list.csv"
    path.write_text(text)
    return path


def test_a_csv_names_images_beside_it(photos: Path) -> None:
    source = write_list(photos, "key,label\ndogs/0002.jpg,dog\ncats/0001.jpg,cat\ndogs/0000.jpg,\ncats/gone.jpg,cat\n")
    images, skipped = found(source)
    assert [(image.key, image.label) for image in images] == [
        ("cats/0001.jpg", "cat"),
        ("cats/gone.jpg", "cat"),
        ("dogs/0000.jpg", None),  # the folder is what a whole list falls back on, not a row
        ("dogs/0002.jpg", "dog"),
    ]
    assert [bool(image.etag) for image in images] == [True, False, True, True]
    assert not skipped
    data = list(open_source(str(source), Reading()).read(images))
    assert [one if isinstance(one, bytes) else type(one) for one in data] == [
        tiny.jpeg(1),
        ObjectGoneError,
        tiny.jpeg(0),
        tiny.jpeg(2),
    ]
    assert {image.label for image in found(source, labels="none")[0]} == {None}


@pytest.mark.parametrize("column", ["uri", "URL", "file_name", "image_path"])
def test_the_column_of_images_is_found_by_its_name(photos: Path, column: str) -> None:
    images, _ = found(write_list(photos, f"number,{column},label\n1,cats/0001.jpg,007\n"))
    assert [(image.key, image.label) for image in images] == [("cats/0001.jpg", "007")]


def test_odd_names_and_quoted_fields(tmp_path: Path) -> None:
    names = ["a,b.jpg", 'quote".jpg', "new\nline.jpg", "ü \N{CAT FACE}.jpg", " space.jpg"]
    tiny.write_files(tmp_path, {name: tiny.jpeg(n) for n, name in enumerate(names)})
    quoted = "\n".join('"{}"'.format(name.replace('"', '""')) for name in names)
    source = write_list(tmp_path, f"uri\n{quoted}\n")
    images, _ = found(source)
    assert [image.key for image in images] == sorted(names, key=str.encode)
    assert all(isinstance(data, bytes) for data in open_source(str(source), Reading()).read(images))


def test_a_parquet_list(photos: Path) -> None:
    table = pa.table({"where": ["cats/0003.jpg", "cats/0001.jpg"], "class": pa.array([3, 1])})
    pq.write_table(table, photos / "list.parquet")
    images, _ = found(photos / "list.parquet", image_column="where", label_column="class")
    assert [(image.key, image.label) for image in images] == [("cats/0001.jpg", "1"), ("cats/0003.jpg", "3")]


def test_an_image_that_is_listed_again_is_one_image(photos: Path) -> None:
    images, skipped = found(write_list(photos, "uri,label\n" + 3 * "cats/0001.jpg,a\n" + "\n,b\n"))
    assert [image.key for image in images] == ["cats/0001.jpg"]
    assert skipped["(listed again)"] == 2
    with pytest.raises(UsageError, match="two labels: 'a' and 'b'"):
        found(write_list(photos, "uri,label\ncats/0001.jpg,b\ncats/0001.jpg,a\n"))


@pytest.mark.parametrize(
    "uri",
    ["../secret.jpg", "cats/../../secret.jpg", "/etc/passwd", "file:///etc/passwd", "s3://elsewhere/a.jpg",
     "http://169.254.169.254/latest/meta-data", "{place}/../secret.jpg", "{place}-other/a.jpg"],
)  # fmt: skip
def test_a_list_names_nothing_outside_its_places(photos: Path, uri: str) -> None:
    source = write_list(photos, f"uri\ncats/0001.jpg\n{uri.format(place=photos)}\n")
    with pytest.raises(UsageError, match=r"outside the places it may name: .*`roots`"):
        found(source)


def test_roots_are_places_a_list_may_name(photos: Path, tmp_path: Path) -> None:
    other = tiny.photos(tmp_path / "other", 3, first=20)
    rows = f"uri\n{other}/cats/0021.jpg\nfile://{other}/dogs/0020.jpg\n{photos}/cats/0001.jpg\ncats/0003.jpg\n"
    source = write_list(photos, rows)
    reading = resolve_reading(str(source), Reading(roots=(str(other),)))
    images = list(open_source(str(source), reading).images(Counter()))
    keys = [image.key for image in images]
    assert keys == [f"{other}/cats/0021.jpg", f"{other}/dogs/0020.jpg", "cats/0001.jpg", "cats/0003.jpg"]
    assert [image.label for image in images] == ["cats", "dogs", "cats", "cats"]
    expected = [tiny.jpeg({"0021": 21, "0020": 20, "0001": 1, "0003": 3}[key[-8:-4]]) for key in keys]
    assert list(open_source(str(source), reading).read(images)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "`image_column`"),
        ("uri,uri\n1,2\n", "several columns called uri"),
        ("uri,label\ncats/0001.jpg\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_told(photos: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        found(write_list(photos, text))


def test_a_list_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty or does not exist"):
        make_plan(str(tmp_path / "none.csv"), str(tmp_path / "out"), tiny.spec())


def test_a_column_that_is_not_there_is_told_with_those_there_are(photos: Path) -> None:
    source = write_list(photos, "uri,kind\ncats/0001.jpg,x\n")
    with pytest.raises(UsageError, match=r"no column 'path'.*: uri, kind"):
        found(source, image_column="path")
    with pytest.raises(UsageError, match="no column 'class'"):
        found(source, label_column="class")


def test_a_list_longer_than_what_is_sorted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_order, "ROWS_SORTED_AT_ONCE", 100)
    names = [f"{n:05d}.jpg" for n in range(950)]
    shuffled = random.Random(0).sample(names, len(names))
    source = write_list(tmp_path, "uri,label\n" + "".join(f"{name},{name[0]}\n" for name in shuffled + shuffled[:7]))
    images, skipped = found(source)
    assert [image.key for image in images] == names
    assert skipped == {"(listed again)": 7}


def test_from_a_list_to_features(photos: Path, tmp_path: Path) -> None:
    source = write_list(photos, "uri,label\ndogs/0002.jpg,dog\ncats/0001.jpg,cat\ncats/gone.jpg,cat\n")
    summary = extract_images(str(source), str(tmp_path / "out"), tiny.REQUEST, max_rejected=0.5)
    assert (summary.images, summary.ok, summary.rejected) == (3, 2, {"missing": 1})
    _, labels = open_features(str(tmp_path / "out")).arrays()
    keys = open_features(str(tmp_path / "out")).keys()
    assert (list(keys), list(labels)) == (["cats/0001.jpg", "dogs/0002.jpg"], ["cat", "dog"])
    assert verify(str(tmp_path / "out"), full=True).exit_code == 0


def test_a_list_that_grew_extends_a_plan(photos: Path, tmp_path: Path) -> None:
    source = write_list(photos, "uri\ncats/0001.jpg\ndogs/0002.jpg\n")
    plan = make_plan(str(source), str(tmp_path / "out"), tiny.spec())
    write_list(photos, "uri\ncats/0003.jpg\ncats/0001.jpg\n")
    (photos / "cats/0001.jpg").write_bytes(tiny.jpeg(99))
    plan, extended = extend_plan(plan)
    assert (extended.added, extended.changed_keys, extended.gone_keys) == (1, ["cats/0001.jpg"], ["dogs/0002.jpg"])


def test_a_list_with_roots_is_gone_on_with(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder: roots are recorded by their whole paths."""
    (tmp_path / "lists").mkdir()
    source = tmp_path / "lists" / "list.csv"
    source.write_text(f"uri\n{photos}/cats/0001.jpg\n")
    monkeypatch.chdir(tmp_path)
    reading = Reading(roots=("place/",))
    for folder in (".", "/"):
        extract_images(str(source), str(tmp_path / "out"), tiny.REQUEST, reading=reading)
        monkeypatch.chdir(folder)
        reading = Reading(roots=(str(photos),))
    assert open_features(str(tmp_path / "out")).keys().tolist() == [f"{photos}/cats/0001.jpg"]


@pytest.mark.parametrize(
    ("root", "path", "leaves"),
    [
        ("/photos", "../x.jpg", True),
        ("/photos", "..x/y.jpg", False),
        ("/photos", "a/../../x.jpg", True),
        ("s3://bucket/photos", "../x.jpg", False),
        ("http://host/pub", "../x.jpg", True),
        ("http://host/pub", "a/%2e%2E/../x.jpg", True),
        ("http://host/pub", "%252e%252e/x.jpg", True),
        ("http://host/pub", "..\\x.jpg", True),
        ("http://host/pub", "a..b/x.jpg", False),
    ],
)
def test_no_path_leads_out_of_a_root(root: str, path: str, leaves: bool) -> None:
    assert list_names.leaves(root, path) == leaves


def test_names_no_file_can_have_are_missing(photos: Path) -> None:
    pq.write_table(pa.table({"uri": ["a\0b.jpg", "x" * 300 + ".jpg"]}), photos / "list.parquet")
    images, _ = found(photos / "list.parquet")
    assert [image.etag for image in images] == ["", ""]
    data = list(
        open_source(str(photos / "list.parquet"), resolve_reading(str(photos / "list.parquet"), Reading())).read(images)
    )
    assert [type(one) for one in data] == [ObjectGoneError] * 2


def test_what_is_said_twice_once_without_a_label_is_told(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_order, "ROWS_SORTED_AT_ONCE", 2)
    source = write_list(photos, "uri,label\na.jpg,x\nb.jpg,x\na.jpg,\nc.jpg,x\n")
    with pytest.raises(UsageError, match="two labels"):
        found(source)


def test_a_header_may_have_spaces_and_a_mark(photos: Path) -> None:
    (photos / "list.csv").write_bytes("\ufeffuri, label\r\ncats/0001.jpg, cat\r\n\r\n".encode())
    assert [(image.key, image.label) for image in found(photos / "list.csv")[0]] == [("cats/0001.jpg", "cat")]


@pytest.mark.parametrize("data", ["uri\ngrün.jpg\n".encode("latin-1"), b'uri\n"a.jpg\n', b"uri\na,b\n"])
def test_a_damaged_csv_is_told(photos: Path, data: bytes) -> None:
    (photos / "list.csv").write_bytes(data)
    with pytest.raises(UsageError, match="cannot be read"):
        found(photos / "list.csv")


def test_a_list_in_a_bucket_names_what_is_in_it(tmp_path: Path, bucket: str, s3_environment: dict[str, str]) -> None:
    store = open_store(f"s3://{bucket}/place")
    for n in range(3):
        store.create(f"{n}.jpg", tiny.jpeg(n))
    store.create("list.csv", f"uri,label\n2.jpg,b\ns3://{bucket}/place/1.jpg,a\nno.jpg,c\n".encode())
    source = f"{store.uri}/list.csv"
    images, _ = found(source)
    assert [image.key for image in images] == ["1.jpg", "2.jpg", "no.jpg"]
    data = list(open_source(source, Reading()).read(images))
    assert data[:2] == [tiny.jpeg(1), tiny.jpeg(2)]
    assert isinstance(data[2], ObjectGoneError)


def labels_of(source: Path | str, **reading: Any) -> dict[str, str | None]:
    return {image.key: image.label for image in found(source, **reading)[0]}


def test_names_without_their_suffix_are_found(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Kaggle's labels.csv has `id,breed`, and the images are called ID.jpg."""
    tiny.write_files(photos, {"cats/0001.txt": b"", "both.jpg": b"", "both.PNG": b"", "1234.jpg": tiny.jpeg(9)})
    source = write_list(photos, "id,breed\ncats/0001,beagle\ncats/0003,pug\nboth,pug\n1234,pug\ncats/gone.jpg,pug\n")
    with caplog.at_level(logging.INFO, "bottleneck"):
        images = found(source, label_column="breed")[0]
    assert [(image.key, image.label, bool(image.etag)) for image in images] == [
        ("1234.jpg", "pug", True),
        ("both", "pug", False),  # which of the two is not known
        ("cats/0001.jpg", "beagle", True),
        ("cats/0003.jpg", "pug", True),
        ("cats/gone.jpg", "pug", False),
    ]
    assert "3 of 5 names in" in caplog.text
    assert "with the suffix of the one image of that name: 'cats/0001' is 'cats/0001.jpg'" in caplog.text
    assert next(open_source(str(source), Reading()).read(images)) == tiny.jpeg(9)


def test_names_that_windows_wrote_are_found(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "odd\\name.jpg").write_bytes(b"a backslash may be part of a name")
    source = write_list(photos, "file\ncats\\0001.jpg\n.\\dogs\\0002\n dogs/0000.jpg \nodd\\name.jpg\n")
    with caplog.at_level(logging.INFO, "bottleneck"):
        images = found(source)[0]
    assert [image.key for image in images] == ["cats/0001.jpg", "dogs/0000.jpg", "dogs/0002.jpg", "odd\\name.jpg"]
    assert all(image.etag for image in images)
    assert "with / for \\" in caplog.text
    assert "without the blanks around them" in caplog.text
    with pytest.raises(UsageError, match="outside the places"):
        found(write_list(photos, "file\n..\\secret.jpg\n"))


def test_a_list_of_which_much_is_missing_is_not_planned(photos: Path, tmp_path: Path) -> None:
    source = write_list(photos, "uri,title\n" + "".join(f"img/{n}.jpg,t\n" for n in range(5)) + "cats/0001.jpg,t\n")
    with pytest.raises(UsageError) as refused:
        make_plan(str(source), str(tmp_path / "out"), tiny.spec())
    looked_for = ", ".join(repr(f"{photos}/img/{n}.jpg") for n in range(3))
    assert refused.value.exit_code == 2
    for words in (
        "5 of 6 images named in",
        "not found",
        f"Looked for {looked_for}, ...",
        "(title)",
        "`max_rejected` 1",
    ):
        assert words in str(refused.value)
    assert not (tmp_path / "out").exists()
    plan = make_plan(str(source), str(tmp_path / "out"), tiny.spec(), max_rejected=0.9)
    assert plan.num_images == 6
    write_list(photos, "uri\n" + "".join(f"img/{n}.jpg\n" for n in range(30)))
    with pytest.raises(UsageError, match="30 of 30 images named in"):
        extend_plan(plan)


ROWS = [("cats/0001.jpg", "a, b"), ("dogs/0002.jpg", "7"), ("dogs/0000.jpg", None)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'file_name,label\ncats/0001.jpg,"a, b"\ndogs/0002.jpg,7\ndogs/0000.jpg,\n'),
        ("a.csv", 'file_name, label\ncats/0001.jpg, "a, b"\ndogs/0002.jpg, 7.0\ndogs/0000.jpg, \n'),
        ("a.csv", " file_name ;label \r\ncats/0001.jpg;a, b\r\n\r\ndogs/0002.jpg;7\r\ndogs/0000.jpg;nan\r\n"),
        ("a.tsv", "\ufeffn\tfile_name\tlabel\n1\tcats/0001.jpg\ta, b\n2\tdogs/0002.jpg\t7\n3\tdogs/0000.jpg\t-1\n"),
        ("a.csv", "file_name|label\ncats/0001.jpg|a, b\ndogs/0002.jpg|7\ndogs/0000.jpg|\n"),
        (
            "metadata.jsonl",
            '{"file_name": "cats/0001.jpg", "label": " a, b "}\n\n{"label": 7, "file_name": "dogs/0002.jpg"}\n'
            '{"file_name": "dogs/0000.jpg"}',
        ),
    ],
)
def test_lists_of_many_forms_say_the_same(photos: Path, name: str, text: str, packed: bool) -> None:
    path = photos / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert labels_of(path) == dict(ROWS)


def test_one_image_in_several_spellings_is_one_image(photos: Path) -> None:
    spellings = ["cats/0001.jpg", "./cats/0001.jpg", "cats//0001.jpg", "dogs/../cats/0001.jpg", "cats/0001"]
    spellings += [f"{photos}/cats/0001.jpg", f"file://{photos}/./cats/0001.jpg", f"{photos}//cats/0001"]
    rows = "".join(f"{spelling},a\n" for spelling in spellings)
    images, skipped = found(write_list(photos, f"uri,label\n{rows}"), roots=(str(photos / "cats"),))
    assert [image.key for image in images] == ["cats/0001.jpg"]
    assert skipped == {"(listed again)": len(spellings) - 1}
    for spelling in spellings[1:]:
        with pytest.raises(UsageError, match=r"'cats/0001\.jpg' two labels: 'a' and 'b'"):
            found(write_list(photos, f"uri,label\ncats/0001.jpg,b\n{spelling},a\n"))


def test_the_folder_is_the_label_where_a_list_has_none(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "top.jpg").write_bytes(tiny.jpeg(7))
    source = write_list(photos, "uri,breed,note\n./top.jpg,x,\ncats/0001.jpg,y,\n")
    with caplog.at_level(logging.INFO, "bottleneck"):
        assert labels_of(source) == {"cats/0001.jpg": "cats", "top.jpg": None}
    assert (
        "an image's label is the name of its folder. Give `label_column` for labels from another: breed." in caplog.text
    )
    assert labels_of(source, labels="none") == {"cats/0001.jpg": None, "top.jpg": None}


def test_relative_names_are_looked_for_below_the_roots_too(photos: Path, tmp_path: Path) -> None:
    other = tiny.photos(tmp_path / "other", 3, first=20)
    source = write_list(photos, "uri\ncats/0021.jpg\ncats/0001\ndogs\\0020\n")
    images, _ = found(source, roots=(str(other),))
    assert [image.key for image in images] == [f"{other}/cats/0021.jpg", f"{other}/dogs/0020.jpg", "cats/0001.jpg"]
    reading = resolve_reading(str(source), Reading(roots=(str(other),)))
    assert list(open_source(str(source), reading).read(images)) == [tiny.jpeg(n) for n in (21, 20, 1)]


@pytest.mark.parametrize("column", ["Image", "image_id", "id", "img"])
def test_other_usual_columns_of_images(photos: Path, column: str) -> None:
    assert labels_of(write_list(photos, f"label,{column}\nx,cats/0001.jpg\n")) == {"cats/0001.jpg": "x"}


def test_a_list_without_a_column_of_images_is_told_in_words(photos: Path) -> None:
    with pytest.raises(UsageError, match=r"names the images is not clear from their names: a, b\. Expected `image_col"):
        found(write_list(photos, "a,b\ncats/0001.jpg,x\n"))
    with pytest.raises(UsageError, match="Expected a header; the first line looks like an image's"):
        found(write_list(photos, "cats/0001.jpg,x\n"))


def test_class_names_replace_numbers_in_lists(photos: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["bluebell", "daisy"], "_type": "ClassLabel"}}}}
    table = pa.table({"uri": [f"cats/000{n}.jpg" for n in (1, 3, 5)], "label": pa.array([1.0, float("nan"), -1.0])})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), photos / "list.parquet")
    expected: dict[str, str | None] = {"cats/0001.jpg": "daisy", "cats/0003.jpg": None, "cats/0005.jpg": None}
    assert labels_of(photos / "list.parquet") == expected
    expected |= {"cats/0001.jpg": "two"}
    assert labels_of(photos / "list.parquet", label_names=("one", "two")) == expected
    (photos / "names.txt").write_text("one\ntwo\n")
    source = write_list(photos, "uri,label\ncats/0001.jpg,1\ncats/0003.jpg,\ncats/0005.jpg,-1\n")
    assert labels_of(source, label_names=(str(photos / "names.txt"),)) == expected


def test_a_label_that_cannot_be_used_names_its_line(photos: Path) -> None:
    source = write_list(photos, "uri,label\ncats/0001.jpg,1\ncats/0003.jpg,2\n")
    with pytest.raises(UsageError, match=r"list\.csv, line 3: label 2 has no name"):
        found(source, label_names=("one", "two"))
    lines = '{"file_name": "cats/0001.jpg", "label": "a"}\n{"file_name": "cats/0003.jpg", "label": ["a", "b;c"]}\n'
    (photos / "list.jsonl").write_text(lines)
    with pytest.raises(UsageError, match=r"list\.jsonl, line 2: label 'b;c' is in a list and has ; in it"):
        found(photos / "list.jsonl")
    table = pa.table({"uri": ["cats/0001.jpg", "cats/0003.jpg"], "label": [1.0, float("inf")]})
    pq.write_table(table, photos / "list.parquet")
    with pytest.raises(UsageError, match=r"list\.parquet, row 1: label inf is not a finite number"):
        found(photos / "list.parquet")


def test_a_list_that_was_cut_is_told(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(found(write_list(photos, "uri,label\ncats/0001.jpg,cat\n"))[0]) == 1
    assert not caplog.text
    found(write_list(photos, "uri,label\ncats/0001.jpg,cat\ncats/0003.jpg,ca"))
    assert "does not end with a line end" in caplog.text
    assert "may be half: 'cats/0003.jpg', label 'ca'" in caplog.text
    (photos / "cut.jsonl").write_text('{"file_name": "cats/0001.jpg"}\n{"file_name": "cats/00')
    with pytest.raises(UsageError, match=r"cut\.jsonl, line 2 is no JSON.*was the file cut\?"):
        found(photos / "cut.jsonl")
    packed = gzip.compress(b"uri\n" + b"".join(b"cats/%d.jpg\n" % n for n in range(1000)))
    (photos / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UsageError, match=r"cut\.csv\.gz is cut"):
        found(photos / "cut.csv.gz")


def test_names_in_a_bucket(bucket: str, s3_environment: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(f"s3://{bucket}")
    names = ["1.jpg", "photos/2.jpg", "photos/2.txt", "photos/2/3.jpg", "./4.jpg", "photos/5.jpg", "photos/5.png"]
    for name in names:
        store.create(name, name.encode())
    rows = [
        "photos/2",
        f"s3://{bucket}/1.jpg",
        "./4.jpg",
        "./photos//2.jpg",
        f"{store.uri}//photos/./2.jpg",
        "photos\\2\\3.jpg",
        "photos/5",
        "6",
    ]
    store.create("lists/a.csv", "\n".join(["uri", *rows, ""]).encode())
    source = f"{store.uri}/lists/a.csv"
    images, skipped = found(source, roots=(store.uri,))
    assert [(image.key.removeprefix(f"{store.uri}/"), image.label, image.size > 0) for image in images] == [
        ("6", None, False),
        ("photos/5", "photos", False),
        ("./4.jpg", None, True),
        ("1.jpg", None, True),  # not the bucket's name
        ("photos/2.jpg", "photos", True),
        ("photos/2/3.jpg", "2", True),
    ]
    assert skipped == {"(listed again)": 2}
    reading = resolve_reading(source, Reading(roots=(store.uri,)))
    assert list(open_source(source, reading).read(images[2:])) == [b"./4.jpg", *(name.encode() for name in names[0:2]),
                                                                   b"photos/2/3.jpg"]  # fmt: skip


def test_a_list_names_no_link_that_leads_out_of_its_places(photos: Path, tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"elsewhere/secret": tiny.jpeg(1)})
    (photos / "passwd.jpg").symlink_to(tmp_path / "elsewhere/secret")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("passwd.jpg", "linked/secret"):
        source = write_list(photos, f"uri\ncats/0001.jpg\n{name}\n")
        with pytest.raises(UsageError, match=rf"{name}.*leads out .*`roots` .*`follow_links`"):
            make_plan(str(source), str(tmp_path / "out"), tiny.spec())
        for reading in (Reading(roots=(str(tmp_path / "elsewhere"),)), Reading(follow_links=True)):
            images = list(open_source(str(source), reading).images(Counter()))
            assert [image.size > 0 for image in images] == [True, True]
