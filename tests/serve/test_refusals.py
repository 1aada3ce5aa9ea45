"""No refusal carries back what was sent, nor what is behind the server."""

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sce.client.wire import BatchRequest, ClassifyRequest, EmbeddingsRequest, ErrorResponse
from sce.errors import ECHO_CHARS, clipped, quoted
from serve.auth import Guard
from serve.batches import BatchJobs
from serve.ingress import Ingress
from serve.refusals import MESSAGE_CHARS, ApiError
from serve.routes import make_app
from serve.settings import BatchSettings, Limits
from tests.serve.conftest import make_engine
from tests.serve.test_gateway import TOKEN, LocalPort, refusal

MAX_BYTES = 4096
JSON = {"Content-Type": "application/json"}
TEXTS: dict[str, Any] = {"texts": ["a"], "labels": ["x"]}
FILES: dict[str, Any] = {"input": "/in/a", "output": "/out/a", "labels": ["x"]}
HUGE = st.builds(
    lambda text, chars: text * (chars // len(text) + 1),
    st.sampled_from(["x", "é", "'", '"', "\x00", "\n", "\u202e", "\U0001f600", "%2e/", " y"]),
    st.sampled_from([201, 3000, 40_000]),
)


@pytest.fixture(scope="module")
def ingress(with_sets) -> Ingress:
    port = LocalPort(make_engine(with_sets))
    ingress = Ingress({"tiny": port, "second": port}, Guard([Guard.digest(TOKEN)]), Limits())
    ingress.batches.settings = BatchSettings(input_roots=["/in"], output_roots=["/out"])
    return ingress


@pytest.fixture(scope="module")
def client(ingress):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    app = make_app(ingress)
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def no_jobs(monkeypatch):
    """A job server that has no jobs, and takes none that is not there then."""

    async def none(self) -> list:
        return []

    monkeypatch.setattr(BatchJobs, "_jobs", none)
    monkeypatch.setattr(BatchJobs, "_submit", lambda *_: None)


def classify(**more: Any) -> Callable[[TestClient], httpx2.Response]:
    return lambda client: client.post("/v1/classify", json=TEXTS | more)


def raw(body: str) -> Callable[[TestClient], httpx2.Response]:
    return lambda client: client.post("/v1/classify", content=body.encode(), headers=JSON)


def batch(**more: Any) -> Callable[[TestClient], httpx2.Response]:
    return lambda client: client.post("/v1/batches", json=FILES | more)


def get(path: str, **headers: str) -> Callable[[TestClient], httpx2.Response]:
    return lambda client: client.get(path, headers=headers, follow_redirects=False)


def requests_with(huge: str) -> dict[str, Callable[[TestClient], httpx2.Response]]:
    """A request for each place that a value may stand in."""
    coded, name = quote(huge, safe=""), json.dumps(huge)
    plain = "".join(c for c in huge if c.isascii() and c.isalnum()) or "x" * len(huge)
    found = {
        "a long route": get(f"/{coded[:60_000]}"),
        "a route": get(f"/{coded[:3000]}"),
        "a query": get(f"/v1/models/no/?{coded[:60_000]}"),
        "a model's route": get(f"/v1/models/{coded[:3000]}"),
        "a label set's route": get(f"/v1/label_sets/{coded[:3000]}"),
        "a report's route": get(f"/v1/label_sets/{coded[:3000]}/report"),
        "a batch's route": get(f"/v1/batches/{coded[:3000]}"),
        "a batch's end": lambda client: client.post(f"/v1/batches/{coded[:3000]}/cancel"),
        "an asset": get(f"/docs-assets/{coded[:3000]}"),
        "a method": lambda client: client.request(plain, "/v1/classify"),
        "a token": get("/info", Authorization=f"Bearer {plain}"),
        "a scheme": get("/info", Authorization=plain),
        "a type": lambda client: client.post(
            "/v1/classify", content=b"{}", headers={"Content-Type": plain}
        ),
        "a length": lambda client: client.post(
            "/v1/classify", content=b"{}", headers=JSON | {"Content-Length": "9" * len(huge)}
        ),
        "an unknown field": classify(**{huge: 1}),
        "another's field": lambda client: client.post("/v1/embeddings", json={huge: 1}),
        "a batch's field": batch(**{huge: 1}),
        "a label twice": classify(labels=[huge, huge]),
        "short labels twice": classify(labels=[huge[:200], huge[:200]]),
        "a key twice": raw(f'{{"texts": ["a"], "labels": {{{name}: "", "b": "", {name}: ""}}}}'),
        "a label's field": classify(labels=[{"name": "x", huge: 1}]),
        "a label's name": classify(labels=[{"name": huge}]),
        "a label in a mapping": classify(labels={huge: huge}),
        "a label's synonym": classify(labels=[{"name": "x", "synonyms": [huge, 1]}]),
        "labels of another kind": classify(labels=[[huge], {"a": huge}]),
        "a label set of no model": classify(labels=None, label_set=huge),
        "a label set of another": classify(labels=None, label_set="tickets", model=huge),
        "a vector": classify(texts=None, embeddings=[[huge]]),
        "dimensions": lambda client: client.post(
            "/v1/embeddings", json={"input": "a", "dimensions": int("9" * min(4000, len(huge)))}
        ),
        "no JSON": raw(huge),
        "JSON with more": raw(f"{json.dumps(TEXTS)}{name}"),
        "a key of metadata": batch(metadata={huge: "x"}),
        "a value of metadata": batch(metadata={"x": huge}),
    }
    places = [
        ("/v1/classify", TEXTS, ClassifyRequest),
        ("/v1/embeddings", {"input": "a"}, EmbeddingsRequest),
        ("/v1/batches", FILES, BatchRequest),
    ]
    for path, body, kind in places:
        for field in kind.model_fields:
            for value in (huge, [{huge: huge}]):
                asked = body | {field: value}
                found[f"{field} of {path}: {type(value).__name__}"] = (
                    lambda client, path=path, asked=asked: client.post(path, json=asked)
                )
    return found


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(huge=HUGE)
def test_no_refusal_is_larger_than_some_kilobytes(client, no_jobs, huge):
    for place, ask in requests_with(huge).items():
        response = ask(client)
        if response.status_code < 300:
            continue
        size = len(response.content)
        size += sum(len(name) + len(value) for name, value in response.headers.items())
        assert size < (MAX_BYTES if response.status_code >= 400 else 6 * MAX_BYTES), place
        if response.status_code >= 400:
            error = ErrorResponse.model_validate(response.json()).error
            assert huge[: ECHO_CHARS + 1] not in error.message, place
            assert len(error.param or "") < ECHO_CHARS + 50, place


def test_what_is_cut_is_told(client):
    error = refusal(client.post("/v1/classify", json=TEXTS | {"model": "m" * 5_000_000}), 404)
    assert f"no model '{'m' * 200}'... (5000000 characters); there are: tiny" in error["message"]
    error = refusal(client.post("/v1/classify", json=TEXTS | {"f" * 4_000_000: 1}), 422)
    assert error["param"] == f"{'f' * 200}... (4000000 characters)"


def test_a_message_is_bounded_as_a_whole():
    error = ApiError(422, "some_code", "x" * 10_000, "p" * 10_000).body()["error"]
    assert error["message"].startswith("x" * MESSAGE_CHARS)
    assert len(error["message"]) < MESSAGE_CHARS + 50
    assert len(error["param"]) < ECHO_CHARS + 50


@settings(max_examples=30)
@given(st.text())
def test_what_is_short_is_quoted_as_it_is(text):
    if len(repr(text)) <= ECHO_CHARS:
        assert (quoted(text), clipped(text)) == (repr(text), text)
    assert len(quoted(text * 200)) < ECHO_CHARS + 50
    assert quoted([text]) == clipped(repr([text]))


GOOD = {f"{i:064}": "v" * 512 for i in range(16)}


@pytest.mark.parametrize(
    "metadata",
    [
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {"k": "v" * 2_000_000},
        GOOD | {"one": "more"},
        {"k": 1},
        {"k": None},
        ["k"],
    ],
    ids=["key", "value", "megabytes", "keys", "number", "null", "list"],
)
def test_metadata_has_bounds_and_they_are_told(client, no_jobs, metadata):
    error = refusal(client.post("/v1/batches", json=FILES | {"metadata": metadata}), 422)
    assert error["param"] == "metadata"
    for bound in ("16 keys", "64 characters", "512 characters"):
        assert bound in error["message"]


def test_metadata_up_to_its_bounds_is_taken():
    assert BatchRequest.model_validate(FILES | {"metadata": GOOD}).metadata == GOOD
    assert BatchRequest.model_validate(FILES | {"metadata": None}).metadata == {}


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionError])
def test_rays_job_server_is_not_quoted(kind, caplog):
    def fail() -> None:
        raise kind('Traceback: File "/opt/ray/dashboard/job_head.py", line 1')

    with pytest.raises(ApiError) as caught:
        asyncio.run(BatchJobs()._call(fail))
    assert caught.value.status == 503
    assert not any(word in caught.value.message for word in ("Traceback", "/opt"))
    assert "job_head.py" in caplog.text


def test_an_address_has_a_bound(client):
    assert refusal(client.get(f"/v1/models/{'m' * 9000}"), 414)["code"] == "address_too_long"
    assert refusal(client.get(f"/info?{'q' * 9000}"), 414)["code"] == "address_too_long"
    assert client.get(f"/info?{'q' * 8000}").status_code == 200
