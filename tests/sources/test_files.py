"""Which objects of a source are images, and their labels."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny

from bottleneck.errors import UsageError
from bottleneck.sources import files
from bottleneck.sources.image import Image, folder_label, no_image
from bottleneck.sources.open import open_source
from bottleneck.sources.places import open_place
from bottleneck.sources.reading import Reading
from bottleneck.storage.local import MOST_LINKS
from bottleneck.storage.source_folder import SourceFolder
from bottleneck.storage.store import ObjectGoneError, Wanted


def listed(
    folder: Path, labels: Literal["folder", "none"] = "folder", **reading: Any
) -> tuple[list[Image], Counter[str]]:
    skipped: Counter[str] = Counter()
    asked = Reading(labels=labels, source_format="files", **reading)
    return list(open_source(str(folder), asked).images(skipped)), skipped


def keys(folder: Path, **reading: Any) -> tuple[list[str], dict[str, int]]:
    images, skipped = listed(folder, **reading)
    return [image.key for image in images], dict(skipped)


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
        ("../1.jpg", None),
        ("cats/../1.jpg", None),
        (".hidden/1.jpg", None),
        ("cats/__MACOSX/1.jpg", None),
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
        "../folder/photo.jpg",
        "./photo.jpg",
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
        (".ipynb_checkpoints/1.jpg", "(in a hidden folder)"),
        ("cats/.thumbnails/small/1.jpg", "(in a hidden folder)"),
        ("__MACOSX/cats/1.jpg", "(in a system folder)"),
        ("cats/@eaDir/1.jpg", "(in a system folder)"),
        ("$RECYCLE.BIN/1.jpg", "(in a system folder)"),
        ("out/data/s00000000-01234567.parquet", "(part of an output)"),
        ("plan/01234567-00000000-89abcdef.parquet", "(part of an output)"),
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


# Names that do not say what they are


NO_IMAGES = {"LICENSE": b"MIT", "_SUCCESS": b"", "cats/README": b"# Cats", "photo.2019": b"<html>"}


def test_what_neither_name_nor_bytes_call_an_image_is_counted_beside_others_that_are(tmp_path: Path) -> None:
    photo = tiny.jpeg(1)
    tiny.write_files(tmp_path, {**NO_IMAGES, "cats/1.jpg": b"<html>", "cats/2": photo, "photo.2020": photo})
    # What has the name of an image is one, whatever it turns out to be.
    assert keys(tmp_path) == (["cats/1.jpg", "cats/2", "photo.2020"], {"(no suffix, no image)": 4})


def test_where_no_name_has_a_suffix_all_may_be_images(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, NO_IMAGES)
    assert keys(tmp_path) == (sorted(NO_IMAGES), {})


def test_names_are_looked_at_a_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "NUM_LOOKED_AT", 3)
    tiny.write_files(tmp_path, {f"{n}.jpg": b"1" for n in range(7)} | {"5": b"text", "6": tiny.jpeg(6), "z": b"text"})
    found, skipped = keys(tmp_path)
    assert found == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6", "6.jpg"]
    assert skipped == {"(no suffix, no image)": 2}


# Links


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source with two photos, and beside it things that are none of its business."""
    tiny.write_files(tmp_path, {"source/cats/1.jpg": b"1", "source/dogs/2.jpg": b"2", "other/birds/3.jpg": b"3"})
    (tmp_path / "secret").write_bytes(tiny.jpeg(4))
    return tmp_path


def test_links_that_lead_out_of_the_source_are_counted_and_not_followed(place: Path) -> None:
    source = place / "source"
    (source / "birds").symlink_to(place / "other/birds")
    (source / "secret.jpg").symlink_to(place / "secret")
    (source / "up").symlink_to("..")
    (source / "twice.jpg").symlink_to("secret.jpg")
    (source / "inside.jpg").symlink_to("cats/1.jpg")
    (source / "felines").symlink_to("cats")
    inside = ["cats/1.jpg", "dogs/2.jpg", "felines/1.jpg", "inside.jpg"]
    assert keys(source) == (inside, {"(link out of the source)": 4})
    roots = (str(place / "other"),)
    assert keys(source, roots=roots) == (["birds/3.jpg", *inside], {"(link out of the source)": 3})
    found, skipped = keys(source, follow_links=True)
    assert {"birds/3.jpg", "secret.jpg", "twice.jpg", "up/other/birds/3.jpg"} <= set(found)
    assert skipped == {"(link to a folder above)": 1}


def test_a_link_that_is_put_in_a_planned_images_place_is_not_read(place: Path) -> None:
    source = place / "source"
    store = open_place(str(source), Reading())
    (source / "cats").rename(place / "cats")
    (source / "cats").symlink_to(place / "cats")
    assert store.stat("cats/1.jpg") is None
    with pytest.raises(ObjectGoneError):
        store.get(Wanted("cats/1.jpg", 1, ""))
    assert SourceFolder(str(source), None).get(Wanted("cats/1.jpg", 1, "")) == b"1"


def test_a_source_that_is_a_link_itself_is_what_it_leads_to(place: Path) -> None:
    (place / "link").symlink_to("source")
    assert keys(place / "link") == (["cats/1.jpg", "dogs/2.jpg"], {})


def test_a_link_to_a_folder_above_it_is_counted_and_entered_once(place: Path) -> None:
    source = place / "source"
    for name in ("cats/a", "cats/b", "dogs/a"):
        (source / name).symlink_to(source)
    (source / "dogs/self").symlink_to(".")
    assert keys(source) == (["cats/1.jpg", "dogs/2.jpg"], {"(link to a folder above)": 4})


def test_two_links_to_one_folder_are_two_folders(place: Path) -> None:
    source = place / "source"
    for name in ("train", "val"):
        (source / name).mkdir()
        (source / name / "cats").symlink_to("../cats")
    assert keys(source)[0] == ["cats/1.jpg", "dogs/2.jpg", "train/cats/1.jpg", "val/cats/1.jpg"]


def test_links_from_folder_to_folder_end_soon(tmp_path: Path) -> None:
    """Forty folders, each with two links to the next: 2 ** 40 names for one photo."""
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        for name in ("a", "b"):
            (tmp_path / str(number) / name).symlink_to(tmp_path / str(number + 1))
    tiny.write_files(tmp_path, {"40/photo.jpg": b"1"})
    with pytest.raises(UsageError, match=f"more than {MOST_LINKS:,} times"):
        keys(tmp_path)


def test_what_is_neither_file_nor_folder_is_counted(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"1.jpg": b"1"})
    (tmp_path / "nowhere.jpg").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert keys(tmp_path) == (["1.jpg"], {"(link to nothing)": 1, "(special file)": 1})
