"""CSV and Parquet lists as sources: order, labels, what they may name, and lists longer than the memory."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from bottleneck import lists
from bottleneck.errors import UsageError
from bottleneck.extend import extend_plan
from bottleneck.extract import extract_local
from bottleneck.features import open_features
from bottleneck.images import Image
from bottleneck.objects import ObjectGoneError
from bottleneck.plan import make_plan
from bottleneck.sources import open_source, resolve_reading
from bottleneck.spec import Reading
from bottleneck.store import open_store
from bottleneck.verify import verify


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
        ("dogs/0000.jpg", "dogs"),  # where the list says none, the folder does
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
    with pytest.raises(UsageError, match=r"outside the places it may name: .*--roots"):
        found(source)


def test_roots_are_places_a_list_may_name(photos: Path, tmp_path: Path) -> None:
    other = tiny.photos(tmp_path / "other", 3, first=20)
    rows = f"uri\n{other}/cats/0021.jpg\nfile://{other}/dogs/0020.jpg\n{photos}/cats/0001.jpg\ncats/0003.jpg\n"
    source = write_list(photos, rows)
    reading = resolve_reading(str(source), Reading(roots=(str(other),)))
    images = list(open_source(str(source), reading).images(Counter()))
    keys = [image.key for image in images]
    assert keys == sorted(line for line in rows.split("\n")[1:] if line)
    expected = [tiny.jpeg({"0021": 21, "0020": 20, "0001": 1, "0003": 3}[key[-8:-4]]) for key in keys]
    assert list(open_source(str(source), reading).read(images)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "--image-column"),
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
    with pytest.raises(UsageError, match="among: uri, kind"):
        found(source, image_column="path")
    with pytest.raises(UsageError, match="no column class of labels"):
        found(source, label_column="class")


def test_a_list_longer_than_what_is_sorted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "ROWS_SORTED_AT_ONCE", 100)
    names = [f"{n:05d}.jpg" for n in range(950)]
    shuffled = random.Random(0).sample(names, len(names))
    source = write_list(tmp_path, "uri,label\n" + "".join(f"{name},{name[0]}\n" for name in shuffled + shuffled[:7]))
    images, skipped = found(source)
    assert [image.key for image in images] == names
    assert skipped == {"(listed again)": 7}


def test_from_a_list_to_features(photos: Path, tmp_path: Path) -> None:
    source = write_list(photos, "uri,label\ndogs/0002.jpg,dog\ncats/0001.jpg,cat\ncats/gone.jpg,cat\n")
    summary = extract_local(str(source), str(tmp_path / "out"), tiny.REQUEST, max_rejected=0.5)
    assert (summary.images, summary.ok, summary.rejected) == (3, 2, {"missing": 1})
    _, labels, keys = open_features(str(tmp_path / "out")).arrays()
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
        extract_local(str(source), str(tmp_path / "out"), tiny.REQUEST, reading=reading)
        monkeypatch.chdir(folder)
        reading = Reading(roots=(str(photos),))
    assert open_features(str(tmp_path / "out")).arrays()[2].tolist() == [f"{photos}/cats/0001.jpg"]


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
    assert lists._leaves(root, path) == leaves


def test_names_no_file_can_have_are_missing(photos: Path) -> None:
    pq.write_table(pa.table({"uri": ["a\0b.jpg", "x" * 300 + ".jpg"]}), photos / "list.parquet")
    images, _ = found(photos / "list.parquet")
    assert [image.etag for image in images] == ["", ""]
    data = list(
        open_source(str(photos / "list.parquet"), resolve_reading(str(photos / "list.parquet"), Reading())).read(images)
    )
    assert [type(one) for one in data] == [ObjectGoneError] * 2


def test_what_is_said_twice_once_without_a_label_is_told(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "ROWS_SORTED_AT_ONCE", 2)
    source = write_list(photos, "uri,label\na.jpg,x\nb.jpg,x\na.jpg,\nc.jpg,x\n")
    with pytest.raises(UsageError, match="two labels"):
        found(source)


def test_a_header_may_have_spaces_and_a_mark(photos: Path) -> None:
    (photos / "list.csv").write_bytes("\ufeffuri, label\r\ncats/0001.jpg, cat\r\n\r\n".encode())
    assert [(image.key, image.label) for image in found(photos / "list.csv")[0]] == [("cats/0001.jpg", " cat")]


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
    assert [image.key for image in images] == ["2.jpg", "no.jpg", f"s3://{bucket}/place/1.jpg"]
    data = list(open_source(source, Reading()).read(images))
    assert [data[0], data[2]] == [tiny.jpeg(2), tiny.jpeg(1)]
    assert isinstance(data[1], ObjectGoneError)
