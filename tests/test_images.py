"""Which objects of a source are images, and their labels."""

import os
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import tiny

from bottleneck.files import Files
from bottleneck.folder import FolderStore
from bottleneck.images import Image, folder_label, no_image
from bottleneck.spec import Reading


def listed(folder: Path, labels: Literal["folder", "none"] = "folder") -> tuple[list[Image], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(Files(FolderStore(str(folder)), Reading(labels=labels)).images(skipped)), skipped


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("cats/1.jpg", "cats"),
        ("train/cats/1.jpg", "cats"),
        ("1.jpg", None),
        ("a b+%2F#?/1.jpg", "a b+%2F#?"),
        ("/1.jpg", None),
        ("cats//1.jpg", "cats"),
        ("./1.jpg", None),
        ("./cats/./1.jpg", "cats"),
        ("cats/../1.jpg", None),
        ("  /1.jpg", None),
        (" cats /1.jpg", "cats"),
        ("7.0/1.jpg", "7"),
        ("\u00e9/1.jpg", "\u00e9"),
    ],
)
def test_the_label_is_the_name_of_the_folder_that_holds_the_image(key: str, label: str | None) -> None:
    assert folder_label(key) == label


@pytest.mark.parametrize(
    "name",
    [
        "photo.jpg",
        "PHOTO.JPEG",
        "no suffix at all",
        "photo.2019",
        "Mr. Smith",
        "deep.zoom.png",
        "hash.0123456789abcdef",
        "scan.tif",
        "drawing.svg",
        "phone.heic",
        "a.b c",
        "ends with a dot.",
    ],
)
def test_what_may_be_an_image_by_its_name_is_planned(name: str) -> None:
    assert no_image(f"folder/{name}") == ""


@pytest.mark.parametrize(
    ("key", "suffix"),
    [
        ("notes.txt", ".txt"),
        ("NOTES.TXT", ".txt"),
        ("archive.tar.gz", ".gz"),
        (".DS_Store", ".ds_store"),
        ("cats/.hidden", ".hidden"),
        ("cats/._photo.jpg", "._*"),
        ("cats/", "(directory marker)"),
        ("labels.csv", ".csv"),
        ("s00000000-01234567.parquet", ".parquet"),
        ("Thumbs.db", ".db"),
        ("caf\udce9.jpg", "(name is not UTF-8)"),
    ],
)
def test_what_is_no_image_by_its_name_is_counted_by_suffix(key: str, suffix: str) -> None:
    assert no_image(key) == suffix


def test_every_object_of_a_source_is_either_listed_or_counted(tmp_path: Path) -> None:
    names = ["cats/1.jpg", "cats/notes.txt", "cats/more.txt", "dogs/2.PNG", "top.webp", ".DS_Store", "dogs/._2.PNG"]
    tiny.write_files(tmp_path, {name: name.encode() for name in names})
    images, skipped = listed(tmp_path)
    assert [(image.key, image.size, image.label) for image in images] == [
        ("cats/1.jpg", 10, "cats"),
        ("dogs/2.PNG", 10, "dogs"),
        ("top.webp", 8, None),
    ]
    assert skipped == {".txt": 2, ".ds_store": 1, "._*": 1}


def test_images_carry_what_tells_a_changed_one(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"a.jpg": b"1"})
    [before], _ = listed(tmp_path)
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    [after], _ = listed(tmp_path)
    assert before.etag
    assert after.etag != before.etag


def test_without_labels_no_image_has_one(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"cats/1.jpg": b"1", "2.jpg": b"2"})
    assert [image.label for image in listed(tmp_path, "none")[0]] == [None, None]


def test_a_name_that_is_not_utf8_is_counted_and_hurts_no_other(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"a.jpg": b"1", "z.jpg": b"2"})
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"3")
    images, skipped = listed(tmp_path)
    assert [image.key for image in images] == ["a.jpg", "z.jpg"]
    assert skipped == {"(name is not UTF-8)": 1}
