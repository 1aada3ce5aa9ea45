"""One request to an endpoint and its answer: repeated while the server is overloaded or away, until
patience ends; every refusal as a typed error.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from itertools import count
from threading import Event
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from pydantic import ValidationError
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import InvalidHeader

from sce.client.wire import ErrorBody, ErrorResponse
from sce.errors import InputError, SCEError, without_secrets

CONNECT_SECONDS = 10.0
BACKOFF_SECONDS = (0.25, 15.0)
"""Before the first repetition, and at most; doubled each time, less up to a half by chance."""
OVERLOADED = (408, 429, 502, 503, 504)
"""Answers of a server that may answer otherwise later."""
TIMEOUTS = (408, 504)
"""Those of one for which less at a time may be in time: the body came too slowly, or the work."""
PROXY = (404, 500)
"""Answers of Ray's proxy while an application is not there yet, or its replica has died; the
application itself says more."""
FAILURES = 3
"""A request that the server fails at (500) is sent this many times: a replica may have died."""
LOUD_ATTEMPT = 4
"""Said in the log; that a request is repeated once or twice is usual."""

_DROPPED = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)

T = TypeVar("T")
log = logging.getLogger(__name__)


class EndpointError(SCEError):
    """The server fails, or what answers is no such server."""


class EndpointUnavailable(EndpointError):
    """No answer for as long as patience lasts: unreachable, restarting or overloaded."""


class NotAuthorised(InputError):
    """The server wants another token, or one at all."""


class RequestRefused(InputError):
    """The server refuses what is asked: HTTP's status, and code and param as in `ErrorBody`."""

    def __init__(
        self, message: str, status: int = 0, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class LimitExceeded(RequestRefused):
    """A row or a label set is too large for the server's limits (`param` names the limit)."""


class TimedOut(SCEError):
    """A request of several rows took too long: fewer may not."""


class Stopped(SCEError):
    """Another request of the same call has failed."""


class Connection:
    """Sends requests to one server. Safe to use from several threads.

    Args:
        timeout: seconds that one request may take.
        patience: seconds that a request without an answer is repeated while no other of this
            connection gets one either.

    Raises:
        InputError: `url` is none.
    """

    def __init__(
        self, url: str, token: str, timeout: float, patience: float, pool_size: int
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"endpoint: {url!r} is not a URL such as http://localhost:8000.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                "endpoint: a URL without password and query; a token is given as such."
            )
        self.url = url.rstrip("/")
        self.last_answer = -float("inf")
        """When any request was answered, on the monotonic clock."""
        self._token, self._timeout, self._patience = token.strip(), timeout, patience
        self._session = requests.Session()
        self._session.auth = self._authorise
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=pool_size))

    def close(self) -> None:
        self._session.close()

    def ask(
        self,
        path: str,
        read: Callable[[bytes], T],
        body: bytes | None = None,
        stop: Event | None = None,
        divisible: bool = False,
    ) -> T:
        """What `read` makes of the content of an answer that is no error.

        Args:
            read: raises `ValueError` for what is no answer of an endpoint.
            body: POST this; None for GET.
            stop: give up when it is set.
            divisible: raise `TimedOut` rather than ask the same again.
        """
        stop = stop or Event()
        started, failures = time.monotonic(), 0
        for attempt in count(1):
            wait = 0.0
            try:
                response = self._send(path, body)
            except _DROPPED as error:
                if isinstance(error, requests.exceptions.SSLError):  # no matter of waiting
                    raise EndpointError(f"{self.url}: {_why(error)}") from None
                reason, timed_out = _why(error), isinstance(error, requests.ReadTimeout)
            except requests.RequestException as error:
                raise EndpointError(f"{self.url}: {_why(error)}") from None
            else:
                status = response.status_code
                if status < 300:
                    self.last_answer = time.monotonic()
                    if attempt > LOUD_ATTEMPT:
                        log.warning("%s: answers again", self.url)
                    return self._read(read, response.content)
                said = _said(response)
                refusal = self._refusal(response, said)
                failures += status == 500
                if not (
                    status in OVERLOADED
                    or (status in PROXY and said is None)
                    or (status == 500 and failures < FAILURES)
                ):
                    raise refusal
                reason, timed_out = f"HTTP {status}: {refusal}", status in TIMEOUTS
                wait = _retry_after(response)
            if timed_out and divisible:
                raise TimedOut(reason)
            # While others are answered the server is busy rather than away. But a row that always
            # takes too long is not helped by that.
            since = started if timed_out else max(started, self.last_answer)
            wait = max(wait, _backoff(attempt)) * random.uniform(1.0, 1.25)
            self.check_patience(since, wait, reason)
            level = logging.WARNING if attempt == LOUD_ATTEMPT else logging.DEBUG
            log.log(level, "%s: no answer, asking again (%s)", self.url, reason)
            if stop.wait(wait):
                raise Stopped(reason)
        raise AssertionError

    def check_patience(self, since: float, wait: float, reason: str) -> None:
        """Raises `EndpointUnavailable` where patience would end before the next attempt."""
        passed = time.monotonic() - since
        if passed + wait > self._patience:
            raise EndpointUnavailable(
                f"{self.url}: no answer in {passed:.0f} s (patience: {self._patience:g} s). "
                f"The last reason: {reason}"
            )

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set also without a token: else `requests` looks for passwords in ~/.netrc."""
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _send(self, path: str, body: bytes | None) -> requests.Response:
        return self._session.request(
            "GET" if body is None else "POST",
            self.url + path,
            data=body,
            headers={"Content-Type": "application/json"} if body else {},
            timeout=(min(CONNECT_SECONDS, self._timeout), self._timeout),
            allow_redirects=False,
        )

    def _read(self, read: Callable[[bytes], T], content: bytes) -> T:
        try:
            return read(content)
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(
                f"{self.url}: the answer is not of a form that this client knows ({error!r:.200}). "
                "Is it the URL of an endpoint, of this version?"
            ) from None

    def _refusal(self, response: requests.Response, said: ErrorBody | None) -> SCEError:
        """What a status that is none of success means."""
        url, status = self.url, response.status_code
        message = "" if said is None else said.message
        message = message or " ".join(response.text[:200].split()) or response.reason
        if status in (401, 403):
            return NotAuthorised(f"{url}: {message} Give the token of this server.")
        if status < 400:
            there = response.headers.get("Location")
            return EndpointError(f"{url}: redirects to {there}; give that URL.")
        if status >= 500 or status == 429:
            return EndpointError(f"{url}: {message}")
        kind = LimitExceeded if status == 413 else RequestRefused
        code, param = (None, None) if said is None else (said.code, said.param)
        return kind(f"{url} refuses: {message}", status, code, param)


def _said(response: requests.Response) -> ErrorBody | None:
    """The error as the endpoint writes it; None where something else wrote the answer."""
    try:
        return ErrorResponse.model_validate_json(response.content, extra="ignore").error
    except ValidationError:
        return None


def _backoff(attempt: int) -> float:
    first, most = BACKOFF_SECONDS
    return min(most, first * 2 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server wants to be left alone, 0 where it does not say."""
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0


def _why(error: BaseException) -> str:
    """The innermost reason of an error of `requests`, which wraps it in others."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    found = str(error.args[-1]) if error.args else str(error)
    return without_secrets(f"{type(error).__name__}: {found}".replace("\n", " "))[:300]
