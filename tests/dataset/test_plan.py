"""The frozen list of images: made once whoever makes it, resumed, extended, with flat memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny

from bottleneck.dataset import plan_parts as listing_module
from bottleneck.dataset.differences import differences
from bottleneck.dataset.extend import SourceComparison, extend_plan
from bottleneck.dataset.make_plan import default_shard_size, make_plan, survey
from bottleneck.dataset.plan import Plan, load_plan
from bottleneck.dataset.plan_parts import SHARDS_PER_PART, read_images
from bottleneck.errors import CorruptError, FingerprintError, StoreError, UsageError
from bottleneck.extract.open_plan import open_or_make_plan
from bottleneck.sources.files import Files
from bottleneck.sources.image import Image
from bottleneck.sources.reading import Limits, Reading
from bottleneck.spec import FeatureRequest
from bottleneck.storage.local import FolderStore
from bottleneck.storage.store import Entry, open_store

SPEC = tiny.spec()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "features"


def names(num_images: int, prefix: str = "") -> dict[str, bytes]:
    """Files that are images by their names, which is all a plan looks at."""
    return {f"{prefix}{'cats' if n % 3 else 'dogs'}/{n:05d}.jpg": b"x" * (n % 50) for n in range(num_images)}


def planned(source: Path, output: Path, **changes: Any) -> Plan:
    return make_plan(str(source), str(output), SPEC, **{"shard_size": 4, **changes})


def keys_of(plan: Plan) -> list[str]:
    return [image.key for image in plan.images()]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_plan_holds_every_image_once_in_key_order(source: Path, output: Path) -> None:
    contents = names(10)
    tiny.write_files(source, {**contents, "notes.txt": b"", "cats/.DS_Store": b""})
    plan = planned(source, output)
    assert keys_of(plan) == sorted(contents)
    assert (plan.num_images, plan.num_bytes, plan.num_shards) == (10, sum(map(len, contents.values())), 3)
    assert plan.label_counts == {"cats": 6, "dogs": 4}
    assert plan.listings[0].skipped == {".txt": 1, ".ds_store": 1}
    assert [plan.images_in(shard) for shard in range(3)] == [4, 4, 2]
    with pytest.raises(IndexError):
        plan.images_in(3)


def test_a_plan_comes_back_as_it_was_made(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    limits = Limits(max_bytes=1000, max_pixels=2000, formats=("tiff",))
    plan = planned(source, output, limits=limits, reading=Reading(labels="none"))
    assert load_plan(str(output)) == plan
    assert (plan.source, plan.output, plan.spec) == (str(source), str(output), SPEC)
    assert (plan.limits, plan.reading.labels, plan.shard_size) == (limits, "none", 4)
    assert plan.label_counts == {}
    assert load_plan(str(source)) is None


@pytest.mark.parametrize("num_images", [1, 4, 5, 4 * SHARDS_PER_PART, 4 * SHARDS_PER_PART + 1, 300])
def test_parts_and_shards_share_out_the_images(source: Path, output: Path, num_images: int) -> None:
    tiny.write_files(source, names(num_images))
    plan = planned(source, output)
    shards = list(plan.shards())
    assert [shard.number for shard in shards] == list(range(-(-num_images // 4)))
    store = open_store(str(output))
    images = [read_images(store, shard) for shard in shards]
    assert [len(of_shard) for of_shard in images] == [plan.images_in(shard.number) for shard in shards]
    assert [image.key for of_shard in images for image in of_shard] == sorted(names(num_images))
    assert len(plan.parts) == -(-len(shards) // SHARDS_PER_PART)
    assert [part.first_shard for part in plan.parts] == list(range(0, len(shards), SHARDS_PER_PART))
    assert sum(part.images for part in plan.parts) == num_images


def test_parts_are_plain_parquet(source: Path, output: Path) -> None:
    tiny.write_files(source, {"dogs/1.jpg": b"12", "top.jpg": b"3"})
    plan = planned(source, output)
    rows = pq.read_table(output / plan.parts[0].name).to_pylist()
    assert [(row["shard"], row["index"], row["key"], row["size"], row["label"]) for row in rows] == [
        (0, 0, "dogs/1.jpg", 2, "dogs"),
        (0, 1, "top.jpg", 1, None),
    ]
    entries = {entry.key: entry.etag for entry in open_store(str(source)).list()}
    assert {row["key"]: row["etag"] for row in rows} == entries


def test_the_same_source_gives_the_same_plan(source: Path, tmp_path: Path) -> None:
    tiny.write_files(source, names(300))
    one, two = planned(source, tmp_path / "one"), planned(source, tmp_path / "two")
    assert one.listings == two.listings
    assert one.sha256 == two.sha256
    for part in one.parts:
        assert (tmp_path / "one" / part.name).read_bytes() == (tmp_path / "two" / part.name).read_bytes()


def test_a_planning_killed_before_its_last_write_is_done_again(source: Path, output: Path) -> None:
    tiny.write_files(source, names(300))
    planned(source, output)
    (output / "plan.json").unlink()
    assert load_plan(str(output)) is None
    survey(str(source), str(output))
    before = files(output)
    plan = planned(source, output)
    assert keys_of(plan) == sorted(names(300))
    assert files(output) == sorted([*before, "plan.json"]), "the parts are used again"


def test_parts_of_a_planning_that_was_killed_do_no_harm_when_the_source_has_changed(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    planned(source, output)
    (output / "plan.json").unlink()
    tiny.write_files(source, {"a new first one.jpg": b""})
    plan = planned(source, output)
    assert keys_of(plan) == sorted([*names(10), "a new first one.jpg"])


def test_planning_again_gives_the_first_plan(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    plan = planned(source, output)
    tiny.write_files(source, names(20))
    assert planned(source, output) == plan
    assert planned(source, output, shard_size=7) == plan


def test_several_planners_at_once_get_one_plan(source: Path, output: Path) -> None:
    tiny.write_files(source, names(200))
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: planned(source, output), range(4)))
    assert plans[0].num_images == 200
    assert all(plan == plans[0] for plan in plans)


@pytest.mark.parametrize("change", ["spec", "source", "limits", "labels"])
def test_a_planner_that_comes_second_with_other_settings_is_refused(
    source: Path, output: Path, tmp_path: Path, change: str
) -> None:
    tiny.write_files(source, names(5))
    other = tiny.write_files(tmp_path / "others", names(5))
    plan = planned(source, output)
    with pytest.raises(FingerprintError, match=r"Another run planned this output first.*planned .*, requested "):
        make_plan(
            str(other if change == "source" else source),
            str(output),
            tiny.spec(resize="crop") if change == "spec" else SPEC,
            limits=Limits(formats=("tiff",) if change == "limits" else ()),
            reading=Reading(labels="none" if change == "labels" else "folder"),
            shard_size=4,
        )
    assert load_plan(str(output)) == plan


@pytest.mark.parametrize("shard_size", [0, -1])
def test_a_shard_without_images_is_refused(source: Path, output: Path, shard_size: int) -> None:
    tiny.write_files(source, names(5))
    with pytest.raises(UsageError, match=f"`shard_size`.*Received: {shard_size}"):
        planned(source, output, shard_size=shard_size)
    assert not output.exists()


def test_what_is_committed_is_what_is_there(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    plan = planned(source, output)
    assert plan.committed() == {}
    tiny.write_files(
        output, {plan.data_name(0): b"12", plan.data_name(2): b"345", "data/s00000001-00000000.parquet": b""}
    )
    tiny.write_files(output, {"data/note.txt": b"", f"{plan.data_name(1)}.tmp": b""})
    assert plan.committed() == {0: 2, 2: 3}


# Refusals


def test_an_empty_or_missing_source_is_refused(source: Path, output: Path) -> None:
    with pytest.raises(UsageError, match="empty or does not exist"):
        planned(source, output)
    source.mkdir()
    with pytest.raises(UsageError, match="empty or does not exist"):
        planned(source, output)
    assert not output.exists()


def test_a_source_of_other_files_is_refused_with_their_count(source: Path, output: Path) -> None:
    tiny.write_files(source, {"a.txt": b"", "b.txt": b"", "c.csv": b""})
    with pytest.raises(UsageError, match=r"No images .*1 x .csv, 2 x .txt"):
        planned(source, output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["thesis.docx", "data/notes.txt", "data/s00000000.parquet", "photos/1.jpg"])
def test_an_output_that_holds_something_else_is_refused(source: Path, output: Path, name: str) -> None:
    tiny.write_files(source, names(5))
    tiny.write_files(output, {name: b"mine"})
    with pytest.raises(UsageError, match=f"holds something else: {name}"):
        planned(source, output)
    assert files(output) == [name]


def test_a_source_is_no_output(source: Path) -> None:
    tiny.write_files(source, names(5))
    with pytest.raises(UsageError, match="holds something else"):
        planned(source, source)


def test_an_output_inside_the_source_is_not_planned_itself(source: Path) -> None:
    tiny.write_files(source, names(5))
    plan = planned(source, source / "features")
    tiny.write_files(source / "features", {plan.data_name(0): b""})
    assert extend_plan(plan)[0].num_images == 5


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"{", CorruptError, "no JSON"),
        (b"[]", CorruptError, "no JSON object"),
        (b"", CorruptError, "no JSON"),
        (b'{"format": 99}', UsageError, "format 99"),
        (b'{"name": "my own plan.json"}', UsageError, "format None"),
        (b'{"format": 3}', CorruptError, "parts"),
    ],
)
def test_what_is_no_plan_is_called_so(output: Path, content: bytes, error: type[Exception], message: str) -> None:
    tiny.write_files(output, {"plan.json": content})
    with pytest.raises(error, match=message):
        load_plan(str(output))


@pytest.mark.parametrize("field", ["source", "limits", "spec", "shard_size", "images", "listing_sha256"])
def test_a_plan_with_a_field_missing_is_called_damaged(source: Path, output: Path, field: str) -> None:
    tiny.write_files(source, names(5))
    planned(source, output)
    document = json.loads((output / "plan.json").read_text())
    del document[field]
    (output / "plan.json").write_text(json.dumps(document))
    with pytest.raises(CorruptError, match=f"damaged.*{field}"):
        load_plan(str(output))


def test_a_damaged_part_is_named(source: Path, output: Path) -> None:
    tiny.write_files(source, names(5))
    [part] = planned(source, output).parts
    data = bytearray((output / part.name).read_bytes())
    data[len(data) // 2] ^= 1
    (output / part.name).write_bytes(data)
    with pytest.raises(CorruptError, match=f"{part.name}.*damaged"):
        keys_of(load_plan_again(output))


def test_a_missing_part_is_named(source: Path, output: Path) -> None:
    tiny.write_files(source, names(5))
    [part] = planned(source, output).parts
    (output / part.name).unlink()
    with pytest.raises(CorruptError, match=f"{part.name}.*gone"):
        keys_of(load_plan_again(output))


def load_plan_again(output: Path) -> Plan:
    """As another process would: parts that were read are not kept."""
    listing_module._part.cache_clear()
    plan = load_plan(str(output))
    assert plan is not None
    return plan


def test_differences_name_each_field_with_both_values(source: Path, output: Path) -> None:
    tiny.write_files(source, names(5))
    plan = planned(source, output)
    assert differences(plan, {"spec": SPEC.to_json(), "reading": Reading().asked(), "shard_size": 4}) is None
    message = differences(
        plan,
        {"spec": {"resize": "crop", "exif": "apply"}, "limits": {"formats": ["tiff"]}, "reading": {"labels": "none"}},
    )
    assert message is not None
    assert "resize: planned squash, requested crop; formats: planned , requested tiff; labels: planned" in message
    assert "exif" not in message
    assert differences(plan, {"spec": {"weights": "other words for the same"}}) is None


def test_a_refused_shard_size_is_told_what_is_true_of_it(source: Path, output: Path) -> None:
    tiny.write_files(source, names(5))
    plan = planned(source, output)
    message = differences(plan, {"spec": SPEC.to_json(), "shard_size": 8})
    assert message is not None
    assert "planned in shards of 4 images" in message
    assert "shard_size: planned 4, requested 8" in message
    assert "mix two kinds" not in message
    assert "mix two kinds" in (differences(plan, {"source": "elsewhere", "shard_size": 8}) or "")


# Sizes of shards


@pytest.mark.parametrize(
    ("num_images", "shard_size"),
    [(1, 16), (340, 16), (639, 16), (640, 32), (1360, 64), (10_239, 480), (10_240, 512), (100_000_000, 512)],
)
def test_there_are_twenty_shards_of_whole_batches_where_there_are_images_enough(
    num_images: int, shard_size: int
) -> None:
    assert default_shard_size(num_images) == shard_size
    assert num_images < 320 or -(-num_images // shard_size) >= 20


def test_the_default_follows_the_images_of_the_source(source: Path, output: Path) -> None:
    tiny.write_files(source, names(100))
    plan = make_plan(str(source), str(output), SPEC)
    assert (plan.shard_size, plan.num_shards) == (16, 7)
    assert [plan.images_in(number) for number in range(7)] == [16] * 6 + [4]


@pytest.mark.parametrize(("asked", "later"), [(None, 32), (8, 8)])
def test_an_extension_has_shards_that_fit_all_images(source: Path, output: Path, asked: int | None, later: int) -> None:
    tiny.write_files(source, names(20))
    plan = make_plan(str(source), str(output), SPEC, shard_size=asked)
    tiny.write_files(source, names(700))
    plan, extended = extend_plan(plan)
    assert extended.added == 680
    assert [listing.shard_size for listing in plan.listings] == [asked or 16, later]
    counts = [plan.images_in(number) for number in range(plan.num_shards)]
    assert sum(counts) == 700
    assert [len(read_images(open_store(plan.output), shard)) for shard in plan.shards()] == counts
    assert load_plan(str(output)) == plan


def test_a_source_is_looked_at_before_any_network(source: Path, output: Path) -> None:
    """Of a list all of it, down to the last line."""
    tiny.write_files(source, names(40))
    rows = "".join(f"{name},a\n" for name in names(40))
    (source / "list.csv").write_text(f"uri,label\n{rows}{next(iter(names(1)))},b\n")
    request = FeatureRequest(weights="random:0")
    never_asked = {"workers_have_bfloat16": pytest.fail}
    with pytest.raises(UsageError, match="two labels"):
        open_or_make_plan(str(source / "list.csv"), str(output), request, limits=Limits(), **never_asked)
    with pytest.raises(UsageError, match="`max_rejected`"):
        open_or_make_plan(str(source), str(output), request, limits=Limits(), max_rejected=5, **never_asked)
    with pytest.raises(UsageError, match="`shard_size`"):
        open_or_make_plan(str(source), str(output), request, limits=Limits(), shard_size=0, **never_asked)


# Extensions


def test_nothing_new_writes_nothing(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    plan = planned(source, output)
    before = files(output)
    same, extended = extend_plan(plan)
    assert (same, extended.added, extended.changed, extended.gone) == (plan, 0, 0, 0)
    assert files(output) == before


def test_an_extension_adds_what_is_new_and_counts_what_changed(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    plan = planned(source, output)
    tiny.write_files(
        source, {"ants/1.jpg": b"", "cats/zzz.jpg": b"", "zebras/9.jpg": b"", "cats/00001.jpg": b"changed"}
    )
    (source / "dogs/00000.jpg").unlink()
    (source / "dogs/00009.jpg").unlink()
    longer, extended = extend_plan(plan)
    assert (extended.added, extended.changed, extended.gone) == (3, 1, 2)
    assert (extended.changed_keys, extended.gone_keys) == (["cats/00001.jpg"], ["dogs/00000.jpg", "dogs/00009.jpg"])
    assert longer == load_plan(str(output))
    assert longer.num_images == 13
    assert keys_of(longer) == sorted([*names(10), "ants/1.jpg", "cats/zzz.jpg", "zebras/9.jpg"])
    assert list(longer.shards())[:3] == list(plan.shards())
    assert [longer.images_in(shard) for shard in range(4)] == [4, 4, 2, 3]
    assert longer.label_counts == {"ants": 1, "cats": 7, "dogs": 4, "zebras": 1}
    assert longer.sha256 != plan.sha256


def test_all_planned_images_may_be_gone(source: Path, output: Path) -> None:
    tiny.write_files(source, names(30))
    plan = planned(source, output)
    for key in names(30):
        (source / key).unlink()
    _, extended = extend_plan(plan)
    assert (extended.added, extended.gone, len(extended.gone_keys)) == (0, 30, listing_module.NUM_NAMED)


def test_many_extensions_stay_one_plan(source: Path, output: Path) -> None:
    tiny.write_files(source, names(6))
    plan = planned(source, output)
    expected = set(names(6))
    for number in range(6):
        new = names(5, prefix=f"{9 - number}/")
        tiny.write_files(source, new)
        expected |= set(new)
        plan, extended = extend_plan(plan)
        assert (extended.added, extended.changed, extended.gone) == (5, 0, 0)
    assert len(plan.listings) == 7
    assert keys_of(plan) == sorted(expected)
    assert [shard.number for shard in plan.shards()] == list(range(2 + 6 * 2))
    store = open_store(str(output))
    images = [image.key for shard in plan.shards() for image in read_images(store, shard)]
    assert sorted(images) == sorted(expected)
    assert load_plan(str(output)) == plan


def test_several_extenders_at_once_add_each_image_once(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    plan = planned(source, output)
    tiny.write_files(source, names(100))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: extend_plan(plan), range(4)))
    assert sorted(extended.added for _, extended in results) == [0, 0, 0, 90]
    longer = load_plan(str(output))
    assert longer is not None
    assert keys_of(longer) == sorted(names(100))


def test_an_extender_that_comes_second_adds_only_what_the_first_has_not(source: Path, output: Path) -> None:
    tiny.write_files(source, names(10))
    plan = planned(source, output)
    tiny.write_files(source, names(20))
    extend_plan(plan)
    tiny.write_files(source, names(25))
    longer, extended = extend_plan(plan)  # still the plan without any extension
    assert extended.added == 5
    assert keys_of(longer) == sorted(names(25))


# Listings no folder gives


@dataclass(eq=False)
class Listing:
    """A source of nothing but names."""

    entries: Any
    uri: str = "listing://"

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return iter(self.entries())


@pytest.mark.parametrize("keys", [["b.jpg", "a.jpg"], ["a.jpg", "a.jpg"], ["\N{CAT FACE}.jpg", "\uffee.jpg"]])
def test_a_listing_that_is_out_of_order_stops_the_run(keys: list[str]) -> None:
    listing = Listing(lambda: [Entry(key, 1, "") for key in keys])
    images = listing_module.in_order(Files(listing, Reading()).images(Counter()))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="out of order"):
        list(images)


def plan_and_compare(output: Path, num_images: int) -> int:
    """Plan so many images and look at the source again, as an extension does; returns the peak of memory in bytes."""

    def images() -> Iterator[Image]:
        listing = Listing(lambda: (Entry(f"photos/{n:09d}.jpg", n, f"{n:032x}") for n in range(num_images)))
        return listing_module.in_order(Files(listing, Reading()).images(Counter()))  # type: ignore[arg-type]

    store = FolderStore(str(output))
    tracemalloc.start()
    try:
        frozen = listing_module.freeze(store, SPEC, images(), Counter(), first_shard=0, shard_size=512)
        seen = SourceComparison(listing_module.images_of(store, frozen.located()), images())
        assert list(seen.new_images()) == []
        assert (frozen.images, seen.changed, seen.gone) == (num_images, 0, 0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# A part of 16,384 images takes 11 MB while it is written; a list of 100,000 images alone would take 29 MB.
MOST_BYTES = 16_000_000


@pytest.mark.matrix(16, "plan")
def test_memory_does_not_grow_with_the_listing(tmp_path: Path) -> None:
    plan_and_compare(tmp_path / "first", 1)  # whatever is imported on first use is not the listing's
    assert plan_and_compare(tmp_path / "large", 100_000) < MOST_BYTES


TEN_MILLION = """
import resource, sys
from collections import Counter
sys.path[:0] = sys.argv[3:]
import test_plan
from bottleneck.dataset import plan_parts as listing
from bottleneck.sources.open import open_source
from bottleneck.sources.reading import Reading

kind, folder = sys.argv[1:3]
if kind == "prefix":
    entries = lambda: (test_plan.Entry(f"photos/{n:09d}.jpg", n, f"{n:032x}") for n in range(10_000_000))
    source = test_plan.Files(test_plan.Listing(entries), Reading())
else:
    with open(f"{folder}/list.csv", "w") as file:
        file.write("uri,label\\n")
        file.writelines(f"photos/{n * 7_919_993 % 10_000_000:09d}.jpg,{n % 10}\\n" for n in range(10_000_000))
    source = open_source(f"{folder}/list.csv", Reading())
store = test_plan.FolderStore(f"{folder}/out")
images = listing.in_order(source.images(Counter()))
frozen = listing.freeze(store, test_plan.SPEC, images, Counter(), first_shard=0, shard_size=512)
print(frozen.images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.matrix(16, "plan")
@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["prefix", "list"])
def test_ten_million_keys_plan_within_two_gigabytes(tmp_path: Path, kind: str) -> None:
    """The listing of a prefix as S3 would give it, and a list in no order; planned by a process of their own."""
    arguments = [sys.executable, "-c", TEN_MILLION, kind, str(tmp_path), *sys.path]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    num_images, most_bytes = map(int, done.stdout.split())
    print(f"{kind}: {num_images:,} images, {most_bytes / 1e9:.2f} GB at most")
    assert num_images == 10_000_000
    assert most_bytes < 2_000_000_000
