"""What Ray Serve's HTTP proxy lacks: a bound on how long a client takes to send a request's head.

The proxy is a uvicorn in an actor of Ray's, which waits for ever for a connection that sends half a
head or nothing: enough of them, and no file descriptors are left for others. Neither `HTTPOptions`
nor uvicorn has a setting for it. What Ray does have is a function that each proxy calls before it
starts, named by an environment variable of Ray's nodes (`NAME_VARIABLE`): here it is `prepare`.
`python -m serve.app` sets the variable for the Ray that it starts, cluster/'s image for its nodes.
"""

from __future__ import annotations

import asyncio
import os

import uvicorn.config
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.headers import NoSniff

HEAD_SECONDS = 15.0
"""From the connection, or the first byte of a later request on it, to the end of the head."""
NAME_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PREPARE = "serve.proxy:prepare"


def name_to_ray() -> None:
    """Let the proxies of a Ray that this process starts call `prepare`, where nothing else is
    named."""
    os.environ.setdefault(NAME_VARIABLE, PREPARE)


def prepare() -> list[Middleware]:
    """Called by Ray in the process of a proxy, before its server starts. The middleware is for what
    the proxy answers by itself."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHead.__name__}"
    return [Middleware(NoSniff)]


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
