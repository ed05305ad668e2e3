"""Long listings in parallel: every key once and in order, however the keys are divided."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.storage import s3_listing as pages
from bottleneck.storage.s3_listing import list_pages
from bottleneck.storage.store import open_store


class Bucket:
    """ListObjectsV2 over keys in memory, a page at a time."""

    def __init__(self, keys: list[str], page_size: int) -> None:
        self.keys = sorted(set(keys), key=str.encode)
        self.page_size = page_size
        self.requests = 0
        self.lock = threading.Lock()

    def ask(
        self, Prefix: str, Delimiter: str = "", StartAfter: str = "", ContinuationToken: str = ""
    ) -> dict[str, Any]:
        with self.lock:
            self.requests += 1
        after = (ContinuationToken or StartAfter).encode()
        page: dict[str, Any] = {"Contents": [], "CommonPrefixes": [], "IsTruncated": False}
        folders: list[str] = []
        last = ""
        for key in self.keys:
            if not key.startswith(Prefix) or key.encode() <= after:
                continue
            head, slash, _ = key[len(Prefix) :].partition(Delimiter) if Delimiter else (key, "", "")
            folder = Prefix + head + "/" if slash else ""
            if folder and folder.encode() <= after:  # as S3 does: a folder that was told is passed over whole
                continue
            if folder and folders and folders[-1] == folder:
                continue
            if len(page["Contents"]) + len(folders) == self.page_size:
                return page | {
                    "CommonPrefixes": [{"Prefix": one} for one in folders],
                    "IsTruncated": True,
                    "NextContinuationToken": last + ("\U0010ffff" if last in folders else ""),
                }
            last = folder or key
            if folder:
                folders.append(folder)
            else:
                page["Contents"].append({"Key": key})
        return page | {"CommonPrefixes": [{"Prefix": one} for one in folders]}

    def listed(self, prefix: str = "") -> Iterator[str]:
        for page in list_pages(self.ask, prefix):
            yield from (one["Key"] for one in page.get("Contents", []))


NAMES = st.text(st.sampled_from("ab/.é\N{CAT FACE}~"), min_size=1, max_size=6)


@given(st.lists(NAMES, max_size=60), st.integers(1, 5), st.sampled_from(["", "a", "a/", "b/a"]))
def test_every_key_comes_once_and_in_order(keys: list[str], page_size: int, prefix: str) -> None:
    bucket = Bucket(keys, page_size)
    assert list(bucket.listed(prefix)) == [key for key in bucket.keys if key.startswith(prefix)]


@pytest.mark.parametrize(
    "keys",
    [
        [f"{c:03d}/{n:03d}.jpg" for c in range(300) for n in range(9)],
        [f"all/{c:03d}/{n:03d}.jpg" for c in range(30) for n in range(50)],
        [f"{split}/{c:03d}/{n:03d}.jpg" for split in ("test", "train") for c in range(50) for n in range(9)],
        [f"{n:05d}.jpg" for n in range(2000)],
        ["a/", "a/1", "a0", "b/", "b/1", *(f"c/{n:04d}" for n in range(1000)), "d"],
    ],
    ids=["many classes", "one folder above", "splits", "flat", "markers"],
)
def test_dividing_costs_few_requests_more(keys: list[str]) -> None:
    bucket = Bucket(keys, 10)
    assert list(bucket.listed()) == bucket.keys
    assert bucket.requests < len(keys) / 10 * 1.3 + 80


def test_an_error_of_one_range_stops_the_listing() -> None:
    bucket = Bucket([f"{c}/{n:03d}" for c in range(9) for n in range(50)], 10)

    def ask(**request: Any) -> dict[str, Any]:
        if str(request.get("StartAfter", "")).startswith("4/"):
            raise OSError("no answer")
        return bucket.ask(**request)

    with pytest.raises(OSError, match="no answer"):
        list(list_pages(ask, ""))


def test_a_listing_that_is_given_up_leaves_no_thread() -> None:
    bucket = Bucket([f"{c}/{n:03d}" for c in range(9) for n in range(500)], 10)
    before = threading.active_count()
    listing = list_pages(bucket.ask, "")
    for _ in range(pages.NUM_PAGES_ALONE + 1):
        next(listing)
    listing.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_bucket_of_many_folders_is_listed_like_a_flat_one(
    bucket: str, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "NUM_PAGES_ALONE", 1)
    store = open_store(f"s3://{bucket}/many")
    keys = [f"{c:02d}/{n:03d}" for c in range(12) for n in range(100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.create(key, b""), keys))
    assert [entry.key for entry in store.list()] == keys
    assert [entry.key for entry in store.list("03/")] == keys[300:400]
