"""`jobs/benchmark.py` at tiny sizes: that each section measures what it says and prints it."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.benchmarks import trees
from jobs.benchmarks.epoch_settings import TINY, EpochCost
from jobs.benchmarks.epoch_store import paper_predictor
from jobs.benchmarks.inputs import write_store
from jobs.benchmarks.process_memory import PeakMemory
from jobs.benchmarks.store_path import (
    COLUMNS,
    classified,
    copy_alone,
    plan_store,
    random_adapted,
    share_of_matrix_rate,
)
from sce.bulk.classifier import BlockClassifier
from sce.bulk.local import LinearPredictor
from sce.config import load_config
from sce.datasets.starter import read_starter
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore
from sce.evaluation import flops
from sce.model.arithmetic import multiplies_bfloat16
from sce.model.options import AnswerOptions
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.tiny_models import build_sentence_transformer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_recorded(monkeypatch):
    monkeypatch.setenv("SCE_TRACKING__ENABLED", "false")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_job", ROOT / "jobs" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.system
def test_classify_beside_the_peers(benchmark, tmp_path, capsys):
    small = ["--texts", "4", "--rounds", "1", "--store-seconds", "0.01"]
    peers = ["--peer-rows", "2", "--peer-label-counts", "[3]", "--label-counts", "[2, 3]"]
    assert benchmark.main(["classify", *small, *peers, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out.strip().splitlines()
    found = json.loads(said[-1])
    table = (tmp_path / "classify.md").read_text()
    assert table.splitlines()[0] in said
    for name in ("GLiClass", "NLI pipeline", "cosine similarity, sentence-transformers"):
        assert f"texts a second / {name} / 3 labels" in found["figures"]
        assert f"ratio / from the store over {name} / 3 labels" in found["figures"]
        assert f"\n| {name} |" in table
    assert found["same_answers"] == "8 of 8"
    assert found["largest_score_gap"] < 1e-2
    rates = {way: found["figures"][f"texts a second / SCE {way} / 2 labels"]["median"]
             for way in ("from the store", "from text")}  # fmt: skip
    assert rates["from the store"] > rates["from text"]
    assert (tmp_path / "classify.png").stat().st_size > 1000
    assert found["figures"]["memory / peak of the process, MB"]["median"] > 100


@pytest.mark.system
def test_the_store_path(ray_session, benchmark, tmp_path, capsys):
    small = ["--rounds", "1", "--seconds", "0.001", "--engine-rows", "300", "--rows", "200"]
    small += ["--label-counts", "[2, 201]", "--adapted-counts", "[3]", "--sce-rows", "50"]
    then = str(tmp_path / "then.json")
    assert benchmark.main(["store", *small, "--record", then]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["figures"]
    for name in (
        "SCE from vectors / 2 labels / share",
        "files to files, one process / adapted, 3 labels / over Parquet alone",
        "SCE, 10 labels, 300 vectors / job on Ray, start-up apart / over the loop",
        "jobs/classify.py, 10 labels / adapted, 200 rows / seconds in all",
        "jobs/classify.py, 10 labels / adapted, 200 rows / over Parquet alone",
        "jobs/classify.py, 10 labels / SCE, 50 rows / peak of all processes, MB",
    ):
        assert figures[name]["median"] > 0
    matrix = ["--parts", "matrix", "--against", then]
    assert benchmark.main(["store", *small, *matrix]) == 2
    assert "of another size: parts" in capsys.readouterr().err


def test_the_share_of_the_matrix_rate_counts_a_shortlist():
    predictor = paper_predictor(load_config(EpochCost, ["--size", "tiny"], "", ""))
    figures, notes = share_of_matrix_rate(predictor, [2, 201], 0.001, rounds=2)
    assert notes == ["Of 201 labels, 100 are contextualised (shortlist)."]
    line = figures["SCE from vectors"]["201 labels"]
    d, dimension = TINY.encoder.d, TINY.embedder.d
    each = flops.exact_forward(TINY.encoder, 101) + 2 * d * dimension + 2 * 201 * dimension
    assert line["operations/s"].median == pytest.approx(each * line["rows/s"].median)
    assert len(line["rows/s"].values) == 4
    shares = line["share"].values
    done, limit = line["operations/s"].values, line["of a matrix product"].values
    assert shares[0] == pytest.approx((done[0] + done[1]) / (limit[0] + limit[1]))


def test_files_to_files_are_the_answers_of_every_row(tmp_path):
    fingerprint = replace(embedder_fingerprint(EmbedderConfig()), dimension=8)
    write_store(tmp_path / "store", fingerprint, 30, part_rows=20)
    shards, rows = plan_store(tmp_path / "store")
    assert rows == 30
    labels = random_adapted(3, 8, fingerprint.to_dict())
    classify = BlockClassifier(
        LinearPredictor(EmbedderConfig(), 8), labels, COLUMNS, AnswerOptions()
    )
    output = tmp_path / "answers.parquet"
    assert classified(shards, classify, output) > 0
    answers = pq.read_table(output)
    vectors_ND = EmbeddingStore.open(tmp_path / "store").vectors_for(answers["id"])
    best = labels.answer(vectors_ND).top_NT[:, 0]
    assert answers["label"].to_pylist() == [labels.names[k] for k in best]
    copy_alone(tmp_path / "store", output)
    assert pq.read_schema(output).names == answers.schema.names
    assert pq.read_metadata(output).num_rows == 30


def test_the_cost_of_a_shortlist(benchmark, tmp_path, capsys):
    fingerprint = embedder_fingerprint(EmbedderConfig()).to_dict()
    build_model(ModelConfig(), fingerprint, 0.0, seed=0).model.save_pretrained(tmp_path / "model")
    rows = [{"text": f"about {i}", "label": f"label {i % 6}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = ["--model", str(tmp_path / "model"), "--labelled", str(tmp_path / "rows.jsonl")]
    assert benchmark.main(["shortlist", *known, "--sizes", "[1, 5, 6]", "--rounds", "1"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["rows"], found["labels"]) == (12, 6)
    same = {name.split(" / ")[1]: figure["median"] for name, figure in found["figures"].items()
            if name.endswith("same answers, %")}  # fmt: skip
    assert list(same) == ["exact", "nearest 1", "nearest 5"], "6 labels are no shortlist of 6"
    assert same["exact"] == 100
    assert same["nearest 5"] >= same["nearest 1"]
    assert found["figures"]["6 labels / nearest 1 / over exact"]["median"] > 0
    assert benchmark.main(["shortlist", *known, "--sizes", "[6]"]) == 2
    assert "from 1 to 5" in capsys.readouterr().err


def test_a_tree_beside_its_leaves_as_a_flat_set(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trees, "read_starter", lambda: read_starter()[:2])
    fingerprint = embedder_fingerprint(EmbedderConfig()).to_dict()
    build_model(ModelConfig(), fingerprint, 0.0, seed=0).model.save_pretrained(tmp_path / "model")
    classes = [name for some in trees.SECTIONS.values() for name in some.split(", ")]
    rows = [{"text": f"about {name}", "label": name.upper()} for name in classes[::8]]
    file = tmp_path / f"{trees.HUFFPOST}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["open_account", "bank", "play_song", "home", "oos", "oos"]
    intents = [
        {"text": f"to {a}", "label": a, "domain": b} for a, b in zip(asked[::2], asked[1::2])
    ]
    (tmp_path / "clinc150.jsonl").write_text("".join(json.dumps(row) + "\n" for row in intents))
    sizes = ["--leaves", "22", "--rows", "4", "--rounds", "1"]
    known = ["--model", str(tmp_path / "model"), *sizes]
    assert benchmark.main(["trees", *known, "--data", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["rows"], found["leaves"]) == (4, 22)
    figures = {name: one["median"] for name, one in found["figures"].items()}
    for side in ("tree", "flat, paths as names", "flat, names and paths of the tree"):
        assert figures[f"22 leaves / {side} / right leaf contextualised, %"] == 100
        assert figures[f"22 leaves / {side} / rows/s"] > 0
    sections = "HuffPost's 41 classes under sections"
    assert 0 <= figures[f"{sections} / tree / top by sums right, %"] <= 100
    short = figures[f"{sections} / flat, 20 nearest contextualised / right leaf contextualised, %"]
    assert short >= 50, "texts name classes"
    assert figures[f"{sections} / cosine, names alone / leaf right, %"] >= 50, "texts name classes"
    assert len(classes) == len(set(classes)) == 41
    domains = "clinc150's intents under domains"
    assert figures[f"{domains} / tree / top of the best leaf right, %"] == 100, "texts name them"
    assert benchmark.main(["trees", *known, "--data", str(tmp_path / "model")]) == 2
    assert "there is no" in capsys.readouterr().err


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
    assert found["figures"]["accuracy, % / tiny / adapted"]["median"] == found["sets"]["tiny"][2]


def test_peak_memory_is_seen_when_it_is_gone_again():
    with PeakMemory() as memory:
        before = memory.peaks()["driver"]
        block = bytearray(b"x") * (200 << 20)
        memory._look()
        del block
    assert memory.peaks()["driver"] - before > 150 << 20


def test_the_process_beside_a_job_without_ray_counts_as_its_model():
    code = "one_process = bytearray(b'x') * (60 << 20); print(1, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with PeakMemory() as memory:
        child.stdout.readline()
        memory._look()
        child.communicate(b"\n")
    assert memory.peaks()["actor"] > 50 << 20


@pytest.mark.skipif(not multiplies_bfloat16("cpu"), reason="no bfloat16 instructions")
def test_arithmetic_is_measured_with_padding_and_without(benchmark, tmp_path, capsys):
    folder = build_sentence_transformer(tmp_path)
    model = ["--embedder.kind", "sentence_transformers", "--embedder.model", str(folder)]
    small = ["--rows", "64", "--sizes", "[4]", "--rounds", "1"]
    assert benchmark.main(["arithmetic", *model, *small]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["figures"]
    ways = ("float32", "float32, padded", "bfloat16", "bfloat16, padded")
    for way in ways:
        for together in (4, 64):
            assert f"texts a second / {way} / {together} texts together" in found
        cosine = found[f"beside float32 / {way} / least cosine"]["values"][0]
        assert 0.99 < cosine < 1 + 1e-6
    changed = [found[f"beside float32 / {way} / vectors that neighbours change"] for way in ways]
    assert changed[2]["values"] == [0]
