"""What a store's errors mean: by their codes, whatever their status."""

from __future__ import annotations

import errno
import re
import ssl
from typing import Any

import botocore.exceptions
import pytest

from bottleneck.errors import StoreError, UsageError
from bottleneck.storage import retry
from bottleneck.storage.retry import GaveUpError, PassingError, Patience, is_network_error
from bottleneck.storage.s3_errors import BY_CODE, BY_STATUS, Outcome, meaning_of
from bottleneck.storage.store import ObjectArchivedError, ObjectChangedError, ObjectError, ObjectGoneError


def response(status: int, code: str = "", headers: dict[str, str] | None = None, **error: str) -> dict[str, Any]:
    """An error as botocore parses it; that of a HEAD has its status for a code."""
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    return {"Error": {"Code": code or str(status), **error}, "ResponseMetadata": metadata}


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (400, "ExpiredToken", StoreError, "credentials have expired.*aws sso login"),
        (403, "ExpiredToken", StoreError, "credentials have expired.*aws sso login"),
        (400, "", StoreError, "gave no reason.*credentials have expired or the region is wrong"),
        (400, "RequestTimeout", PassingError, "RequestTimeout"),
        (403, "RequestTimeTooSkewed", StoreError, r"clock.*NTP"),
        (403, "InvalidObjectState", ObjectArchivedError, "archived.*Restore it"),
        (403, "SignatureDoesNotMatch", StoreError, "AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", StoreError, "permissions of this user"),
        (403, "QuotaExceeded", StoreError, "no room left"),
        (403, "AnythingElse", StoreError, "AnythingElse.*permissions"),
        (404, "NoSuchBucket", StoreError, "no such bucket"),
        (404, "NoSuchKey", ObjectGoneError, ""),
        (404, "", ObjectGoneError, ""),
        (412, "", FileExistsError, ""),
        (416, "InvalidRange", ObjectChangedError, ""),
        (400, "KeyTooLongError", UsageError, "does not accept such a name"),
        (409, "", PassingError, ""),
        (500, "AnythingElse", PassingError, "AnythingElse"),
        (501, "NotImplemented", StoreError, "does not support"),
        (507, "XMinioStorageFull", StoreError, "no room left"),
        (418, "Teapot", StoreError, "answered Teapot while reading"),
    ],
)
def test_an_error_means_what_its_code_says(status: int, code: str, kind: type[Exception], words: str) -> None:
    error = meaning_of(response(status, code), "reading s3://bucket/key")
    assert type(error) is kind
    assert re.search(words, str(error))


def test_a_redirect_names_region_and_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://here")
    wanted = "Set AWS_DEFAULT_REGION=eu-west-1 .now us-east-1. or AWS_ENDPOINT_URL to s3.eu.example .now http://here"
    told = response(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}, Endpoint="s3.eu.example")
    with pytest.raises(StoreError, match=wanted):
        raise meaning_of(told, "listing s3://bucket")
    of_head = response(307, headers={"x-amz-bucket-region": "eu-west-1", "location": "s3.eu.example"})
    with pytest.raises(StoreError, match=wanted):
        raise meaning_of(of_head, "looking for s3://bucket/key")
    with pytest.raises(StoreError, match=r"the bucket's region .now us-east-1. or AWS_ENDPOINT_URL to the bucket's"):
        raise meaning_of(response(301), "looking for s3://bucket/key")


def test_every_row_that_stops_a_run_says_why_and_what_to_do() -> None:
    told = (Outcome.STOP, Outcome.ARCHIVED)
    for known, answer in [*BY_CODE.items(), *BY_STATUS.items()]:
        assert (answer.outcome in (*told, Outcome.REFUSE)) == bool(answer.meaning), known
        assert (answer.outcome in told) == bool(answer.remedy or "region" in answer.meaning), known


def test_an_image_is_rejected_for_what_its_object_is() -> None:
    errors: list[type[ObjectError]] = [ObjectGoneError, ObjectChangedError, ObjectArchivedError]
    assert [error.reason for error in errors] == ["missing", "changed", "archived"]


def test_only_network_errors_pass() -> None:
    passing = [
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.EHOSTUNREACH, "no route"),
        ssl.SSLEOFError("end of file"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://here", error="refused"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://here"),
        botocore.exceptions.ResponseStreamingError(error="cut"),
    ]
    assert [error for error in passing if not is_network_error(error)] == []
    lasting = [
        RecursionError(),
        MemoryError(),
        TypeError(),
        OSError(errno.EMFILE, "too many open files"),
        PermissionError(),
        ssl.SSLCertVerificationError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.HTTPClientError(error=RecursionError()),
    ]
    assert [error for error in lasting if is_network_error(error)] == []


def test_patience_ends_and_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PATIENCE_SECONDS", 0.05)
    patience, calls = Patience(), []

    def fail() -> None:
        calls.append(1)
        raise PassingError("no answer") from ConnectionResetError("reset")

    with pytest.raises(GaveUpError, match="no answer") as caught:
        patience.call(fail)
    assert len(calls) > 1
    assert caught.value.seconds == 0.05
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert patience.call(lambda: 1) == 1
    assert patience.seconds == retry.PATIENCE_SECONDS

    def mistake() -> None:
        calls.append(1)
        raise RecursionError

    calls.clear()
    with pytest.raises(RecursionError):
        patience.call(mistake)
    assert len(calls) == 1
