"""The store path in this process, without Ray: vectors to answers beside what the chip multiplies,
and files to files beside reading and writing them alone.

Shapes: N rows, K labels, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.benchmarks.inputs import label_names, unit_vectors
from jobs.benchmarks.rounds import Figures, in_turn, seconds_of
from sce.bulk.classifier import BlockClassifier
from sce.bulk.corpus import Columns, Shard, join_plans, open_corpus, plan_file
from sce.bulk.local import LinearPredictor, LocalPredictor
from sce.bulk.reading import read_shard
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore, embedding_matrix
from sce.evaluation import flops
from sce.labels import LabelSet
from sce.model.linear_labels import LinearLabels
from sce.model.options import AnswerOptions
from sce.model.products import round_weights
from sce.predictor import Predictor

COLUMNS = Columns(text=None, embedding="embedding", id="row_id")
PRODUCT_ROWS = {"cpu": 2048, "cuda": 65_536}
PRODUCTS = 20
"""Matrix products between two looks at the clock."""
PROBE_ROWS = 20_000
"""Pairs of row and label that are answered to see how fast it goes."""
_new = count()


def random_adapted(labels: int, dimension: int, embedder: dict[str, Any]) -> LinearLabels:
    """A linear label set with random weights: speed does not depend on them."""
    random = np.random.default_rng(labels)
    weight_KD = round_weights(random.standard_normal((labels, dimension)))
    names = LabelSet.parse(label_names(labels, 0))
    return LinearLabels(names, weight_KD, random.standard_normal(labels), 1.0, embedder)


def share_of_matrix_rate(
    predictor: Predictor, label_counts: Sequence[int], seconds: float, rounds: int
) -> tuple[Figures, list[str]]:
    """What answering vectors does of the device's matrix products, by number of labels.

    Operations are those of the plain forward pass, 2 for a multiplication and addition; of a
    shortlist those of the labels on it, and the cosine with all.

    Returns:
        The figures, and a line for each number of labels that is shortlisted.
    """
    weight, dimension = predictor.model.query_adaptor.weight, predictor.embedder.dimension
    a = flops.architecture_of(predictor.model.encoder.config)
    rows = PRODUCT_ROWS[weight.device.type]
    left = torch.randn(rows, a.d, dtype=weight.dtype, device=weight.device)
    right = torch.randn(a.d, a.d_ff, dtype=weight.dtype, device=weight.device)
    product = PRODUCTS * 2 * rows * a.d * a.d_ff
    found: dict[str, dict[str, Any]] = {}
    notes = []
    for labels in label_counts:
        scored, cosine = labels, 0
        if labels > predictor.shortlist_above:
            scored, cosine = predictor.shortlist_size, 2 * labels * dimension
            notes.append(f"Of {labels:,} labels, {scored} are contextualised (shortlist).")
        operations = flops.exact_forward(a, scored + 1) + 2 * a.d * dimension + cosine
        rate = _rate(predictor, labels, seconds, dimension)
        sides = {
            "answers": lambda: operations * rate(),  # noqa: B023
            "products": lambda: product / seconds_of(lambda: _products(left, right)),
        }
        turns = in_turn(sides, rounds)
        found[f"{labels:,} labels"] = {
            "rows/s": turns.figure("answers", "FLOP/s").scaled(1 / operations, "rows/s"),
            "operations/s": turns.figure("answers", "FLOP/s"),
            "of a matrix product": turns.figure("products", "FLOP/s"),
            "share": turns.ratio("answers", "products"),
        }
    return {"SCE from vectors": found}, notes


def _rate(predictor: Predictor, labels: int, seconds: float, dimension: int) -> Callable[[], float]:
    """Rows a second of a label set that is known, for about so many seconds."""
    names = LabelSet.parse(label_names(labels, next(_new)))
    probe_ND = unit_vectors(max(64, PROBE_ROWS // labels), dimension)
    predictor.warm_up(names)
    took = min(seconds_of(partial(predictor.answer, probe_ND, names)) for _ in range(2))
    rows = max(len(probe_ND), int(seconds * len(probe_ND) / took))
    queries_ND = unit_vectors(rows, dimension)
    return lambda: rows / seconds_of(lambda: predictor.answer(queries_ND, names))


def _products(left: torch.Tensor, right: torch.Tensor) -> None:
    for _ in range(PRODUCTS):
        torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize()


def files_to_files(
    store: Path, predictor: Predictor | None, label_counts: Sequence[int], rounds: int
) -> Figures:
    """Rows a second from a store's files to a file of answers, one block after another: adapted
    labels and, with a `predictor`, SCE, beside reading the vectors and writing such a file alone.
    """
    shards, rows = plan_store(store)
    manifest = EmbeddingStore.open(store).manifest
    dimension, embedder = manifest.embedder["dimension"], dict(manifest.embedder)
    output = store.parent / "answers.parquet"
    found: dict[str, dict[str, Any]] = {}
    for labels in label_counts:
        adapted = random_adapted(labels, dimension, embedder)
        ways = {"adapted": (LinearPredictor(EmbedderConfig(), dimension), adapted)}
        if predictor is not None:
            ways["SCE"] = LocalPredictor(predictor), adapted.label_set
        sides = {"Parquet alone": lambda: rows / seconds_of(lambda: copy_alone(store, output))}
        for name, (answering, asked) in ways.items():
            classifier = BlockClassifier(answering, asked, COLUMNS, AnswerOptions())
            sides[name] = partial(classified, shards, classifier, output)
        turns = in_turn(sides, rounds)
        for name in sides:
            line = {"rows/s": turns.figure(name, "rows/s")}
            if name != "Parquet alone":
                line["over Parquet alone"] = turns.ratio(name, "Parquet alone")
            found[f"{name}, {labels:,} labels"] = line
    output.unlink()
    return {"files to files, one process": found}


def plan_store(store: Path) -> tuple[list[Shard], int]:
    """The shards of a store and their rows."""
    files = open_corpus([str(store)]).files
    shards = join_plans([plan_file(file, i, COLUMNS) for i, file in enumerate(files)])
    return shards, sum(shard.rows for shard in shards)


def classified(shards: Sequence[Shard], classifier: BlockClassifier, output: Path) -> float:
    """Rows a second of reading, answering and writing."""
    rows = 0

    def work() -> None:
        nonlocal rows
        writer = None
        for shard in shards:
            for block in read_shard(shard, COLUMNS):
                answers = classifier(block)
                writer = writer or pq.ParquetWriter(output, answers.schema)
                writer.write_table(answers)
                rows += answers.num_rows
        if writer is not None:
            writer.close()

    seconds = seconds_of(work)
    return rows / seconds


def copy_alone(store: Path, output: Path) -> None:
    """Read a store's vectors, and write as many answers that no work was done for."""
    opened, rows, writer = EmbeddingStore.open(store), 0, None
    for part in opened.manifest.parts:
        table = opened.read_part(part, ["row_id", "embedding"])
        count = len(embedding_matrix(table["embedding"]))
        answers = pa.table(
            {
                "id": table["row_id"],
                "label": pa.repeat("a label", count),
                "score": pa.array(np.zeros(count, np.float32)),
                "truncated": pa.repeat(False, count),
                "error": pa.nulls(count, pa.string()),
                "place": pa.array(np.arange(rows, rows + count)),
            }
        )
        writer = writer or pq.ParquetWriter(output, answers.schema)
        writer.write_table(answers)
        rows += count
    if writer is not None:
        writer.close()
