"""What stands before the models: how long a body may take, and how long the work."""

import asyncio
import json
import time

import pytest

from serve.auth import Guard
from serve.ingress import Ingress
from serve.refusals import ApiError
from serve.routes import make_app
from tests.serve.conftest import make_engine, run
from tests.serve.test_gateway import LABELS, LIMITS, TEXTS, TOKEN, LocalPort, refusal


@pytest.fixture
def ingress(loaded) -> Ingress:
    port = LocalPort(make_engine(loaded))
    return Ingress({"tiny": port}, Guard([Guard.digest(TOKEN)]), LIMITS)


class Answered:
    """What an application sends, in the form that `refusal` reads."""

    def __init__(self, messages: list[dict]) -> None:
        start, *rest = messages
        self.status_code = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.text = b"".join(message.get("body", b"") for message in rest).decode()

    def json(self):
        return json.loads(self.text)


def send_slowly(ingress: Ingress, parts: list[tuple[float, bytes]]) -> Answered:
    """The answer to a body of which each part comes so many seconds after the one before; after the
    last nothing comes."""
    app = make_app(ingress)
    headers = [
        (b"authorization", f"Bearer {TOKEN}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", b"1000"),
    ]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/classify", "raw_path": b"/v1/classify",
        "query_string": b"", "root_path": "", "headers": headers, "http_version": "1.1",
        "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 5000),
    }  # fmt: skip
    waiting = list(parts)
    sent: list[dict] = []

    async def receive() -> dict:
        if not waiting:
            await asyncio.sleep(60)
        seconds, body = waiting.pop(0)
        await asyncio.sleep(seconds)
        more = bool(waiting) or not body.endswith(b"}")
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: dict) -> None:
        sent.append(message)

    run(app(scope, receive, send))
    return Answered(sent)


def test_a_body_that_does_not_come_in_time(ingress):
    ingress.limits = LIMITS.model_copy(update={"body_timeout_seconds": 0.2})
    started = time.monotonic()
    found = send_slowly(ingress, [(0, b'{"texts": '), (0, b'["a"'), (0.05, b", ")])
    assert time.monotonic() - started < 10
    error = refusal(found, 408)
    assert (error["code"], error["param"]) == ("body_timeout", "body_timeout_seconds")
    assert "0.2" in error["message"]
    assert found.headers["connection"] == "close"
    assert (ingress._requests, ingress._bytes) == (0, 0)


def test_a_slow_body_takes_nothing_from_the_time_of_the_work(ingress):
    changed = {"body_timeout_seconds": 20.0, "request_timeout_seconds": 0.6}
    ingress.limits = LIMITS.model_copy(update=changed)
    body = json.dumps({"texts": TEXTS, "labels": LABELS}).encode()
    found = send_slowly(ingress, [(0, body[:20]), (0.8, body[20:])])
    assert found.status_code == 200, found.text
    assert len(found.json()["data"]) == len(TEXTS)


def test_a_probe_does_not_wait_for_a_model_that_answered_a_moment_ago(ingress, monkeypatch):
    port = ingress.models["tiny"]
    asked = 0

    async def slow_info():
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.2)
        return {"dimension": 4}

    async def probes() -> list[float]:
        seconds = []
        for age in (None, 0.0, 5.0, 5.0, 100.0):
            if age is not None:
                ingress._infos["tiny"] = (time.monotonic() - age, {})
            started = time.monotonic()
            await ingress.see_alive("tiny")
            seconds.append(time.monotonic() - started)
        await asyncio.sleep(0.3)
        return seconds

    monkeypatch.setattr(port, "info", slow_info)
    waited = [seconds > 0.15 for seconds in run(probes())]
    assert waited == [True, False, False, False, True]
    assert asked == 3  # twice by a probe that waits, once beside those that do not

    async def dead():
        raise ApiError(503, "model_unavailable", "no")

    monkeypatch.setattr(port, "info", dead)

    async def probe_of_the_dead() -> None:
        ingress._infos["tiny"] = (time.monotonic() - 5, {})
        await ingress.see_alive("tiny")  # and what comes of it is nobody's exception
        await asyncio.sleep(0.05)
        ingress._infos["tiny"] = (time.monotonic() - 11, {})
        with pytest.raises(ApiError):
            await ingress.see_alive("tiny")

    run(probe_of_the_dead())
