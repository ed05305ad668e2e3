"""List a long prefix in parallel, by ranges of keys, in order.

S3 answers a page of 1,000 keys in some 50 ms, and only the next page's request knows where it ends. The folders a
prefix holds say where other pages may begin.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NUM_LISTED_AT_ONCE = 8
NUM_PAGES_AHEAD = 4
"""Pages buffered per range: a page is about 0.3 MB, so at most 10 MB wait."""
NUM_PAGES_ALONE = 4
"""Shorter listings are not worth the extra requests."""
MAX_RANGES = 64
NUM_PAGES_OF_FOLDERS = 8
"""Folders considered as bounds; the keys behind them are one more range."""

Page = dict[str, Any]
Ask = Callable[..., Page]
"""Asks for a page of ListObjectsV2: keyword arguments StartAfter, ContinuationToken, Delimiter, Prefix."""


def list_pages(ask: Ask, prefix: str) -> Iterator[Page]:
    """Yield the pages of a prefix, in the order of their keys."""
    last = ""
    for number, page in enumerate(_range(ask, prefix, None, None), 1):
        yield page
        if found := page.get("Contents", []):
            last = found[-1]["Key"]
        if number == NUM_PAGES_ALONE and page.get("IsTruncated"):
            break
    else:
        return
    bounds = [bound for bound in _bounds(ask, prefix) if bound.encode() > last.encode()]
    yield from _in_parallel(ask, prefix, [last, *bounds]) if bounds else _range(ask, prefix, last, None)


def _bounds(ask: Ask, prefix: str) -> list[str]:
    """Folders at which to divide a listing, at most MAX_RANGES - 1, in order."""
    folders = _folders(ask, prefix)
    while len(folders) == 1:  # photos/train/...: divide by what is below
        folders = _folders(ask, folders[0])
    if 1 < len(folders) <= NUM_LISTED_AT_ONCE:  # train/, test/: one of them may hold nearly all
        folders = sorted({*folders, *(below for folder in folders for below in _folders(ask, folder))}, key=str.encode)
    step = -(-len(folders) // (MAX_RANGES - 1))
    return folders[step - 1 :: step] if folders else []


def _folders(ask: Ask, prefix: str) -> list[str]:
    found: list[str] = []
    request = {"Prefix": prefix, "Delimiter": "/"}
    for _ in range(NUM_PAGES_OF_FOLDERS):
        page = ask(**request)
        found += [one["Prefix"] for one in page.get("CommonPrefixes", [])]
        if not page.get("IsTruncated"):
            break
        request["ContinuationToken"] = page["NextContinuationToken"]
    return found


def _in_parallel(ask: Ask, prefix: str, bounds: list[str]) -> Iterator[Page]:
    """The pages behind the first bound."""
    stop = threading.Event()
    ranges = list(zip(bounds, [*bounds[1:], None], strict=True))
    queues: list[queue.Queue[Any]] = [queue.Queue(NUM_PAGES_AHEAD) for _ in ranges]

    def hand_on(number: int, item: Any) -> bool:
        while not stop.is_set():
            try:
                queues[number].put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def page_through(number: int) -> None:
        after, last = ranges[number]
        try:
            for page in _range(ask, prefix, after, last):
                if not hand_on(number, page):
                    return
            hand_on(number, None)
        except BaseException as error:
            hand_on(number, error)

    pool = ThreadPoolExecutor(NUM_LISTED_AT_ONCE, "listing")
    try:
        for number in range(len(ranges)):  # taken up in this order, so what is waited for is always under way
            pool.submit(page_through, number)
        for pages in queues:
            while (page := pages.get()) is not None:
                if isinstance(page, BaseException):
                    raise page
                yield page
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _range(ask: Ask, prefix: str, after: str | None, last: str | None) -> Iterator[Page]:
    """The pages with the keys behind `after`, up to and with `last`, in the order of their UTF-8 bytes."""
    request = {"Prefix": prefix} | ({"StartAfter": after} if after is not None else {})
    while True:
        page = ask(**request)
        found = page.get("Contents", [])
        if last is not None and found and found[-1]["Key"].encode() > last.encode():
            yield {"Contents": [one for one in found if one["Key"].encode() <= last.encode()]}
            return
        yield page
        if not page.get("IsTruncated"):
            return
        request = {"Prefix": prefix, "ContinuationToken": page["NextContinuationToken"]}
