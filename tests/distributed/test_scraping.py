"""Ray's metrics ask for its token."""

import sys
from pathlib import Path

import prometheus_client
import pytest
import ray
import requests
from prometheus_client import exposition
from ray._private.authentication import authentication_utils

from sce.distributed.scraping import SERVERS, ask_for_token
from tests.cluster.pods import instructions


@pytest.fixture
def unguarded(monkeypatch):
    """What `prometheus_client` serves, put back afterwards."""
    for module in (prometheus_client, exposition):
        monkeypatch.setattr(module, "make_wsgi_app", exposition.make_wsgi_app)
    return exposition.make_wsgi_app


def status(header: str | None) -> str:
    """Of a request to what `start_http_server` and Ray's agent serve."""
    found = []
    given = {} if header is None else {"HTTP_AUTHORIZATION": header}
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "QUERY_STRING": "", **given}
    app = prometheus_client.make_wsgi_app()
    body = b"".join(app(environ, lambda status, headers: found.append(status)))
    assert (b"python_info" in body) == (found == ["200 OK"])
    return found[0]


@pytest.mark.parametrize("program", SERVERS)
def test_a_process_that_shows_metrics_asks_for_the_token(monkeypatch, unguarded, program):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", f"/lib/{program}", "--port=1"])
    monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda: True)
    monkeypatch.setattr(
        authentication_utils, "validate_request_token", lambda given: given == "Bearer right"
    )
    ask_for_token()
    assert status(None) == "401 Unauthorized"
    assert status("Bearer wrong") == "403 Forbidden"
    assert status("Bearer right") == "200 OK"


def test_a_server_of_the_dashboard_does(monkeypatch, unguarded):
    """Which `prometheus_client` starts itself."""
    monkeypatch.setattr(sys, "orig_argv", ["python", SERVERS[1]])
    monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda: True)
    ask_for_token()
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1")
    try:
        answer = requests.get(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert answer.status_code == 401


def test_a_ray_without_tokens_shows_them_as_before(monkeypatch, unguarded):
    monkeypatch.setattr(sys, "orig_argv", ["python", SERVERS[0]])
    monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda: False)
    ask_for_token()
    assert status(None) == "200 OK"


def test_another_process_is_left_alone(monkeypatch, unguarded):
    monkeypatch.setattr(sys, "orig_argv", ["python", "jobs/classify.py"])
    ask_for_token()
    assert exposition.make_wsgi_app is unguarded


def test_the_programs_are_rays():
    for program in SERVERS:
        assert (Path(ray.__path__[0]).parent / program).is_file(), program


def test_the_image_calls_it_at_every_start_of_python():
    (line,) = [value for _, value in instructions() if "sce-scraping.pth" in value]
    assert "import sce.distributed.scraping as s; s.ask_for_token()" in line
