"""Several embedders on the same rows: what is measured of each, and what is refused."""

import json

import pytest

from sce.config import load_config
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError, EmbedderError
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from sce.workflows.evaluate import own_folder, record_source
from sce.workflows.evaluate_embedders import evaluate_asked
from sce.workflows.experiment import Evaluation
from tests.tiny_models import build_sentence_transformer

ROWS = [
    ("The parcel never came.", "delivery"),
    ("Still waiting for my box.", "delivery"),
    ("The courier lost it.", "delivery"),
    ("Where is my order? It should have been delivered last week. " * 60, "delivery"),
    ("I was charged twice.", "billing"),
    ("The invoice has the wrong amount.", "billing"),
    ("Please refund the second payment.", "billing"),
    ("My card was debited again.", "billing"),
]


@pytest.fixture
def tiny(tmp_path):
    return build_sentence_transformer(tmp_path / "tiny")


@pytest.fixture
def ask(tmp_path, capsys):
    rows = tmp_path / "mine.jsonl"
    rows.write_text("".join(json.dumps({"text": t, "label": name}) + "\n" for t, name in ROWS))

    def run(*embedders):
        argv = ["--run-dir", str(tmp_path / "runs" / "own"), "--evaluate.labelled", str(rows)]
        argv += ["--no-tracking.enabled", "--evaluate.adapted-examples", "1"]
        argv += ["--embedders", ",".join(map(str, embedders))]
        summary = evaluate_asked(load_config(Evaluation, argv, "evaluate", ""))
        return summary, " ".join(capsys.readouterr().err.split())

    return run


def test_each_is_measured_and_one_recommended(ask, tiny, tmp_path):
    summary, said = ask("minilm", tiny)
    small, other = summary["embedders"]
    assert (small["name"], small["model"], small["dimension"]) == ("minilm", None, 384)
    assert (other["name"], other["dimension"]) == (str(tiny), 32)
    assert small["max_tokens"] == 256
    assert small["truncated"] == pytest.approx(1 / 8)
    assert small["hours_per_million_texts"] > other["hours_per_million_texts"] > 0
    assert small["peak_memory_bytes"] > 10**8
    assert summary["recommended"] in said
    assert "texts a second" in said
    assert "so no SCE: minilm" in said
    assert "adapted" in said
    home = tmp_path / "runs" / "own" / "results-embedders" / "mine"
    assert str(home) == summary["results"]
    assert {"summary", "minilm"} < {path.name for path in home.iterdir()}
    assert json.loads((home / "summary" / "embedders.json").read_text()) == summary["embedders"]
    assert "Recommended: **" in (home / "summary" / "embedders.md").read_text()
    assert "SCE" not in (home / "summary" / "embedders.md").read_text()


def test_a_trained_model_stands_beside_its_embedder(ask, tiny, tmp_path):
    config = EmbedderConfig(kind="sentence_transformers", model=str(tiny))
    fingerprint = embedder_fingerprint(config).to_dict()
    fresh = build_model(ModelConfig(), fingerprint, 0.1, 0)
    fresh.model.save_pretrained(tmp_path / "model")
    summary, said = ask(f"{tiny}={tmp_path / 'model'}")
    assert summary["embedders"][0]["model"] == str(tmp_path / "model")
    assert "SCE" in said
    with pytest.raises(ConfigError, match="no model that was trained with 'minilm'"):
        ask(f"minilm={tmp_path / 'model'}")
    # The quickstart's model is found beside the run.
    fresh = build_model(ModelConfig(), embedder_fingerprint(EmbedderConfig()).to_dict(), 0.1, 0)
    fresh.model.save_pretrained(tmp_path / "runs" / "quickstart" / "model")
    summary, _ = ask("minilm")
    assert summary["embedders"][0]["model"].endswith("runs/quickstart/model")


def test_what_cannot_be_measured_is_refused_before_anything_is_embedded(ask, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="named twice"):
        ask("minilm", "minilm")
    with pytest.raises(ConfigError, match="there is no model in"):
        ask(f"minilm={tmp_path / 'nowhere'}")
    with pytest.raises(EmbedderError, match=r"no folder '\./nowhere'"):
        ask("minilm", "./nowhere")
    assert not (tmp_path / "runs").exists()


def test_rows_of_two_files_of_one_name_keep_their_results(tmp_path):
    parent, files = tmp_path / "results-own", []
    for team in ("a", "b", "c/b"):
        files.append(tmp_path / team / "sample.csv")
    folders = []
    for file in [*files, *files]:
        folders.append(own_folder(parent, file))
        folders[-1].mkdir(parents=True, exist_ok=True)
        record_source(folders[-1], file)
    assert [one.name for one in folders[:2]] == ["sample", "b-sample"]
    assert len({*folders}) == 3
    assert folders[3:] == folders[:3]  # again, the same
