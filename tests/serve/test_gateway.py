"""The interface without Ray: forms of requests and answers, every refusal, every limit."""

import asyncio
import base64
import json
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from sce.client.wire import (
    CLASSIFY_EXAMPLES,
    ClassifyResponse,
    EmbeddingsResponse,
    ErrorResponse,
    to_prediction,
)
from serve.auth import Guard
from serve.batches import plain_place
from serve.document import TITLES
from serve.engine import Engine, LoadedModel
from serve.ingress import Ingress
from serve.routes import make_app
from serve.settings import Limits
from serve.work import ModelAnswer, ModelRequest
from tests.serve.conftest import make_engine

TOKEN = "a-token-that-is-long-enough"
LIMITS = Limits(
    max_body_bytes=20_000,
    max_texts=20,
    max_labels=30,
    max_label_chars=50,
    max_label_info_chars=100,
    max_label_texts=40,
    max_label_tokens=300,
    request_timeout_seconds=20,
)
TEXTS = ["the river rose overnight", "the engine will not start", "thank you"]
LABELS = ["flood", "engine trouble", "praise"]


class LocalPort:
    """A model in this process, in place of its replicas."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.hold: threading.Event | None = None

    async def answer(self, request: ModelRequest) -> ModelAnswer:
        if self.hold is not None:
            await asyncio.to_thread(self.hold.wait, 30)
        return await self._engine.answer(request)

    @property
    def _model(self) -> LoadedModel:
        assert self._engine.model is not None
        return self._engine.model

    async def info(self) -> Mapping[str, Any]:
        return self._model.info

    async def label_sets(self) -> list[Mapping[str, Any]]:
        return self._model.about_label_sets()

    async def label_set(self, name: str) -> Mapping[str, Any]:
        return self._model.label_set(name).details()

    async def report_page(self, name: str) -> bytes | None:
        return self._model.label_set(name).page


@pytest.fixture
def port(with_sets) -> LocalPort:
    """Of this test alone: an engine's queue lives in one event loop."""
    return LocalPort(make_engine(with_sets))


@pytest.fixture
def ingress(port) -> Ingress:
    return Ingress({"tiny": port, "second": port}, Guard([Guard.digest(TOKEN)]), LIMITS)


@pytest.fixture
def client(ingress):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(make_app(ingress), headers=headers, raise_server_exceptions=False) as client:
        yield client


def refusal(response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return ErrorResponse.model_validate(response.json()).error.model_dump()


@pytest.mark.parametrize("example", CLASSIFY_EXAMPLES)
def test_every_example_of_the_document_is_answered(client, example):
    response = client.post("/v1/classify", json=example)
    assert response.status_code == 200, response.text
    found = TypeAdapter(ClassifyResponse).validate_python(response.json())
    texts = example["texts"] if isinstance(example["texts"], list) else [example["texts"]]
    assert [row["index"] for row in found["data"]] == list(range(len(texts)))
    assert all(row["error"] is None and row["score"] is not None for row in found["data"])


def test_the_answers_are_the_predictors(client, predictor):
    for labels in (LABELS, {"flood": "water", "praise": "", "engine trouble": "it will not start"}):
        body = {"texts": TEXTS, "labels": labels, "top_k": 2, "return_scores": True}
        found = client.post("/v1/classify", json=body).json()["data"]
        alone = predictor.predict(TEXTS, labels, top_k=2, return_scores=True)
        for row, one in zip(found, alone, strict=True):
            assert row["label"] == one.label
            assert row["score"] == pytest.approx(one.score, abs=2e-5)
            assert list(row["scores"]) == list(one.scores)
            assert row["scores"] == pytest.approx(one.scores, abs=2e-5)
            assert [t["label"] for t in row["top"]] == [name for name, _ in one.top]


def test_embeddings_in_both_encodings_give_the_answer_of_their_texts(client):
    of_texts = client.post("/v1/classify", json={"texts": TEXTS, "labels": LABELS}).json()
    numbers = client.post("/v1/embeddings", json={"input": TEXTS}).json()
    coded = client.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"}).json()
    for found in (numbers, coded):
        TypeAdapter(EmbeddingsResponse).validate_python(found)
        vectors = [row["embedding"] for row in found["data"]]
        body = {"embeddings": vectors, "labels": LABELS}
        of_vectors = client.post("/v1/classify", json=body).json()
        assert [r["label"] for r in of_vectors["data"]] == [r["label"] for r in of_texts["data"]]
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, numbers["data"][0]["embedding"], rtol=1e-6)


def test_threshold_takes_the_label_and_leaves_the_score(client):
    body = {"texts": TEXTS, "labels": LABELS}
    plain = client.post("/v1/classify", json=body).json()["data"]
    strict = client.post("/v1/classify", json=body | {"threshold": 1.0}).json()["data"]
    assert [row["label"] for row in strict] == [None] * 3
    assert [row["score"] for row in strict] == [row["score"] for row in plain]


def test_several_labels_are_those_of_the_predictor(client, predictor):
    asked = {"mode": "multi", "threshold": {"flood": 0.05}, "at_least": 1, "at_most": 2}
    body = {"texts": TEXTS, "labels": LABELS, "return_scores": True, **asked}
    rows = client.post("/v1/classify", json=body).json()["data"]
    expected = predictor.predict(TEXTS, LABELS, return_scores=True, **asked)
    for row, wanted in zip(rows, expected, strict=True):
        assert [one["label"] for one in row["labels"]] == [name for name, _ in wanted.labels]
        assert row["scores"] == pytest.approx(wanted.scores, abs=1e-5)
        assert row["label"] == row["labels"][0]["label"]
    single = client.post("/v1/classify", json={"texts": TEXTS, "labels": LABELS}).json()["data"]
    assert "labels" not in single[0]


def test_rows_have_their_own_errors(client):
    body = {"texts": ["", "fine", "word " * 600], "labels": LABELS, "truncate": False}
    found = client.post("/v1/classify", json=body).json()["data"]
    assert [row["error"] for row in found] == ["text_empty", None, "text_too_long"]
    dimension = client.get("/info").json()["models"][0]["dimension"]
    good = [1.0] + [0.0] * (dimension - 1)
    vectors = [good, good[:-1], "!!", [math.nan, *good[1:]], [2.0, *good[1:]], "AAAA"]
    text = json.dumps({"embeddings": vectors, "labels": LABELS})
    found = client.post(
        "/v1/classify", content=text, headers={"Content-Type": "application/json"}
    ).json()["data"]
    assert [row["error"] for row in found] == [
        None, "embedding_wrong_size", "embedding_not_numbers", "embedding_not_finite",
        "embedding_not_unit", "embedding_not_numbers",
    ]  # fmt: skip


def test_cached_texts_and_counts_are_in_the_usage(client):
    body = {"texts": ["a text that no other test has", "and one more"], "labels": ["u", "v"]}
    first = client.post("/v1/classify", json=body).json()["usage"]
    again = client.post("/v1/classify", json=body | {"labels": ["w", "x", "y"]}).json()["usage"]
    assert (first["cached_texts"], again["cached_texts"]) == (0, 2)
    assert first["prompt_tokens"] == again["prompt_tokens"] > 0
    assert (first["label_tokens"], again["label_tokens"]) == (2 * 3, 2 * 4)
    assert again["total_tokens"] == again["prompt_tokens"] + again["label_tokens"]


def test_a_long_text_is_read_whole_on_request(client, predictor):
    long = "the river rose overnight. it was the engine! 😀 " * 12
    texts = [long, TEXTS[0], " ", long[3:]]
    body = {"texts": texts, "labels": LABELS}
    (cut, *_), whole = (
        client.post("/v1/classify", json=body | more).json()["data"]
        for more in ({}, {"long_text": "chunk"})
    )
    assert cut["truncated"]
    assert cut["where"] is None
    expected = predictor.predict(texts, LABELS, long_text="chunk")
    for row, wanted in zip(whole, expected, strict=True):
        assert not row["truncated"]
        assert (row["label"], row["error"]) == (wanted.label, wanted.error)
        where = None if wanted.where is None else dict(zip(("start", "end"), wanted.where))
        assert row["where"] == where
    more = {"texts": ["a b " * 3000, "short"], "long_text": "chunk"}
    alone, short = client.post("/v1/classify", json=body | more).json()["data"]
    assert alone["error"] == "text_too_long"
    assert short["error"] is None
    by_set = client.post(
        "/v1/classify", json={"texts": texts, "label_set": "tickets", "long_text": "chunk"}
    ).json()["data"]
    assert [row["error"] for row in by_set] == [None, None, "text_empty", None]
    assert by_set[0]["where"]["end"] <= len(long)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"texts": ["a"]}, 422, "invalid_request", None),
        ({"labels": ["a"]}, 422, "invalid_request", None),
        ({"texts": ["a"], "labels": []}, 422, "invalid_labels", "labels"),
        ({"texts": ["a"], "labels": ["x", " x"]}, 422, "invalid_labels", "labels"),
        ({"texts": ["a"], "labels": ["x", ""]}, 422, "invalid_labels", "labels"),
        ({"texts": ["a"], "labels": "x"}, 422, "invalid_type", "labels"),
        ({"texts": ["a", 1], "labels": ["x"]}, 422, "invalid_type", "texts"),
        ({"texts": ["a", "b"], "labels": [["x"]]}, 422, "label_sets_mismatch", "labels"),
        ({"texts": ["a", "b"], "labels": [["x"], []]}, 422, "invalid_labels", "labels"),
        ({"texts": ["a"], "candidate_labels": []}, 422, "invalid_labels", "candidate_labels"),
        ({"texts": ["a"], "labels": ["x"], "treshold": 1}, 422, "unknown_field", "treshold"),
        ({"texts": ["a"], "labels": ["x"], "threshold": 2}, 422, "invalid_type", "threshold"),
        (
            {"texts": ["a"], "labels": ["x"], "threshold": {"y": 0.5}},
            422, "invalid_value", "threshold",
        ),
        ({"texts": ["a"], "labels": ["x"], "at_least": 1}, 422, "invalid_value", "at_least"),
        (
            {"texts": ["a"], "labels": [{"name": "a", "parent": "a"}]},
            422, "invalid_labels", "labels",
        ),
        (
            {"texts": ["a"], "labels": {"x": ["y", "z"]}, "threshold": {"y": 0.5}},  # it is x/y
            422, "invalid_value", "threshold",
        ),
        ({"texts": ["a"], "labels": {"x": ["y", "y"]}}, 422, "invalid_labels", "labels"),
        ({"texts": ["a"], "labels": ["x"], "mode": "some"}, 422, "invalid_value", "mode"),
        ({"texts": ["a"], "labels": ["x"], "top_k": 0}, 422, "invalid_value", "top_k"),
        ({"texts": ["a"], "labels": ["x"], "long_text": "no"}, 422, "invalid_value", "long_text"),
        ({"texts": ["a"], "labels": ["x"], "pooling": "mean"}, 422, "invalid_request", None),
        (
            {"embeddings": [[1.0]], "labels": ["x"], "long_text": "chunk"},
            422, "invalid_request", None,
        ),
        (
            {"texts": ["a b " * 120] * 4, "labels": list("abcdefghijklmno"),
             "long_text": "chunk"},
            413, "limit_exceeded", "max_label_tokens",
        ),
        ({"texts": ["a"], "labels": ["x"], "model": "no"}, 404, "model_not_found", "model"),
        ({"texts": ["a"], "labels": [{"name": "x", "descr": "y"}]}, 422, "invalid_type", "labels"),
        ({"texts": ["a"] * 21, "labels": ["x"]}, 413, "limit_exceeded", "max_texts"),
        (
            {"texts": "a", "labels": [f"{k}" for k in range(31)]},
            413, "limit_exceeded", "max_labels",
        ),
        ({"texts": "a", "labels": ["x" * 51]}, 413, "limit_exceeded", "max_label_chars"),
        ({"texts": "a", "labels": {"x": "y" * 101}}, 413, "limit_exceeded", "max_label_info_chars"),
        (
            {"texts": "a", "labels": [{"name": "x", "examples": [f"{i}" for i in range(40)]}]},
            413, "limit_exceeded", "max_label_texts",
        ),
        (
            {"texts": ["a"] * 20, "labels": [f"{k}" for k in range(15)]},
            413, "limit_exceeded", "max_label_tokens",
        ),
        ({"texts": ["a" * 20_000], "labels": ["x"]}, 413, "limit_exceeded", "max_body_bytes"),
    ],
)  # fmt: skip
def test_refusals_say_what_and_where(client, body, status, code, param):
    error = refusal(client.post("/v1/classify", json=body), status)
    assert (error["code"], error["param"]) == (code, param)
    if param and param.startswith("max_"):
        assert param in error["message"]
        assert str(getattr(LIMITS, param)) in error["message"]


def test_null_is_not_given(client):
    body = {"texts": ["a text"], "labels": {"x": None, "y": "known"}}
    nulls = ("model", "embeddings", "label_set", "threshold", "top_k", "return_scores", "truncate")
    nulls += ("long_text", "pooling")
    given, left_out = (
        client.post("/v1/classify", json=body | dict.fromkeys(nulls)),
        client.post(
            "/v1/classify", json=body | {"labels": ["x", {"name": "y", "description": "known"}]}
        ),
    )
    assert given.status_code == 200
    assert given.json()["data"] == left_out.json()["data"]
    body = {"input": ["a text"], "encoding_format": None, "dimensions": None, "truncate": None}
    found = client.post("/v1/embeddings", json=body)
    assert isinstance(found.json()["data"][0]["embedding"], list)


def test_a_label_that_stands_twice_in_a_mapping_is_refused(client):
    content = '{"texts": ["a"], "labels": {"x": "first", "z": "", "x": "second"}}'
    headers = {"Content-Type": "application/json"}
    error = refusal(client.post("/v1/classify", content=content, headers=headers), 422)
    assert (error["code"], error["param"]) == ("invalid_labels", "labels")
    assert "'x' stands twice in an object, at positions 0 and 2" in error["message"]


def test_no_request_is_too_little(client):
    assert client.post("/v1/classify", json={"texts": [], "labels": ["x"]}).json()["data"] == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[" * 5000, b'{"texts": ["\\ud800"], "labels": ["x"]}', b"{'a': 1}"],
)
def test_a_body_that_is_no_json(client, body):
    response = client.post(
        "/v1/classify", content=body, headers={"Content-Type": "application/json"}
    )
    assert refusal(response, 400)["code"] == "invalid_json"


def test_routes_methods_and_media_types(client):
    assert refusal(client.get("/v2/classify"), 404)["code"] == "route_not_found"
    wrong = client.get("/v1/classify")
    assert refusal(wrong, 405)["code"] == "method_not_allowed"
    assert wrong.headers["Allow"] == "POST"
    form = client.post("/v1/classify", data={"texts": "a"})
    assert refusal(form, 415)["code"] == "not_json"
    assert refusal(client.get("/v1/models/none"), 404)["code"] == "model_not_found"


def test_models_info_and_health(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny", "second"]
    info = client.get("/info").json()
    assert info["limits"] == LIMITS.model_dump()
    assert info["default_model"] == "tiny"
    assert info["models"][0]["max_text_tokens"] > 0
    assert client.get("/health").json() == {"status": "ok"}


def test_tokens(ingress):
    with TestClient(make_app(ingress)) as client:
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        for path in ("/info", "/v1/models", "/metrics"):
            missing = client.get(path)
            assert refusal(missing, 401)["code"] == "token_missing"
            assert missing.headers["WWW-Authenticate"] == "Bearer"
        for value in ("Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer "):
            refusal(client.get("/info", headers={"Authorization": value}), 401)
        assert client.get("/info", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    ("peer", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "127.0.0.1", 200),
        ("::1", "[::1]:8000", 200),
        ("192.0.2.7", "localhost:8000", 403),
        ("127.0.0.1", "rebound.example:8000", 403),
    ],
)
def test_without_tokens_only_this_machine_is_answered(port, peer, host, status):
    ingress = Ingress({"tiny": port}, Guard([]), LIMITS)
    with TestClient(make_app(ingress), client=(peer, 5000), headers={"Host": host}) as client:
        response = client.get("/info")
        assert response.status_code == status
        assert client.get("/health").status_code == 200
    if status == 403:
        assert refusal(response, 403)["code"] == "loopback_only"


def test_head_answers_what_get_would_without_a_body(client):
    for path, status in (("/health", 200), ("/v1/models", 200), ("/nothing", 404)):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, get.status_code) == (status, status)
        assert head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/classify").status_code == 405
    with TestClient(client.app) as stranger:
        assert stranger.head("/v1/models").status_code == 401


def test_pages_of_other_origins_ask_where_they_are_named(ingress):
    asked = {"Origin": "http://intranet.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization, content-type, x-stainless-lang"
    token = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(make_app(ingress, ["http://intranet.example"])) as client:
        preflight = client.options("/v1/classify", headers=asked)  # it carries no token
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "http://intranet.example"
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        answer = client.get("/info", headers=token | {"Origin": "http://intranet.example"})
        assert answer.headers["access-control-allow-origin"] == "http://intranet.example"
        other = client.get("/info", headers=token | {"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    with TestClient(make_app(ingress)) as client:
        assert client.options("/v1/classify", headers=asked | token).status_code == 405


def test_token_ids_are_refused_with_a_hint(client):
    for tokens in ([[101, 1996, 102]], [101, 102]):
        said = refusal(client.post("/v1/embeddings", json={"input": tokens}), 422)
        assert said["code"] == "token_ids_not_offered"
        assert "send texts" in said["message"]


def test_overload_is_refused_at_once_and_passes(port, client, ingress):
    ingress.limits = LIMITS.model_copy(update={"max_concurrent_requests": 2})
    port.hold = threading.Event()
    body = {"texts": TEXTS, "labels": LABELS}
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(client.post("/v1/classify", json=body).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        while ingress._requests < 2:
            pass
        refused = client.post("/v1/classify", json=body)
        error = refusal(refused, 429)
        assert (error["code"], error["param"]) == ("overloaded", "max_concurrent_requests")
        assert int(refused.headers["Retry-After"]) >= 1
        assert client.get("/health").status_code == 200
    finally:
        port.hold.set()
        for thread in threads:
            thread.join()
        port.hold = None
    assert statuses == [200, 200]
    assert client.post("/v1/classify", json=body).status_code == 200
    assert (ingress._requests, ingress._bytes) == (0, 0)


def test_bytes_being_worked_on_are_bounded(client, ingress):
    ingress.limits = LIMITS.model_copy(update={"max_concurrent_bytes": 1024})
    body = {"texts": ["a" * 2000], "labels": LABELS}
    error = refusal(client.post("/v1/classify", json=body), 429)
    assert error["param"] == "max_concurrent_bytes"
    assert (ingress._requests, ingress._bytes) == (0, 0)


def test_a_request_that_takes_too_long(port, client, ingress):
    ingress.limits = LIMITS.model_copy(update={"request_timeout_seconds": 0.2})
    port.hold = threading.Event()
    try:
        response = client.post("/v1/classify", json={"texts": TEXTS, "labels": LABELS})
    finally:
        port.hold.set()
        port.hold = None
    assert refusal(response, 504)["code"] == "timeout"
    assert (ingress._requests, ingress._bytes) == (0, 0)


def test_a_fault_of_the_server_tells_nothing_of_it(client, ingress, monkeypatch):
    async def broken(request):
        raise RuntimeError("secret path")

    monkeypatch.setattr(ingress.models["tiny"], "answer", broken)
    response = client.post("/v1/classify", json={"texts": TEXTS, "labels": LABELS})
    assert refusal(response, 500)["code"] == "internal_error"
    assert "secret" not in response.text


def test_texts_are_logged_only_where_asked(client, ingress, caplog):
    caplog.set_level("INFO", "ray.serve")
    body = {"texts": ["a private text"], "labels": LABELS}
    client.post("/v1/classify", json=body)
    client.post("/v1/classify", json=body | {"top_k": 0})
    assert "private" not in caplog.text
    ingress.log_texts = True
    client.post("/v1/classify", json=body)
    assert "private" in caplog.text


def test_the_document_describes_the_bodies(client):
    document = client.get("/openapi.json").json()
    for path, name in (
        ("/v1/classify", "ClassifyRequest"),
        ("/v1/embeddings", "EmbeddingsRequest"),
    ):
        post = document["paths"][path]["post"]
        schema = post["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{name}"}
        assert document["components"]["schemas"][name]["examples"]
        assert {"200", "401", "413", "422", "429", "503", "504"} <= set(post["responses"])
    named = {*document["components"]["schemas"]}
    assert named == {*TITLES}
    for name, schema in document["components"]["schemas"].items():
        assert schema["title"] != name
        assert schema["description"]
    operations = [o for methods in document["paths"].values() for o in methods.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    for operation in operations:
        assert "_v1_" not in operation["operationId"]
        assert operation["tags"]
        assert "HTTPValidationError" not in json.dumps(operation)
        assert "Response " not in json.dumps(operation["responses"]["200"].get("content"))
    assert (
        "http" not in client.get("/docs").text.replace("http://testserver", "").split("<body>")[0]
    )


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("s3://bucket/in/x", "s3://bucket/in/x"),
        ("S3://bucket/in//x/", "s3://bucket/in/x"),
        ("s3://bucket", "s3://bucket"),
        ("file:///tmp/no-such/./x", "/tmp/no-such/x"),
        ("s3://bucket/in/../../other", None),
        ("s3://bucket/in?endpoint_override=elsewhere", None),
        ("s3://user@bucket/in", None),
        ("relative/in", None),
    ],
)
def test_places_of_batches_are_compared_in_one_form(given, plain):
    assert plain_place(given) == plain


def test_a_leaf_may_stand_under_two_parents(client):
    tree = {"flood": ["other", "damage"], "engine": ["other"]}
    body = {"texts": TEXTS, "labels": tree, "return_scores": True}
    rows = client.post("/v1/classify", json=body | {"threshold": {"engine/other": 0.1}}).json()
    assert list(rows["data"][0]["scores"]) == ["flood/other", "flood/damage", "engine/other"]
    refused = client.post("/v1/classify", json=body | {"threshold": {"other": 0.1}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "threshold")


def test_none_of_these_sets_and_reasons_are_those_of_the_predictor(client, port):
    labels = [{"name": "flood", "examples": ["it rained", "water"]}, "engine trouble", "praise"]
    asked = {"none_of_these": True, "coverage_cut": 0.3, "explain": True}
    body = {"texts": TEXTS, "labels": labels, **asked}
    rows = client.post("/v1/classify", json=body).json()["data"]
    expected = port._model.predictor.predict(TEXTS, labels, **asked)
    for row, wanted in zip(rows, expected, strict=True):
        found = to_prediction(row)
        assert (found.label, found.none_score) == (wanted.label, wanted.none_score)
        assert found.why.nearest == wanted.why.nearest
        assert [name for name, _ in found.labels] == [name for name, _ in wanted.labels]
    plain = client.post("/v1/classify", json={"texts": TEXTS, "labels": labels}).json()["data"]
    assert not any({"none_score", "labels", "why"} & set(row) for row in plain)
    for wrong in (
        {"none_threshold": 0.3},
        {"none_share": 1.0},
        {"coverage_cut": 1.5},
        {"mode": "multi"},
    ):
        given = {**body, "none_of_these": "none_threshold" not in wrong, **wrong}
        assert client.post("/v1/classify", json=given).status_code == 422
