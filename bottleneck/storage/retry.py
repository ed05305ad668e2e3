"""The retry policy: which errors are retried, for how long, and with which pauses."""

import errno
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

T = TypeVar("T")

PATIENCE_SECONDS = 90.0
"""How long a request is retried: longer than S3 throttles, shorter than a person waits."""
FIRST_PATIENCE_SECONDS = 8.0
"""The same before a store has answered once: a wrong endpoint should be reported in seconds."""
MAX_PAUSE_SECONDS = 5.0

NETWORK_ERRORS = frozenset(
    (
        # ConnectionError: reset, refused, broken pipe, aborted.
        *("builtins.ConnectionError", "builtins.TimeoutError", "socket.gaierror", "ssl.SSLError"),
        *("asyncio.exceptions.IncompleteReadError", "http.client.HTTPException", "fsspec.exceptions.FSTimeoutError"),
        *("botocore.exceptions.ConnectionError", "botocore.exceptions.ConnectionClosedError"),
        *("botocore.exceptions.EndpointConnectionError", "botocore.exceptions.ConnectTimeoutError"),
        *("botocore.exceptions.ReadTimeoutError", "botocore.exceptions.ProxyConnectionError"),
        *("botocore.exceptions.SSLError", "botocore.exceptions.IncompleteReadError"),
        *("botocore.exceptions.ResponseStreamingError", "botocore.parsers.ResponseParserError"),
        *("aiohttp.client_exceptions.ClientConnectionError", "aiohttp.client_exceptions.ClientPayloadError"),
        "aiohttp.client_exceptions.ServerTimeoutError",
        *("urllib3.exceptions.ProtocolError", "urllib3.exceptions.TimeoutError"),
        *("requests.exceptions.ConnectionError", "requests.exceptions.Timeout"),
        "requests.exceptions.ChunkedEncodingError",
        *("google.auth.exceptions.TransportError", "gcsfs.retry.ChecksumError"),
        *("azure.core.exceptions.ServiceRequestError", "azure.core.exceptions.ServiceResponseError"),
        "azure.core.exceptions.IncompleteReadError",
    )
)
"""Network exceptions, and their subclasses, by full name: most belong to packages that may not be installed. Other
exceptions are not retried."""
_NETWORK_ERRNOS = frozenset((errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT))


class PassingError(Exception):
    """An error that may pass, in words; `__cause__` is the exception."""


class GaveUpError(Exception):
    """The error did not pass in time."""

    def __init__(self, seconds: float, words: str) -> None:
        super().__init__(words)
        self.seconds, self.words = seconds, words


def is_network_error(error: BaseException) -> bool:
    """Whether an exception is one of `NETWORK_ERRORS`; a certificate that cannot be trusted is not."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if isinstance(error, OSError) and error.errno in _NETWORK_ERRNOS:
        return True
    return any(f"{kind.__module__}.{kind.__qualname__}" in NETWORK_ERRORS for kind in type(error).__mro__)


class Patience:
    """How long one store is retried: longer once it has answered."""

    def __init__(self) -> None:
        self.has_answered = False

    @property
    def seconds(self) -> float:
        return PATIENCE_SECONDS if self.has_answered else FIRST_PATIENCE_SECONDS

    def call(self, attempt: Callable[[], T]) -> T:
        """Call until no PassingError is raised. Raises GaveUpError, or what the call raises."""
        result: T = Retrying(**self._policy())(attempt)
        self.has_answered = True
        return result

    async def call_async(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Like `call`, for a coroutine."""
        result: T = await AsyncRetrying(**self._policy())(attempt)
        self.has_answered = True
        return result

    def _policy(self) -> dict[str, Any]:
        return {
            "retry": retry_if_exception_type(PassingError),
            "stop": lambda state: (state.seconds_since_start or 0.0) > self.seconds,
            "wait": wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_SECONDS),
            "retry_error_callback": self._give_up,
        }

    def _give_up(self, state: RetryCallState) -> Any:
        error = state.outcome.exception() if state.outcome else None
        raise GaveUpError(self.seconds, str(error)) from (error and error.__cause__) or error
