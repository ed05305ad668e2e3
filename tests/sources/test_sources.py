"""What kind of source a place is, told from its name and from what it holds."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from test_parquet_images import hugging_face
from test_webdataset import samples, tar

from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import load_plan
from bottleneck.errors import UsageError
from bottleneck.sources import open as sources
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Reading, SourceFormat


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source of every kind, and some of two."""
    tiny.write_files(tmp_path, {"photos/cats/1.jpg": tiny.jpeg(1), "tars/0.tar": tar(samples(range(2)))})
    hugging_face(tmp_path / "tables" / "0.parquet", range(3))
    tiny.write_files(tmp_path, {"photos/old.zip": b"", "tars/README": b"", "tables/_SUCCESS": b"", "texts/a.txt": b""})
    tiny.write_files(tmp_path, {"photos/.cache/0.tar": b"", "tars/._0.tar": b"", "tars/__MACOSX/0.jpg": b""})
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
    tiny.write_files(place, {"photos/old.tar": b"no tar at all " * 99})
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


MIXED = {
    "a cover beside tars": ("tars", {"cover.png": b""}, r"image files \(1; .* files\) and tars \(1; .* webdataset\)"),
    "a tar beside photos": ("photos", {"old.tar": b""}, r"image files \(1; .* files\) and tars \(1; .* webdataset\)"),
    "tables beside tars": (
        "tars",
        {"a.parquet": b"", "b.pq": b""},
        r"tars \(1; .* webdataset\) and Parquet files \(2; .* parquet\)",
    ),
}


@pytest.mark.parametrize("stray", MIXED)
def test_a_source_of_several_kinds_is_refused_with_both_counts(place: Path, stray: str) -> None:
    source, files, words = MIXED[stray]
    tiny.write_files(place / source, files)
    with pytest.raises(UsageError, match=words):
        make_plan(str(place / source), str(place / "out"), tiny.spec())
    assert not (place / "out").exists()


@pytest.mark.parametrize("stray", MIXED)
def test_what_is_met_behind_the_first_objects_counts_too(
    place: Path, stray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, files, _ = MIXED[stray]
    later = {f"z/{name}": data for name, data in files.items()}
    tiny.write_files(place / source, later)
    monkeypatch.setattr(sources, "NUM_LOOKED_AT", 1 if source == "photos" else 2)
    with pytest.raises(UsageError, match=rf"kinds of sources in .*(tars|image files|Parquet files) \({len(files)}; "):
        make_plan(str(place / source), str(place / "out"), tiny.spec())
    assert load_plan(str(place / "out")) is None


@pytest.mark.parametrize(("form", "num_images"), [("files", 1), ("webdataset", 2)])
def test_a_kind_that_is_named_is_taken_from_a_source_of_several(
    place: Path, form: SourceFormat, num_images: int
) -> None:
    tiny.write_files(place, {"tars/cover.png": tiny.jpeg(1)})
    plan = make_plan(str(place / "tars"), str(place / "out"), tiny.spec(), reading=Reading(source_format=form))
    assert plan.num_images == num_images
    assert plan.grown[0].skipped.keys() & {".tar", "(images beside the containers)"}


def test_links_that_lead_out_are_told_and_remedied(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "linked").mkdir()
    (place / "linked/cats").symlink_to(place / "photos/cats")
    with pytest.raises(UsageError, match=r"1 x \(link out of the source\).*`roots`.*`follow_links`"):
        make_plan(str(place / "linked"), str(place / "out"), tiny.spec())
    tiny.write_files(place, {"linked/dogs/1.jpg": tiny.jpeg(1)})
    with caplog.at_level("WARNING"):
        plan = make_plan(str(place / "linked"), str(place / "out"), tiny.spec())
    assert plan.label_counts == {"dogs": 1}
    assert "not followed: 1 link out of" in caplog.text
    plan = make_plan(str(place / "linked"), str(place / "all"), tiny.spec(), reading=Reading(follow_links=True))
    assert plan.label_counts == {"cats": 1, "dogs": 1}


def test_a_container_that_is_a_link_is_followed_where_it_is_named(place: Path) -> None:
    (place / "elsewhere").mkdir()
    (place / "elsewhere/0.tar").symlink_to(place / "tars/0.tar")
    plan = make_plan(str(place / "elsewhere/0.tar"), str(place / "out"), tiny.spec())
    assert len(list(open_source(plan.source, plan.reading).read(list(plan.images())))) == 2
    with pytest.raises(UsageError, match="link out of the source"):
        make_plan(str(place / "elsewhere"), str(place / "other"), tiny.spec())


def test_an_output_in_the_source_makes_it_no_source_of_several_kinds(place: Path) -> None:
    for name in ("one", "two"):
        plan = make_plan(str(place / "photos"), str(place / "photos" / name), tiny.spec())
        assert plan.num_images == 1
    assert plan.grown[0].skipped["(part of an output)"] == 1
