"""Plans of some of the images: by patterns, the first ones, a sample; resumed, refused, and extended into the whole."""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_parquet_images import hugging_face
from test_requeue import World, keys, pictures
from test_webdataset import samples, tar

from bottleneck.audit.verify import verify
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.errors import CorruptError, FingerprintError, UsageError
from bottleneck.extract.open_plan import open_or_make_plan
from bottleneck.inspect.status import look
from bottleneck.sources import sampling
from bottleneck.sources.image import Image
from bottleneck.sources.reading import Limits
from bottleneck.sources.sampling import sampled
from bottleneck.sources.selection import Selected, Selection
from jobs.__main__ import main


def photos(folder: Path, num_images: int) -> Path:
    """Photos by their names, half of cats and half of dogs, each with a mask beside it."""
    names = [f"{'cats' if n % 2 else 'dogs'}/{n:04d}" for n in range(num_images)]
    return tiny.write_files(folder, {f"{name}{end}": b"" for name in names for end in (".jpg", ".seg.png")})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", 20)


def planned(source: Path, name: str = "features", **selection: Any) -> Plan:
    output = source.parent / name
    return make_plan(str(source), str(output), tiny.spec(), selection=Selection(**selection), shard_size=4)


def keys_of(plan: Plan) -> list[str]:
    return [image.key for image in plan.images()]


def image(key: str) -> Image:
    return Image(key, 1, "etag", None)


# What is selected


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, 40),
        ({"include": ("*.jpg",)}, 20),
        ({"exclude": ("*.seg.png",)}, 20),
        ({"include": ("cats/*",), "exclude": ("*.seg.png",)}, 10),
        ({"include": ("cats/000[13].jpg", "dogs/*.jpg")}, 12),
        ({"include": ("*9*",), "limit": 3}, 3),
    ],
)
def test_patterns_stand_for_whole_keys_and_their_star_for_slashes(
    source: Path, selection: dict[str, Any], expected: int
) -> None:
    plan = planned(source, **selection)
    assert plan.num_images == len(keys_of(plan)) == expected
    if "exclude" in selection:
        assert all(key.endswith(".jpg") for key in keys_of(plan))


def test_a_limit_takes_the_first_images_by_key(source: Path) -> None:
    everything = keys_of(planned(source, "all"))
    assert keys_of(planned(source, limit=7)) == everything[:7]


def test_a_sample_depends_on_keys_and_seed_alone() -> None:
    images = [image(f"photos/{n}") for n in range(1000)]
    few, many = list(sampled(iter(images), 50, 0)), list(sampled(iter(images), 400, 0))
    assert (len(few), len(many)) == (50, 400)
    assert set(few) < set(many), "it can grow without losing any"
    assert few == sorted(few, key=images.index), "in the order of the listing"
    assert list(sampled(reversed(images), 50, 0)) == few[::-1]
    assert len({*few} & {*sampled(iter(images), 50, 1)}) < 15
    assert list(sampled(iter(images), 2000, 0)) == images
    of_halves = Counter(images.index(one) < 500 for one in many)
    assert 160 < of_halves[True] < 240


def test_a_sample_that_does_not_fit_in_memory_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = [Image(f"{n:05d}", n, "etag", "cats" if n % 2 else None, n, n, "0.tar") for n in range(5000)]
    expected = list(sampled(iter(images), 900, 3))
    monkeypatch.setattr(sampling, "NUM_HELD", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    drawn = sampled(iter(images), 900, 3)
    first = next(drawn)
    assert [path.name for path in tmp_path.rglob("*.arrow")] == ["images.arrow"]
    assert [first, *drawn] == expected
    assert list(tmp_path.iterdir()) == []


def test_the_memory_of_a_sample_does_not_grow_with_the_listing() -> None:
    tracemalloc.start()
    try:
        assert sum(1 for _ in sampled((image(f"{n:020d}") for n in range(40_000)), 20, 0)) == 20
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # 40,000 images in a list take 12 MB
    finally:
        tracemalloc.stop()


def test_a_limit_reads_no_more_of_the_listing_than_it_needs() -> None:
    listing = map(image, map(str, itertools.count()))
    assert len(list(Selected(Selection(limit=5)).of(listing))) == 5
    assert next(listing).key == "5"


def test_more_than_there_is_takes_all_and_says_so(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bottleneck"):
        assert planned(source, "sample", include=("*.jpg",), sample=50).num_images == 20
        assert planned(source, "limit", limit=41).num_images == 40
    assert "include *.jpg, sample 50, seed 0: there are 20 images, and all of them are planned" in caplog.messages
    assert "limit 41: there are 40 images, and all of them are planned" in caplog.messages


@pytest.mark.parametrize("kind", ["tars", "parquet", "list"])
def test_images_of_every_kind_of_source_are_selected_by_key(tmp_path: Path, kind: str) -> None:
    source = tmp_path / kind
    if kind == "tars":
        tiny.write_files(source, {f"{n}.tar": tar(samples(range(n * 4, n * 4 + 4))) for n in range(3)})
    elif kind == "parquet":
        for n in range(3):
            hugging_face(source / f"{n}.parquet", range(n * 4, n * 4 + 4))
    else:
        names = [f"{n % 3}/{n}.jpg" for n in reversed(range(12))]
        tiny.write_files(source, {**dict.fromkeys(names, b"x"), "list.csv": "\n".join(["path", *names]).encode()})
        source = source / "list.csv"
    everything = keys_of(planned(source, "all"))
    assert len(everything) == 12
    plan = planned(source, "first", limit=5)
    assert keys_of(plan) == everything[:5]
    assert keys_of(planned(source, "included", include=("1*",))) == [key for key in everything if key[0] == "1"]
    drawn = keys_of(planned(source, "drawn", sample=6, seed=2))
    assert len(drawn) == 6
    assert keys_of(extend_plan(plan)[0]) == everything
    assert set(drawn) < set(everything)


def test_tars_behind_a_limit_are_not_read(tmp_path: Path) -> None:
    contents = {f"{n:02d}.tar": tar({"a.jpg": b"1", "b.jpg": b"2"}) for n in range(20)}
    source = tiny.write_files(tmp_path / "tars", {**contents, "19.tar": b"no tar"})
    assert planned(source, limit=3).num_images == 3
    with pytest.raises(UsageError, match=r"19\.tar"):
        planned(source, "all")


# What is refused


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"limit": 0}, "`limit` takes a number of images from 1 up. Received: 0"),
        ({"sample": -5}, "`sample` takes a number of images from 1 up. Received: -5"),
        ({"limit": 2.5}, "Received: 2.5"),
        ({"limit": 5, "sample": 6}, "either `limit`, .* or `sample`, .* Received both: 5 and 6"),
        ({"seed": 3}, "`seed` selects a sample, so it takes `sample` as well"),
        ({"sample": 3, "seed": 1.5}, "`seed` takes a whole number. Received: 1.5"),
        ({"include": "*.jpg"}, r"`include` takes a tuple of patterns, none of them empty. Received: '\*.jpg'"),
        ({"exclude": ("",)}, "`exclude` takes a tuple of patterns, none of them empty"),
    ],
)
def test_a_selection_that_makes_no_sense_is_told(selection: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Selection(**selection)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"include": ("*.jpg", "birds/*")}, r"`include` 'birds/\*' matches none of the 40 keys looked at in .*photos"),
        ({"exclude": ("*.SEG.png",), "sample": 3}, r"`exclude` '\*.SEG.png' matches none of the 40 keys"),
        ({"include": ("cats/*",), "exclude": ("cats*",)}, "`include` and `exclude` leave none of the 40 keys"),
    ],
)
def test_patterns_that_match_nothing_are_told_with_keys_that_are_there(
    source: Path, selection: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as error:
        planned(source, **selection)
    assert "'cats/0001.jpg', 'cats/0001.seg.png', 'cats/0003.jpg', ..." in str(error.value)
    assert not (source.parent / "features").exists()


def test_a_source_without_images_is_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty or does not exist"):
        planned(tmp_path / "nothing", include=("*.jpg",))


@pytest.mark.parametrize("asked", [{}, {"sample": 9}, {"sample": 9, "seed": 4}, {"include": ("*.jpg", "*.j*")}])
def test_a_plan_is_resumed_without_its_selection_or_with_the_same(source: Path, asked: dict[str, Any]) -> None:
    plan = planned(source, include=("*.j*", "*.jpg"), sample=9, seed=4)
    request = tiny.REQUEST
    again = open_or_make_plan(
        str(source), plan.output, request, limits=Limits(), selection=Selection(**asked), shard_size=4
    )
    assert again == plan == load_plan(plan.output)
    assert again.selection.to_json() == {
        "include": ["*.j*", "*.jpg"],
        "exclude": [],
        "limit": None,
        "sample": 9,
        "seed": 4,
    }


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"limit": 8}, "limit: planned 7, requested 8"),
        ({"limit": 7, "include": ("dogs/*",)}, r"include: planned cats/\*, requested dogs/\*"),
        ({"sample": 7}, "sample: planned None, requested 7"),
    ],
)
def test_another_selection_is_refused_and_told_how_to_go_on(source: Path, asked: dict[str, Any], words: str) -> None:
    plan = planned(source, include=("cats/*",), limit=7)
    for make in (
        lambda: open_or_make_plan(
            str(source), plan.output, tiny.REQUEST, limits=Limits(), selection=Selection(**asked)
        ),
        lambda: planned(source, **asked),
    ):
        with pytest.raises(FingerprintError, match=words):
            make()
    with pytest.raises(FingerprintError, match=r"another selection of images.*`extract --extend`"):
        open_or_make_plan(str(source), plan.output, tiny.REQUEST, limits=Limits(), selection=Selection(**asked))
    assert load_plan(plan.output) == plan


def test_several_planners_at_once_with_one_selection_get_one_plan(source: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: planned(source, sample=5), range(4)))
    assert plans == plans[:1] * 4


def test_the_fingerprint_is_the_same_and_the_plans_digest_is_not(source: Path) -> None:
    everything, some = planned(source, "all"), planned(source, "some", sample=5)
    assert everything.spec.fingerprint == some.spec.fingerprint
    assert everything.sha256 != some.sha256


def test_a_selection_that_is_none_is_called_damaged(source: Path) -> None:
    path = Path(planned(source, limit=5).output) / "plan.json"
    document = json.loads(path.read_text())
    for selection in ({"most": 5}, ["limit", 5], {"include": 5}):
        path.write_text(json.dumps({**document, "selection": selection}))
        with pytest.raises(CorruptError, match=r"plan\.json is damaged"):
            load_plan(str(path.parent))


# What is extended


@pytest.mark.parametrize("kind", ["limit", "sample"])
def test_a_plan_grows_into_what_would_have_been_planned(source: Path, kind: str) -> None:
    everything, larger = keys_of(planned(source, "all")), keys_of(planned(source, "larger", **{kind: 30}))
    plan = first = planned(source, **{kind: 10})
    for asked, expected in ((30, larger), (None, everything)):
        before = plan
        plan, extended = extend_plan(plan, selection=Selection(**{kind: asked}))
        assert extended.added == plan.num_images - before.num_images
        assert (keys_of(plan), plan.selection.most) == (expected, asked)
        assert list(plan.shards())[: before.num_shards] == list(before.shards()), "old shards stay"
    assert load_plan(plan.output) == plan
    assert len({first.sha256, plan.sha256}) == 2
    assert plan.selection == Selection()
    assert extend_plan(plan)[1].added == 0


def test_an_extension_keeps_the_patterns(source: Path) -> None:
    plan = planned(source, include=("cats/*",), exclude=("*.png",), limit=4)
    tiny.write_files(source, {"cats/new.jpg": b"", "cats/new.png": b"", "birds/new.jpg": b""})
    plan, extended = extend_plan(plan, selection=Selection(include=("cats/*",)))
    assert (plan.num_images, extended.added, extended.gone) == (11, 7, 0)
    assert "cats/new.jpg" in keys_of(plan)
    assert plan.selection == Selection(include=("cats/*",), exclude=("*.png",))


def test_the_images_of_a_changed_source_count_towards_the_limit(source: Path) -> None:
    """New ones come first, one of the planned is gone and one has changed behind what is added."""
    plan = planned(source, limit=10)
    tiny.write_files(source, {f"ants/{n}.jpg": b"" for n in range(9)})
    old = keys_of(plan)
    (source / old[8]).unlink()
    (source / old[9]).write_bytes(b"other")
    plan, extended = extend_plan(plan, selection=Selection(limit=13))
    assert (plan.num_images, extended.added) == (13, 3)
    assert (extended.gone_keys, extended.changed_keys) == (old[8:9], old[9:])
    assert keys_of(plan) == [*(f"ants/{n}.jpg" for n in range(3)), *old]
    assert extend_plan(plan, selection=Selection(limit=13))[1].added == 0


@pytest.mark.parametrize(
    ("planned_as", "asked", "words"),
    [
        ({"limit": 10}, {"limit": 9}, "limit: planned 10, requested 9"),
        ({"limit": 10}, {"sample": 20}, "sample: planned none, requested 20"),
        ({}, {"limit": 50}, "limit: planned none, requested 50"),
        ({"sample": 10}, {"sample": 20, "seed": 1}, "seed: planned 0, requested 1"),
        ({"include": ("*.jpg",)}, {"include": ("*.j*",)}, r"include: planned \*.jpg, requested \*.j\*"),
        ({"limit": 10}, {"exclude": ("*.jpg",)}, r"exclude: planned none, requested \*.jpg"),
    ],
)
def test_an_extension_that_would_not_only_add_is_refused(
    source: Path, planned_as: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    plan = planned(source, **planned_as)
    with pytest.raises(UsageError, match=words):
        extend_plan(plan, selection=Selection(**asked))
    assert load_plan(plan.output) == plan


def test_extenders_at_once_add_each_image_once(source: Path) -> None:
    plan = planned(source, sample=8)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: extend_plan(plan, selection=Selection(sample=20)), range(4)))
    assert sorted(extended.added for _, extended in results) == [0, 0, 0, 12]
    assert keys_of(results[0][0]) == keys_of(planned(source, "at_once", sample=20))


# What the other jobs make of it


def test_verify_status_and_requeue_hold_and_nothing_is_done_twice(tmp_path: Path) -> None:
    world = World(tmp_path, pictures(10) | {"03.jpg": b"<html>", "07.jpg": b""}, selection=Selection(limit=6))
    output = str(world.output)

    def check(num_images: int) -> None:
        report, status = verify(output, full=True), look(output)
        assert (report.exit_code, report.planned, report.corrupt, report.foreign) == (0, num_images, (), ())
        assert (status.state, status.images, status.images_done) == ("finished", num_images, num_images)
        assert sorted(world.rows()) == keys(num_images)

    assert world.extract() == Counter(shards=2, images=5)
    check(6)
    world.put("03.jpg", tiny.jpeg(3))
    requeued = world.requeue("not_an_image")
    assert (requeued.images, requeued.gone) == (1, 0)
    assert world.extract() == Counter(shards=1, images=1)
    check(6)
    before = {path.name: path.read_bytes() for path in (world.output / "data").iterdir()}
    extend_plan(world.plan)
    assert world.extract() == Counter(shards=1, images=3)
    check(10)
    assert {name: (world.output / "data" / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("kind", ["limit", "sample"])
@pytest.mark.parametrize("most", [9, "ten"])
def test_verify_counts_the_images_of_a_limited_plan(source: Path, kind: str, most: Any) -> None:
    path = Path(planned(source, **{kind: 10}).output) / "plan.json"
    assert verify(str(path.parent)).exit_code == 3
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "selection": {**document["selection"], kind: most}}))
    report = verify(str(path.parent))
    assert (report.exit_code, [name for name, _ in report.corrupt]) == (1, ["plan.json"])


def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny.digits_folder(tmp_path / "photos", per_class=1)
    tiny.write_files(source, {f"{n}/mask.seg.png": b"" for n in range(10)})
    network = ["--base", "mobilenet_0.25", "--weights", "random:0", "--local", "--json"]

    def extract(*options: str) -> tuple[int, dict[str, Any]]:
        code = main(["extract", str(source), str(tmp_path / "features"), *options, *network])
        return code, json.loads(capsys.readouterr().out)

    code, answer = extract("--limit", "0")
    assert (code, answer["message"]) == (2, "--limit takes a number of images from 1 up. Received: 0.")
    code, answer = extract("--sample", "4", "--exclude", "*.seg.png", "*.txt")
    assert (code, "--exclude '*.txt' matches none of the 20 keys" in answer["message"]) == (2, True)
    code, summary = extract("--sample", "4", "--exclude", "*.seg.png")
    assert (code, summary["ok"], summary["done_now"]) == (0, 4, 1)
    assert "selected: exclude *.seg.png, sample 4, seed 0" in caplog.messages
    code, again = extract()
    assert (code, again["images"], again["done_now"]) == (0, 4, 0)
    code, refused = extract("--sample", "6")
    assert (code, "sample: planned 4, requested 6" in refused["message"]) == (4, True)
    code, larger = extract("--sample", "6", "--extend")
    assert (code, larger["ok"], larger["done_now"], larger["extended"]["added"]) == (0, 6, 1, 2)
    assert main(["plan", str(source), str(tmp_path / "features"), *network[:4], "--no-estimate"]) == 0
    assert "selection    exclude *.seg.png, sample 6, seed 0" in capsys.readouterr().out
    code, whole = extract("--extend")
    assert (code, whole["ok"], whole["done_now"]) == (0, 10, 1)
    assert verify(str(tmp_path / "features"), full=True).exit_code == 0
