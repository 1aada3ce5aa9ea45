"""`jobs/benchmark.py` at tiny sizes: that each section measures what it says and prints it."""

import importlib.util
import json
from pathlib import Path

import pytest

from jobs.benchmarks.process_memory import PeakMemory
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.tiny_models import build_sentence_transformer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_job", ROOT / "jobs" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.system
def test_classify_beside_ray_and_the_peers(ray_session, benchmark, tmp_path, capsys):
    small = ["--rows", "300", "--texts", "4", "--rounds", "1", "--store-seconds", "0.01"]
    peers = ["--peer-rows", "2", "--peer-label-counts", "[3]", "--label-counts", "[2, 3]"]
    out = ["--output", str(tmp_path), "--no-tracking.enabled"]
    assert benchmark.main(["classify", *small, *peers, *out]) == 0
    said = capsys.readouterr().out.strip().splitlines()
    found = json.loads(said[-1])
    table = (tmp_path / "classify.md").read_text()
    assert table.splitlines()[0] in said
    for name in ("SCE from the store", "GLiClass", "NLI pipeline", "sentence-transformers cosine"):
        assert f"\n| {name} |" in table
    assert found["same_answers"] == "8 of 8"
    assert found["largest_score_gap"] < 1e-5
    assert set(found["peers"]["texts_per_second"]) == {
        "sentence-transformers cosine",
        "GLiClass",
        "NLI pipeline",
    }
    assert found["ray"]["rows"] == 300
    assert found["ray"]["ratio"] > 0
    assert found["store"]["2"] > found["text"]["2"]
    assert (tmp_path / "classify.png").stat().st_size > 1000
    assert found["peak_memory_bytes"]["driver"] > 0


def test_the_cost_of_a_shortlist(benchmark, tmp_path, capsys):
    fingerprint = embedder_fingerprint(EmbedderConfig()).to_dict()
    build_model(ModelConfig(), fingerprint, 0.0, seed=0).model.save_pretrained(tmp_path / "model")
    rows = [{"text": f"about {i}", "label": f"label {i % 6}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = ["--model", str(tmp_path / "model"), "--labelled", str(tmp_path / "rows.jsonl")]
    assert benchmark.main(["shortlist", *known, "--sizes", "[1, 5, 6]", "--rounds", "1"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["rows"], found["labels"]) == (12, 6)
    assert list(found["shortlist"]) == ["1", "5"], "6 labels are no shortlist of 6"
    assert found["shortlist"]["5"]["same_answers"] >= found["shortlist"]["1"]["same_answers"]
    assert benchmark.main(["shortlist", *known, "--sizes", "[6]"]) == 2
    assert "from 1 to 5" in capsys.readouterr().err


@pytest.mark.system
def test_what_a_corpus_teaches_its_labels(benchmark, tmp_path, capsys):
    embedder = build_sentence_transformer(tmp_path / "bert")
    config = EmbedderConfig(kind="sentence_transformers", model=str(embedder))
    fresh = build_model(ModelConfig(), embedder_fingerprint(config).to_dict(), 0.0, seed=0)
    fresh.model.save_pretrained(tmp_path / "model")
    rows = [{"text": f"{name} {i}", "label": name} for i in range(30) for name in ("dog", "cup")]
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data", str(tmp_path), "--sets", '{"tiny": 60}', "--model", str(tmp_path / "model")]
    flags += ["--embedder.kind", "sentence_transformers", "--embedder.model", str(embedder)]
    flags += ["--cache", str(tmp_path / "cache"), "--picture", str(tmp_path / "examples.png")]
    assert benchmark.main(["adaptation", *flags, "--sections", '["sets", "examples"]']) == 0
    said = capsys.readouterr().out
    found = json.loads(said.strip().splitlines()[-1])
    assert "| set, by name | cosine | SCE | adapted |" in said
    assert len(found["sets"]["tiny"]) == 3
    assert all(0 <= value <= 100 for value in found["sets"]["tiny"])
    adapted = found["examples"]["development sets: adapted"]
    assert adapted["mean"][0] == pytest.approx(found["sets"]["tiny"][2])
    assert len(adapted["standard_error"]) == len(adapted["examples"]) == 6
    assert (tmp_path / "examples.png").read_bytes().startswith(b"\x89PNG")
    assert benchmark.main(["adaptation", *flags, "--sections", '["nope"]']) == 2
    assert "'nope' is none of sets, cases" in capsys.readouterr().err


def test_peak_memory_is_seen_when_it_is_gone_again():
    with PeakMemory() as memory:
        before = memory.peaks()["driver"]
        block = bytearray(b"x") * (200 << 20)
        memory._look()
        del block
    assert memory.peaks()["driver"] - before > 150 << 20
