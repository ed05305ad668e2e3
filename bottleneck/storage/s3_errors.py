"""The error codes of S3 stores, with their meaning, remedy and treatment.

Sorted by code and not by status, as one status stands for many things: 400 is what Amazon says to an expired token, and
403 to an archived object and to a clock that is wrong. The answer to a HEAD has no body and so no code; its status then
stands in the table instead.
"""

import os
from enum import Enum, auto
from typing import Any, NamedTuple

from bottleneck.errors import StoreError, UsageError
from bottleneck.storage.retry import PassingError
from bottleneck.storage.store import ObjectArchivedError, ObjectChangedError, ObjectGoneError


class Outcome(Enum):
    """How a response is treated."""

    RETRY = auto()
    STOP = auto()
    """A person must fix it: StoreError."""
    REFUSE = auto()
    """The name or request is wrong: UsageError."""
    GONE = auto()
    CHANGED = auto()
    ARCHIVED = auto()
    EXISTS = auto()


class Answer(NamedTuple):
    """A row of the table of errors."""

    outcome: Outcome
    meaning: str = ""
    remedy: str = ""


_RIGHTS = (
    "Check the credentials and the permissions of this user: listing and reading the source, listing, reading and "
    "creating in the output."
)
_SIGN_IN = (
    "Get new credentials (`aws sso login`, a new session token, or a role that renews them) and run the same command "
    "again; nothing is lost."
)
_RETRY = Answer(Outcome.RETRY)
_EXPIRED = Answer(Outcome.STOP, "the credentials have expired", _SIGN_IN)
_CLOCK = Answer(
    Outcome.STOP,
    "this machine's clock and the store's differ by more than the store accepts",
    "Set the clock (NTP) on every machine of the run and run the same command again.",
)
_DENIED = Answer(Outcome.STOP, "the store refused it", _RIGHTS)
_UNKNOWN_KEY = Answer(
    Outcome.STOP,
    "the store refused the credentials: it does not know this access key or secret",
    "Check AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that AWS_ENDPOINT_URL is the store they are "
    "for.",
)
_REDIRECT = Answer(Outcome.STOP, "the bucket is in another region or at another endpoint")
_REGION = Answer(Outcome.STOP, "the request was signed for another region than the bucket's")
_FULL = Answer(Outcome.STOP, "the store has no room left", "Free some space or raise the quota, and run again.")
_SUSPENDED = Answer(Outcome.STOP, "the account is suspended or not signed up for S3", "Ask whoever runs the store.")
_KEY = Answer(
    Outcome.STOP,
    "the encryption key (KMS) of the object or bucket cannot be used",
    "Enable the key, or let this user decrypt with it.",
)
_UNSUPPORTED = Answer(
    Outcome.STOP, "the store does not support this request", "Use another store, or a newer version of it."
)

BY_CODE: dict[str, Answer] = {
    # Passes
    **dict.fromkeys(
        (
            *("InternalError", "ServiceUnavailable", "SlowDown", "Busy", "OperationAborted", "NoSuchUpload"),
            *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestLimitExceeded"),
            *("TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded", "PriorRequestNotComplete"),
            *("RequestTimeout", "RequestTimeoutException", "IncompleteBody", "ConditionalRequestConflict"),
            *("BadDigest", "XAmzContentSHA256Mismatch"),  # damaged on the way
        ),
        _RETRY,
    ),
    # Of the object
    "NoSuchKey": Answer(Outcome.GONE),
    "InvalidRange": Answer(Outcome.CHANGED),  # shorter than the slice that was asked for
    "PreconditionFailed": Answer(Outcome.EXISTS),
    "InvalidObjectState": Answer(
        Outcome.ARCHIVED,
        "the object is archived (Glacier or Deep Archive)",
        "Restore it, and run the same command again.",
    ),
    # For a person
    "NoSuchBucket": Answer(Outcome.STOP, "no such bucket", "Check its name and AWS_ENDPOINT_URL."),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"), _EXPIRED),
    **dict.fromkeys(("InvalidToken", "InvalidClientTokenId"), _UNKNOWN_KEY),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity"), _UNKNOWN_KEY),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestInTheFuture"), _CLOCK),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccessForbidden", "UnauthorizedAccess"), _DENIED),
    **dict.fromkeys(("AccountProblem", "NotSignedUp", "UserSuspended"), _SUSPENDED),
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "Redirect"), _REDIRECT),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), _REGION),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "ServiceQuotaExceeded"), _FULL),
    **dict.fromkeys(("KMS.DisabledException", "KMS.NotFoundException", "KMS.KMSInvalidStateException"), _KEY),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed"), _UNSUPPORTED),
    **dict.fromkeys(("InvalidBucketName", "KeyTooLongError"), Answer(Outcome.REFUSE, "S3 does not accept such a name")),
}

BY_STATUS: dict[int, Answer] = {
    **dict.fromkeys((301, 302, 307, 308), _REDIRECT),
    400: Answer(
        Outcome.STOP,
        "the store rejected the request and gave no reason",
        "Most often the credentials have expired or the region is wrong: get new credentials (`aws sso login`, a new "
        "session token), check AWS_DEFAULT_REGION, and run the same command again.",
    ),
    401: _DENIED,
    403: _DENIED,
    404: Answer(Outcome.GONE),
    405: _UNSUPPORTED,
    **dict.fromkeys((408, 409, 429), _RETRY),
    412: Answer(Outcome.EXISTS),
    416: Answer(Outcome.CHANGED),
    501: _UNSUPPORTED,
    507: _FULL,
}
"""By status, for responses without a known code. Other statuses from 500 up are retried."""


def look_up(code: str, status: int) -> Answer:
    """Look up the meaning of a response.

    Args:
        code: of the error; the status where there was no body.
        status: of the HTTP answer.
    """
    if known := BY_CODE.get(code) or BY_STATUS.get(status):
        return known
    return _RETRY if status >= 500 else Answer(Outcome.STOP)


def meaning_of(response: dict[str, Any], doing: str) -> Exception:
    """The exception for an S3 error response.

    Args:
        response: as botocore parses it.
        doing: what was asked for, in words: `reading s3://...`.

    Returns:
        PassingError where trying again may help, else what to raise.
    """
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    code, status = str(error.get("Code", "")), int(metadata.get("HTTPStatusCode", 0))
    name, words = code or str(status), str(error.get("Message", "")).strip().rstrip(".")
    outcome, meaning, remedy = look_up(code, status)
    said = f" The store's own words: {words}." if words and words != code else ""
    told = f"The store answered {name} while {doing}" + (f": {meaning}." if meaning else ".")
    if meaning in (_REDIRECT.meaning, _REGION.meaning):
        remedy = _where(error, metadata.get("HTTPHeaders", {}))
    message = " ".join(filter(None, (told + said, remedy)))
    match outcome:
        case Outcome.RETRY:
            return PassingError(f"{name}: {words}" if words else name)
        case Outcome.GONE:
            return ObjectGoneError(doing)
        case Outcome.CHANGED:
            return ObjectChangedError(doing)
        case Outcome.EXISTS:
            return FileExistsError(doing)
        case Outcome.ARCHIVED:
            return ObjectArchivedError(message)
        case Outcome.REFUSE:
            return UsageError(message)
        case Outcome.STOP:
            return StoreError(message)


def _where(error: dict[str, Any], headers: dict[str, str]) -> str:
    """The remedy for a request to the wrong region or endpoint, naming the right one if the store told it."""
    region = str(error.get("Region", "") or headers.get("x-amz-bucket-region", ""))
    endpoint = str(error.get("Endpoint", "") or headers.get("location", ""))
    region_asked = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "not set"
    endpoint_asked = os.environ.get("AWS_ENDPOINT_URL") or "not set: Amazon S3"
    wanted_region = f"Set AWS_DEFAULT_REGION={region}" if region else "Set AWS_DEFAULT_REGION to the bucket's region"
    wanted_endpoint = f"AWS_ENDPOINT_URL to {endpoint}" if endpoint else "AWS_ENDPOINT_URL to the bucket's endpoint"
    return f"{wanted_region} (now {region_asked}) or {wanted_endpoint} (now {endpoint_asked})."
