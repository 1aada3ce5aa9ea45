"""What the tests of bulk classification share: a tiny model, its inputs and its outputs."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs import classify as classify_job
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import (
    STORE_COLUMNS,
    Manifest,
    embedding_column,
    write_manifest,
)
from sce.predictor import Predictor
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.tiny_models import build_roberta, build_sentence_transformer

LABELS = ["markets", "sport", "late parcel", "stars"]
WORDS = ("markets", "rose", "the", "team", "won", "my parcel", "never came", "a galaxy", "light")


def text(i: int) -> str:
    return " ".join(WORDS[(i * step) % len(WORDS)] for step in range(1, 6)) + f" {i}"


def build_models(folder: Path, *names: str) -> Path:
    """Models of these names with random weights, each another, and `embedder`, which they read."""
    build_sentence_transformer(folder / "embedder")
    build_roberta(folder / "roberta")
    config = ModelConfig(encoder=str(folder / "roberta"), adaptor_init="normal")
    fingerprint = embedder_fingerprint(embedder_of(folder)).to_dict()
    for seed, name in enumerate(names):
        build_model(config, fingerprint, 0.0, seed=seed).model.save_pretrained(folder / name)
    return folder


def embedder_of(folder: Path, name: str = "embedder") -> EmbedderConfig:
    return EmbedderConfig(kind="sentence_transformers", model=str(folder / name))


def load_predictor(folder: Path) -> Predictor:
    return Predictor.from_pretrained(folder / "sce", embedder_of(folder))


def model_flags(folder: Path) -> list[str]:
    """The job computes as `load_predictor` does; by itself it takes bfloat16 where it can."""
    embedder = ["--embedder.kind", "sentence_transformers"]
    embedder += ["--embedder.model", str(folder / "embedder")]
    return ["--model", str(folder / "sce"), *embedder, "--dtype", "float32"]


def run_classify(folder: Path, capsys, *argv: str) -> tuple[int, dict, str]:
    """Runs the job, without a tracker unless flags name one; the exit code, its summary, and what
    it said on standard error."""
    tracking = () if any("tracking" in flag for flag in argv) else ("--no-tracking.enabled",)
    code = classify_job.main([*model_flags(folder), *tracking, *argv])
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    return code, json.loads(lines[-1]) if code == 0 else {}, captured.err


def write_jsonl(path: Path, rows: list) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def write_store(folder: Path, embedder: EmbedderConfig, texts: list[str]) -> str:
    """An embedding store of them, the ids `t0`, `t1` and so on."""
    folder.mkdir()
    loaded = load_embedder(embedder)
    embedded, fingerprint = loaded.embed(texts), loaded.fingerprint
    ids = pa.array([f"t{i}" for i in range(len(texts))])
    columns = [ids, ids, embedding_column(embedded.vectors), pa.array(embedded.truncated)]
    pq.write_table(pa.table(columns, list(STORE_COLUMNS[:4])), folder / "part.parquet")
    content = fingerprint.to_dict() | {"id": fingerprint.id}
    write_manifest(folder, Manifest(content, "test", len(texts), 0, 1, 1, "", ["part.parquet"]))
    return str(folder)


def read_output(output: Path) -> list[dict]:
    """The rows of an output in the order of the input."""
    paths = sorted(output.glob("part-*"))
    if paths[0].suffix == ".parquet":
        rows = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    else:
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["place"])
