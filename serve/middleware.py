"""What stands around every route: who may ask, one form for whatever happens, what is counted.

A plain ASGI application, not Starlette's `BaseHTTPMiddleware`: that one runs each request in a task
of its own and passes its answer through a queue, which took more than half of the processor's time
for a short request.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sce.errors import clipped, quoted
from serve.ingress import Ingress
from serve.refusals import ApiError

OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json", "/docs-assets")
"""Answered without a token: they tell nothing of texts, labels or models."""
MAX_ADDRESS_CHARS = 8192
"""Of a path and its query: more than any of ours has, and what other servers take."""

START_SECONDS = 10.0
"""So long a request waits for a model that is being loaded."""

log = logging.getLogger("ray.serve")


class Watched:
    """Lets those in who may ask; answers HEAD as GET, without the body; gives faults and refusals
    the form of this interface; records what was answered, and how long it took to begin."""

    def __init__(self, app: ASGIApp, ingress: Ingress) -> None:
        self._app, self._ingress = app, ingress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["model"] = ""
        answer = _Answer(scope, send, self._ingress)
        method = scope["method"]
        try:
            self._check(scope)
            if not self._ingress.ready.is_set():
                await self._ingress.see_ready(0.0 if _path(scope) == "/health" else START_SECONDS)
            if method == "HEAD":
                scope["method"] = "GET"
            await self._app(scope, receive, answer.send)
        except ApiError as error:
            await _refuse(error, scope, receive, answer)
        except Exception:
            log.exception("%s %s failed", clipped(method), quoted(_path(scope)))
            if answer.begun:  # nothing else can be said: the connection breaks
                raise
            hidden = ApiError(500, "internal_error", "the server failed; its log says where.")
            await _refuse(hidden, scope, receive, answer)
        finally:
            scope["method"] = method

    def _check(self, scope: Scope) -> None:
        """Raises `ApiError`: 401 or 403, who asks may not; 414, the address is too long."""
        path = _path(scope)
        if path not in OPEN_PATHS and not path.startswith("/docs-assets/"):
            peer = scope["client"][0] if scope.get("client") else None
            self._ingress.guard.check(Headers(scope=scope), peer)
        size = len(scope["path"]) + len(scope["query_string"])
        if size > MAX_ADDRESS_CHARS:
            message = f"the address has {size} characters; at most {MAX_ADDRESS_CHARS} are allowed."
            raise ApiError(414, "address_too_long", message)


class _Answer:
    """An answer on its way out."""

    def __init__(self, scope: Scope, send: Send, ingress: Ingress) -> None:
        self._scope, self._send, self._ingress = scope, send, ingress
        self._started = time.perf_counter()
        self._bare = scope["method"] == "HEAD"
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._record(message)
        elif self._bare and message["type"] == "http.response.body":
            if message.get("more_body", False):
                return
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _record(self, message: Message) -> None:
        seconds = time.perf_counter() - self._started
        headers = MutableHeaders(scope=message)
        if "server-timing" in headers:
            headers["server-timing"] += f", gateway;dur={1000 * seconds:.1f}"
        path = getattr(self._scope.get("route"), "path", "unknown")
        model = self._scope["state"]["model"]
        self._ingress.metrics.request(path, message["status"], model, seconds)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, answer: _Answer) -> None:
    await JSONResponse(error.body(), error.status, error.headers)(scope, receive, answer.send)


def _path(scope: Scope) -> str:
    """The path without the prefix that a proxy in front was given."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    return path
