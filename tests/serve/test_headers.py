"""What answers tell browsers of themselves. That pages work under it: test_page_system.py."""

import hashlib
import re
from base64 import b64encode

import pytest
from fastapi.testclient import TestClient

from serve.auth import Guard
from serve.ingress import Ingress
from serve.routes import make_app
from tests.serve.conftest import make_engine
from tests.serve.test_gateway import LABELS, LIMITS, TEXTS, TOKEN, LocalPort

PAGES = ["/", "/docs", "/v1/label_sets/tickets/report"]
ORIGIN = "http://intranet.example"


@pytest.fixture
def client(with_sets):
    port = LocalPort(make_engine(with_sets))
    ingress = Ingress({"tiny": port}, Guard([Guard.digest(TOKEN)]), LIMITS)
    token = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(make_app(ingress, [ORIGIN]), headers=token) as client:
        yield client


def directives(response) -> dict[str, list[str]]:
    policy = response.headers["content-security-policy"]
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


@pytest.mark.parametrize("path", PAGES)
def test_no_script_runs_but_the_pages_own(client, path):
    page = client.get(path)
    assert page.status_code == 200
    found = directives(page)
    assert found["default-src"] == ["'none'"]
    assert found["frame-ancestors"] == ["'none'"]
    assert page.headers["x-frame-options"] == "DENY"
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.S)
    digests = [b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = [f"'sha256-{digest}'" for digest in digests]
    assert len(scripts) == (0 if path.endswith("report") else 1)
    own = ["'self'"] if path == "/docs" else []
    assert found.get("script-src", []) == own + allowed


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_asked_of_another_host(client, path):
    allowed = {"'none'", "'self'", "'unsafe-inline'", "data:"}
    for name, values in directives(client.get(path)).items():
        others = set(values) - allowed
        assert not others or name == "script-src", (name, others)


def test_no_answer_is_taken_for_another_type(client):
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    for response in (
        *map(client.get, (*PAGES, "/health", "/info", "/openapi.json", "/metrics", "/nothing")),
        client.get("/docs-assets/swagger-ui-bundle.js"),
        client.get("/docs-assets/nothing"),
        client.get("/docs/", follow_redirects=False),
        client.get("/info", headers={"Authorization": "wrong"}),
        client.get("/v1/classify"),
        client.head("/info"),
        client.post("/v1/classify", content=b"{"),
        client.post("/v1/classify", json={"texts": TEXTS, "labels": LABELS}),
        client.options("/v1/classify", headers=asked),
    ):
        assert response.headers["x-content-type-options"] == "nosniff", response
