"""The bound on a request's head, in uvicorn alone as Ray's proxy runs it, and the short way of a
body; with Ray: test_proxy_system.py."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from ray._common.utils import import_attr
from ray.serve._private import constants
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serve import proxy, ray_settings

HEAD_SECONDS = 0.3
LONG = 0.8
KEEP_ALIVE_SECONDS = 1.5
REQUEST = b"GET /quick HTTP/1.1\r\nHost: here\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n"
HALF = b"GET /quick HTTP/1.1\r\nHost: he"
POST = b"POST %s HTTP/1.1\r\nHost: here\r\nContent-Length: 6\r\n\r\n"


async def quick(_: Request) -> PlainTextResponse:
    return PlainTextResponse("quick")


async def slow(_: Request) -> PlainTextResponse:
    await asyncio.sleep(LONG)
    return PlainTextResponse("slow")


async def body(request: Request) -> PlainTextResponse:
    return PlainTextResponse((await request.body()).decode())


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes, times: int = 1) -> None:
        """So often, with a pause shorter than the bound."""
        for _ in range(times):
            if not self._writer.is_closing():
                self._writer.write(data)
            if times > 1:
                await asyncio.sleep(HEAD_SECONDS / 2)

    async def answer(self) -> str:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        return (await self._reader.readexactly(size)).decode()

    async def is_closed(self, seconds: float = LONG) -> bool:
        """Whether the server closes it in this time; it must not send anything."""
        try:
            return await asyncio.wait_for(self._reader.read(1), seconds) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    paths = {"/quick": quick, "/slow": slow, "/body": body}
    routes = [Route(path, do, methods=["GET", "POST"]) for path, do in paths.items()]
    config = uvicorn.Config(
        Starlette(routes=routes), port=0, lifespan="off", log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await running


async def nothing(one: Connection) -> None:
    assert await one.is_closed()


async def half_a_head(one: Connection) -> None:
    await one.send(HALF)
    assert await one.is_closed()


async def a_head_in_drops(one: Connection) -> None:
    await one.send(HALF)
    await one.send(b"x", times=4)
    assert await one.is_closed(0.1)


async def half_a_second_head(one: Connection) -> None:
    await one.send(REQUEST)
    assert await one.answer() == "quick"
    await one.send(HALF)
    assert await one.is_closed()


async def empty_lines_instead_of_a_second_head(one: Connection) -> None:
    await one.send(REQUEST)
    assert await one.answer() == "quick"
    await one.send(b"\r\n", times=4)
    assert await one.is_closed(0.1)


async def the_rest_of_a_body_in_drops(one: Connection) -> None:
    """One that the answer did not wait for."""
    await one.send(POST % b"/quick")
    assert await one.answer() == "quick"
    await one.send(b"x", times=4)
    assert await one.is_closed(0.1)


async def an_idle_connection_stays(one: Connection) -> None:
    for _ in range(2):
        await one.send(REQUEST)
        assert await one.answer() == "quick"
        assert not await one.is_closed(LONG)


async def an_idle_connection_ends_with_its_own_time(one: Connection) -> None:
    await one.send(POST % b"/quick")
    assert await one.answer() == "quick"
    await one.send(b"123456")
    assert not await one.is_closed(LONG)
    assert await one.is_closed(KEEP_ALIVE_SECONDS)


async def a_slow_answer_comes(one: Connection) -> None:
    await one.send(SLOW)
    assert await one.answer() == "slow"


async def a_slow_answer_comes_before_half_a_head(one: Connection) -> None:
    await one.send(SLOW + HALF)
    assert await one.answer() == "slow"


async def a_slow_body_is_read(one: Connection) -> None:
    await one.send(POST % b"/body")
    await one.send(b"x", times=6)
    assert await one.answer() == "xxxxxx"


CASES = [
    nothing, half_a_head, a_head_in_drops, half_a_second_head, the_rest_of_a_body_in_drops,
    empty_lines_instead_of_a_second_head, an_idle_connection_stays,
    an_idle_connection_ends_with_its_own_time, a_slow_answer_comes,
    a_slow_answer_comes_before_half_a_head, a_slow_body_is_read,
]  # fmt: skip


def test_only_a_head_that_does_not_come_closes_a_connection(monkeypatch):
    """All cases at once, since each waits."""
    monkeypatch.setattr(proxy, "HEAD_SECONDS", HEAD_SECONDS)
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")  # put back afterwards
    assert [one.cls for one in proxy.prepare()] == [proxy.NoSniff, proxy.BodyAlong]

    async def all_cases() -> list[BaseException | None]:
        async with served() as port:
            opened = [await asyncio.open_connection("127.0.0.1", port) for _ in CASES]
            work = (case(Connection(*one)) for case, one in zip(CASES, opened, strict=True))
            found = await asyncio.gather(*work, return_exceptions=True)
            for _, writer in opened:
                writer.close()
            return found

    failed = {
        case.__name__: repr(error)
        for case, error in zip(CASES, asyncio.run(all_cases()), strict=True)
        if error is not None
    }
    assert not failed


def test_ray_is_told_unless_it_was_told_otherwise(monkeypatch):
    for name in ray_settings.ENVIRONMENT:
        assert constants.__dict__.get(name, "unknown") != "unknown"
        monkeypatch.delenv(name, raising=False)
    name, callback = next(iter(ray_settings.ENVIRONMENT.items()))
    monkeypatch.setenv(name, "theirs:callback")
    ray_settings.apply()
    assert os.environ[name] == "theirs:callback"
    monkeypatch.delenv(name)
    ray_settings.apply()
    assert {one: os.environ[one] for one in ray_settings.ENVIRONMENT} == ray_settings.ENVIRONMENT
    assert import_attr(callback) is proxy.prepare


BODY = b'{"texts": "a"}'
WHOLE = {"type": "http.request", "body": BODY, "more_body": False}
PART = {"type": "http.request", "body": BODY[:4], "more_body": True}
REST = {"type": "http.request", "body": BODY[4:], "more_body": False}


@pytest.mark.parametrize(
    ("announced", "messages", "pause", "along"),
    [
        (b"14", [WHOLE], 0.0, BODY),
        (b"14", [WHOLE], 0.1, None),  # later than is waited for
        (b"14", [PART, REST], 0.0, None),
        (b"14", [{"type": "http.disconnect"}], 0.0, None),
        (b"70000", [WHOLE], 0.0, None),
        (None, [WHOLE], 0.0, None),
        (b"-14", [WHOLE], 0.0, None),
    ],
    ids=["whole", "late", "parts", "gone", "long", "not announced", "no number"],
)
def test_a_short_body_goes_along_and_is_received_as_ever(announced, messages, pause, along):
    sizes = [] if announced is None else [(b"content-length", announced)]
    scope = {"type": "http", "headers": [(b"host", b"here"), *sizes]}
    coming = list(messages)
    found: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(pause)
        return coming.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(proxy.sent_along(scope))
        found.extend([await receive() for _ in messages])

    asyncio.run(proxy.BodyAlong(app)(scope, receive, None))  # type: ignore[arg-type]
    assert found == [along, *messages]
