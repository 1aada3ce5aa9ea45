"""Slow clients before a real server, through Ray's proxy; and what its processes know of tokens."""

import json
import os
import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
import requests
from ray.serve.generated import serve_pb2, serve_pb2_grpc

from jobs.benchmarks.servers import serve_app
from serve.proxy import HEAD_SECONDS
from tests.serve.conftest import settings_of

TOKEN = "a-token-that-is-long-enough"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
HALF = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nX-Half: a"
CONNECTIONS = 50
BODY_SECONDS = 3.0
MARGIN = 5.0

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def url(models, tmp_path_factory) -> Iterator[str]:
    settings = {
        "models": {"tiny": json.loads(settings_of(models).model_dump_json(exclude={"scaling"}))},
        "limits": {"body_timeout_seconds": BODY_SECONDS},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_TOKENS", TOKEN)
        with serve_app(tmp_path_factory.mktemp("served"), settings) as url:
            yield url


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=60)


def is_healthy(one: socket.socket) -> bool:
    one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        part = one.recv(4096)
        assert part, answer
        answer += part
    return b" 200 OK\r\n" in answer


def test_fifty_half_sent_heads_are_closed_and_others_answered(url):
    with ExitStack() as stack:
        kept = stack.enter_context(connect(url))
        assert is_healthy(kept)
        started = time.monotonic()
        opened = [stack.enter_context(connect(url)) for _ in range(CONNECTIONS)]
        for one in opened[::2]:  # the others send nothing
            one.sendall(HALF)
        assert requests.get(f"{url}/info", headers=HEADERS, timeout=10).status_code == 200
        for one in opened:
            one.settimeout(max(0.1, started + HEAD_SECONDS + MARGIN - time.monotonic()))
            assert one.recv(1) == b""
        assert time.monotonic() - started > HEAD_SECONDS - 1
        assert is_healthy(kept)  # idle for as long, but not longer than a connection is kept


def test_a_slow_body_is_answered_in_words_and_its_connection_closed(url):
    head = (
        f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    with connect(url) as one:
        one.sendall(head.encode() + b'{"texts": ')
        started = time.monotonic()
        answer = b""
        while part := one.recv(65536):
            answer += part
    assert BODY_SECONDS - 0.5 < time.monotonic() - started < BODY_SECONDS + MARGIN
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in answer
    assert b"nosniff" in answer


def test_no_process_that_ray_starts_knows_the_token(url):
    (server,) = servers_of(url)
    assert TOKEN in server.environ().get("SCE_TOKENS", "")  # as it was started
    started = [p for p in psutil.process_iter() if of_the_same_ray(p, server)]
    names = " ".join(" ".join(process.cmdline()) for process in started)
    assert all(name in names for name in ("raylet", "ServeReplica", "ProxyActor"))
    for process in started:
        with suppress(psutil.Error):
            assert TOKEN not in " ".join(process.environ().values()), process.cmdline()


class Program:
    """Pickled, it makes a file where it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_stranger_runs_nothing_in_a_replica(url, tmp_path):
    """Ray Serve's replicas take pickles from each other, on ports of all interfaces."""
    (server,) = servers_of(url)
    mine = [process for process in psutil.process_iter() if of_the_same_ray(process, server)]
    names = {process.pid: " ".join(process.cmdline()) for process in mine}
    found = [c for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in names]
    open_to_all = [c for c in found if "127.0.0.1" not in c.laddr.ip and c.laddr.ip != "::1"]
    assert {names[c.pid].partition(":sce:")[0] for c in open_to_all} == {"ray::ServeReplica"}
    program = pickle.dumps(Program(str(tmp_path / "ran")))
    for c in open_to_all:
        with grpc.insecure_channel(f"127.0.0.1:{c.laddr.port}") as channel:
            stub = serve_pb2_grpc.ASGIServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                stub.HandleRequest(
                    serve_pb2.ASGIRequest(pickled_request_metadata=program), timeout=10
                )
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "ran").exists()


def servers_of(url: str) -> list[psutil.Process]:
    port = str(urlsplit(url).port)
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][-2:] == ["--port", port]
    ]


def of_the_same_ray(process: psutil.Process, server: psutil.Process) -> bool:
    with suppress(psutil.Error):
        folder = process.environ().get("RAY_TMPDIR")
        mine = folder == server.environ()["RAY_TMPDIR"]
        return mine and process.pid not in (server.pid, os.getpid())
    return False
