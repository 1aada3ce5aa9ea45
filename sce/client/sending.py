"""Sends rows in as many requests as the limits want, some at a time, and joins the answers."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

from sce.client.connection import Connection, LimitExceeded, TimedOut
from sce.client.packing import Rows
from sce.client.served import RequestLimits

REQUEST_ROWS = 256
"""Rows of a request at most: the answer comes within the server's timeout also from few cores."""
MIN_REQUEST_ROWS = 16
"""What timeouts can bring a request's rows down to."""
DIVISIBLE = ("max_texts", "max_body_bytes", "max_label_texts", "max_label_tokens", None)
"""Limits that half a request may keep; None is that of a proxy."""

log = logging.getLogger(__name__)


class Sender:
    """Has `concurrency` requests of a call under way. Safe to use from several threads."""

    def __init__(self, connection: Connection, concurrency: int) -> None:
        self._connection = connection
        self._concurrency = concurrency
        self._request_rows = REQUEST_ROWS

    def answer(
        self, rows: Rows, limits: RequestLimits, parse: Callable[[bytes, int], list[Any]]
    ) -> list[Any]:
        """One item a row, in order; the first request that fails ends all.

        Args:
            parse: the content of an answer to so many rows, as items.
        """
        connection, stop = self._connection, Event()

        def send(start: int, end: int, since: float | None = None) -> list[Any]:
            """In one request, or in halves where that is too much; the whole was sent `since`."""
            size, began = end - start, time.monotonic()
            try:
                return connection.ask(
                    rows.path,
                    lambda content: parse(content, size),
                    rows.body(start, end),
                    stop,
                    divisible=size > 1,
                )
            except LimitExceeded as error:
                if size == 1 or error.param not in DIVISIBLE:
                    raise
                reason = error.param or "a limit on its way"
            except TimedOut as error:
                if since is not None:
                    connection.check_patience(max(since, connection.last_answer), 0.0, str(error))
                reason = "a timeout"
            half = size // 2
            # For every later request too: two threads may write this at once, and either is right.
            self._request_rows = min(self._request_rows, max(MIN_REQUEST_ROWS, half))
            log.info("%s: %d rows in halves for %s", connection.url, size, reason)
            since = began if since is None else since
            return send(start, start + half, since) + send(start + half, end, since)

        waiting: deque[Future[list[Any]]] = deque()
        found: list[Any] = []
        start = 0
        threads = ThreadPoolExecutor(self._concurrency, "sce-client")
        try:
            while start < len(rows) or waiting:
                # Only so many ahead: what a timeout teaches of a request's size counts soon.
                if start < len(rows) and len(waiting) < 2 * self._concurrency:
                    end = rows.request_end(start, self._request_rows, limits)
                    waiting.append(threads.submit(send, start, end))
                    start = end
                else:
                    found += waiting.popleft().result()
        finally:
            # Requests in flight cannot be recalled, but none is repeated and none begins.
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
        return found
