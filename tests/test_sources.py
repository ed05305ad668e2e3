"""What kind of source a place is, told from its name and from what it holds."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from test_tables import hugging_face
from test_webdataset import samples, tar

from bottleneck.errors import UsageError
from bottleneck.plan import load_plan, make_plan
from bottleneck.sources import open_source, resolve_reading
from bottleneck.spec import Reading


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source of every kind, and some of two."""
    tiny.write_files(tmp_path, {"photos/cats/1.jpg": tiny.jpeg(1), "tars/0.tar": tar(samples(range(2)))})
    hugging_face(tmp_path / "tables" / "0.parquet", range(3))
    tiny.write_files(tmp_path, {"photos/old.tar": b"", "tars/README": b"", "tables/_SUCCESS": b"", "texts/a.txt": b""})
    (tmp_path / "list.csv").write_text("uri\nphotos/cats/1.jpg\n")
    pq.write_table(pa.table({"uri": ["photos/cats/1.jpg"]}), tmp_path / "list.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("photos", "files"),
        ("tars", "webdataset"),
        ("tars/0.tar", "webdataset"),
        ("tables", "parquet"),
        ("tables/0.parquet", "parquet"),
        ("list.csv", "list"),
        ("list.parquet", "list"),
        ("texts", "files"),
        ("nowhere", "files"),
    ],
)
def test_the_form_of_a_source_is_told_from_what_it_is(place: Path, source: str, form: str) -> None:
    assert resolve_reading(str(place / source), Reading()).source_format == form


def test_a_form_that_is_asked_for_is_taken(place: Path) -> None:
    reading = Reading(source_format="webdataset")
    assert resolve_reading(str(place / "photos"), reading) == reading
    with pytest.raises(UsageError, match=r"old\.tar is no tar file"):
        make_plan(str(place / "photos"), str(place / "out"), tiny.spec(), reading=reading)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("source", "form", "words"),
    [
        ("list.csv", "files", "Expected a folder or prefix with images"),
        ("photos", "list", "A list is one file"),
        ("texts", "auto", r"only other files: 1 x \.txt"),
        ("texts", "webdataset", r"only other files: 1 x \.txt"),
        ("photos", "parquet", "images beside the containers"),
    ],
)
def test_a_source_of_another_form_is_told(place: Path, source: str, form: str, words: str) -> None:
    reading = Reading(source_format=form)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=words):
        make_plan(str(place / source), str(place / "out"), tiny.spec(), reading=reading)
    assert not (place / "out").exists()


def test_a_plan_keeps_how_its_source_is_read(place: Path) -> None:
    plan = make_plan(str(place / "tables"), str(place / "out"), tiny.spec(), reading=Reading(label_column="label"))
    assert plan.reading == Reading(source_format="parquet", label_column="label")
    assert load_plan(str(place / "out")) == plan
    tiny.write_files(place, {"tables/a.jpg": tiny.jpeg(1)})  # what would be told otherwise now
    assert type(open_source(plan.source, plan.reading)).__name__ == "Table"


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "photos.tgz", "Photos.TAR.BZ2"])
def test_archives_are_told(tmp_path: Path, name: str) -> None:
    tiny.write_files(tmp_path, {f"in/{name}": b"PK"})
    for source in (f"in/{name}", "in"):
        with pytest.raises(UsageError, match=r"cannot be read one by one.*unpack"):
            make_plan(str(tmp_path / source), str(tmp_path / "out"), tiny.spec())


def test_a_list_may_have_any_name_where_it_is_said_to_be_one(place: Path) -> None:
    (place / "list.txt").write_text("uri;label\nphotos/cats/1.jpg;cat\n")
    reading = Reading(source_format="list")
    plan = make_plan(str(place / "list.txt"), str(place / "out"), tiny.spec(), reading=reading)
    assert plan.label_counts == {"cat": 1}
