"""Validate the address of a Ray cluster's dashboard and connect to it."""

import ipaddress
import logging
import os
import shlex
import ssl
from dataclasses import dataclass
from http.client import HTTPException, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

from bottleneck.errors import ClusterError, UsageError

OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables with which Ray overrides the given address, even one that was checked."""
TIMEOUTS_SECONDS = (5, 60)
"""Timeout for connecting and for the response; Ray itself has none."""


class LostError(ClusterError):
    """No response; a retry may help."""


class NoAgentError(LostError):
    """The dashboard has no agent to start the job yet."""


@dataclass(frozen=True)
class Dashboard:
    """A cluster's dashboard: a URL that `check_address` accepted."""

    url: str
    ca_file: str | None = None
    """Certificates to trust instead of the system's: a file or a folder."""

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(urlsplit(self.url).hostname or "")

    @property
    def is_private(self) -> bool:
        """Whether the connection is private."""
        return self.is_loopback or self.url.startswith("https://")

    def command(self, verb: str, submission_id: str, *options: str) -> str:
        """A shell command for a job; the token comes from the environment, as here."""
        words = ["ray", "job", verb, submission_id, "--address", self.url, *options]
        words += ["--verify", self.ca_file] if self.ca_file else []
        unset = [word for name in OVERRIDES if os.environ.get(name) for word in ("-u", name)]
        return shlex.join([*(["env", *unset] if unset else []), *words])


def check_address(address: str, ca_file: str | None = None) -> Dashboard:
    """Validate a dashboard's address: this machine's, one with TLS, or one that requires a token.

    Raises:
        UsageError: for what is no URL of a dashboard.
        ClusterError: for another machine's without TLS and without a token.
    """
    try:
        url = urlsplit(address)
        _ = url.port  # raises where it is no number
    except ValueError as error:
        raise UsageError(f"--address takes the dashboard's URL. Received: {address}, where {error}.") from None
    if "@" in url.netloc:
        raise UsageError(
            "--address holds no credentials, as it is written into logs. Received one with an @ in it. Give a token by "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
        )
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise UsageError(
            "--address takes the URL of the cluster's dashboard, as http://127.0.0.1:8265 or https://ray.example.com. "
            f"Received: {_without_query(address)}."
        )
    if ca_file and not os.path.exists(ca_file):
        raise UsageError(f"--ca-file takes a file of certificates, or a folder of them. {ca_file} does not exist.")
    dashboard = Dashboard(address.rstrip("/"), ca_file)
    if url.scheme == "http" and not dashboard.is_loopback and not _has_token():
        raise ClusterError(
            f"{address} is another machine's, spoken with neither by TLS nor with a token: whoever reaches it can "
            "run anything there, and others can read what is sent. Expected https://..., or a cluster that was "
            "started with RAY_AUTH_MODE=token and the same here with RAY_AUTH_TOKEN_PATH, or a tunnel: "
            f"ssh -L 8265:127.0.0.1:{url.port or 80} {url.hostname}, and --address http://127.0.0.1:8265."
        )
    return dashboard


def _without_query(address: str) -> str:
    """A refused address without its query, which may hold secrets."""
    shown = address.partition("?")[0].partition("#")[0]
    return shown if shown == address else f"{shown}?..."


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_token() -> bool:
    """Whether Ray will send a token, which it does with RAY_AUTH_MODE=token only."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.exceptions import AuthenticationError

    try:
        return bool(get_auth_headers_if_auth_enabled({}))
    except AuthenticationError as error:
        raise ClusterError(f"Ray's token cannot be read: {_first_sentence(error)}.") from None


def connect(dashboard: Dashboard) -> Any:
    """Connect to a dashboard: Ray's JobSubmissionClient with timeouts, whose errors are ClusterErrors.

    Raises:
        ClusterError: where nobody answers, the token is missing or wrong, or it is no dashboard.
    """
    try:
        import aiohttp  # noqa: F401
        import requests
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ClusterError(
            f"Sending jobs needs Ray's dashboard client ({error}). pip install 'bottleneck-features[cluster]'."
        ) from error
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # each sets itself to INFO
    # Proxies are for other machines: to one of them, this machine's dashboard and its token would go in clear.
    direct = {"proxies": {"no_proxy": urlsplit(dashboard.url).hostname}} if dashboard.is_loopback else {}

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **given: Any) -> Any:
            try:
                response = super()._do_request(method, endpoint, timeout=TIMEOUTS_SECONDS, **direct, **given)
            except AuthenticationError as error:
                raise ClusterError(_refused(dashboard.url, error)) from None
            except requests.RequestException as error:
                if said := _no_http(error):
                    raise ClusterError(
                        f"{_who(dashboard.url)} speaks no {urlsplit(dashboard.url).scheme.upper()}: {said}. {EXPECTED}"
                    ) from None
                raise LostError(f"No Ray dashboard answers at {dashboard.url}: {_reason(error)}.") from None
            if endpoint == "/api/version":
                _check_version(dashboard.url, response)
            elif response.status_code >= 500:
                self._raise_error(response)
            return response

        def _raise_error(self, response: Any) -> None:
            kind = LostError if response.status_code >= 500 else ClusterError
            text = response.text.strip()[-500:]
            if text.startswith("No available agent"):
                kind = NoAgentError
            raise kind(f"The dashboard at {dashboard.url} answered with {response.status_code}: {text}")

    kept = {name: os.environ.pop(name) for name in OVERRIDES if name in os.environ}
    try:
        return Client(dashboard.url, verify=dashboard.ca_file or True)
    except LostError as error:
        raise ClusterError(str(error)) from None
    except AuthenticationError as error:
        raise ClusterError(f"Ray's token cannot be used: {_first_sentence(error)}.") from None
    except (RuntimeError, ValueError, KeyError, OSError) as error:  # what is no dashboard has no version in JSON
        raise ClusterError(f"No Ray dashboard answers at {dashboard.url}: {_reason(error)}.") from error
    finally:
        os.environ.update(kept)


EXPECTED = "Expected the address of a Ray cluster's dashboard, which has port 8265 unless it was given another."


def _who(url: str) -> str:
    return f"What listens at {url}"


def _check_version(url: str, response: Any) -> None:
    """Raise unless a server reports a version as Ray's dashboard does."""
    try:
        found = response.json()
    except ValueError:
        found = None
    if response.status_code == 200 and isinstance(found, dict) and "ray_version" in found:
        return
    kind = response.headers.get("Content-Type", "").partition(";")[0] or "no type"
    server = response.headers.get("Server")
    raise (LostError if response.status_code >= 500 else ClusterError)(
        f"{_who(url)} is no Ray dashboard: asked for Ray's version it answered with {response.status_code}, {kind}"
        f"{f', as {server}' if server else ''}. {EXPECTED}"
    )


def _innermost(error: BaseException) -> BaseException:
    """The error below those of requests and urllib3."""
    while True:
        inner = [one for one in (*error.args, getattr(error, "reason", None)) if isinstance(one, BaseException)]
        if not inner:
            return error
        error = inner[0]


def _no_http(error: BaseException) -> str:
    """What a server said that speaks something else, if that is why a request failed."""
    found = _innermost(error)
    if isinstance(found, ssl.SSLError) and found.reason == "WRONG_VERSION_NUMBER":
        return "it answered without TLS, as an address with http:// does"
    if isinstance(found, RemoteDisconnected) or not isinstance(found, HTTPException):
        return ""
    said = str(found.args[0] if found.args else found).strip()[:80]
    return f"it answered {said!r}" if said else type(found).__name__


def _refused(url: str, error: Exception) -> str:
    mode = os.environ.get("RAY_AUTH_MODE")
    if "Invalid" in str(error):
        return (
            f"The cluster at {url} does not accept the token. Expected the one that its nodes were started with, in "
            "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token; the first found is sent."
        )
    return (
        f"The cluster at {url} asks for a token. Expected RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in the "
        f"file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token. Received: RAY_AUTH_MODE={mode or '(not set)'}."
    )


def _reason(error: BaseException) -> str:
    """What requests, urllib3 and the system say, without what they name themselves by."""
    found = _innermost(error)
    text = getattr(found, "strerror", None) or str(found)
    return text.rpartition("): ")[2].rstrip(".") or text


def _first_sentence(error: BaseException) -> str:
    return str(error).partition(". ")[0].rstrip(".")
