"""Where images come from and features go: a folder or a bucket behind the same few verbs.

Keys are opaque names below the store's root. A store tells three kinds of trouble apart: what the object itself is
(gone, changed: the caller makes it a row), what passes (5xx, timeouts, resets, cut bodies: tried again here with
back-off, for `PATIENCE_SECONDS`), and what only a person can mend (rights, credentials, disk: `StoreError`, which stops
the run).
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import logging
import os
import random
import stat
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from bottleneck.errors import StoreError, UsageError

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 90.0
"""How long a request that fails in passing is tried again: longer than S3 throttles, shorter than a person waits."""
FIRST_PATIENCE_SECONDS = 8.0
"""The same until a store has answered once: a wrong endpoint should be told in seconds."""
IN_FLIGHT = 32
"""Reads under way at once, a process. One S3 connection gives about 30 to 60 small objects a second."""
IN_FLIGHT_BYTES = 64_000_000
"""... and no more bytes than this, so that a shard of huge images does not fill the memory."""


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int
    etag: str


class Wanted(NamedTuple):
    """An object to read, as the plan knows it; `offset` and `length` where it is a slice of a container."""

    key: str
    size: int
    etag: str
    offset: int | None = None
    length: int | None = None


class ObjectGoneError(Exception):
    """The object of this key is not there (any more)."""


class ObjectChangedError(Exception):
    """The object of this key is not the one that was listed."""


class Store(Protocol):
    """A folder or a bucket. All verbs may raise StoreError."""

    uri: str

    def __hash__(self) -> int: ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose keys start with `prefix` in the order of their UTF-8 bytes, a page at a time."""

    def get(self, wanted: Wanted) -> bytes:
        """Read an object or slice.

        Raises:
            ObjectGoneError: if there is none.
            ObjectChangedError: if `wanted.etag` is neither empty nor the object's, or the slice is not all there.
        """

    def exists(self, key: str) -> bool: ...

    def create(self, key: str, data: bytes) -> bool:
        """Write an object whole, unless the key is taken: True if this call created it. Never a partial object."""

    def create_from_file(self, key: str, path: str) -> bool:
        """`create` with what a local file holds, which need not fit the memory.

        Args:
            path: a file; for a folder one on the same disk, which it becomes part of, or a folder there.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write an object whole, in place of the one that may be there."""

    def get_many(self, wanted: Sequence[Wanted]) -> Iterator[bytes | ObjectGoneError | ObjectChangedError]:
        """Read many objects, in order, with several requests in flight."""


@functools.lru_cache(maxsize=16)
def open_store(uri: str) -> Store:
    """Open a folder (a path or file://) or a bucket (s3://bucket/prefix). Raises UsageError for any other URI."""
    uri = normal_uri(uri)
    if uri.startswith("s3://"):
        return BucketStore(uri)
    return FolderStore(uri)


def normal_uri(uri: str) -> str:
    """A store's one name: an absolute path, or s3://bucket/prefix without a closing slash."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise UsageError("A source or output needs a name. Received an empty one.")
        return os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return os.path.abspath(rest)
    if scheme != "s3":
        # Not the whole URI, which may hold credentials.
        raise UsageError(f"Expected a folder, file:///... or s3://bucket/prefix. Received: {scheme}://...")
    bucket = rest.split("/", 1)[0]
    if "@" in bucket or ":" in bucket or urlsplit(uri).query:
        raise UsageError(
            "A store's URI holds no credentials or options, as it is written into plans and logs. Give credentials by "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role, an endpoint by AWS_ENDPOINT_URL."
        )
    if not bucket:
        raise UsageError(f"Expected s3://bucket/prefix. Received: {uri}, which names no bucket.")
    return uri.rstrip("/")


class FolderStore:
    """A folder on a disk all workers see. Objects appear under their names only when they are whole."""

    def __init__(self, root: str) -> None:
        self.uri = root

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]
        top = os.path.join(self.uri, folder) if folder else self.uri
        with _local_errors(f"listing {top}"):
            if not os.path.exists(top):
                return
            if not os.path.isdir(top):
                raise UsageError(f"Expected a folder. Received a file: {top}.")
            for entry in self._walk(top, folder + "/" if folder else ""):
                if entry.key.startswith(prefix):
                    yield entry

    def _walk(self, folder: str, prefix: str) -> Iterator[Entry]:
        with os.scandir(folder) as found:
            # A folder sorts as if its name ended in "/", so that keys come in the order a bucket lists them.
            entries = sorted(found, key=lambda e: os.fsencode(e.name + "/" if e.is_dir() else e.name))
        for entry in entries:
            if entry.is_dir():
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")
            else:
                with contextlib.suppress(FileNotFoundError):  # gone since the folder was read, or a dangling link
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                        yield Entry(prefix + entry.name, status.st_size, _local_etag(status))

    def get(self, wanted: Wanted) -> bytes:
        with _local_errors(f"reading {self._path(wanted.key)}"):
            try:
                with open(self._path(wanted.key), "rb") as file:
                    if wanted.etag and _local_etag(os.fstat(file.fileno())) != wanted.etag:
                        raise ObjectChangedError(wanted.key)
                    file.seek(wanted.offset or 0)
                    return _whole(wanted, file.read(-1 if wanted.length is None else wanted.length))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ObjectGoneError(wanted.key) from None

    def get_many(self, wanted: Sequence[Wanted]) -> Iterator[bytes | ObjectGoneError | ObjectChangedError]:
        # A few threads: on a local disk one is enough, a network file system answers in milliseconds.
        with ThreadPoolExecutor(4) as pool:
            yield from _windowed(wanted, lambda one: pool.submit(_outcome, self.get, one))

    def exists(self, key: str) -> bool:
        return os.path.exists(self._path(key))

    def create(self, key: str, data: bytes) -> bool:
        with _local_errors(f"writing {self._path(key)}"):
            folder = os.path.dirname(self._path(key))
            os.makedirs(folder, exist_ok=True)
            try:
                self._create_linked(folder, self._path(key), data)
            except FileExistsError:
                return False
            return True

    def _create_linked(self, folder: str, path: str, data: bytes) -> None:
        """Write a file without a name, then link it in: it is whole when it appears, and a kill leaves nothing."""
        try:
            handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except (OSError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            self._create_renamed(path, data)  # NFS and some overlays have no unnamed files
            return
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            # Naming a folder handle makes Python call linkat, which follows the link to the unnamed file.
            os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle, follow_symlinks=True)

    def _create_renamed(self, path: str, data: bytes) -> None:
        temporary = self._temporary(path, data)
        try:
            os.link(temporary, path)
        finally:
            os.unlink(temporary)

    def create_from_file(self, key: str, path: str) -> bool:
        with _local_errors(f"writing {self._path(key)}"):
            os.makedirs(os.path.dirname(self._path(key)), exist_ok=True)
            if os.path.isdir(path):
                if not os.path.exists(self._path(key)):
                    os.rename(path, self._path(key))  # refused where another is by now, unless that is empty
                    return True
                return False
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            try:
                os.link(path, self._path(key))
            except FileExistsError:
                return False
            return True

    def replace(self, key: str, data: bytes) -> None:
        with _local_errors(f"writing {self._path(key)}"):
            folder = os.path.dirname(self._path(key))
            os.makedirs(folder, exist_ok=True)
            temporary = self._temporary_name(self._path(key))
            self._create_linked(folder, temporary, data)  # whole, so a kill can leave it only for an instant
            try:
                os.replace(temporary, self._path(key))
            except OSError:
                os.unlink(temporary)
                raise

    def _temporary_name(self, path: str) -> str:
        name = f".{os.path.basename(path)}.{os.getpid()}-{random.getrandbits(32):08x}"
        return os.path.join(os.path.dirname(path), name)

    def _temporary(self, path: str, data: bytes) -> str:
        temporary = self._temporary_name(path)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return temporary

    def _path(self, key: str) -> str:
        return f"{self.uri}/{key}"


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


@contextlib.contextmanager
def _local_errors(doing: str) -> Iterator[None]:
    """Turn what a person must mend into StoreError; the file system's own words say which it is."""
    try:
        yield
    except OSError as error:
        hint = {
            errno.ENOSPC: "The disk is full: free some space and run the same command again.",
            errno.EDQUOT: "The quota is used up: free some space and run the same command again.",
            errno.EROFS: "The file system is read-only: give another output.",
            errno.EACCES: "This user has no right to: give the rights, or another folder.",
            errno.EPERM: "This user has no right to: give the rights, or another folder.",
            errno.ENOTDIR: "A part of the path is a file: give another folder.",
            errno.EEXIST: "A part of the path is a file: give another folder.",
        }.get(error.errno or 0, "Nothing is lost: mend the cause and run the same command again.")
        raise StoreError(f"{error.strerror or error} while {doing}. {hint}") from error


class BucketStore:
    """A prefix of an S3 bucket, through s3fs' client; retries are ours, so that one place decides what is transient."""

    def __init__(self, uri: str) -> None:
        import s3fs

        self.uri = uri
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = prefix + "/" if prefix else ""
        self.fs = s3fs.S3FileSystem(
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": 5,
                "read_timeout": 30,
                "max_pool_connections": 2 * IN_FLIGHT,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
            },
        )
        self.fs.retries = 1
        self._answered = False

    def list(self, prefix: str = "") -> Iterator[Entry]:
        full = self.prefix + prefix
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": full}
        while True:
            page = self._call(f"listing s3://{self.bucket}/{full}", "list_objects_v2", **request)
            for found in page.get("Contents", []):
                yield Entry(found["Key"][len(self.prefix) :], found["Size"], found["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def get(self, wanted: Wanted) -> bytes:
        return self._run(self._get(wanted)).result()

    def get_many(self, wanted: Sequence[Wanted]) -> Iterator[bytes | ObjectGoneError | ObjectChangedError]:
        def submit(one: Wanted) -> Future[bytes | ObjectGoneError | ObjectChangedError]:
            return self._run(_outcome_async(self._get(one)))

        yield from _windowed(wanted, submit)

    async def _get(self, wanted: Wanted) -> bytes:
        request = {"Bucket": self.bucket, "Key": self.prefix + wanted.key}
        if wanted.length is not None:
            first = wanted.offset or 0
            request["Range"] = f"bytes={first}-{first + wanted.length - 1}"

        async def read() -> bytes:
            response = await self.fs._call_s3("get_object", **request)
            try:
                if wanted.etag and response["ETag"].strip('"') != wanted.etag:
                    raise ObjectChangedError(wanted.key)
                data: bytes = await response["Body"].read()
            finally:
                response["Body"].close()
            if len(data) != response["ContentLength"]:
                raise TimeoutError(f"body cut short: {len(data)} of {response['ContentLength']} bytes")
            return _whole(wanted, data)

        return await self._patiently(f"reading {self._name(wanted.key)}", read)

    def exists(self, key: str) -> bool:
        return self._etag(key) is not None

    def _etag(self, key: str) -> str | None:
        request = {"Bucket": self.bucket, "Key": self.prefix + key}
        try:
            etag: str = self._call(f"looking for {self._name(key)}", "head_object", **request)["ETag"]
        except ObjectGoneError:
            return None
        return etag.strip('"')

    def create(self, key: str, data: bytes) -> bool:
        # One PUT, which S3 takes up to 5 GB: the condition holds for the whole object.
        put = {"Bucket": self.bucket, "Key": self.prefix + key, "Body": data, "IfNoneMatch": "*"}
        try:
            self._call(f"writing {self._name(key)}", "put_object", **put)
        except FileExistsError:
            # Some gateways answer every refused PUT alike, so look that the object is really there. It may be our own,
            # from a try whose answer was lost: then, as a rule, its ETag is the md5 of what we sent.
            etag = self._etag(key)
            if etag is None:
                raise StoreError(f"The store refused to create {self._name(key)}, which is not there.") from None
            return etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        return True

    def create_from_file(self, key: str, path: str) -> bool:
        # In parts where it is large; completing them is the one request that makes the object, and has the condition,
        # which S3 honours and Ceph does not: there the object is looked for as well, and the later of two racers wins.
        if self.exists(key):
            return False
        put = functools.partial(self.fs._put_file, path, f"{self.bucket}/{self.prefix}{key}", mode="create")
        try:
            self._run(self._patiently(f"writing {self._name(key)}", put)).result()
        except FileExistsError:
            if not self.exists(key):
                raise StoreError(f"The store refused to create {self._name(key)}, which is not there.") from None
            return False
        return True

    def replace(self, key: str, data: bytes) -> None:
        put = {"Bucket": self.bucket, "Key": self.prefix + key, "Body": data}
        self._call(f"writing {self._name(key)}", "put_object", **put)

    def _name(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _call(self, doing: str, method: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._run(self._patiently(doing, lambda: self.fs._call_s3(method, **request))).result()
        return answer

    def _run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self.fs.loop)

    async def _patiently(self, doing: str, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Try again while the trouble is a passing one. Raises what the trouble means otherwise."""
        started = time.monotonic()
        tries = 0
        while True:
            try:
                result = await attempt()
            except (ObjectGoneError, ObjectChangedError):
                raise
            except Exception as error:
                trouble = _trouble(error, doing)
                if trouble is not None:
                    raise trouble from error
                patience = PATIENCE_SECONDS if self._answered else FIRST_PATIENCE_SECONDS
                if time.monotonic() - started > patience:
                    raise StoreError(
                        f"No luck for {patience:.0f} s with {doing}: {_words(error)}. Look at the network and at "
                        f"AWS_ENDPOINT_URL ({os.environ.get('AWS_ENDPOINT_URL', 'not set: Amazon S3')}), then run "
                        "the same command again; nothing is lost."
                    ) from error
                log.debug("trying again after %s: %s", _words(error), doing)
                await asyncio.sleep(min(0.1 * 2**tries, 5.0) * (0.5 + random.random()))  # noqa: S311
                tries += 1
            else:
                self._answered = True
                return result


def _trouble(error: Exception, doing: str) -> Exception | None:
    """What an S3 error means: an exception to raise, or None when it passes."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if response is None:
        name = type(error).__name__
        if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"):
            return StoreError(
                f"No usable credentials for {doing}: {error}. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or run where a role is attached."
            )
        if name in ("ParamValidationError", "InvalidRegionError") or isinstance(error, ValueError):
            return UsageError(f"S3 takes no such name while {doing}: {error}.")
        return None
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return StoreError(f"No such bucket, while {doing}. Look at its name and at AWS_ENDPOINT_URL.")
    if status == 404:
        return ObjectGoneError(doing)
    if status == 416:
        return ObjectChangedError(doing)  # shorter than the slice that was asked for
    if code in ("PreconditionFailed", "412") or status == 412:
        return FileExistsError(doing)
    if status >= 500 or status in (408, 409, 429) or code in ("SlowDown", "RequestTimeout", "IncompleteBody"):
        return None
    if status in (401, 403):
        return StoreError(
            f"The store refused ({code or status}) {doing}. Look at the credentials and at the rights of this user: "
            "reading and listing the source, creating and listing the output."
        )
    return StoreError(f"The store answered {code or status} while {doing}: {_words(error)}.")


def _whole(wanted: Wanted, data: bytes) -> bytes:
    if wanted.length is not None and len(data) != wanted.length:
        raise ObjectChangedError(wanted.key)
    return data


def _words(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _outcome(get: Callable[[Wanted], bytes], one: Wanted) -> bytes | ObjectGoneError | ObjectChangedError:
    try:
        return get(one)
    except (ObjectGoneError, ObjectChangedError) as outcome:
        return outcome


async def _outcome_async(work: Coroutine[Any, Any, bytes]) -> bytes | ObjectGoneError | ObjectChangedError:
    try:
        return await work
    except (ObjectGoneError, ObjectChangedError) as outcome:
        return outcome


def _windowed(wanted: Sequence[Wanted], submit: Callable[[Wanted], "Future[T]"]) -> Iterator[T]:
    """Yield results in order, keeping at most IN_FLIGHT requests and IN_FLIGHT_BYTES under way."""
    under_way: deque[tuple[int, Future[T]]] = deque()
    num_bytes = 0
    try:
        for one in wanted:
            size = one.size if one.length is None else one.length
            while under_way and (len(under_way) >= IN_FLIGHT or num_bytes + size > IN_FLIGHT_BYTES):
                done_size, future = under_way.popleft()
                num_bytes -= done_size
                yield future.result()
            under_way.append((size, submit(one)))
            num_bytes += size
        while under_way:
            yield under_way.popleft()[1].result()
    finally:
        for _, future in under_way:
            future.cancel()
