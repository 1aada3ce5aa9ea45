"""Who is answered where a proxy stands in front, and who may read the tokens' file."""

import pytest
from fastapi.testclient import TestClient

from serve.app import build
from serve.auth import Guard
from serve.ingress import Ingress
from serve.routes import make_app
from serve.settings import ServeConfig
from tests.serve.conftest import make_engine, settings_of
from tests.serve.test_gateway import LIMITS, TOKEN, LocalPort, refusal

PROXIED = [
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "x-forwarded-anything",
    "X-Real-IP",
    "Via",
]


@pytest.mark.parametrize("header", PROXIED)
def test_without_tokens_nothing_that_came_through_a_proxy_is_answered(loaded, header):
    port = LocalPort(make_engine(loaded))
    app = make_app(Ingress({"tiny": port}, Guard([]), LIMITS))
    given = {"Host": "localhost:8000", header: "127.0.0.1"}
    with TestClient(app, client=("127.0.0.1", 5000), headers=given) as client:
        error = refusal(client.get("/info"), 403)
        assert error["code"] == "proxy_without_tokens"
        assert header.lower() in error["message"]
        assert "SCE_TOKENS" in error["message"]
        assert client.get("/health").status_code == 200
        del client.headers[header]
        assert client.get("/info").status_code == 200


def test_with_tokens_a_proxy_may_stand_in_front(loaded):
    port = LocalPort(make_engine(loaded))
    app = make_app(Ingress({"tiny": port}, Guard([Guard.digest(TOKEN)]), LIMITS))
    given = dict.fromkeys(PROXIED, "192.0.2.7") | {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, headers=given) as client:
        assert client.get("/info").status_code == 200


def test_the_start_says_that_a_proxy_needs_tokens(models, caplog):
    build(ServeConfig(models={"one": settings_of(models)}))
    assert "a proxy in front of this server needs tokens" in caplog.text


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o444])
def test_a_tokens_file_that_others_may_read_is_told(models, tmp_path, caplog, mode):
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")
    file.chmod(mode)
    build(ServeConfig(models={"one": settings_of(models)}, tokens_file=file))
    assert (f"mode {mode:04o}" in caplog.text) == (mode != 0o600)
    assert TOKEN not in caplog.text
