"""One notion of a label, wherever it comes from."""

from __future__ import annotations

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import tiny
from assets import asset

from bottleneck.dataset.differences import differences
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import load_plan
from bottleneck.errors import UsageError
from bottleneck.sources.labels import LabelError, as_label, look_alikes, numbered, read_label_names
from bottleneck.sources.reading import Reading


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *[(None, None), ("", None), (" \t", None), (float("nan"), None), ("nan", None), ("NaN", None)],
        *[(-1, None), (-1.0, None), ("-1", None), ("-1.0", None), ("-0.5", None), (Decimal("-3"), None)],
        *[(1, "1"), (1.0, "1"), ("1", "1"), ("1.0", "1"), ("10.00", "10"), (Decimal("1.00"), "1"), (0, "0")],
        *[("007", "007"), ("1.50", "1.50"), (0.5, "0.5"), ("0.5", "0.5"), ("v1.0", "v1.0"), ("1.0.0", "1.0.0")],
        *[(" daisy\n", "daisy"), (b" daisy ", "daisy"), ("sea star", "sea star"), ("Nan", "Nan"), ("-", "-")],
        *[(True, "True"), ("True", "True"), (1e20, str(10**20)), (-0.0, "0")],
    ],
)
def test_a_value_means_one_label(value: Any, label: str | None) -> None:
    assert as_label(value) == label


@pytest.mark.parametrize(
    "value", [{"a": 1}, ["daisy", {"a": 1}], ["daisy;white"], b"\xff", float("inf"), "half a pair \ud800"]
)
def test_a_value_that_cannot_be_a_label_is_an_error(value: Any) -> None:
    with pytest.raises(LabelError):
        as_label(value)


@pytest.mark.parametrize(
    ("value", "label"),
    [([], ";"), (["daisy"], "daisy"), (["white", " daisy ", "white", None, ""], "daisy;white"), ([2, 1.0], "1;2")],
)
def test_a_list_is_a_set_of_names(value: Any, label: str) -> None:
    assert as_label(value) == label
    assert as_label([1, 0], ("daisy", "tulip")) == "daisy;tulip"


@pytest.mark.parametrize(
    "text",
    [
        "daisy\ntulip\nlily, white\n",
        "0,daisy\n2,lily, white\n1,tulip\n",
        '["daisy", "tulip", "lily, white"]',
        '{"1": "tulip", "0": "daisy", "2": "lily, white"}',
        '{"daisy": 0, "lily, white": 2, "tulip": 1}',
        '{"0": ["n1", "daisy"], "1": ["n2", "tulip"], "2": ["n3", "lily, white"]}',
    ],
)
def test_class_names_are_read_in_any_usual_form(text: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text)
    assert read_label_names(str(tmp_path / "names")) == ("daisy", "tulip", "lily, white")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"0": "daisy", "2": "tulip"}', "does not number its 2 classes from 0 on"),
        ('{"0": "daisy", "1": null}', "does not number its 2 classes"),
        ("0,daisy\n0,tulip\n", "does not number its 2 classes"),
        ('["daisy", ', "begins like JSON and is none"),
        ('["daisy", "daisy"]', "Class 1 has the name 'daisy'"),
    ],
)
def test_class_names_that_are_none_are_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(UsageError, match=told):
        read_label_names(str(tmp_path / "names"))


def test_imagenets_class_index_is_read() -> None:
    names = read_label_names(str(asset("weights/imagenet_class_index.json")))
    assert (len(names), names[281], names[134], names[517]) == (1000, "tabby", "crane (n02012849)", "crane (n03126707)")


def test_names_stand_for_numbers() -> None:
    names = ("daisy", "tulip")
    values = [0, 1.0, "1", "01", b"0", "tulip", None, -1, "nan"]
    meant = ["daisy", "tulip", "tulip", "tulip", "daisy", "tulip", None, None, None]
    assert [as_label(value, names) for value in values] == meant
    with pytest.raises(LabelError, match="label 2 has no name: there are 2, for the numbers 0 to 1"):
        as_label(2, names)
    with pytest.raises(LabelError, match="'rose' is neither a number nor one of the 2 class names"):
        as_label("rose", names)


def test_label_names_are_read_from_a_file_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffred daisy\r\n blue tulip \r\n\n".encode())
    reading = Reading(label_names=(str(file),))
    assert reading.label_names == ("red daisy", "blue tulip")
    assert Reading(label_names=("red daisy", "blue tulip")) == reading
    assert Reading.from_json(reading.to_json()) == reading
    photos = tiny.write_files(tmp_path / "photos", {"0/a.jpg": tiny.jpeg(0), "1/b.jpg": tiny.jpeg(1)})
    make_plan(str(photos), str(tmp_path / "out"), tiny.spec(), reading=reading)
    file.unlink()
    plan = load_plan(str(tmp_path / "out"))
    assert plan is not None
    assert plan.label_counts == {"blue tulip": 1, "red daisy": 1}
    tiny.write_files(photos, {"rose/c.jpg": tiny.jpeg(2)})
    with pytest.raises(UsageError, match=r"The folder of 'rose/c\.jpg': label 'rose' is neither a number"):
        make_plan(str(photos), str(tmp_path / "new"), tiny.spec(), reading=reading)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("daisy\n\ntulip\n", "Class 1 has no name"),
        ("daisy\ntulip\ndaisy \n", "Class 2 has the name 'daisy', as class 0"),
        ("daisy\n", "holds 1 class name"),
        ("", "holds 0 class names"),
        (None, "cannot be read"),
    ],
)
def test_label_names_that_are_none_are_told(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UsageError, match=words):
        Reading(label_names=(str(tmp_path / "names.txt"),))


def test_numbers_keep_their_order() -> None:
    assert numbered(["10", "9", "1", "09"]) == ["1", "09", "9", "10"]
    assert numbered(["10", "9", "one"]) == ["10", "9", "one"]


def test_labels_that_look_alike_are_found() -> None:
    labels = [
        "Daisy",
        "daisy",
        "sea star",
        "sea  star",
        "SeaStar",
        "caf\u00e9",
        "cafe\u0301",
        "tu\u200blip",
        "tulip",
        "rose",
    ]
    groups = [{"Daisy", "daisy"}, {"sea star", "sea  star", "SeaStar"}, {"caf\u00e9", "cafe\u0301"}]
    assert sorted(map(sorted, look_alikes(labels))) == sorted(map(sorted, [*groups, {"tu\u200blip", "tulip"}]))
    assert look_alikes(["1", "10", "daisy"]) == []


def test_planning_warns_of_labels_that_look_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {f"{label}/{n}.jpg": tiny.jpeg(n) for n, label in enumerate(["Daisy", "daisy", "tulip"])}
    tiny.write_files(tmp_path / "photos", files)
    with caplog.at_level(logging.WARNING, "bottleneck"):
        make_plan(str(tmp_path / "photos"), str(tmp_path / "out"), tiny.spec())
    assert "'Daisy' (1) and 'daisy' (1)" in caplog.text


def test_other_names_are_another_plan(tmp_path: Path) -> None:
    tiny.write_files(tmp_path / "photos", {"0/a.jpg": tiny.jpeg(0)})
    names = tuple(f"class {n}" for n in range(1000))
    make_plan(str(tmp_path / "photos"), str(tmp_path / "out"), tiny.spec(), reading=Reading(label_names=names))
    plan = load_plan(str(tmp_path / "out"))
    assert plan is not None
    message = differences(plan, {"reading": Reading(label_names=names[::-1]).asked()})
    assert message is not None
    assert "label_names: planned class 0 class 1 " in message
    assert "... (1,000 in all), requested class 999 " in message
    assert len(message) < 1000
    assert differences(plan, {"reading": Reading(label_names=names).asked()}) is None
    assert differences(plan, {"reading": Reading().asked()}) is None
