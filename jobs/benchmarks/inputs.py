"""What the benchmarks feed: texts of a length, label sets that were never seen, a store, a model.

Weights and vectors are random: speed does not depend on them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sce.datasets.starter import read_starter
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import (
    STORE_COLUMNS,
    Manifest,
    embedding_column,
    part_options,
    write_manifest,
)
from sce.predictor import Predictor
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig

PART_ROWS = 65_536


def make_texts(predictor: Predictor, count: int, tokens: int) -> list[str]:
    """Distinct texts of real words, each of `tokens` tokens or a word less."""
    words = " ".join(t for s in read_starter() for t, _ in s.examples).split()
    one, two = predictor.embedder.tokenise(["a", "a a"]).lengths.tolist()
    special = 2 * one - two  # tokens that a text has beside those of its words
    word_tokens = predictor.embedder.tokenise(words).lengths - special
    ends = np.cumsum(word_tokens)
    starts = np.random.default_rng(0).choice(len(words) - tokens, count, replace=False)
    budget = ends[starts] - word_tokens[starts] + tokens - special
    stops = np.searchsorted(ends, budget, side="right")
    return [" ".join(words[a:b]) for a, b in zip(starts.tolist(), stops.tolist())]


def label_names(count: int, salt: int) -> list[str]:
    """A label set; one that was never seen where the salt is new."""
    return [f"topic {salt} number {i}" for i in range(count)]


def unit_vectors(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Random vectors of norm 1, float32 [rows, dimension]."""
    vectors_ND = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def write_model(folder: Path, embedder: EmbedderConfig) -> str:
    """An untrained model of the default recipe, as a folder. Returns its path."""
    fingerprint = embedder_fingerprint(embedder).to_dict()
    build_model(ModelConfig(), fingerprint, 0.0, seed=0).model.save_pretrained(folder)
    return str(folder)


def write_store(
    folder: Path, fingerprint: EmbedderFingerprint, rows: int, part_rows: int = PART_ROWS
) -> None:
    """A store of random unit vectors with the ids r0, r1, ..."""
    folder.mkdir(parents=True)
    parts = []
    for first in range(0, rows, part_rows):
        count = min(part_rows, rows - first)
        ids = pa.array([f"r{i}" for i in range(first, first + count)])
        vectors = embedding_column(unit_vectors(count, fingerprint.dimension, seed=first))
        parts.append(f"part-{first:09d}.parquet")
        table = pa.table([ids, ids, vectors, pa.repeat(False, count)], list(STORE_COLUMNS[:4]))
        pq.write_table(table, folder / parts[-1], **part_options(table.column_names))
    content = fingerprint.to_dict() | {"id": fingerprint.id}
    write_manifest(folder, Manifest(content, f"random {rows}", rows, 0, 1.0, 1.0, "", parts))
