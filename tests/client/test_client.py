"""`sce.client` against a small server that says what a test wants: splitting, order,
repetition, errors. The answers of the real server are in `tests/serve/test_app.py`.
"""

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import SecretStr, TypeAdapter
from pydantic_core import to_json

import sce.client.connection
from sce.bulk.answering import Endpoint
from sce.bulk.endpoint import EndpointPredictor
from sce.client import (
    Client,
    EndpointError,
    EndpointUnavailable,
    LimitExceeded,
    NotAuthorised,
    RequestRefused,
)
from sce.client.wire import (
    Classification,
    ClassifyRequest,
    EmbeddingsRequest,
    from_prediction,
    to_prediction,
)
from sce.errors import ConfigError, DataError, InputError, LabelError
from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Prediction
from sce.model.options import Scoring

ROOT = Path(__file__).resolve().parents[2]
DIMENSION = 4
FINGERPRINT = {
    "id": "0123456789abcdef", "kind": "sentence_transformers", "model": "tiny", "revision": None,
    "adapter": None, "pooling": "mean", "normalised": True, "dimension": DIMENSION,
    "max_tokens": 64, "dtype": "float32", "weights_sha256": "1", "tokenizer_sha256": "2",
}  # fmt: skip
SET_LIST = {"object": "list", "data": [{
    "id": "tickets", "object": "label_set", "labels": ["late", "billing"], "fingerprint": "ab",
    "rows": 800, "trust": "bold", "temperature": 0.5, "embedder": "0123456789abcdef",
    "versions": {}, "models": ["tiny"], "report_page": True, "of_a_later_version": 1,
}]}  # fmt: skip
USAGE = dict.fromkeys(("prompt_tokens", "total_tokens", "embedded_texts", "cached_texts"), 0)
LABELS = ["zero", "one", "two"]
SETS = {"tickets": ["late", "billing"]}

pytestmark = pytest.mark.timeout(60)


@dataclass
class Said:
    """One answer out of turn: a status with a body, or the connection dropped."""

    status: int = 200
    code: str = "said"
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drop: bool = False

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        error = {"message": f"said {self.code}", "type": "server_error", "param": self.param}
        return json.dumps({"error": error | {"code": self.code}}).encode()


class FakeServer:
    """Answers a text with the label whose place is its number, modulo the number of labels.

    Attributes:
        script: answers to the next POSTs, before it goes on as usual.
        judge: an answer instead, for a request of so many rows, or None.
        enforced: refuse (413) what `limits` do not allow.
    """

    def __init__(self) -> None:
        self.limits = {"max_texts": 100, "max_body_bytes": 2**20, "max_label_tokens": 10_000,
                       "max_label_texts": 1000, "max_labels": 50}  # fmt: skip
        self.script: deque[Said] = deque()
        self.judge: Callable[[int], Said | None] = lambda rows: None
        self.model_fingerprint = "weights"
        self.seconds = 0.0
        self.wide = False
        self.sizes: list[int] = []
        self.tokens: list[str | None] = []
        self.models: list[str | None] = []
        self.label_sets: list[str | None] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def info(self) -> dict[str, Any]:
        model = {
            "embedder": FINGERPRINT, "dimension": DIMENSION, "dtype": "float32",
            "max_text_tokens": 64, "device": "cpu", "shortlist_above": 200, "shortlist_size": 100,
            "model_fingerprint": self.model_fingerprint,
        }  # fmt: skip
        models = [{"id": "tiny"} | model, {"id": "other"} | model]
        if self.wide:  # a model of another embedder, which alone has the label sets
            fingerprint = FINGERPRINT | {"dimension": 2 * DIMENSION}
            models.append({"id": "wide"} | model | {"embedder": fingerprint, "label_sets": SETS})
        return {"models": models, "default_model": "tiny", "limits": self.limits, "version": "0"}

    def classify(self, body: bytes) -> dict[str, Any] | Said:
        request = ClassifyRequest.model_validate_json(body)
        self.models.append(request.model)
        rows = request.embeddings if request.texts is None else request.texts
        self.sizes.append(len(rows))
        self.label_sets.append(request.label_set)
        form = request.candidate_labels if request.labels is None else request.labels
        if request.label_set is not None:
            form = SETS[request.label_set]
        ragged = isinstance(form[0], list)
        sets = form if ragged else [form] * len(rows)
        texts = {json.dumps(label) for labels in sets for label in labels}
        asked = {
            "max_texts": len(rows),
            "max_body_bytes": len(body),
            "max_label_tokens": sum(len(labels) + 1 for labels in sets),
            "max_label_texts": len(texts) if ragged else 0,
        }
        for name, value in asked.items():
            if value > self.limits[name]:
                return Said(413, "too_large", name)
        data = [self.row(i, *item, request) for i, item in enumerate(zip(rows, sets, strict=True))]
        return {"id": "cls-1", "created": 0, "data": data, "model": "tiny", "usage": USAGE}

    def row(self, index: int, item: str, labels: list, request: ClassifyRequest) -> dict[str, Any]:
        found: dict[str, Any] = {"index": index, "label": None, "score": None, "scores": None,
                                 "top": None, "truncated": False, "error": None}  # fmt: skip
        if request.embeddings is not None:
            vector = np.frombuffer(base64.b64decode(item), "<f4")
            item = str(number_of(vector))
        if item.startswith("bad"):
            return found | {"error": "text_empty"}
        names = [label if isinstance(label, str) else label["name"] for label in labels]
        place = int(item.split()[0]) % len(names)
        scores = {name: 0.5 if k == place else 0.1 for k, name in enumerate(names)}
        best = sorted(scores, key=lambda name: -scores[name])
        found |= {"label": names[place], "score": 0.5, "truncated": item.endswith("long")}
        if request.threshold is not None and request.threshold > 0.5:
            found["label"] = None
        if request.return_scores:
            found["scores"] = scores
        if request.top_k is not None:
            pairs = [{"label": name, "score": scores[name]} for name in best]
            found["top"] = pairs[: request.top_k]
        return found

    def embed(self, body: bytes) -> dict[str, Any]:
        request = EmbeddingsRequest.model_validate_json(body)
        assert request.encoding_format == "base64"
        self.sizes.append(len(request.input))
        data = []
        for index, text in enumerate(request.input):
            vector = np.full(DIMENSION, int(text.split()[0]), "<f4")
            encoded = base64.b64encode(vector.tobytes()).decode()
            data.append({"index": index, "embedding": encoded, "truncated": text.endswith("long")})
        return {"data": data, "model": "tiny", "usage": USAGE}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    fake: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        found = SET_LIST if self.path == "/v1/label_sets" else self.fake.info()
        self.answer(200, json.dumps(found).encode(), {})

    def do_POST(self) -> None:
        fake = self.fake
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fake.tokens.append(self.headers.get("Authorization"))
        with fake.lock:
            said = fake.script.popleft() if fake.script else None
            fake.busy += 1
            fake.most_busy = max(fake.most_busy, fake.busy)
        try:
            request = json.loads(body)
            rows = request.get("texts") or request.get("embeddings") or request.get("input")
            said = said or fake.judge(len(rows))
            time.sleep(fake.seconds * np.random.default_rng().random())
            if said is None:
                answer = fake.embed if self.path == "/v1/embeddings" else fake.classify
                found = answer(body)
                said = found if isinstance(found, Said) else None
        finally:
            with fake.lock:
                fake.busy -= 1
        if said is None:
            self.answer(200, json.dumps(found).encode(), {})
        elif said.drop:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.answer(said.status, said.content(), said.headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server():
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sce.client.connection, "BACKOFF_SECONDS", (0.01, 0.05))


@pytest.fixture
def client(server) -> Client:
    return Client(server.url, patience_seconds=5.0)


def unit_vectors(numbers, dimension: int = DIMENSION) -> np.ndarray:
    """Unit vectors by whose angle the fake server knows a number below 1,000."""
    angles_N = (np.asarray(numbers) + 0.5) / 1000
    vectors_ND = np.zeros((len(angles_N), dimension), np.float32)
    vectors_ND[:, 0], vectors_ND[:, 1] = np.cos(angles_N), np.sin(angles_N)
    return vectors_ND


def number_of(vector_D: np.ndarray) -> int:
    return int(1000 * np.arctan2(vector_D[1], vector_D[0]))


def numbers(rows: int) -> list[str]:
    return [str(i) for i in range(rows)]


def expected(rows: int) -> list[str]:
    return [LABELS[i % 3] for i in range(rows)]


def names(predictions: list) -> list:
    return [prediction.label for prediction in predictions]


def test_it_needs_no_torch():
    code = (
        "import sce.client, sys\n"
        "assert not {'torch', 'ray', 'transformers', 'tokenizers', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "found",
    [
        Prediction("a", 0.75, {"a": 0.75, "b": 0.25}, [("a", 0.75), ("b", 0.25)], True),
        Prediction(None, 0.5),
        Prediction(None, None, error="text_empty"),
    ],
)
def test_a_row_comes_back_as_it_was_sent(found):
    row = from_prediction(3, found)
    sent = TypeAdapter(Classification).validate_json(to_json(row))
    assert sent == row
    assert to_prediction(sent) == found


def test_a_prediction_is_that_of_the_predictor(client):
    found = client.predict(
        ["1 and so long", "5"], LABELS, top_k=2, return_scores=True, threshold=0.2
    )
    assert found[0] == Prediction(
        "one", 0.5, {"zero": 0.1, "one": 0.5, "two": 0.1}, [("one", 0.5), ("zero", 0.1)], True
    )
    assert found[1].label == "two"
    assert not found[1].truncated
    assert client.predict("4", candidate_labels=LABELS) == [Prediction("one", 0.5)]
    assert client.predict("4", LABELS, threshold=np.float32(0.75)) == [Prediction(None, 0.5)]
    assert client.predict([], LABELS) == []


def test_a_label_set_by_name_in_place_of_labels(server, client):
    server.limits["max_texts"] = 20
    found = client.predict(numbers(50), label_set="tickets")
    assert names(found) == ["late", "billing"] * 25
    assert server.label_sets == ["tickets"] * 3
    assert client.predict(["bad"], label_set="tickets")[0].error == "text_empty"
    sets = client.label_sets()
    assert list(sets) == ["tickets"]
    assert sets["tickets"].labels == SETS["tickets"]
    assert (sets["tickets"].rows, sets["tickets"].trust) == (800, "bold")
    with pytest.raises(InputError, match="either labels or label_set"):
        client.predict("1", LABELS, label_set="tickets")
    with pytest.raises(InputError, match="either labels or label_set"):
        client.predict("1")


def test_vectors_are_those_of_the_model_that_has_the_label_set(server, client):
    server.wide = True
    vectors = unit_vectors([0, 1, 2], 2 * DIMENSION)
    found = client.predict(embeddings=vectors, label_set="tickets")
    assert names(found) == ["late", "billing", "late"]
    with pytest.raises(InputError, match=r"\[N, 4\]"):
        client.predict(embeddings=vectors, labels=LABELS)
    with pytest.raises(InputError, match=r"\[N, 8\]"):
        client.predict(embeddings=vectors[:, :4], label_set="tickets")


def test_many_rows_keep_their_order_and_a_bound_on_requests(server):
    server.seconds = 0.03
    client = Client(server.url, concurrency=3)
    assert names(client.predict(numbers(1234), LABELS)) == expected(1234)
    assert server.sizes.count(100) == 12
    assert sum(server.sizes) == 1234
    assert 1 < server.most_busy <= 3


@pytest.mark.parametrize(
    ("limit", "value", "least", "most"),
    [
        ("max_texts", 7, 29, 29),
        ("max_body_bytes", 2048, 5, 40),
        ("max_label_tokens", 100, 8, 8),
        ("max_label_tokens", 3, 200, 200),
    ],
)
def test_requests_keep_the_limits_that_the_server_names(server, limit, value, least, most):
    server.limits[limit] = value
    texts = [f"{i} é {'x' * 40}" for i in range(200)]
    if value == 3:  # less than a row needs: the server has the last word
        with pytest.raises(LimitExceeded, match="said too_large") as refused:
            Client(server.url).predict(texts, LABELS)
        assert refused.value.param == limit
        return
    assert names(Client(server.url).predict(texts, LABELS)) == expected(200)
    assert least <= len(server.sizes) <= most
    assert sum(server.sizes) == 200


@pytest.mark.parametrize(("limit", "value"), [("max_label_texts", 9), ("max_body_bytes", 1024)])
def test_label_sets_a_row_keep_the_limits_too(server, limit, value):
    server.limits[limit] = value
    sets = [[f"a{i}", {"name": f"b{i}", "description": "of it"}, "c"] for i in range(60)]
    assert names(Client(server.url).predict(numbers(60), sets)) == [
        (f"a{i}", f"b{i}", "c")[i % 3] for i in range(60)
    ]
    assert max(server.sizes) >= 2
    assert sum(server.sizes) == 60
    ragged = RaggedLabels.from_sets(sets)
    assert names(Client(server.url).predict(numbers(60), ragged))[1] == "b1"
    with pytest.raises(InputError, match="59 label sets for 60 texts"):
        Client(server.url).predict(numbers(60), sets[:-1])


def test_limits_that_shrink_are_met_by_halves(server, client):
    client.info()
    server.limits["max_texts"] = 30
    assert names(client.predict(numbers(300), LABELS)) == expected(300)
    before = len(server.sizes)
    assert names(client.predict(numbers(300), LABELS)) == expected(300)
    assert max(server.sizes[before:]) <= 30, "what was learnt is forgotten"


@pytest.mark.parametrize("status", [408, 504])
def test_a_timeout_is_met_by_halves(server, client, status):
    server.judge = lambda rows: Said(status, "timeout") if rows > 10 else None
    assert names(client.predict(numbers(300), LABELS)) == expected(300)
    server.judge = lambda rows: Said(status, "timeout")
    impatient = Client(server.url, patience_seconds=0.2)
    with pytest.raises(EndpointUnavailable, match="said timeout"):
        impatient.predict(numbers(2), LABELS)


def test_an_overloaded_server_is_asked_again(server, client):
    server.script.extend(
        [Said(429, headers={"Retry-After": "1"}), Said(503), Said(504), Said(502), Said(drop=True)]
    )
    started = time.monotonic()
    assert names(client.predict("1", LABELS)) == ["one"]
    assert 1.0 <= time.monotonic() - started < 4.0
    assert len(server.tokens) == 6


def test_a_busy_server_is_not_one_that_is_away(server):
    until = time.monotonic() + 0.6
    server.judge = lambda rows: Said(429) if rows == 1 and time.monotonic() < until else None
    client = Client(server.url, patience_seconds=0.3)

    def ask_meanwhile() -> None:
        while time.monotonic() < until + 0.1:
            client.predict(["1", "2"], LABELS)

    others = threading.Thread(target=ask_meanwhile)
    others.start()
    assert names(client.predict("1", LABELS)) == ["one"]
    others.join()


def test_a_server_that_goes_away_in_the_middle(server, client):
    server.judge = lambda rows: Said(drop=True) if np.random.random() < 0.3 else None
    assert names(client.predict(numbers(2000), LABELS)) == expected(2000)


def test_patience_ends(server):
    server.judge = lambda rows: Said(503, "starting")
    client = Client(server.url, patience_seconds=0.3)
    started = time.monotonic()
    with pytest.raises(EndpointUnavailable, match=r"HTTP 503: .*said starting"):
        client.predict(numbers(1000), LABELS)
    assert time.monotonic() - started < 3.0
    server.judge = lambda rows: Said(429, headers={"Retry-After": "3600"})
    with pytest.raises(EndpointUnavailable, match="HTTP 429"):
        client.predict("1", LABELS)
    with pytest.raises(EndpointUnavailable, match="refused"):
        Client("http://127.0.0.1:9", patience_seconds=0.3).predict("1", LABELS)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRefused),
        (401, NotAuthorised),
        (404, RequestRefused),
        (413, LimitExceeded),
        (422, RequestRefused),
        (501, EndpointError),
    ],
)
def test_refusals_are_typed_and_say_what_the_server_said(server, client, status, error):
    server.judge = lambda rows: Said(status, "why", "labels")
    started = time.monotonic()
    with pytest.raises(error, match="said why") as raised:
        client.predict(numbers(900), LABELS)
    assert time.monotonic() - started < 2.0
    assert isinstance(raised.value, InputError) == (status < 500)
    if isinstance(raised.value, RequestRefused):
        assert (raised.value.status, raised.value.code, raised.value.param) == (
            status,
            "why",
            "labels",
        )
        assert len(server.tokens) <= 9, "a refusal was repeated"


def test_a_failing_server_is_asked_a_few_times(server, client):
    server.script.extend([Said(500), Said(500)])
    assert names(client.predict("1", LABELS)) == ["one"]
    server.script.extend([Said(500)] * 3)
    with pytest.raises(EndpointError, match="said said"):
        client.predict("1", LABELS)
    assert not server.script


def test_what_stands_before_the_server_is_waited_for(server, client):
    client.info()
    route = Said(404, body=b"Path '/v1/classify' not found.")
    died = Said(500, body=b"Internal Server Error")
    server.script.extend([route] * 4 + [died] * 4)
    assert names(client.predict("1", LABELS)) == ["one"]
    server.judge = lambda rows: Said(413, body=b"<html>nginx") if rows > 20 else None
    assert names(client.predict(numbers(100), LABELS)) == expected(100)


@pytest.mark.parametrize(
    "said",
    [
        Said(body=b"<html>hello</html>"),
        Said(body=b'{"data": []}'),
        Said(body=b'{"data": [{"index": 1}]}'),
        Said(302, headers={"Location": "https://elsewhere"}, body=b""),
    ],
)
def test_what_is_no_endpoint_is_said_so(server, client, said):
    server.script.append(said)
    with pytest.raises(EndpointError, match=r"is not of a form|redirects to https://elsewhere"):
        client.predict("1", LABELS)


def test_rows_that_cannot_be_answered(server, client):
    texts = numbers(250)
    texts[170] = "bad"
    with pytest.raises(DataError, match=r"texts\[170\]: the text is empty.*text_empty"):
        client.predict(texts, LABELS, errors="raise")
    found = client.predict(texts, LABELS)
    assert found[170] == Prediction.refused("text_empty")
    assert [row.label for row in found[171:]] == expected(250)[171:]

    server.limits["max_body_bytes"] = 1024
    small = Client(server.url)
    long = ["1", "2 " + "x" * 2000, "3"]
    found = small.predict(long, LABELS)
    assert found[1] == Prediction.refused("text_too_long")
    assert [found[0].label, found[2].label] == ["one", "zero"]
    with pytest.raises(DataError, match=r"texts\[1\]: .*text_too_long"):
        small.predict(long, LABELS, errors="raise")


def test_mistakes_are_found_without_the_server():
    client = Client("http://127.0.0.1:9", patience_seconds=30)
    for texts, message in ((["a", " "], r"texts\[1\]: the text is empty"),
                           (["a", 7], r"texts\[1\]: .*text_not_string"),
                           (["\ud800"], "lone surrogate")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            client.predict(texts, LABELS, errors="raise")
    for texts, message in (({"a": "b"}, "dict"), (pa.table({"text": ["a"]}), "one column")):
        with pytest.raises(DataError, match=message):
            client.predict(texts, LABELS)
    with pytest.raises(InputError, match="threshold: 60"):
        client.predict("a", LABELS, threshold=60)
    with pytest.raises(LabelError, match="stands twice"):
        client.predict("a", ["a", "a"])
    with pytest.raises(InputError, match="either texts or embeddings"):
        client.predict(labels=LABELS)
    with pytest.raises(InputError, match="top_k"):
        client.predict("a", LABELS, top_k=0)
    for url in ("localhost:8000", "ftp://x", "http://me:secret@host", "http://"):
        with pytest.raises(InputError, match="endpoint") as raised:
            Client(url)
        assert "secret" not in str(raised.value)


def test_embeddings_go_as_float32(server, client):
    vectors = unit_vectors(range(600)).astype(np.float64)
    assert names(client.predict(embeddings=vectors, labels=LABELS)) == expected(600)
    assert names(client.predict(vectors, LABELS)) == expected(600)
    vectors[7, 1], vectors[9] = np.nan, 10 * vectors[9]
    found = client.predict(vectors, LABELS)
    assert [found[7].error, found[9].error] == ["embedding_not_finite", "embedding_not_unit"]
    assert [names(found)[i] for i in (6, 7, 8, 10)] == ["zero", None, "two", "one"]
    with pytest.raises(InputError, match=r"embeddings\[7\]: .*\(embedding_not_finite\)"):
        client.predict(vectors, LABELS, errors="raise")
    with pytest.raises(InputError, match=r"shape \(2, 3\), but this model reads \[N, 4\]"):
        client.predict(np.zeros((2, 3)), LABELS)
    embedded = client.embed([*numbers(250), "7 long"])
    assert embedded.vectors.shape == (251, DIMENSION)
    assert embedded.vectors.dtype == np.float32
    assert embedded.vectors[:250, 0].tolist() == list(range(250))
    assert embedded.truncated.tolist() == [False] * 250 + [True]


def test_token_and_model_go_along(server):
    client = Client(server.url + "/", token="secret\n", model="other")
    client.predict("1", LABELS)
    assert (server.tokens, server.models) == (["Bearer secret"], ["other"])
    info = client.info()
    assert (info.default_model, list(info.models)) == ("tiny", ["tiny", "other"])
    assert client.served_model().name == "other"
    with pytest.raises(ConfigError, match=r"no model .third.\. It has: tiny, other"):
        Client(server.url, model="third").served_model()


def test_blocks_of_a_bulk_job(server):
    endpoint = Endpoint(server.url, None, SecretStr(""), 2, 5.0)
    predictor = EndpointPredictor(endpoint)
    assert predictor.dimension == DIMENSION
    texts = pa.array([*numbers(250), "bad", "1 long"])
    found = predictor.answer_texts(texts, LabelSet.parse(LABELS), Scoring(2, True))
    assert found.errors_G.tolist() == [""] * 250 + ["text_empty", ""]
    assert found.truncated_G.tolist() == [False] * 251 + [True]
    assert found.answers.top_NT[:250, 0].tolist() == [i % 3 for i in range(250)]
    assert found.answers.top_NT[250].tolist() == [-1, -1]
    scores = found.answers.scores_M.reshape(-1, 3)
    np.testing.assert_allclose(scores[4], [0.1, 0.5, 0.1], atol=1e-7)

    ragged = RaggedLabels.from_sets([["a"], ["a", "b", "c"]])
    vectors = unit_vectors([1, 1])
    found = predictor.answer_vectors(vectors, ragged, Scoring(2, True))
    assert found.answers.top_NT.tolist() == [[0, -1], [1, 0]]
    assert found.answers.scores_M.tolist() == pytest.approx([0.5, 0.1, 0.5, 0.1])
    assert found.answers.offsets.tolist() == [0, 1, 4]

    server.model_fingerprint = "retrained"
    with pytest.raises(ConfigError, match="model: weights then, retrained now"):
        predictor.answer_vectors(vectors, ragged, Scoring())
