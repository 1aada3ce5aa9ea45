"""The same rows through `Predictor`, the bulk job, the bulk job with `--endpoint`, and the client:
the same answers. Against the real server on a model with random weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml

from jobs import classify as classify_job
from sce.client import Client, EndpointUnavailable, LimitExceeded
from sce.model.answers import Prediction
from sce.predictor import Predictor
from tests.tiny_bulk import (
    WORDS,
    build_models,
    embedder_of,
    load_predictor,
    model_flags,
    read_output,
    write_jsonl,
    write_store,
)

ROOT = Path(__file__).resolve().parents[2]
SERVER = [sys.executable, "-m", "serve.app"]
LABELS = [
    "markets",
    {"name": "sport", "description": "games and teams", "synonyms": ["team"]},
    {"name": "late parcel", "examples": ["my parcel never came"]},
    "stars",
]
MAX_TEXTS = 40
ROWS_OF_A_KILL = 40_000
TOKEN = "let-me-in-0123456789"

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def text(i: int) -> str:
    words = [WORDS[(i * step) % len(WORDS)] for step in range(1, 6)]
    return " ".join(words * (30 if i % 50 == 49 else 1)) + f" {i}"  # one in fifty is truncated


class Server:
    """`serve.app` in a process group of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.config = folder / "serve.yaml"
        self.write(model)
        self.start()

    def write(self, model: Path) -> None:
        """The settings of the next start."""
        embedder = {"kind": "sentence_transformers", "model": str(model.parent / "embedder")}
        embedder["dtype"] = "float32"
        served = {"path": str(model), "embedder": embedder, "device": "cpu", "dtype": "float32"}
        limits = {"max_texts": MAX_TEXTS}
        # Without a cache a second run takes as long as the first: the kill comes in its middle.
        tiny = served | {"threads": 1, "cache_bytes": 0}
        settings = {"models": {"tiny": tiny}, "limits": limits}
        self.config.write_text(yaml.safe_dump(settings | {"tokens": TOKEN}))

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*SERVER, "--config", str(self.config), "--port", str(self.port)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self._healthy():
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not ready:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=20)

    def _healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`sce` and `other`, models with random weights, and `embedder`, that they read."""
    return build_models(tmp_path_factory.mktemp("served"), "sce", "other")


@pytest.fixture(scope="module")
def predictor(folder) -> Predictor:
    return load_predictor(folder)


@pytest.fixture(scope="module")
def server(folder, ray_session):
    server = Server(folder, folder / "sce")
    yield server
    server.stop()


@pytest.fixture
def client(server) -> Client:
    return Client(server.url, TOKEN)


@pytest.fixture
def classify(ray_session, capsys, monkeypatch):
    """Runs the job; the exit code, its summary, and what it said on standard error."""

    def run(*argv: str):
        monkeypatch.setenv("SCE_ENDPOINT_TOKEN", TOKEN)  # the job before has dropped it
        code = classify_job.main([*argv, "--no-tracking.enabled"])
        captured = capsys.readouterr()
        lines = captured.out.strip().splitlines()
        return code, json.loads(lines[-1]) if code == 0 else {}, captured.err

    return run


@pytest.fixture
def run_well(classify):
    def run(*argv: str) -> dict:
        code, summary, said = classify(*argv)
        assert code == 0, said
        return summary

    return run


def write_labels(folder: Path) -> list[str]:
    (folder / "labels.yaml").write_text(json.dumps(LABELS))
    return ["--labels-file", str(folder / "labels.yaml")]


def assert_same(found: Prediction | dict, wanted: Prediction) -> None:
    """An answer of the client or a row of an output, and that of the predictor."""
    if isinstance(found, dict):
        top = [(pair["label"], pair["score"]) for pair in found["top"]]
        found = Prediction(
            found["label"], found["score"], dict(found["scores"]), top, found["truncated"]
        )
    assert (found.label, found.truncated) == (wanted.label, wanted.truncated)
    assert found.score == pytest.approx(wanted.score, abs=1e-5)
    assert list(found.scores) == list(wanted.scores)
    assert found.scores == pytest.approx(wanted.scores, abs=1e-5)
    assert [name for name, _ in found.top] == [name for name, _ in wanted.top]


def test_four_ways_to_the_same_answers(run_well, server, client, predictor, folder, tmp_path):
    texts = [text(i) for i in range(300)]
    rows = [{"id": f"t{i}", "text": t} for i, t in enumerate(texts)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    scores = np.sort([p.score for p in predictor.predict(texts, LABELS)])[100:200]
    threshold = float(scores[np.argmax(np.diff(scores))] + np.diff(scores).max() / 2)
    asked = ["--top-k", "2", "--return-scores", "--threshold", str(threshold)]
    asked += write_labels(tmp_path)
    from_text = ["--input", source, "--id-column", "id", *asked]
    from_store = ["--input", write_store(tmp_path / "store", embedder_of(folder), texts), *asked]
    endpoint = ["--endpoint", server.url]
    here = run_well(*from_text, *model_flags(folder), "--output", str(tmp_path / "here"))
    there = run_well(*from_text, *endpoint, "--output", str(tmp_path / "there"))
    stored = run_well(*from_store, *endpoint, "--output", str(tmp_path / "stored"))
    for name in ("rows_in", "rows_out", "errors", "truncated", "null_labels", "labels",
                 "label_names", "threshold", "scoring"):  # fmt: skip
        assert here[name] == there[name] == stored[name], name
    assert here["truncated"] == 6
    assert 100 <= here["null_labels"] <= 200
    assert (there["model"], there["endpoint"]) == ("tiny", server.url)

    settings = {"threshold": threshold, "top_k": 2, "return_scores": True}
    embedded = client.embed(texts)
    vectors = predictor.embedder.embed(texts).vectors
    np.testing.assert_allclose(embedded.vectors, vectors, atol=1e-5)
    python = predictor.predict(texts, LABELS, **settings)
    ways = [read_output(tmp_path / name) for name in ("here", "there", "stored")]
    ways.append(client.predict(texts, LABELS, **settings))
    for way in ways:
        for found, wanted in zip(way, python, strict=True):
            assert_same(found, wanted)
    assert (
        [row["id"] for row in ways[1]]
        == [row["id"] for row in ways[2]]
        == [row["id"] for row in rows]
    )
    for found, wanted in zip(
        client.predict(embeddings=embedded.vectors, labels=LABELS, **settings),
        predictor.predict(embeddings=vectors, labels=LABELS, **settings),
        strict=True,
    ):
        assert_same(found, wanted)

    again = run_well(*from_text, *endpoint, "--output", str(tmp_path / "there"))
    assert again["unchanged"] is True


BROKEN = {
    "line_unreadable": b'{"text": ',
    "text_null": {"text": None, "classes": ["a"]},
    "text_empty": {"text": " \t\u00a0", "classes": ["a"]},
    "text_not_string": {"text": 7, "classes": ["a"]},
    "text_not_unicode": b'{"text": "\\ud800", "classes": ["a"]}',
    "labels_missing": {"text": "a text", "classes": []},
    "label_duplicate": {"text": "a text", "classes": ["a", "a"]},
}


def test_sets_a_row_and_broken_rows(run_well, server, client, predictor, tmp_path):
    names = [label if isinstance(label, str) else label["name"] for label in LABELS]
    known = {label if isinstance(label, str) else label["name"]: label for label in LABELS}
    good = [{"text": text(i), "classes": [*names, "other"][i % 4 :]} for i in range(120)]
    rows: list = list(good)
    for place, row in enumerate(BROKEN.values()):
        rows.insert(17 * place, row)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    asked = ["--labels-column", "classes", "--top-k", "3", "--return-scores"]
    asked += write_labels(tmp_path)  # which tells more of some
    asked += ["--endpoint", server.url, "--output", str(tmp_path / "out")]
    summary = run_well("--input", source, *asked)
    assert summary["errors"] == dict.fromkeys(BROKEN, 1)
    texts, settings = [row["text"] for row in good], {"top_k": 3, "return_scores": True}
    sets = [[known.get(name, name) for name in row["classes"]] for row in good]
    python = predictor.predict(texts, sets, **settings)
    found = read_output(tmp_path / "out")
    assert [row["error"] for row in found if row["error"]] == list(BROKEN)
    assert all(row["label"] is row["score"] is row["top"] is None for row in found if row["error"])
    answered = [row for row in found if not row["error"]]
    for way in (answered, client.predict(texts, sets, **settings)):
        for one, wanted in zip(way, python, strict=True):
            assert_same(one, wanted)
    for bad in ("", " \u00a0", "\ud800"):
        one, error, other = client.predict([texts[0], bad, texts[1]], LABELS)
        assert error == Prediction.refused("text_not_unicode" if bad == "\ud800" else "text_empty")
        assert [one.label, other.label] == [p.label for p in predictor.predict(texts[:2], LABELS)]
    # Scored by a shortlist; names that the tokenizer tells apart, for ties go by the last bits.
    many = [" ".join(words) for words in product(WORDS, repeat=3)][:300]
    one, other = (p.predict(texts[:1], many, **settings)[0] for p in (client, predictor))
    assert_same(one, other)
    with pytest.raises(LimitExceeded) as refused:
        client.predict(["a text"], [f"label {i}" for i in range(1001)])
    assert refused.value.param == "max_labels"


def test_a_dry_run(run_well, server, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text(i)} for i in range(60)])
    asked = ["--input", source, "--endpoint", server.url, *write_labels(tmp_path)]
    tried = run_well(*asked, "--dry-run")
    assert (tried["rows_in"], tried["sample_rows"], tried["sample_errors"]) == (60, 60, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "x"], "model: with --endpoint"),
        (["--exact"], "exact: with --endpoint"),
        (["--dtype", "float32"], "dtype: with --endpoint"),
        (["--embedder.model", "x"], "embedder: with --endpoint"),
        (["--save-embeddings", "x"], "save_embeddings: with --endpoint"),
        (["--resources.use-gpu", "true"], "resources.use_gpu: with --endpoint"),
        (["--endpoint-model", "other"], "has no model 'other'. It has: tiny"),
        (["--endpoint-token", "wrong"], "Give the token of this server"),
        (["--endpoint", "localhost:80"], "is not a URL"),
    ],
)
def test_what_makes_no_sense_is_named(classify, server, tmp_path, flags, message):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a text"}])
    asked = ["--input", source, *write_labels(tmp_path), "--output", str(tmp_path / "out")]
    code, _, said = classify(*asked, "--endpoint", server.url, *flags)
    assert code == 2
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_killed_in_the_middle(run_well, classify, server, folder, tmp_path):
    rows = [{"text": text(i)} for i in range(ROWS_OF_A_KILL)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    asked = ["--input", source, "--endpoint", server.url, *write_labels(tmp_path)]
    output = ["--output", str(tmp_path / "out")]
    undisturbed = run_well(*asked, "--output", str(tmp_path / "undisturbed"))

    def restart() -> None:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.stop()
        time.sleep(1)
        server.start()

    seconds = undisturbed["answer_seconds"]
    kill = threading.Timer(undisturbed["seconds"] - seconds / 2, restart)
    kill.start()
    disturbed = run_well(*asked, *output)
    kill.join()
    assert disturbed["answer_seconds"] > seconds + 1, "it was killed before or afterwards"
    for name in ("rows_out", "errors", "labels"):
        assert disturbed[name] == undisturbed[name]

    # one that does not come back: a clear end, and with other weights no going on
    kill = threading.Timer(undisturbed["seconds"] - seconds / 2, server.stop)
    kill.start()
    patience = ["--endpoint-patience-seconds", "2", "--output", str(tmp_path / "away")]
    with pytest.raises(EndpointUnavailable, match="no answer in"):
        classify(*asked, *patience)
    kill.join()
    server.write(folder / "other")
    server.start()
    code, _, said = classify(*asked, *output)
    assert code == 2
    assert "  model: " in said
    server.stop()
    server.write(folder / "sce")
    server.start()
