"""A model's folder: written, read by transformers' own classes, and uploaded to a hub, which is a
server of this test."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from transformers import AutoConfig, AutoModel

from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import InputError
from sce.model.encoder import SCEConfig, SCEModel
from sce.predictor import Predictor
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.tiny_models import build_roberta, build_sentence_transformer

TEXTS = ["the river rose overnight", "the engine will not start", "thank you"]
LABELS = ["flood", "engine trouble", "praise"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_sentence_transformer(folder / "embedder")
    settings = EmbedderConfig(
        kind="sentence_transformers", model=str(folder / "embedder"), dtype="float32"
    )
    return load_embedder(settings)


@pytest.fixture(scope="module")
def predictor(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta")
    build_roberta(folder)
    config = ModelConfig(encoder=str(folder), label_source="tokens", adaptor_init="normal")
    fresh = build_model(config, embedder.fingerprint.to_dict(), 0.0, seed=0)
    return Predictor(fresh.model, embedder, fresh.tokenizer)


def test_a_saved_folder_is_read_by_transformers_own_classes(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert (type(config), type(model)) == (SCEConfig, SCEModel)
    assert "auto_map" not in json.loads((tmp_path / "model" / "config.json").read_text())
    for name, weight in predictor.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_what_was_loaded_is_saved_with_its_card_and_answers_the_same(predictor, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    predictor.save_pretrained(first)
    (first / "README.md").write_text("# Measured")
    (second / "mine").mkdir(parents=True)
    (second / "config.json").write_text("of another model")
    loaded = Predictor.from_pretrained(first, predictor.embedder)
    loaded.save_pretrained(second)
    assert (second / "README.md").read_text() == "# Measured"
    assert {p.name for p in second.iterdir()} == {p.name for p in first.iterdir()} | {"mine"}
    again = Predictor.from_pretrained(second, predictor.embedder)
    assert again.predict(TEXTS, LABELS) == predictor.predict(TEXTS, LABELS)
    loaded.save_pretrained(first)  # over what it was loaded from
    assert loaded.predict(TEXTS, LABELS) == predictor.predict(TEXTS, LABELS)


def test_what_cannot_be_saved_is_refused(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    half = Predictor.from_pretrained(tmp_path / "model", predictor.embedder, dtype="bfloat16")
    with pytest.raises(InputError, match=r"bfloat16.*dtype='float32'"):
        half.save_pretrained(tmp_path / "half")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        predictor.save_pretrained(tmp_path / "file")
    assert not list((tmp_path / "half").iterdir())


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as an upload and a download of small files need."""

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((path, self.headers["Authorization"]))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.visibility = asked.get("visibility")
            self.answer({"url": f"{self.server.url}/{name}", "name": name})
        elif path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            kept = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer({"files": kept})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.url}/me/tickets/commit/{'a' * 40}"
            self.answer({"commitUrl": url, "commitOid": "a" * 40, "hookOutput": ""})
        else:
            self.answer({})

    def do_GET(self):
        path = urlsplit(self.path).path
        found = re.fullmatch(r"/me/tickets/resolve/\w+/(.+)", path)
        if found and found[1] in self.server.files:
            content = self.server.files[found[1]]
            etag = hashlib.sha256(content).hexdigest()
            self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40})
        else:
            error = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40}
            self.answer(b"", error, 404)

    do_HEAD = do_GET

    def answer(self, content, headers=None, status=200):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.visibility = [], {}, None
    server.url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # an earlier one asks the real
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_goes_to_a_hub_and_comes_back(predictor, hub, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlibrary_name: x\n---\n# Measured")
    loaded = Predictor.from_pretrained(tmp_path / "model", predictor.embedder)
    url = loaded.push_to_hub("tickets", private=True, token="hf_secret")
    assert url == f"{hub.url}/me/tickets/commit/{'a' * 40}"
    assert hub.visibility == "private"
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}
    written = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    assert set(hub.files) == set(written)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert hub.files[name] == written[name], name
    again = Predictor.from_pretrained("me/tickets", predictor.embedder)
    assert again.predict(TEXTS, LABELS) == predictor.predict(TEXTS, LABELS)
    assert Path(tmp_path / "cache").is_dir(), "it came from the hub"
