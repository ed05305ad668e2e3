"""Tars as sources: every member accounted for, labels beside images, contiguous reads, and tars that are none."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from bottleneck.audit.verify import verify
from bottleneck.dataset.differences import differences
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.features import open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.dataset.plan import load_plan
from bottleneck.dataset.requeue import requeue_plan
from bottleneck.errors import StoreError, UsageError
from bottleneck.extract.local import extract_images
from bottleneck.sources.image import Image
from bottleneck.sources.open import open_source, resolve_reading, webdataset
from bottleneck.sources.reading import Limits, Reading, SourceFormat
from bottleneck.storage.store import ObjectChangedError, ObjectGoneError, Wanted, open_store
from jobs import verify as verify_job


def tar(members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of regular files in this order; a list of pairs would do for names that repeat."""
    return tar_of(list(members.items()), tar_format)


def tar_of(members: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def samples(numbers: range) -> dict[str, bytes]:
    """Samples as img2dataset writes them, with classes."""
    members = {}
    for n in numbers:
        facts = {"key": f"{n:09d}", "status": "success", "width": 40, "height": 30}
        members[f"{n:09d}.cls"] = str(n % 3).encode()
        members[f"{n:09d}.jpg"] = tiny.jpeg(n)
        members[f"{n:09d}.json"] = json.dumps(facts).encode()
        members[f"{n:09d}.txt"] = f"a picture of {n}".encode()
    return members


def found(folder: Path, **reading: Any) -> tuple[list[Image], Counter[str]]:
    skipped: Counter[str] = Counter()
    asked = Reading(**reading)
    source = open_source(str(folder), resolve_reading(str(folder), asked))
    return list(source.images(skipped)), skipped


def read_all(folder: Path, images: list[Image]) -> list[bytes | ObjectGoneError | ObjectChangedError]:
    return list(open_source(str(folder), Reading(source_format="webdataset")).read(images))


def counting(folder: Path) -> tuple[webdataset.WebDataset, list[Wanted]]:
    """A source of tars, and what it asks its store for."""
    asked: list[Wanted] = []
    store = open_store(str(folder))

    class Counting:
        uri = store.uri

        def get_many(self, wanted: list[Wanted]) -> object:
            asked.extend(wanted)
            return store.get_many(wanted)

    return webdataset.WebDataset(Counting(), None, Reading()), asked  # type: ignore[arg-type]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_is_an_image_or_counted(tmp_path: Path, tar_format: int) -> None:
    tiny.write_files(tmp_path, {"00000.tar": tar(samples(range(5)), tar_format), "00000_stats.json": b"{}"})
    images, skipped = found(tmp_path)
    assert [image.key for image in images] == [f"00000.tar/{n:09d}.jpg" for n in range(5)]
    assert [image.label for image in images] == ["0", "1", "2", "0", "1"]
    assert skipped == {".cls": 5, ".json": 6, ".txt": 5}
    assert read_all(tmp_path, images) == [tiny.jpeg(n) for n in range(5)]


def test_long_and_odd_names_come_through(tmp_path: Path) -> None:
    names = ["x" * 300 + ".jpg", "ü \N{CAT FACE}#?%2F.jpg", "a/b/c.jpg", "../out.jpg", "/etc/root.png", "no suffix"]
    tiny.write_files(tmp_path, {"0.tar": tar({name: tiny.jpeg(n) for n, name in enumerate(names)})})
    images, _ = found(tmp_path)
    assert [image.key for image in images] == sorted((f"0.tar/{name}" for name in names), key=str.encode)
    by_key = dict(zip((image.key for image in images), read_all(tmp_path, images), strict=True))
    assert [by_key[f"0.tar/{name}"] for name in names] == [tiny.jpeg(n) for n in range(len(names))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar"]  # nothing was unpacked


@pytest.mark.parametrize(
    ("members", "column", "label"),
    [
        ({"a.cls": b"7\n"}, None, "7"),
        ({"a.cls": b"7", "a.json": b'{"label": "tulip"}'}, None, "7"),
        ({"a.json": b'{"label": "tulip"}', "a.cls": b"7"}, None, "7"),
        ({"a.json": b'{"label": "tulip"}'}, None, "tulip"),
        ({"a.json": b'{"label": 3}'}, None, "3"),
        ({"a.json": b'{"kind": "daisy", "label": "tulip"}', "a.cls": b"7"}, "kind", "daisy"),
        ({"a.txt": b"ein Bild"}, None, None),
        ({"a.txt": "grün ".encode(), "a.cls": b"7"}, "txt", "grün"),
        ({"a.json": b'{"label": 3.0}'}, None, "3"),
        ({"a.json": b'{"label": null}'}, None, None),
        ({"a.cls": b"-1"}, None, None),
        ({"a.json": b"{not json"}, None, None),
        ({"a.json": b"[" * 5000}, None, None),
        ({"a.cls": b""}, None, None),
        ({"b.cls": b"7"}, None, None),
    ],
)
def test_labels_stand_beside_the_image(
    tmp_path: Path, members: dict[str, bytes], column: str | None, label: str | None
) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar({**members, "a.jpg": tiny.jpeg(1)})})
    options = {"label_column": column} if column else {}
    assert [image.label for image in found(tmp_path, **options)[0]] == [label]
    assert [image.label for image in found(tmp_path, labels="none", **options)[0]] == [None]


@pytest.mark.parametrize(
    "side", [("a.json", b'{"label": ["x"]}'), ("a.cls", b"\xff"), ("a.cls", b"2"), ("a.cls", b"rose")]
)
def test_a_label_beside_an_image_that_cannot_be_used_is_told(tmp_path: Path, side: tuple[str, bytes]) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar({"a.jpg": b"1", side[0]: side[1]})})
    with pytest.raises(UsageError, match=rf"0\.tar/{side[0]}: label .*`labels` none"):
        found(tmp_path, label_names=("daisy", "tulip"))
    assert len(found(tmp_path, labels="none")[0]) == 1


def test_labels_that_are_numbers_have_the_names_beside_the_tars(tmp_path: Path) -> None:
    tiny.write_files(tmp_path / "in", {"0.tar": tar(samples(range(3))), "classes.txt": b"daisy\ntulip\nred rose\n"})
    plan = make_plan(str(tmp_path / "in"), str(tmp_path / "out"), tiny.spec())
    assert plan.label_counts == {"daisy": 1, "red rose": 1, "tulip": 1}
    (tmp_path / "in/classes.txt").unlink()  # the plan has them
    tiny.write_files(tmp_path / "in", {"1.tar": tar(samples(range(3, 5)))})
    plan, _ = extend_plan(load_plan(str(tmp_path / "out")) or plan)
    assert plan.label_counts == {"daisy": 2, "red rose": 1, "tulip": 2}
    named = Reading(label_names=("a", "b", "c"))
    plan = make_plan(str(tmp_path / "in" / "0.tar"), str(tmp_path / "named"), tiny.spec(), reading=named)
    assert plan.label_counts == {"a": 1, "b": 1, "c": 1}


def test_the_folder_is_no_label_of_a_single_image(tmp_path: Path) -> None:
    members = {"cats/1.jpg": b"1", "cats/1.cls": b"tiger", "cats/2.jpg": b"2", "cats/3.jpg": b"3", "cats/3.cls": b"-1"}
    tiny.write_files(tmp_path, {"0.tar": tar(members)})
    assert [image.label for image in found(tmp_path)[0]] == ["tiger", None, None]


def test_without_a_label_beside_it_the_folder_in_the_tar_is_one(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar({"cats/1.jpg": b"1", "2.jpg": b"2", "dogs/3.x.png": b"3"})})
    assert [(i.key, i.label) for i in found(tmp_path)[0]] == [
        ("0.tar/2.jpg", None),
        ("0.tar/cats/1.jpg", "cats"),
        ("0.tar/dogs/3.x.png", "dogs"),
    ]


def test_names_that_repeat_are_two_images(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar_of([("a.jpg", b"1"), ("a.jpg", b"22"), ("b.jpg", b"")])})
    images, _ = found(tmp_path)
    assert [image.key for image in images] == ["0.tar/a.jpg", "0.tar/a.jpg#2", "0.tar/b.jpg"]
    assert read_all(tmp_path, images) == [b"1", b"22", b""]


def test_tars_whose_names_begin_alike_keep_the_keys_in_order(tmp_path: Path) -> None:
    files = {name: tar(samples(range(2))) for name in ("a.tar", "a.tar.tar", "a.tar-b.tar", "b/a.tar", "a/z.tar")}
    tiny.write_files(tmp_path, files)
    keys = [image.key for image in found(tmp_path)[0]]
    assert keys == sorted(keys, key=str.encode)
    assert len(keys) == 10


def test_what_is_no_regular_file_is_counted_and_never_followed(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in (("up.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    tiny.write_files(tmp_path, {"0.tar": file.getvalue(), "1.tar": tar({"a.jpg": b"1"})})
    images, skipped = found(tmp_path)
    assert [image.key for image in images] == ["1.tar/a.jpg"]
    assert skipped == {"(link or special file)": 3, "(directory marker)": 1}


def test_labels_of_samples_that_share_a_name_are_not_mixed_up(tmp_path: Path) -> None:
    members = {"p.1.jpg": b"1", "p.1.cls": b"cat", "p.2.jpg": b"2", "p.2.cls": b"dog", "p.jpg": b"0", "q.x.jpg": b"3"}
    tiny.write_files(tmp_path, {"0.tar": tar({**members, "q.cls": b"cow"})})
    labels = {image.key[6:]: image.label for image in found(tmp_path)[0]}
    assert labels == {"p.1.jpg": "cat", "p.2.jpg": "dog", "p.jpg": None, "q.x.jpg": "cow"}


def test_names_that_repeat_with_two_labels_stop_the_plan(tmp_path: Path) -> None:
    repeated = [("0.jpg", b"1"), ("0.cls", b"cat"), ("0.jpg", b"2"), ("0.cls", b"dog")]
    tiny.write_files(tmp_path, {"0.tar": tar_of(repeated)})
    with pytest.raises(UsageError, match="two labels for 0: 'cat' and 'dog'"):
        found(tmp_path)
    assert len(found(tmp_path, labels="none")[0]) == 2


def test_a_key_that_is_taken_is_not_given_twice(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar_of([("a.jpg#2", tiny.jpeg(3)), ("a.jpg", b"1"), ("a.jpg", b"2")])})
    images, _ = found(tmp_path)
    data = dict(zip((image.key for image in images), read_all(tmp_path, images), strict=True))
    assert data == {"0.tar/a.jpg": b"1", "0.tar/a.jpg#2": tiny.jpeg(3), "0.tar/a.jpg#3": b"2"}


def negative_size() -> bytes:
    """A member of -512 bytes, after which a reader is where it was."""
    header = bytearray(tar({"a.jpg": b""})[:512])
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(records: bytes, size: int | None = None) -> bytes:
    """An extended header with these records, which says of itself that it has `size` bytes, before a member."""
    header = tarfile.TarInfo("PaxHeaders/a.jpg")
    header.type, header.size = tarfile.XHDTYPE, len(records) if size is None else size
    body = records + bytes(-len(records) % 512)
    return header.tobuf(tarfile.GNU_FORMAT) + body + tar({"a.jpg": b"1"})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_says_it_has_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("PaxHeaders/a.jpg")
    header.type, header.size = kind, 40_000_000_000
    with open(tmp_path / "0.tar", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(50_000_000_000)  # a hole, which takes nothing of the disk
    with pytest.raises(UsageError, match="bytes belong together"):
        found(tmp_path)


@pytest.mark.parametrize(
    "records", [b"999999999999999999 path=b.jpg\n", b"5008 size=" + b"9" * 4997 + b"\n", b"\xff" * 50]
)
def test_odd_extended_headers_end_in_an_error_or_are_passed_over(tmp_path: Path, records: bytes) -> None:
    """Which of the two differs between versions of Python."""
    tiny.write_files(tmp_path, {"0.tar": pax(records)})
    with contextlib.suppress(UsageError):
        images, _ = found(tmp_path)
        assert read_all(tmp_path, images) == [b"1"]


def test_sparse_members_and_links_to_images_are_counted_and_not_read(tmp_path: Path) -> None:
    sparse, hard = tarfile.TarInfo("holes.jpg"), tarfile.TarInfo("b.jpg")
    sparse.type, hard.type, hard.linkname = tarfile.GNUTYPE_SPARSE, tarfile.LNKTYPE, "a.jpg"
    blocks = [sparse.tobuf(tarfile.GNU_FORMAT), hard.tobuf(tarfile.GNU_FORMAT), tar({"a.jpg": tiny.jpeg(1)})]
    tiny.write_files(tmp_path, {"0.tar": b"".join(blocks)})
    images, skipped = found(tmp_path)
    assert [image.key for image in images] == ["0.tar/a.jpg"]
    assert skipped == {"(link or special file)": 2}
    assert read_all(tmp_path, images) == [tiny.jpeg(1)]


def test_a_crowd_of_members_without_a_byte_is_a_crowd_of_empty_images(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar({f"{n:06d}.jpg": b"" for n in range(20_000)}, tarfile.USTAR_FORMAT)})
    images, _ = found(tmp_path)
    assert len(images) == 20_000
    assert set(read_all(tmp_path, images[:100])) == {b""}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (negative_size() + bytes(1024), "is damaged|no tar file"),
        (tar({"a.jpg": b"1"}) + tar({"b.jpg": b"2"}), "goes on behind its end mark"),
        (b"".join(tar({"x" * 200 + str(n): b""}, tarfile.GNU_FORMAT)[:1024] for n in range(3000)), "no tar file"),
        (pax(b"30 path=" + b"x" * 20 + b"\n") + pax(b"19 size=9999999999\n"), "goes on behind|damaged|no tar file"),
        (pax(b"13 size=-512\n"), "no tar file|damaged"),
        (pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=a.jpg\n"), "no tar file|damaged"),
    ],
)
def test_tars_made_to_harm_are_told(tmp_path: Path, data: bytes, words: str) -> None:
    tiny.write_files(tmp_path, {"0.tar": data})
    with pytest.raises(UsageError, match=words):
        found(tmp_path)


def test_a_bad_tar_is_told_while_others_are_long(tmp_path: Path) -> None:
    """Those under way are left alone then."""
    tiny.write_files(tmp_path, {f"{n}.tar": tar(samples(range(200))) for n in range(1, 4)} | {"0.tar": b"no tar" * 200})
    with pytest.raises(UsageError, match=r"0\.tar is no tar"):
        found(tmp_path)


def test_a_tar_in_no_order_is_read_without_its_gaps(tmp_path: Path) -> None:
    names = [f"{n * 7919 % 1000:04d}.jpg" for n in range(1000)]
    tiny.write_files(tmp_path, {"0.tar": tar({name: name.encode() * 1000 for name in names})})
    images, _ = found(tmp_path)
    some = images[100:200]
    source, asked = counting(tmp_path)
    assert list(source.read(some)) == [image.key[6:].encode() * 1000 for image in some]
    assert sum(one.length or 0 for one in asked) < 12 * sum(image.size for image in some)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a member was unpickled",))


def test_no_member_is_unpickled(tmp_path: Path) -> None:
    hostile = {f"a.{suffix}": pickle.dumps(Bomb()) for suffix in ("pyd", "pickle", "pth", "cls", "json", "txt")}
    tiny.write_files(tmp_path, {"0.tar": tar({**hostile, "a.jpg": tiny.jpeg(1)})})
    images, skipped = found(tmp_path, labels="none")
    assert [image.key for image in images] == ["0.tar/a.jpg"]
    assert skipped.total() == len(hostile)
    with pytest.raises(UsageError, match=r"a\.cls: label .* is not UTF-8"):
        found(tmp_path)
    del hostile["a.cls"]
    tiny.write_files(tmp_path, {"0.tar": tar({**hostile, "a.jpg": tiny.jpeg(1)})})
    assert [image.label for image in found(tmp_path)[0]] == [None]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "no tar file"),
        (lambda data: b"<html>" * 1000, "no tar file"),
        (lambda data: b"\x1f\x8b" + data, "no tar file"),
        (lambda data: data[:1024] + b"x" * 512 + data[1536:], "is damaged at byte 1024"),
    ],
)
def test_a_tar_that_cannot_be_counted_stops_the_plan(tmp_path: Path, damage: object, words: str) -> None:
    whole = tar({f"{n}.jpg": b"x" * 100 for n in range(5)})
    tiny.write_files(tmp_path, {"0.tar": damage(whole), "1.tar": whole})  # type: ignore[operator]
    with pytest.raises(UsageError, match=words):
        found(tmp_path)


CUTS = {
    "in a member": (512 + 50, 1, 50),
    "behind a member's bytes": (512 + 100, 1, 100),
    "at a member's boundary": (1024, 1, 100),
    "in a header": (1024 + 200, 1, 100),
    "in the second member": (1024 + 512 + 99, 2, 99),
    "behind the last member": (5 * 1024, 5, 100),
    "in the end mark": (5 * 1024 + 511, 5, 100),
}
"""Bytes that are left of a tar of five members of a kilobyte; the images in them, and bytes of the last."""


@pytest.mark.parametrize("cut", CUTS)
def test_a_tar_that_is_cut_off_stops_the_plan(tmp_path: Path, cut: str) -> None:
    size, num_images, _ = CUTS[cut]
    whole = tar({f"{n}.jpg": b"x" * 100 for n in range(5)})
    tiny.write_files(tmp_path, {"0.tar": whole, "1.tar": whole[:size]})
    members = "1 member" if num_images == 1 else f"{num_images} members"
    with pytest.raises(UsageError, match=rf"1\.tar is cut off: .*byte {size:,} .* after {members}.*`accept_cut`"):
        found(tmp_path)
    with pytest.raises(UsageError, match=r"1\.tar is cut off"):
        make_plan(str(tmp_path), str(tmp_path / "out"), tiny.spec())
    assert load_plan(str(tmp_path / "out")) is None


@pytest.mark.parametrize("cut", CUTS)
def test_with_accept_cut_what_is_there_of_a_tar_is_taken_and_the_cut_counted(
    tmp_path: Path, cut: str, caplog: pytest.LogCaptureFixture
) -> None:
    size, num_images, last = CUTS[cut]
    tiny.write_files(tmp_path, {"0.tar": tar({f"{n}.jpg": b"x" * 100 for n in range(5)})[:size]})
    images, skipped = found(tmp_path, accept_cut=True)
    assert read_all(tmp_path, images) == [b"x" * 100] * (num_images - 1) + [b"x" * last]
    assert skipped == {"(cut)": 1}
    assert ["0.tar is cut off" in message for message in caplog.messages] == [True]


def test_a_whole_tar_may_end_behind_one_block_of_zeros(tmp_path: Path) -> None:
    whole = tar({f"{n}.jpg": b"x" * 100 for n in range(5)})
    tiny.write_files(tmp_path, {"0.tar": whole[: 5 * 1024 + 512]})
    images, skipped = found(tmp_path)
    assert (len(images), skipped) == (5, {})


def test_a_member_that_claims_more_than_the_tar_holds_is_told(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"0.tar": pax(b"29 size=99999999999999999999\n") + tar({"b.jpg": b"2"})})
    with pytest.raises(UsageError, match="after 1 member, the last of which says that it reaches to byte 100,000,"):
        found(tmp_path)
    images, skipped = found(tmp_path, accept_cut=True)
    assert [image.key for image in images] == ["0.tar/a.jpg"]
    assert skipped == {"(cut)": 1}


def test_a_label_that_was_cut_is_none(tmp_path: Path) -> None:
    whole = tar({"a.jpg": b"x" * 100, "a.cls": b"12"})
    tiny.write_files(tmp_path, {"0.tar": whole[: 1024 + 512 + 1]})
    images, skipped = found(tmp_path, accept_cut=True)
    assert [image.label for image in images] == [None]
    assert skipped == {"(cut)": 1, ".cls": 1}


def test_a_cut_is_told_by_plan_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tar(samples(range(5)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        fourth = archive.getmember("000000003.cls").offset
    tiny.write_files(tmp_path / "source", {"0.tar": whole[:fourth]})
    source, output = str(tmp_path / "source"), str(tmp_path / "out")
    plan = make_plan(source, output, tiny.spec(), reading=Reading(accept_cut=True))
    assert (plan.num_images, plan.skipped["(cut)"]) == (3, 1)
    document = json.loads((tmp_path / "out/plan.json").read_text())
    assert (document["skipped"]["(cut)"], document["reading"]["accept_cut"]) == (1, True)
    assert verify_job.main(verify_job.Config(output=output)) == 3
    assert "cut: 1 tar cut off when planned" in capsys.readouterr().out
    report = verify(output)
    assert (report.planned, report.to_json()["skipped"]["(cut)"]) == (3, 1)


@pytest.mark.parametrize("tiff", [False, True])
def test_a_plan_that_is_older_than_some_options_is_read_and_extended(tmp_path: Path, tiff: bool) -> None:
    source, output = tiny.write_files(tmp_path / "source", {"0.tar": tar(samples(range(2)))}), str(tmp_path / "out")
    limits = Limits(max_pixels=1000, formats=("tiff",) if tiff else ())
    made = make_plan(str(source), output, tiny.spec(), limits=limits)
    path = tmp_path / "out/plan.json"
    document = json.loads(path.read_text())
    document["limits"] = {"max_bytes": 100_000_000, "max_pixels": 1000, "tiff": tiff}
    document["reading"] = {
        name: document["reading"][name] for name in ("labels", "source_format", "image_column", "label_column", "roots")
    }
    path.write_text(json.dumps(document))
    plan = load_plan(output)
    assert plan == made
    asked = {"limits": limits.to_json(), "reading": Reading().asked()}
    assert differences(plan, asked) is None
    tiny.write_files(source, {"1.tar": tar(samples(range(2, 3)))})
    assert extend_plan(plan)[1].added == 1
    assert verify(output).corrupt == ()
    plan, _ = requeue_plan(plan, ["unsupported_format"], limits=replace(limits, formats=("heic", "tiff")))
    assert plan.limits == limits  # nothing was rejected, so nothing is to be done again


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["name", "sample"])
def test_a_crowd_of_members_of_one_name_takes_no_longer_than_any(tmp_path: Path, kind: str) -> None:
    """Each used to look through all before it: 6,000 took 7 s."""
    names = ["a.jpg"] * 20_000
    if kind == "sample":
        names = [f"a.{n}.{suffix}" for suffix in ("cls", "jpg") for n in range(5000)]
        names = [name.replace("a.", "a.x", 1) if name.endswith("jpg") else name for name in names]
    data = tar_of([(name, str(n).encode()) for n, name in enumerate(names)], tarfile.USTAR_FORMAT)
    tiny.write_files(tmp_path, {"0.tar": data})
    started = time.process_time()
    images, _ = found(tmp_path)
    assert len(images) == names.count("a.jpg") or len(images) == 5000
    assert len({image.key for image in images}) == len(images)
    assert time.process_time() - started < 10


def test_members_are_read_in_a_few_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "RANGE_BYTES", 100_000)
    tiny.write_files(tmp_path, {"0.tar": tar(samples(range(60))), "1.tar": tar(samples(range(60, 80)))})
    images, _ = found(tmp_path)
    source, asked = counting(tmp_path)
    assert list(source.read(images)) == [tiny.jpeg(n) for n in range(80)]
    span = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(asked) <= span / 100_000 + 4
    assert max(one.length or 0 for one in asked) <= 100_000
    some = images[::-7]  # out of order, and few
    assert list(source.read(some)) == [tiny.jpeg(n) for n in range(79, -1, -7)]


def test_a_tar_that_changed_or_went_since_rejects_its_images_alone(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {f"{n}.tar": tar(samples(range(3 * n, 3 * n + 3))) for n in range(3)})
    images, _ = found(tmp_path)
    (tmp_path / "0.tar").write_bytes(tar(samples(range(3))) + bytes(512))
    (tmp_path / "2.tar").unlink()
    data = read_all(tmp_path, images)
    assert [type(one) for one in data] == [ObjectChangedError] * 3 + [bytes] * 3 + [ObjectGoneError] * 3


def test_a_tar_written_while_it_is_planned_stops_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar(samples(range(3)))})
    store = open_store(str(tmp_path))
    entries = list(store.list())
    (tmp_path / "0.tar").write_bytes(tar(samples(range(4))))
    monkeypatch.setattr(webdataset, "containers", lambda *_: entries)
    with pytest.raises(StoreError, match="has changed since it was listed"):
        found(tmp_path)


@pytest.mark.parametrize("place", ["folder", "one tar"])
def test_from_tars_to_features(tmp_path: Path, place: str) -> None:
    members = samples(range(9)) | {"000000004.jpg": b"<html>no picture", "000000005.jpg": b""}
    tiny.write_files(tmp_path / "source", {"00000.tar": tar(members), "00001.tar": tar(samples(range(9, 12)))})
    source = str(tmp_path / "source" / ("" if place == "folder" else "00000.tar"))
    summary = extract_images(source, str(tmp_path / "out"), tiny.REQUEST, shard_size=4, max_rejected=0.5)
    num_images = 12 if place == "folder" else 9
    assert (summary.images, summary.ok, summary.rejected) == (
        num_images,
        num_images - 2,
        {"empty": 1, "not_an_image": 1},
    )
    _, labels = open_features(str(tmp_path / "out")).arrays()
    keys = open_features(str(tmp_path / "out")).keys()
    assert keys[0] == "00000.tar/000000000.jpg"
    assert list(labels) == [str(n % 3) for n in range(num_images) if n not in (4, 5)]
    report = verify(str(tmp_path / "out"), full=True)
    assert report.exit_code == 0
    plan = load_plan(str(tmp_path / "out"))
    assert plan is not None
    assert plan.reading.source_format == "webdataset"


def test_features_of_a_tar_are_those_of_the_files_in_it(tmp_path: Path) -> None:
    pictures = {f"{n:09d}.jpg": tiny.jpeg(n) for n in range(5)}
    tiny.write_files(tmp_path / "files", pictures)
    tiny.write_files(tmp_path / "tars", {"0.tar": tar(pictures)})
    for kind in ("files", "tars"):
        extract_images(str(tmp_path / kind), str(tmp_path / f"{kind}-out"), tiny.REQUEST)
    from_files, from_tars = (open_features(str(tmp_path / f"{kind}-out")).arrays()[0] for kind in ("files", "tars"))
    assert (from_files == from_tars).all()


def test_new_tars_extend_a_plan(tmp_path: Path) -> None:
    source = tiny.write_files(tmp_path / "source", {"00000.tar": tar(samples(range(5)))})
    reading = Reading(source_format="webdataset")
    plan = make_plan(str(source), str(tmp_path / "out"), tiny.spec(), reading=reading, shard_size=2)
    tiny.write_files(source, {"00001.tar": tar(samples(range(5, 7)))})
    plan, extended = extend_plan(plan)
    assert (extended.added, extended.changed, extended.gone) == (2, 0, 0)
    tiny.write_files(source, {"00000.tar": tar(samples(range(1, 6)))})
    plan, extended = extend_plan(plan)
    assert (extended.added, extended.changed, extended.gone) == (1, 4, 1)
    assert extended.gone_keys == ["00000.tar/000000000.jpg"]


def test_tars_in_a_bucket(tmp_path: Path, bucket: str, s3_environment: dict[str, str]) -> None:
    store = open_store(f"s3://{bucket}/tars")
    store.create("00000.tar", tar(samples(range(7))))
    store.create("nested/00001.tar", tar(samples(range(7, 9))))
    formats: SourceFormat = resolve_reading(store.uri, Reading()).source_format
    assert formats == "webdataset"
    source = open_source(store.uri, Reading())
    skipped: Counter[str] = Counter()
    images = list(source.images(skipped))
    assert [image.key for image in images][-2:] == ["nested/00001.tar/000000007.jpg", "nested/00001.tar/000000008.jpg"]
    assert list(source.read(images)) == [tiny.jpeg(n) for n in range(9)]
    one = open_source(f"{store.uri}/00000.tar", Reading())
    assert [image.key for image in one.images(skipped)][:1] == ["00000.tar/000000000.jpg"]


def test_members_that_are_no_images_by_name_or_bytes_are_counted(tmp_path: Path) -> None:
    """A tar made by `tar cf x.tar .`, with what systems add, and photos directly in it."""
    photo = tiny.jpeg(1)
    members = {"./1.jpg": photo, "./cats/2.jpg": photo, "./cats/3": photo, "./LICENSE": b"MIT", "./.git/4.jpg": photo}
    members |= {"./__MACOSX/cats/._2.jpg": b"1", "./__MACOSX/5.jpg": photo}
    tiny.write_files(tmp_path, {"0.tar": tar_of(list(members.items()))})
    images, skipped = found(tmp_path)
    labels = {image.key: image.label for image in images}
    assert labels == {"0.tar/./1.jpg": None, "0.tar/./cats/2.jpg": "cats", "0.tar/./cats/3": "cats"}
    assert skipped == {"(no suffix, no image)": 1, "(in a hidden folder)": 1, "(in a system folder)": 2}


def test_members_without_suffix_may_all_be_images(tmp_path: Path) -> None:
    tiny.write_files(tmp_path, {"0.tar": tar_of([("0", b"1"), ("1", b"2")])})
    assert [image.key for image in found(tmp_path)[0]] == ["0.tar/0", "0.tar/1"]
