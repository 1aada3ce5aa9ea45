"""What Ray Serve's HTTP proxy lacks: a bound on how long a client takes to send a request's head,
for a short body a way to the gateway as short as the head's, and giving memory back after a load.

The proxy is a uvicorn in an actor of Ray's, which waits for ever for a connection that sends half a
head or nothing: enough of them, and no file descriptors are left for others. Neither `HTTPOptions`
nor uvicorn has a setting for it. What Ray does have is a function that each proxy calls before it
starts, named by an environment variable of Ray's nodes: here it is `prepare`. A gateway that
listens itself calls it too (`ray_settings.apply`).
`python -m serve.app` sets the variable for the Ray that it starts, cluster/'s image for its nodes
(`serve/ray_settings.py`).

A replica asks the proxy for a body when it has the head: another call between two processes, for
which a request of one text waits milliseconds. So a short body that has come goes along in the
head's dictionary; `sent_along` is it.
"""

from __future__ import annotations

import asyncio

import ray
import uvicorn.config
from ray.serve._private.constants import SERVE_PROXY_NAME
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve import ray_settings
from serve.headers import NoSniff
from serve.memory import UnusedMemory

HEAD_SECONDS = 15.0
"""From the connection, or the first byte of a later request on it, to the end of the head."""
SHORT_BYTES = 64 * 2**10
"""A body up to this goes along with the head, if it has come in `BODY_SECONDS`."""
BODY_SECONDS = 0.02
_BODY = "sce.body"


def prepare() -> list[Middleware]:
    """Called by Ray in each process that listens, before its server starts. The middleware is for
    what Ray answers by itself."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHead.__name__}"
    if ray_settings.is_direct():
        name = ray.get_runtime_context().get_actor_name() or ""
        elsewhere = [Middleware(Elsewhere)] if name.startswith(SERVE_PROXY_NAME) else []
        return [Middleware(NoSniff), *elsewhere]
    UnusedMemory().watch()  # bodies of hundreds of clients
    return [Middleware(NoSniff), Middleware(BodyAlong)]


def sent_along(scope: Scope) -> bytes | None:
    """The whole body of a request, where the proxy knew it; else it is to be received."""
    found: bytes | None = scope.get(_BODY)
    return found


class Elsewhere:
    """ASGI middleware of a proxy that nobody is to use: the gateway listens itself."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is never called."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = PlainTextResponse("The endpoint listens at another port.\n", 421)
            await answer(scope, receive, send)


class BodyAlong:
    """ASGI middleware: a short body that has come is in the scope too. Nothing else changes: who
    receives gets the same messages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _announces_short(scope):
            await self._app(scope, receive, send)
            return
        come: list[Message] = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                come.append(await receive())
        except TimeoutError:
            pass
        if come and come[0]["type"] == "http.request" and not come[0].get("more_body", False):
            scope[_BODY] = come[0].get("body", b"")

        async def receive_again() -> Message:
            return come.pop() if come else await receive()

        await self._app(scope, receive_again, send)


def _announces_short(scope: Scope) -> bool:
    sizes = [value for name, value in scope["headers"] if name == b"content-length"]
    return len(sizes) == 1 and sizes[0].isdigit() and 0 < int(sizes[0][:9]) <= SHORT_BYTES


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol; closes a connection that owes the rest of a request's head for
    `HEAD_SECONDS`.

    A connection that is kept alive and silent is uvicorn's matter (`timeout_keep_alive`), and one
    that has a request in the making nobody's.
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        answered = self.cycle is not None and self.cycle.response_complete
        if answered and self._overdue is None:  # another request, or the rest of an old one
            self._expect_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._expect_nothing()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            # The rest of a body that nobody waited for. It has ended uvicorn's own bound.
            self._expect_nothing()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._overdue = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _expect_nothing(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
