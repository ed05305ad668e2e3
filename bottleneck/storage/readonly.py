"""Any fsspec file system (gs, az, http, ...) as a read-only store."""

import html
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from bottleneck.errors import StoreError, UsageError
from bottleneck.storage.retry import GaveUpError, PassingError, Patience, is_network_error
from bottleneck.storage.store import (
    IN_FLIGHT,
    Entry,
    ObjectChangedError,
    ObjectError,
    ObjectGoneError,
    Wanted,
    outcome,
    whole,
    windowed,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
_NO_NAME = re.compile(r"[?#]|/\.{1,2}(/|$)")
"""In links of an index page that sort it or lead elsewhere."""

ETAG_FIELDS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "content_settings", "mtime"),
    *("Last-Modified", "LastModified", "last_modified", "updated", "created"),
)
"""Of what file systems tell of an object, the first that is there tells a changed one, with the size."""


class RemoteStore:
    """A prefix of an fsspec file system; needs the package for it (gcsfs, adlfs, aiohttp)."""

    def __init__(self, uri: str) -> None:
        import fsspec

        self.uri = uri
        scheme = uri.partition("://")[0]
        try:
            self.fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        except ImportError as error:
            raise UsageError(f"Reading {scheme}:// needs a package that is not installed: {error}.") from error
        except ValueError as error:
            raise UsageError(
                f"Expected a folder, s3://bucket/prefix or a URI fsspec knows. Received: {uri}."
            ) from error
        self.root = root.rstrip("/")
        self._patience = Patience()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            for entry in self._walk(f"{self.root}/{folder}".rstrip("/"), pool):
                if entry.key.startswith(prefix):
                    yield entry

    def _walk(self, folder: str, pool: ThreadPoolExecutor) -> Iterator[Entry]:
        """Yield the entries below a folder, in the order of the keys' UTF-8 bytes, with one folder in memory."""
        try:
            found = self._patiently(f"listing {folder}", lambda: self.fs.ls(folder, detail=True))
        except ObjectGoneError:
            return
        names = {}
        for info in found:
            # The links of an index page are escaped as HTML is.
            name = (html.unescape(info["name"]) if folder.startswith("http") else info["name"]).rstrip("/")
            is_folder = info["type"] == "directory"
            if name.startswith(folder.rstrip("/") + "/") and not _NO_NAME.search(name[len(folder.rstrip("/")) :]):
                names[name + ("/" if is_folder else "")] = None if is_folder else info
        ordered = sorted(names, key=os.fsencode)
        told = windowed(
            [Wanted(name, 0, "") for name in ordered if names[name] is not None],
            lambda one: pool.submit(self._told, one.key, names[one.key]),
        )
        for name in ordered:
            if names[name] is None:
                yield from self._walk(name.rstrip("/"), pool)
            elif (entry := next(told)) is not None:
                yield entry

    def _told(self, path: str, info: dict[str, Any] | None) -> Entry | None:
        """What a listing, or where it does not tell (http) a look at the object, says of it."""
        try:
            if info is None or info.get("size") is None or not _etag(info):
                info = self._patiently(f"looking at {path}", lambda: self.fs.info(path))
        except ObjectGoneError:
            log.warning("%s is listed but not there, so it is not planned", path)
            return None
        size = info.get("size")
        if size is None:
            raise StoreError(f"{path} does not tell its size, so it cannot be planned. Copy the images elsewhere.")
        return Entry(path[len(self.root) + 1 :], int(size), _etag(info) or f"{size:x}")

    def stat(self, key: str) -> Entry | None:
        path = f"{self.root}/{key}"
        try:
            info = self._patiently(f"looking at {path}", lambda: self.fs.info(path))
        except ObjectGoneError:
            return None
        return self._told(path, info) if info["type"] == "file" else None

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def get(self, wanted: Wanted) -> bytes:
        path = f"{self.root}/{wanted.key}"
        if wanted.etag:
            entry = self.stat(wanted.key)
            if entry is None:
                raise ObjectGoneError(wanted.key)
            if entry.etag != wanted.etag:
                raise ObjectChangedError(wanted.key)
        start = wanted.offset or 0
        end = None if wanted.length is None else start + wanted.length

        def read() -> bytes:
            data = bytes(self.fs.cat_file(path, start=start if end is not None else None, end=end))
            if end is None and wanted.etag and entry is not None and len(data) != entry.size:
                raise TimeoutError(f"body cut short: {len(data)} of {entry.size} bytes")
            return data

        data = self._patiently(f"reading {path}", read)
        if wanted.length is not None and len(data) > wanted.length:
            raise StoreError(
                f"{path} came whole where a part was asked for: its server has no ranges. Copy it elsewhere."
            )
        return whole(wanted, data)

    def read(self, key: str) -> bytes:
        return self.get(Wanted(key, 0, ""))

    def get_many(self, wanted: Sequence[Wanted]) -> Iterator[bytes | ObjectError]:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            yield from windowed(wanted, lambda one: pool.submit(outcome, self.get, one))

    def list_dated(self, prefix: str = "") -> Iterator[tuple[Entry, float]]:
        raise self._is_read_only()

    def clock(self) -> float:
        raise self._is_read_only()

    def try_writing(self, *, create_only: bool = False) -> None:
        raise self._is_read_only()

    def create(self, key: str, data: bytes) -> bool:
        raise self._is_read_only()

    def creates_once(self, key: str, data: bytes) -> bool:
        raise self._is_read_only()

    def create_from_file(self, key: str, path: str) -> bool:
        raise self._is_read_only()

    def replace(self, key: str, data: bytes, etag: str = "") -> bool:
        raise self._is_read_only()

    def remove(self, key: str) -> None:
        raise self._is_read_only()

    def sweep(self) -> None:
        raise self._is_read_only()

    def _is_read_only(self) -> UsageError:
        return UsageError(f"{self.uri} can only be read. Expected an output in a folder or an s3://bucket/prefix.")

    def _patiently(self, doing: str, attempt: Callable[[], T]) -> T:
        """Retry while the error may pass; otherwise raise what it means."""

        def call() -> T:
            try:
                return attempt()
            except Exception as caught:
                error = _behind(caught)
                if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                    raise ObjectGoneError(doing) from None
                if _passes(error):
                    raise PassingError(_words(error)) from error
                raise _told(doing, _words(error)) from error

        try:
            return self._patience.call(call)
        except GaveUpError as error:
            raise _told(doing, error.words) from error.__cause__


def _told(doing: str, words: str) -> StoreError:
    return StoreError(
        f"{words} while {doing}. Look at the name, the network and the rights, then run the same command again; "
        "nothing is lost."
    )


def _words(error: Exception) -> str:
    return ": ".join(filter(None, (type(error).__name__, str(error).strip())))


def _etag(info: dict[str, Any]) -> str:
    for name in ETAG_FIELDS:
        value = info.get(name)
        if isinstance(value, dict):  # Azure's content settings
            value = value.get("content_md5") and bytes(value["content_md5"]).hex()
        if isinstance(value, datetime):  # as some tell in one place and not in another
            value = value.timestamp()
        if value:
            return f"{value}-{info.get('size') or 0:x}".replace('"', "")
    return ""


def _behind(error: Exception) -> Exception:
    """The response behind a FileNotFoundError, which fsspec raises for anything a web server refuses."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    return error if _status(cause) in (404, 410) or not (_status(cause) or _passes(cause)) else cause


def _status(error: Exception) -> int:
    """The status of an HTTP response; 0 if there was none."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    try:
        return int(status or 0)
    except (TypeError, ValueError):
        return 0


def _passes(error: Exception) -> bool:
    """Whether a retry may help: after a server error or a network error."""
    if status := _status(error):
        return status >= 500 or status in (408, 429)
    return is_network_error(error)
