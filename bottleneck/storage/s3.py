"""A prefix of an S3 bucket as a store."""

import asyncio
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, TypeVar

from bottleneck.errors import StoreError, UsageError
from bottleneck.storage.retry import GaveUpError, PassingError, Patience, is_network_error
from bottleneck.storage.s3_errors import meaning_of
from bottleneck.storage.s3_listing import list_pages
from bottleneck.storage.store import (
    IN_FLIGHT,
    Entry,
    ObjectChangedError,
    ObjectError,
    ObjectGoneError,
    Wanted,
    whole,
    windowed,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

TRIAL = ".write-test"
"""The key used to try writing. An empty object is written if a store ignores conditions or the user may only create."""


class BucketStore:
    """A prefix of an S3 bucket, through s3fs' client."""

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
        self._patience = Patience()
        self._if_match: tuple[str, ...] = ('"{}"', "{}")
        """Forms of a condition that the store may accept: the standard's, and without quotes, as Ceph expects."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for entry, _ in self.list_dated(prefix):
            yield entry

    def list_dated(self, prefix: str = "") -> Iterator[tuple[Entry, float]]:
        full = self.prefix + prefix

        def ask(**request: Any) -> dict[str, Any]:
            return self._call(f"listing s3://{self.bucket}/{full}", "list_objects_v2", Bucket=self.bucket, **request)

        for page in list_pages(ask, full):
            for found in page.get("Contents", []):
                entry = Entry(found["Key"][len(self.prefix) :], found["Size"], found["ETag"].strip('"'))
                yield entry, found["LastModified"].timestamp()

    def clock(self) -> float:
        request = {"Bucket": self.bucket, "Prefix": self.prefix, "MaxKeys": 1}
        answer = self._call(f"listing s3://{self.bucket}/{self.prefix}", "list_objects_v2", **request)
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def get(self, wanted: Wanted) -> bytes:
        return self._run(self._get(wanted)).result()

    def read(self, key: str) -> bytes:
        return self.get(Wanted(key, 0, ""))

    def get_many(self, wanted: Sequence[Wanted]) -> Iterator[bytes | ObjectError]:
        def submit(one: Wanted) -> Future[bytes | ObjectError]:
            return self._run(_outcome_async(self._get(one)))

        yield from windowed(wanted, submit)

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
            return whole(wanted, data)

        return await self._patiently(f"reading {self._name(wanted.key)}", read)

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def stat(self, key: str) -> Entry | None:
        request = {"Bucket": self.bucket, "Key": self.prefix + key}
        try:
            found = self._call(f"looking for {self._name(key)}", "head_object", **request)
        except ObjectGoneError:
            return None
        return Entry(key, found["ContentLength"], found["ETag"].strip('"'))

    def try_writing(self, *, create_only: bool = False) -> None:
        try:
            # In place of what nobody has: a user without the right is refused, any other told that there is none.
            self.replace(TRIAL, b"", "0" * 32)
        except StoreError:
            if not create_only:
                raise
            self.create(TRIAL, b"")

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._call(f"writing {self._name(key)}", "put_object", **self._create_only(key, data))
        except FileExistsError:
            # Some gateways answer every refused PUT alike, so look that the object is really there. It may be our own,
            # from a try whose answer was lost: then, as a rule, its ETag is the md5 of what we sent.
            found = self.stat(key)
            if found is None:
                raise StoreError(f"The store refused to create {self._name(key)}, which is not there.") from None
            return found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        return True

    def creates_once(self, key: str, data: bytes) -> bool:
        # Not by `create`, which takes an object with the bytes that it was to write for its own.
        try:
            self._call(f"writing {self._name(key)}", "put_object", **self._create_only(key, data))
        except FileExistsError:
            return True
        return False

    def _create_only(self, key: str, data: bytes) -> dict[str, Any]:
        # One PUT, which S3 takes up to 5 GB: the condition holds for the whole object.
        return {"Bucket": self.bucket, "Key": self.prefix + key, "Body": data, "IfNoneMatch": "*"}

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

    def replace(self, key: str, data: bytes, etag: str = "") -> bool:
        put: dict[str, Any] = {"Bucket": self.bucket, "Key": self.prefix + key, "Body": data}
        for form in self._if_match if etag else ():
            try:
                self._call(f"writing {self._name(key)}", "put_object", **put, IfMatch=form.format(etag))
                return True
            except (FileExistsError, ObjectGoneError):
                found = self.stat(key)
            if found is None or found.etag != etag:
                # As in `create`, the other object may be our own.
                return found is not None and found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
            # Refused though it matches: the gateway wants another form, or none.
            self._if_match = tuple(one for one in self._if_match if one != form)
        self._call(f"writing {self._name(key)}", "put_object", **put)
        return True

    def remove(self, key: str) -> None:
        self._call(f"removing {self._name(key)}", "delete_object", Bucket=self.bucket, Key=self.prefix + key)

    def sweep(self) -> None:
        pass  # a PUT that does not end leaves nothing

    def _name(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _call(self, doing: str, method: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._run(self._patiently(doing, lambda: self.fs._call_s3(method, **request))).result()
        return answer

    def _run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self.fs.loop)

    async def _patiently(self, doing: str, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Retry while the error may pass; otherwise raise what it means."""

        async def call() -> T:
            try:
                client = await self.fs.set_session()
                client.meta.events.register("before-call.s3.HeadBucket", _no_head, unique_id="bottleneck")
                return await attempt()
            except ObjectError:
                raise
            except Exception as error:
                trouble = _trouble(error, doing)
                if trouble is error:
                    raise
                if isinstance(trouble, PassingError):
                    log.debug("trying again after %s: %s", trouble, doing)
                raise trouble from error

        try:
            return await self._patience.call_async(call)
        except GaveUpError as error:
            raise StoreError(
                f"Gave up after {error.seconds:.0f} s of {doing}: {error.words}. Look at the network and at "
                f"AWS_ENDPOINT_URL ({os.environ.get('AWS_ENDPOINT_URL', 'not set: Amazon S3')}), then run "
                "the same command again; nothing is lost."
            ) from error.__cause__


def _no_head(**_: Any) -> tuple[Any, dict[str, Any]]:
    """Answer botocore's HEAD of the bucket, by which it looks for the region of one whose store told none.

    A store that redirects this request as well would be asked for ever; we never send it ourselves.
    """
    return SimpleNamespace(status_code=200), {"ResponseMetadata": {"HTTPHeaders": {}}}


def _trouble(error: Exception, doing: str) -> Exception:
    """Translate an error: a PassingError if a retry may help, else the exception to raise."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if response is not None:
        return meaning_of(response, doing)
    if is_network_error(error):
        return PassingError(_words(error))
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"):
        return StoreError(
            f"No usable credentials for {doing}: {error}. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or run where a role is attached."
        )
    if name in ("ParamValidationError", "InvalidRegionError") or isinstance(error, ValueError):
        return UsageError(f"S3 takes no such name while {doing}: {error}.")
    if isinstance(error, OSError) or type(error).__module__ == "botocore.exceptions":
        return StoreError(
            f"{name} while {doing}: {_words(error)}. Check the AWS configuration, the network and this machine's "
            "limits, then run the same command again; nothing is lost."
        )
    return error  # a mistake of ours or of the client's


def _words(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


async def _outcome_async(work: Coroutine[Any, Any, bytes]) -> bytes | ObjectError:
    try:
        return await work
    except ObjectError as outcome:
        return outcome
