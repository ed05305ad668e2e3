"""Folder and bucket keep one contract; then what is special to each, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from fixtures_s3 import use_environment
from proxy import Fault, FaultProxy
from servers import CephServer, S3Server, free_port

from bottleneck.errors import StoreError, UsageError
from bottleneck.sources.open import open_source
from bottleneck.sources.reading import Reading
from bottleneck.storage.local import LEFTOVER_SECONDS, FolderStore
from bottleneck.storage.s3 import BucketStore
from bottleneck.storage.store import (
    IN_FLIGHT,
    IN_FLIGHT_BYTES,
    Entry,
    ObjectArchivedError,
    ObjectChangedError,
    ObjectGoneError,
    Store,
    Wanted,
    normal_uri,
    open_store,
)

PREFIX = "a prefix/of two parts"
FILE_NAMES = [
    "two words.jpg",
    " leading and trailing ",
    "a+b.jpg",
    "a%2Fb.jpg",
    "100%.jpg",
    "#hash.jpg",
    "what?.jpg",
    "a&b=c.jpg",
    "new\nline.jpg",
    "tab\t.jpg",
    "back\\slash.jpg",
    "quote'\".jpg",
    "[a]*{b}.jpg",
    "\N{CAT FACE}.jpg",
    "\uffee.jpg",
    "\u00e9.jpg",
    "e\u0301.jpg",
    "-rf",
    "~",
    "x" * 255,
    "/".join(["y" * 255] * 3),
]
"""Keys a file system takes as well; the wide letter sorts otherwise in UTF-16 than in UTF-8 beside the cat."""
BUCKET_NAMES = ["..", "up/../down.jpg", "./here.jpg", "double//slash.jpg", "a", "a/b", "/leading", "z" * 1000]


class Place(Protocol):
    """A store and ways around it, to make what it is to meet."""

    store: Store

    def put(self, key: str, data: bytes) -> None: ...

    def put_many(self, objects: dict[str, bytes]) -> None: ...

    def delete(self, key: str) -> None: ...

    def keys(self) -> list[str]: ...


@dataclass
class FolderPlace:
    root: Path
    unnamed_files: bool = True

    def __post_init__(self) -> None:
        self.store: Store = FolderStore(str(self.root), unnamed_files=self.unnamed_files)

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def put_many(self, objects: dict[str, bytes]) -> None:
        for key, data in objects.items():
            self.put(key, data)

    def delete(self, key: str) -> None:
        (self.root / key).unlink()

    def keys(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@dataclass
class BucketPlace:
    server: S3Server
    bucket: str

    def __post_init__(self) -> None:
        self.store: Store = BucketStore(f"s3://{self.bucket}/{PREFIX}")

    def put(self, key: str, data: bytes) -> None:
        self.server.client.put_object(Bucket=self.bucket, Key=f"{PREFIX}/{key}", Body=data)

    def put_many(self, objects: dict[str, bytes]) -> None:
        self.server.upload(self.bucket, {f"{PREFIX}/{key}": data for key, data in objects.items()})

    def delete(self, key: str) -> None:
        self.server.client.delete_object(Bucket=self.bucket, Key=f"{PREFIX}/{key}")

    def keys(self) -> list[str]:
        return [key.removeprefix(f"{PREFIX}/") for key in self.server.keys(self.bucket)]


@pytest.fixture
def folder(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "not there yet")


@pytest.fixture
def plain_folder(tmp_path: Path) -> FolderPlace:
    """As on NFS, which has no unnamed files."""
    return FolderPlace(tmp_path / "not there yet", unnamed_files=False)


@pytest.fixture
def in_bucket(s3_server: S3Server, s3_environment: dict[str, str], bucket: str) -> BucketPlace:
    return BucketPlace(s3_server, bucket)


@pytest.fixture(params=["folder", "plain_folder", "in_bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(
    bucket: str, s3_environment: dict[str, str], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> BucketStore:
    """The bucket through the proxy."""
    use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint_url})
    return BucketStore(f"s3://{bucket}/{PREFIX}")


def whole(store: Store, key: str) -> bytes:
    return store.read(key)


def wanted_of(store: Store) -> dict[str, Wanted]:
    return {entry.key: Wanted(*entry) for entry in store.list()}


# The contract


def test_an_object_is_created_once(place: Place) -> None:
    assert place.store.create("data/1.bin", b"first") is True
    assert place.store.create("data/1.bin", b"second") is False
    assert whole(place.store, "data/1.bin") == b"first"
    assert place.keys() == ["data/1.bin"]


def test_whether_objects_are_created_once_is_tried_without_a_trace(place: Place) -> None:
    place.store.create("plan/part", b"data")
    assert place.store.creates_once("plan/part", b"data")
    assert whole(place.store, "plan/part") == b"data"
    assert place.keys() == ["plan/part"]


@pytest.mark.parametrize("size", [0, 1, 9_000_000])
def test_an_object_comes_back_as_it_was(place: Place, size: int) -> None:
    data = os.urandom(size)
    assert place.store.create("data.bin", data)
    assert whole(place.store, "data.bin") == data
    assert [(entry.key, entry.size) for entry in place.store.list()] == [("data.bin", size)]


def test_of_eight_that_create_at_once_one_wins(place: Place) -> None:
    for key in map(str, range(5)):
        contents = [bytes([number]) * 100_000 for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            created = list(pool.map(lambda data, key=key: place.store.create(key, data), contents))  # type: ignore[misc]
        assert created.count(True) == 1
        assert whole(place.store, key) == contents[created.index(True)]
    assert place.keys() == list(map(str, range(5)))


def test_writing_is_tried_without_a_trace(place: Place) -> None:
    place.store.try_writing()
    assert place.keys() == []
    place.put("data/1.bin", b"1")
    place.store.try_writing()
    assert place.keys() == ["data/1.bin"]


def test_a_right_to_create_alone_is_enough_for_what_is_only_created(
    in_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the policy in cluster/ grants it, with a condition that no server here knows."""
    call = BucketStore._call

    def refuse(self: BucketStore, doing: str, method: str, **request: Any) -> dict[str, Any]:
        if method == "put_object" and "IfNoneMatch" not in request:
            raise StoreError("refused")
        return call(self, doing, method, **request)

    monkeypatch.setattr(BucketStore, "_call", refuse)
    with pytest.raises(StoreError, match="refused"):
        in_bucket.store.try_writing()
    for _ in range(2):
        in_bucket.store.try_writing(create_only=True)


def test_where_nothing_can_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderStore(str(tmp_path / "a" / "b")).try_writing()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "link/below"):
        with pytest.raises(StoreError, match=f"writing to {tmp_path}/{name}"):
            FolderStore(str(tmp_path / name)).try_writing()
    with pytest.raises(UsageError, match="can only be read"):
        open_store("memory://place").try_writing()


def test_replace_writes_anew_and_over(place: Place) -> None:
    place.store.replace("done.json", b"1")
    place.store.replace("done.json", b"22")
    assert whole(place.store, "done.json") == b"22"
    assert place.keys() == ["done.json"]


def test_only_the_object_that_is_meant_is_replaced(place: Place) -> None:
    assert not place.store.replace("a", b"one", "of an object that is not there")
    assert not place.store.exists("a")
    place.put("a", b"first")
    listed = place.store.stat("a")
    assert listed is not None
    assert place.store.replace("a", b"second one", listed.etag)
    assert not place.store.replace("a", b"third", listed.etag)
    assert place.store.read("a") == b"second one"


@pytest.mark.parametrize("rights", [0o644, 0o444])
def test_of_two_that_replace_a_file_of_a_folder_at_once_one_does(tmp_path: Path, rights: int) -> None:
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "a").chmod(rights)
    store, others, waited = FolderStore(str(tmp_path)), [], []
    listed = store.stat("a")
    assert listed is not None

    class Interrupted(FolderStore):
        """Between its comparing and its replacing, another one replaces the same file, or would."""

        def stat(self, key: str) -> Entry | None:
            found = super().stat(key)
            others.append(pool.submit(store.replace, key, b"of another", listed.etag))
            with contextlib.suppress(TimeoutError):
                waited.append(others[0].result(timeout=0.3))
            return found

    with ThreadPoolExecutor(1) as pool:
        assert Interrupted(str(tmp_path)).replace("a", b"second", listed.etag)
        assert not others[0].result()
    assert waited == []
    assert store.read("a") == b"second"


def test_what_is_removed_is_gone_and_what_is_not_there_is_no_trouble(place: Place) -> None:
    place.store.replace("a/one", b"1")
    place.store.replace("a/two", b"2")
    place.store.remove("a/one")
    place.store.remove("a/one")
    assert [entry.key for entry in place.store.list()] == ["a/two"]


def test_exists_says_what_is_there(place: Place) -> None:
    place.put("data/1.bin", b"1")
    assert place.store.exists("data/1.bin")
    assert not place.store.exists("data/2.bin")
    assert not place.store.exists("other/1.bin")


def test_a_slice_is_read(place: Place) -> None:
    place.put("k", b"0123456789")
    assert place.store.get(Wanted("k", 10, "", 3, 4)) == b"3456"
    assert place.store.get(Wanted("k", 10, "", 0, 1)) == b"0"
    assert place.store.get(Wanted("k", 10, "", 9, 1)) == b"9"


@pytest.mark.parametrize(("offset", "length"), [(8, 4), (10, 1), (50, 5)])
def test_a_slice_that_is_not_all_there_means_another_object(place: Place, offset: int, length: int) -> None:
    place.put("k", b"0123456789")
    with pytest.raises(ObjectChangedError):
        place.store.get(Wanted("k", 60, "", offset, length))


def test_what_is_gone_is_told_from_what_is_another(place: Place) -> None:
    place.put("k", b"old")
    planned = wanted_of(place.store)["k"]
    assert place.store.get(planned) == b"old"
    place.put("k", b"new and longer")
    with pytest.raises(ObjectChangedError):
        place.store.get(planned)
    assert whole(place.store, "k") == b"new and longer"
    place.delete("k")
    with pytest.raises(ObjectGoneError):
        place.store.get(planned)
    with pytest.raises(ObjectGoneError):
        whole(place.store, "never/was")


def test_many_objects_are_read_in_order_whatever_happened_to_some(place: Place) -> None:
    contents = {f"{number:03d}": os.urandom(number * 50) for number in range(100)}
    place.put_many(contents)
    planned = wanted_of(place.store)
    for key in ("000", "050", "099"):
        place.delete(key)
    for key in ("001", "051"):
        place.put(key, b"another")
    outcomes = list(place.store.get_many(list(planned.values())))
    assert len(outcomes) == 100
    for key, outcome in zip(planned, outcomes, strict=True):
        if key in ("000", "050", "099"):
            assert isinstance(outcome, ObjectGoneError)
        elif key in ("001", "051"):
            assert isinstance(outcome, ObjectChangedError)
        else:
            assert outcome == contents[key]


def test_reading_none_gives_none(place: Place) -> None:
    assert list(place.store.get_many([])) == []


def test_a_reader_may_stop_early(place: Place) -> None:
    place.put_many({str(number): b"data" for number in range(50)})
    reader = place.store.get_many([Wanted(str(number), 4, "") for number in range(50)])
    assert next(reader) == b"data"
    reader.close()  # type: ignore[attr-defined]
    assert whole(place.store, "7") == b"data"


def test_objects_are_listed_in_the_order_of_their_utf8_bytes(place: Place) -> None:
    keys = ["a.jpg", "a/x.jpg", "a/x/y.jpg", "a/x0.jpg", "a0", "a-", "B", "\uffee", "\N{CAT FACE}", "\u00e9", "e\u0301"]
    place.put_many({key: key.encode() for key in keys})
    listed = list(place.store.list())
    assert [entry.key for entry in listed] == sorted(keys, key=str.encode)
    assert [entry.size for entry in listed] == [len(entry.key.encode()) for entry in listed]


def test_a_prefix_is_no_folder(place: Place) -> None:
    for key in ("data/1", "data/2", "data2/3", "dat", "plan.json"):
        place.put(key, b"")
    assert [entry.key for entry in place.store.list("data/")] == ["data/1", "data/2"]
    assert [entry.key for entry in place.store.list("data")] == ["data/1", "data/2", "data2/3"]
    assert list(place.store.list("nothing/")) == []


def test_an_empty_or_missing_store_lists_nothing(place: Place) -> None:
    assert list(place.store.list()) == []
    assert not place.store.exists("k")


@pytest.mark.matrix(12)
def test_odd_keys_stay_what_they_are(place: Place) -> None:
    names = FILE_NAMES + (BUCKET_NAMES if isinstance(place, BucketPlace) else [])
    if isinstance(place, BucketPlace) and place.server.kind == "moto":
        names = [name for name in names if "\n" not in name]  # moto answers 404 to it
    for name in names:
        assert place.store.create(f"{name}", name.encode()), name
    planned = wanted_of(place.store)
    assert list(planned) == sorted(names, key=str.encode)
    assert list(place.store.get_many(list(planned.values()))) == [key.encode() for key in planned]
    assert all(place.store.exists(name) for name in names)
    assert place.keys() == sorted(names, key=str.encode if isinstance(place, BucketPlace) else None)


@pytest.mark.matrix(12)
def test_a_key_of_1024_bytes_is_written_and_read(in_bucket: BucketPlace) -> None:
    key = "k" * (1024 - len(PREFIX) - 1)
    assert in_bucket.store.create(key, b"data")
    assert list(in_bucket.store.get_many(list(wanted_of(in_bucket.store).values()))) == [b"data"]


# Names of stores


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/a/b/../c/", "/a/c"),
        ("file:///a/b/", "/a/b"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("s3://bucket", "s3://bucket"),
        ("~", os.path.expanduser("~")),
    ],
)
def test_a_store_has_one_name(uri: str, name: str) -> None:
    assert normal_uri(uri) == name
    assert normal_uri(name) == name


def test_a_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("photos").uri == f"{tmp_path}/photos"


def test_a_relative_name_means_the_folder_where_one_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for here in ("first", "second"):
        (tmp_path / here / "photos").mkdir(parents=True)
        (tmp_path / here / "photos" / f"{here}.jpg").write_bytes(b"1")
        monkeypatch.chdir(tmp_path / here)
        assert [entry.key for entry in open_store("photos").list()] == [f"{here}.jpg"]
        assert open_store("photos") is open_store(str(tmp_path / here / "photos"))
        image = open_source("photos", Reading(source_format="files")).first(Counter())
        assert image is not None
        assert image.key == f"{here}.jpg"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://user:hunter2@bucket/prefix",
        "s3://hunter2@bucket/prefix",
        "s3://user:hunter2/x@bucket/prefix",
        "s3://bucket/prefix?secret=hunter2",
        "https://user:hunter2@example.org/bucket",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3a://bucket", "nobody-knows-this://x", "s3://", "", "simplecache::s3://bucket"])
def test_other_stores_are_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="Received"):
        open_store(uri)


# Folders


def test_links_to_nothing_are_passed_over_and_names_that_cannot_be_are_gone(folder: FolderPlace) -> None:
    folder.put("a.jpg", b"1")
    (folder.root / "circle.jpg").symlink_to("circle.jpg")
    (folder.root / "nothing.jpg").symlink_to("nowhere.jpg")
    assert [entry.key for entry in folder.store.list()] == ["a.jpg"]
    for name in ("circle.jpg", "a\0b.jpg", "x" * 300, "a.jpg/b.jpg"):
        assert folder.store.stat(name) is None
        with pytest.raises(ObjectGoneError):
            folder.store.get(Wanted(name, 1, ""))


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"Expected a folder.*file"):
        list(FolderStore(str(tmp_path / "file")).list())
    with pytest.raises(StoreError, match=r"folder"):
        FolderStore(str(tmp_path / "file")).create("k", b"data")


def test_a_folder_in_place_of_a_file_means_it_is_gone(folder: FolderPlace) -> None:
    folder.put("k/inside", b"")
    with pytest.raises(ObjectGoneError):
        whole(folder.store, "k")
    with pytest.raises(ObjectGoneError):
        whole(folder.store, "k/inside/deeper")


def test_what_is_no_file_is_not_listed(folder: FolderPlace, tmp_path: Path) -> None:
    folder.put("a.jpg", b"1")
    (folder.root / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(folder.root / "pipe.jpg")
    (folder.root / "link.jpg").symlink_to("a.jpg")
    assert [entry.key for entry in folder.store.list()] == ["a.jpg", "link.jpg"]
    assert whole(folder.store, "link.jpg") == b"1"


def test_only_regular_files_are_read(folder: FolderPlace) -> None:
    folder.put("a.jpg", b"1")
    (folder.root / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder.root / "pipe.jpg")
    for key in ("zero.jpg", "pipe.jpg"):
        assert folder.store.stat(key) is None
        for wanted in (Wanted(key, 0, ""), Wanted(key, 5, "", 0, 5)):
            with pytest.raises(ObjectGoneError):
                folder.store.get(wanted)
    with pytest.raises(ObjectChangedError):  # without asking for a petabyte of memory
        folder.store.get(Wanted("a.jpg", 1, "", 0, 10**15))


@pytest.mark.parametrize("unnamed_files", [True, False])
def test_new_files_have_the_rights_the_user_wants(tmp_path: Path, unnamed_files: bool) -> None:
    folder = FolderPlace(tmp_path / "out", unnamed_files)
    before = os.umask(0o027)
    try:
        folder.store.create("created", b"")
        folder.store.replace("replaced", b"")
    finally:
        os.umask(before)
    assert [(folder.root / name).stat().st_mode & 0o777 for name in ("created", "replaced")] == [0o640, 0o640]


WRITER = """
import sys
from bottleneck.storage.local import LEFTOVER_SECONDS, FolderStore
store = FolderStore(sys.argv[1], unnamed_files=sys.argv[2] == "True")
print("ready", flush=True)
for number in range(1_000_000):
    store.create(f"data/{number:06d}", number.to_bytes(4, "big") * 50_000)
    store.replace("done.json", number.to_bytes(4, "big") * 50_000)
"""


@pytest.mark.parametrize("unnamed_files", [True, False])
def test_a_killed_writer_leaves_whole_files_and_nothing_else(tmp_path: Path, unnamed_files: bool) -> None:
    folder = FolderPlace(tmp_path / "out", unnamed_files)
    for delay in (0.05, 0.11, 0.17):
        command = [sys.executable, "-c", WRITER, str(folder.root), str(unnamed_files)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as output:
            assert output.readline() == b"ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        process.wait()
    keys = [entry.key for entry in folder.store.list()]
    assert keys == [*(f"data/{number:06d}" for number in range(len(keys) - 1)), "done.json"]
    for key in keys:
        data = (folder.root / key).read_bytes()
        assert data == data[:4] * 50_000
        assert key == "done.json" or int.from_bytes(data[:4], "big") == int(key[5:])
    assert len(folder.keys()) - len(keys) <= 3  # half a file a kill, which is not listed


def test_what_a_killed_writer_leaves_is_removed_once_it_is_old(plain_folder: FolderPlace) -> None:
    young = [".plan.json.4711-0badcafe", "data/.s00000000-01234567.parquet.99-abcdef01"]
    old = [".plan.json.4712-0badcafe", "data/.s00000000-01234567.parquet.98-abcdef01"]
    then = time.time() - 2 * LEFTOVER_SECONDS
    for name in (*young, *old):
        plain_folder.put(name, b"half")
    for name in old:
        os.utime(plain_folder.root / name, (then, then))
    plain_folder.put(".hidden.0badcafe", b"of somebody else")
    assert [entry.key for entry in plain_folder.store.list()] == [".hidden.0badcafe"]
    assert len(plain_folder.keys()) == 5
    plain_folder.store.sweep()
    assert plain_folder.keys() == sorted([".hidden.0badcafe", *young])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.matrix(13)
def test_a_full_disk_stops_the_run_and_shows_no_part_of_a_file(small_disk: Path) -> None:
    store = FolderStore(str(small_disk))
    assert store.create("data/1", b"x" * 300_000)
    store.replace("done.json", b"before")
    with pytest.raises(StoreError, match=r"disk is full.*free some space"):
        store.create("data/2", b"x" * 1_000_000)
    with pytest.raises(StoreError, match=r"disk is full"):
        store.replace("done.json", b"x" * 1_000_000)
    assert FolderPlace(small_disk).keys() == ["data/1", "done.json"]
    assert whole(store, "done.json") == b"before"
    assert store.create("data/2", b"x" * 300_000), "what was left of the disk is free again"


@pytest.mark.matrix(13)
def test_a_read_only_folder_stops_the_run(small_disk: Path) -> None:
    store = FolderStore(str(small_disk))
    store.create("data/1", b"1")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for write in (store.create, store.replace):
        with pytest.raises(StoreError, match="read-only"):
            write("data/2", b"2")
    assert FolderPlace(small_disk).keys() == ["data/1"]
    assert whole(store, "data/1") == b"1"


# Buckets


def test_no_more_is_asked_for_than_the_memory_may_hold(proxied: BucketStore, proxy: FaultProxy) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: proxied.create(f"{number:03d}", b"data"), range(2 * IN_FLIGHT)))
    for size, most in ((4, IN_FLIGHT), (IN_FLIGHT_BYTES // 3 + 1, 2), (2 * IN_FLIGHT_BYTES, 1)):
        proxy.requests.clear()
        reader = proxied.get_many([Wanted(f"{number:03d}", size, "") for number in range(2 * IN_FLIGHT)])
        next(reader)
        time.sleep(0.5)
        assert proxy.count("GET") == most
        assert list(reader) == [b"data"] * (2 * IN_FLIGHT - 1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("answer", status=503, code="SlowDown", probability=0.3),
        Fault("answer", status=500, code="InternalError", probability=0.3),
        Fault("answer_after", status=500, code="InternalError", probability=0.3),
        Fault("cut_body", probability=0.3),
        Fault("reset", probability=0.3),
        Fault("lose_answer", probability=0.3),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_what_passes_is_tried_again_and_nothing_is_lost(proxied: BucketStore, proxy: FaultProxy, fault: Fault) -> None:
    contents = {f"{number:02d}": os.urandom(20_000) for number in range(16)}
    proxy.inject(fault)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(proxied.create, contents, contents.values()))
    planned = wanted_of(proxied)
    assert list(planned) == list(contents)
    assert list(proxied.get_many(list(planned.values()))) == list(contents.values())
    assert proxied.exists("00")
    assert not proxied.exists("none")
    assert proxy.injected[fault.kind] > 5


@pytest.mark.parametrize(("status", "code"), [(409, "ConditionalRequestConflict"), (429, "TooManyRequests")])
def test_a_refusal_that_passes_is_tried_again(proxied: BucketStore, proxy: FaultProxy, status: int, code: str) -> None:
    proxy.inject(Fault("answer", status=status, code=code, times=2))
    assert proxied.create("k", b"data")
    assert whole(proxied, "k") == b"data"
    assert proxy.injected["answer"] == 2


@pytest.mark.parametrize("kind", ["lose_answer", "answer_after"])
def test_a_write_whose_answer_is_lost_is_no_failure(proxied: BucketStore, proxy: FaultProxy, kind: str) -> None:
    data = os.urandom(100_000)
    proxy.inject(Fault(kind, methods="PUT", times=1))  # type: ignore[arg-type]
    proxied.create("k", data)  # says false, as the second try finds the first one's object
    assert proxy.injected[kind] == 1  # type: ignore[index]
    assert whole(proxied, "k") == data
    assert proxied.create("k", b"other") is False
    proxy.inject(Fault(kind, methods="PUT", times=1))  # type: ignore[arg-type]
    proxied.replace("k", b"replaced")
    assert whole(proxied, "k") == b"replaced"


def test_a_listing_of_several_pages_is_whole_with_faults_in_each(
    proxied: BucketStore, proxy: FaultProxy, s3_server: S3Server
) -> None:
    keys = [f"{number % 7}/{number:04d}" for number in range(1_001)]
    s3_server.upload(proxied.bucket, dict.fromkeys((proxied.prefix + key for key in keys), b""))
    assert sorted(keys) == [entry.key for entry in proxied.list()]
    assert proxy.count("GET") == 2
    proxy.inject(Fault("cut_body", at=1), Fault("answer", at=2), Fault("reset", at=4))
    assert sorted(keys) == [entry.key for entry in proxied.list()]
    assert proxy.injected == {"cut_body": 1, "answer": 1, "reset": 1}


@pytest.mark.parametrize(
    ("status", "code", "headers", "words"),
    [
        (301, "PermanentRedirect", (), "another region or at another endpoint.*s3.eu.example"),
        (307, "TemporaryRedirect", (("x-amz-bucket-region", "eu-west-1"),), "AWS_DEFAULT_REGION=eu-west-1"),
        (400, "ExpiredToken", (), "credentials have expired"),
        (403, "RequestTimeTooSkewed", (), "clock"),
    ],
)
def test_what_only_a_person_can_mend_is_asked_once(
    proxied: BucketStore, proxy: FaultProxy, status: int, code: str, headers: tuple[tuple[str, str], ...], words: str
) -> None:
    assert list(proxied.list()) == []  # so that the store has answered before
    details = (("Endpoint", "s3.eu.example"),)
    proxy.inject(Fault("answer", status=status, code=code, headers=headers, details=details))
    for ask in (lambda: list(proxied.list()), lambda: proxied.create("k", b""), lambda: whole(proxied, "k")):
        proxy.requests.clear()
        with pytest.raises(StoreError, match=words):
            ask()
        assert len(proxy.requests) <= 2  # the client's own follows a region that the store names
    with pytest.raises(StoreError, match="another region" if status < 400 else "credentials"):  # a HEAD has no code
        proxied.exists("k")


def test_an_archived_object_is_told_from_a_refused_one(proxied: BucketStore, proxy: FaultProxy) -> None:
    for key in ("a", "b", "c"):
        proxied.create(key, key.encode())
    proxy.inject(Fault("answer", methods="GET", path="/b$", status=403, code="InvalidObjectState"))
    outcomes = list(proxied.get_many([Wanted(key, 1, "") for key in ("a", "b", "c")]))
    assert [type(one) for one in outcomes] == [bytes, ObjectArchivedError, bytes]
    assert proxy.count("GET", "/b$") == 1
    with pytest.raises(StoreError, match=r"archived.*Restore it"):
        whole(proxied, "b")


def test_a_mistake_of_the_client_is_not_tried_again(
    proxied: BucketStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    async def mistake(*_: object, **__: object) -> None:
        calls.append(1)
        raise RecursionError

    monkeypatch.setattr(proxied.fs, "_call_s3", mistake)
    with pytest.raises(RecursionError):
        proxied.exists("k")
    assert len(calls) == 1


def test_a_wrong_endpoint_is_told_in_seconds(
    s3_environment: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    use_environment(monkeypatch, s3_environment | {"AWS_ENDPOINT_URL": endpoint})
    started = time.monotonic()
    with pytest.raises(StoreError, match=rf"AWS_ENDPOINT_URL \({endpoint}\)"):
        list(BucketStore(f"s3://{bucket}").list())
    assert time.monotonic() - started < 15


@pytest.mark.matrix(13)
def test_without_credentials_the_run_stops_at_once(
    s3_environment: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    use_environment(monkeypatch, {name: value for name, value in s3_environment.items() if name not in missing})
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"No usable credentials.*AWS_PROFILE"):
        list(BucketStore(f"s3://{bucket}").list())
    assert time.monotonic() - started < 5


@pytest.mark.matrix(13)
def test_wrong_credentials_stop_the_run_at_once(
    ceph_server: CephServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ({"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "unknown"}):
        use_environment(monkeypatch, ceph_server.environment | wrong)
        store = BucketStore(f"s3://{bucket}")
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"AWS_PROFILE or AWS_ACCESS_KEY_ID"):
            list(store.list())
        with pytest.raises(StoreError, match=r"AWS_PROFILE or AWS_ACCESS_KEY_ID"):
            store.create("k", b"data")
        with pytest.raises(StoreError, match=r"AWS_PROFILE or AWS_ACCESS_KEY_ID"):
            list(store.get_many([Wanted("k", 1, "")]))
        assert time.monotonic() - started < 5


@pytest.mark.matrix(13)
def test_a_reader_may_not_write(ceph_server: CephServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ceph_server.upload(bucket, {"k": b"data"})
    use_environment(monkeypatch, ceph_server.read_only_environment(bucket))
    store = BucketStore(f"s3://{bucket}")
    assert whole(store, "k") == b"data"
    assert [entry.key for entry in store.list()] == ["k"]
    for write in (store.create, store.replace):
        with pytest.raises(StoreError, match="refused"):
            write("new", b"data")
    with pytest.raises(ObjectGoneError):
        whole(store, "none")


@pytest.mark.matrix(13)
def test_a_missing_bucket_is_named(s3_environment: dict[str, str]) -> None:
    store = BucketStore("s3://no-such-bucket-here/prefix")
    with pytest.raises(StoreError, match=r"no-such-bucket-here.*no such bucket"):
        list(store.list())
    with pytest.raises(StoreError, match="no such bucket"):
        store.create("k", b"data")
    with pytest.raises(StoreError, match="no such bucket"):
        whole(store, "k")


def test_a_name_no_bucket_can_have_is_refused(s3_environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="S3 takes no such name"):
        list(BucketStore("s3://not a bucket/prefix").list())


def test_a_store_is_opened_once_for_all_its_names(s3_environment: dict[str, str], tmp_path: Path) -> None:
    assert isinstance(open_store("s3://bucket/prefix"), BucketStore)
    assert open_store(f"file://{tmp_path}").uri == open_store(str(tmp_path)).uri == str(tmp_path)
