"""Sources behind any file system of fsspec's: a real web server, and fsspec's memory."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import tiny

from bottleneck.audit.verify import verify
from bottleneck.dataset.features import open_features
from bottleneck.dataset.make_plan import make_plan
from bottleneck.errors import StoreError, UsageError
from bottleneck.extract.local import extract_images
from bottleneck.sources.open import open_source, resolve_reading
from bottleneck.sources.reading import Reading
from bottleneck.storage.readonly import RemoteStore
from bottleneck.storage.store import Entry, ObjectChangedError, ObjectGoneError, Wanted, cached_store, open_store


class Handler(http.server.SimpleHTTPRequestHandler):
    refused: ClassVar[set[str]] = set()
    failing: ClassVar[list[int]] = []
    """Answers to give instead of the next ones."""

    def send_head(self) -> Any:
        if self.failing:
            self.send_error(self.failing.pop())
            return None
        if self.path in self.refused:
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where a web server shows it."""
    folder = tmp_path / "web"
    folder.mkdir()
    Handler.refused, Handler.failing = set(), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    cached_store.cache_clear()


def test_photos_on_a_web_server(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = web
    tiny.photos(folder / "photos", 6)
    (folder / "photos" / "notes.txt").write_text("no image")
    source = open_source(f"{url}/photos", resolve_reading(f"{url}/photos", Reading()))
    skipped: Counter[str] = Counter()
    images = list(source.images(skipped))
    assert [(image.key, image.label) for image in images] == [
        *((f"cats/{n:04d}.jpg", "cats") for n in (1, 3, 5)),
        *((f"dogs/{n:04d}.jpg", "dogs") for n in (0, 2, 4)),
    ]
    assert [image.size for image in images] == [len(tiny.jpeg(n)) for n in (1, 3, 5, 0, 2, 4)]
    assert skipped == {".txt": 1}
    assert list(source.read(images)) == [tiny.jpeg(n) for n in (1, 3, 5, 0, 2, 4)]
    summary = extract_images(f"{url}/photos", str(tmp_path / "out"), tiny.REQUEST, shard_size=4)
    assert summary.ok == 6
    assert verify(str(tmp_path / "out"), full=True).exit_code == 0
    assert len(open_features(str(tmp_path / "out")).keys()) == 6


def test_what_changes_or_goes_on_a_web_server(web: tuple[Path, str]) -> None:
    folder, url = web
    tiny.photos(folder / "photos", 3)
    store = open_store(f"{url}/photos")
    entries = list(store.list())
    (folder / "photos/cats/0001.jpg").write_bytes(tiny.jpeg(1))
    os.utime(folder / "photos/cats/0001.jpg", (1_000_000_000, 1_000_000_000))
    (folder / "photos/dogs/0000.jpg").unlink()
    data = list(store.get_many([Wanted(*entry) for entry in entries]))
    assert [type(one) for one in data] == [ObjectChangedError, ObjectGoneError, bytes]
    assert not store.exists("dogs/0000.jpg")
    assert list(open_store(f"{url}/nothing").list()) == []


def test_a_server_in_trouble_is_asked_again_and_a_refusal_is_told(web: tuple[Path, str]) -> None:
    folder, url = web
    tiny.photos(folder / "photos", 1)
    store = open_store(f"{url}/photos")
    Handler.failing = [503, 500]
    [entry] = store.list()
    assert store.get(Wanted(*entry)) == tiny.jpeg(0)
    assert not Handler.failing
    Handler.refused = {"/photos/dogs/0000.jpg"}
    with pytest.raises(StoreError, match="403"):
        store.get(Wanted(*entry))


def test_an_index_page_may_sort_itself_and_link_elsewhere(web: tuple[Path, str]) -> None:
    folder, url = web
    tiny.write_files(folder / "photos", {"a&b.jpg": tiny.jpeg(1)})
    tiny.photos(folder / "secret", 1)
    links = ["?C=N;O=D", "./", "../", "../secret/", "/secret/", "a&amp;b.jpg", "gone.jpg", "#top"]
    page = "".join(f'<a href="{link}">x</a>' for link in links)
    (folder / "photos" / "index.html").write_text(f"<html>{page}</html>")
    assert [entry.key for entry in open_store(f"{url}/photos").list()] == ["a&b.jpg"]


def test_a_server_without_ranges_is_told(web: tuple[Path, str]) -> None:
    folder, url = web
    tiny.write_files(folder, {"a.bin": bytes(1000)})
    with pytest.raises(StoreError, match="has no ranges"):
        open_store(url).get(Wanted("a.bin", 1000, "", 10, 10))


def test_slices_of_an_object(web: tuple[Path, str]) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/slices/a.bin": bytes(range(100)), "/slices/b/c.bin": b"x"})
    store = open_store("memory://slices")
    assert isinstance(store, RemoteStore)
    assert [(entry.key, entry.size) for entry in store.list()] == [("a.bin", 100), ("b/c.bin", 1)]
    assert store.get(Wanted("a.bin", 100, "", 10, 5)) == bytes(range(10, 15))
    assert store.stat("b") is None
    assert store.stat("b/c.bin") == Entry("b/c.bin", 1, store.list("b/").__next__().etag)
    with pytest.raises(ObjectGoneError):
        store.get(Wanted("z.bin", 1, ""))


def test_nothing_is_written_there(web: tuple[Path, str], tmp_path: Path) -> None:
    _, url = web
    tiny.photos(tmp_path / "photos", 1)
    with pytest.raises(UsageError, match=r"Expected a folder or s3://bucket/prefix as the output. Received: http://"):
        extract_images(str(tmp_path / "photos"), f"{url}/out", tiny.REQUEST)
    with pytest.raises(UsageError, match="can only be read"):
        open_store(url).create("a", b"")
    with pytest.raises(UsageError, match="can only be read"):
        open_store(url).replace("a", b"")


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs a package that is not installed: .*gcsfs"):
        make_plan("gs://bucket/photos", str(tmp_path / "out"), tiny.spec())
    with pytest.raises(UsageError, match="a URI fsspec knows"):
        make_plan("nobody-knows-this://bucket/photos", str(tmp_path / "out"), tiny.spec())
