"""What every answer, and each kind of page, tells browsers of itself."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COMMON = ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.S)


class NoSniff:
    """ASGI middleware: no answer is taken for another type than it says, JSON for a page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, send_with_header)


def page_headers(html: str) -> dict[str, str]:
    """Of the page at `/`: whatever a text contains, it runs its own script alone and sends nothing
    to another host.

    Styles may be inline, though it has none but its own: a report that it opens from memory has
    this policy too (`report_headers`).
    """
    return _headers(
        f"script-src {script_hashes(html)}",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "connect-src 'self'",
    )


def report_headers() -> dict[str, str]:
    """Of a report: a page with everything inside (styles, pictures as data), without any script."""
    return _headers("style-src 'unsafe-inline'", "img-src data:")


def docs_headers(html: str) -> dict[str, str]:
    """Of Swagger's page, which takes its files from this server and sets styles as it goes."""
    return _headers(
        f"script-src 'self' {script_hashes(html)}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
    )


def script_hashes(html: str) -> str:
    """The inline scripts of a page, as a policy names them: those and no others may run."""
    digests = (hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(html))
    return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)


def _headers(*directives: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": "; ".join((*_COMMON, *directives)),
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
    }
