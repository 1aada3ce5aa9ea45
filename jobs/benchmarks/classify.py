"""Measures bulk classification: what a new label set costs from a store and from text, what Ray
adds, how near the cores' limit it comes, and what users would take instead costs.

Every ratio's two sides run in turn in one run, so that a noisy machine is noisy for both. Weights
are random unless a model is given: speed does not depend on them.

Shapes: N rows, D the embedder's dimension.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from jobs.benchmarks.inputs import label_names, make_texts, unit_vectors, write_model, write_store
from jobs.benchmarks.peers import cosine_similarity, gliclass, nli_pipeline
from jobs.benchmarks.process_memory import PeakMemory
from jobs.benchmarks.rounds import beside_bare, markdown_table, seconds_of
from sce.bulk.classifier import AnswerColumns
from sce.bulk.corpus import Columns, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.output import OutputRun
from sce.bulk.reading import read_shard
from sce.config import JobConfig, resolve_output
from sce.distributed.backends import Classification, LocalModel
from sce.distributed.resources import ActorPlan, embed_actors, use_threads
from sce.distributed.settings import ResourcesConfig
from sce.distributed.stage import ACTOR_CPUS, plan_corpus
from sce.distributed.stage import run_stage as run_bulk_stage
from sce.embedding.settings import EmbedderConfig
from sce.evaluation import flops
from sce.evaluation.plots import rates_figure, save
from sce.labels import LabelSet
from sce.predictor import Predictor
from sce.storage import put, write_text
from sce.workflows.tracking import Tracker, TrackingConfig

log = logging.getLogger(__name__)

Rates = dict[int, float]
"""Texts a second by the number of labels."""
PRODUCTS = 20
"""Matrix products between two looks at the clock."""
_new = count()
"""Numbers for label sets that no cache has seen."""


class ClassifyBenchmark(JobConfig):
    """Settings of `benchmark.py classify`."""

    model: str | None = None
    """A trained model; by default random weights of the default recipe."""
    label_counts: list[int] = [2, 10, 50, 100, 300, 1000]
    rows: int = Field(default=50_000, ge=1)
    """Vectors of the store in the Ray job and the loop beside it, at 10 labels."""
    store_seconds: float = Field(default=4.0, gt=0)
    """A round of classifying from the store takes about this long."""
    texts: int = Field(default=512, ge=1)
    """Texts that are embedded in a round."""
    text_tokens: int = Field(default=64, ge=3)
    """Length of a text, special tokens included."""
    rounds: int = Field(default=3, ge=1)
    peers: bool = True
    peer_label_counts: list[int] = [10, 50, 100]
    peer_rows: int = Field(default=32, ge=1)
    """Texts in a round of GLiClass; the NLI pipeline gets fewer where labels are many."""
    ray: bool = True
    """Measure the Ray job."""
    dtype: str = "auto"
    output: Path | None = None
    """Folder for `classify.md` and `classify.png`."""
    embedder: EmbedderConfig = EmbedderConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()


def benchmark_classify(config: ClassifyBenchmark) -> dict[str, Any]:
    """Print the table and return every figure.

    `store` and `text` are new label sets: their labels are embedded within the time measured.
    """
    plan = embed_actors(config.resources, default_cpus=ACTOR_CPUS)
    use_threads(plan.threads * plan.actors)
    with (
        tempfile.TemporaryDirectory() as scratch,
        PeakMemory() as memory,
        Tracker.open(config.tracking, None, "benchmark-classify", {"job": "benchmark"}) as tracker,
    ):
        folder = config.model or write_model(Path(scratch) / "model", config.embedder)
        model = LocalModel.find(folder, config.embedder, config.dtype, exact=False)
        predictor = model.load(plan.device)
        texts = make_texts(predictor, config.texts, config.text_tokens)
        found: dict[str, Any] = {
            "device": plan.device,
            "threads": plan.threads,
            "embedder": str(predictor.embedder.fingerprint),
            "encoder_dtype": str(predictor.model.query_adaptor.weight.dtype),
            "text_tokens": config.text_tokens,
        }
        found |= _measure_ours(config, predictor, texts)
        found |= _measure_limit(config, predictor)
        if config.peers:
            found["peers"] = _measure_peers(config, predictor, texts)
        if config.ray:
            found["ray"] = _measure_ray(config, model, predictor, plan, Path(scratch))
        found["peak_memory_bytes"] = memory.peaks()
        table = _markdown(found)
        figure = rates_figure(_series(found))
        if config.output is not None:
            folder = resolve_output(config.output)
            write_text(folder / "classify.md", table)
            save(figure, Path(scratch) / "classify.png")
            put(Path(scratch) / "classify.png", folder / "classify.png")
        tracker.log_params(config.model_dump(mode="json"))
        figures = pd.json_normalize({"benchmark": found}, sep="/").select_dtypes("number")
        tracker.log_metrics(figures.astype(float).iloc[0].to_dict())
        tracker.log_text(table, "benchmark.md")
        tracker.log_figure(figure, "benchmark.png")
        tracker.log_dict(found, "benchmark.json")
    print(table)
    return found


def _measure_ours(
    config: ClassifyBenchmark, predictor: Predictor, texts: list[str]
) -> dict[str, Any]:
    """From text, from the store, embedding alone and the labels alone, round by round."""
    counts, dimension = config.label_counts, predictor.embedder.dimension
    rows = {}
    for k in counts:  # warm up, and see how many rows fill a round
        probe = unit_vectors(max(64, 20_000 // k), dimension)
        seconds = min(_from_store(predictor, probe, k) for _ in range(2))
        rows[k] = max(len(probe), int(config.store_seconds * len(probe) / seconds))
    vectors_ND = predictor.embedder.embed(texts).vectors
    same = _agreement(predictor, texts, vectors_ND, counts)
    embed: list[float] = []
    rounds: dict[int, list[tuple[float, ...]]] = {k: [] for k in counts}
    for _ in range(config.rounds):
        embed.append(len(texts) / seconds_of(lambda: predictor.embedder.embed(texts)))
        for k in counts:
            queries_ND = unit_vectors(rows[k], dimension)
            seconds = _from_store(predictor, queries_ND[:1], k)
            store = rows[k] / _from_store(predictor, queries_ND, k)
            text = len(texts) / _from_text(predictor, texts, k)
            rounds[k].append((seconds, store, text, store / text))
    medians = {k: [median(values) for values in zip(*found)] for k, found in rounds.items()}
    return {
        "embed": median(embed),
        "text": {k: found[2] for k, found in medians.items()},
        "store": {k: found[1] for k, found in medians.items()},
        "store_rows": rows,
        "label_set_seconds": {k: found[0] for k, found in medians.items()},
        "store_over_text": {k: round(found[3], 2) for k, found in medians.items()},
    } | same


def _agreement(
    predictor: Predictor, texts: list[str], vectors_ND: np.ndarray, counts: Sequence[int]
) -> dict[str, Any]:
    """Whether text and store give the same answers."""
    same, gap = 0, 0.0
    for k in counts:
        labels = label_names(k, next(_new))
        one = predictor.predict(texts, labels)
        other = predictor.predict(embeddings=vectors_ND, labels=labels)
        same += sum(a.label == b.label for a, b in zip(one, other, strict=True))
        gap = max(gap, *(abs(a.score - b.score) for a, b in zip(one, other, strict=True)))
    return {"same_answers": f"{same} of {len(texts) * len(counts)}", "largest_score_gap": gap}


def _from_store(predictor: Predictor, queries_ND: np.ndarray, label_count: int) -> float:
    """Seconds to answer vectors with a new label set."""
    labels = LabelSet.parse(label_names(label_count, next(_new)))
    return seconds_of(lambda: predictor.answer(queries_ND, labels))


def _from_text(predictor: Predictor, texts: list[str], label_count: int) -> float:
    """Seconds to answer texts with a new label set."""
    labels = label_names(label_count, next(_new))
    return seconds_of(lambda: predictor.predict(texts, labels))


def _measure_limit(config: ClassifyBenchmark, predictor: Predictor) -> dict[str, Any]:
    """What share of the device's rate of matrix products the store path reaches at 10 labels,
    counting the operations of the plain forward pass, 2 for a multiplication and addition."""
    weight, dimension = predictor.model.query_adaptor.weight, predictor.embedder.dimension
    a = flops.architecture_of(predictor.model.encoder.config)
    left = torch.randn(2048, a.d, dtype=weight.dtype, device=weight.device)
    right = torch.randn(a.d, a.d_ff, dtype=weight.dtype, device=weight.device)
    queries_ND, labels = unit_vectors(2048, dimension), label_names(10, next(_new))
    predictor.answer(queries_ND, labels)
    # The ten labels and the query through the encoder, and the affine map of the query.
    operations = flops.exact_forward(a, 11) + 2 * a.d * dimension
    product_operations = PRODUCTS * 2 * len(left) * a.d * a.d_ff
    products, passes = [], []
    with torch.inference_mode():
        for _ in range(5 * config.rounds):
            products.append(product_operations / seconds_of(lambda: _products(left, right)))
            seconds = seconds_of(lambda: predictor.answer(queries_ND, labels))
            passes.append(len(queries_ND) * operations / seconds)
    shares = [done / limit for done, limit in zip(passes, products)]
    return {
        "matmul_gflops": round(median(products) / 1e9, 1),
        "store_gflops": round(median(passes) / 1e9, 1),
        "share_of_matmul_rate": round(median(shares), 3),
    }


def _products(left: torch.Tensor, right: torch.Tensor) -> None:
    for _ in range(PRODUCTS):
        torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize()


def _measure_peers(
    config: ClassifyBenchmark, predictor: Predictor, texts: list[str]
) -> dict[str, Any]:
    """A new label set on texts that are known: ours from the store, the others from the text."""
    device = predictor.model.query_adaptor.weight.device.type
    peers: dict[str, tuple[Any, Callable[[int], int]]] = {
        "sentence-transformers cosine": (cosine_similarity(device), lambda k: len(texts)),
        "GLiClass": (gliclass(device), lambda k: config.peer_rows),
        "NLI pipeline": (nli_pipeline(device), lambda k: max(2, config.peer_rows * 10 // k // 2)),
    }
    kinds = ("texts_per_second", "our_store_over_theirs", "our_text_over_theirs")
    found: dict[str, dict[str, Rates]] = {kind: {name: {} for name in peers} for kind in kinds}
    for k in config.peer_label_counts:
        queries_ND = unit_vectors(max(256, 100_000 // k), predictor.embedder.dimension)
        for name, (peer, rows) in peers.items():
            some, names = texts[: rows(k)], label_names(k, next(_new))
            peer(some[:2], names)
            rounds = []
            for _ in range(config.rounds):
                theirs = len(some) / seconds_of(partial(peer, some, names))
                store = len(queries_ND) / _from_store(predictor, queries_ND, k)
                text = len(texts) / _from_text(predictor, texts, k)
                rounds.append((theirs, store / theirs, text / theirs))
            for kind, values in zip(kinds, zip(*rounds), strict=True):
                found[kind][name][k] = round(median(values), 3)
            log.info("%s, %d labels: %.2f texts/s", name, k, found[kinds[0]][name][k])
    return found


def _measure_ray(
    config: ClassifyBenchmark,
    model: LocalModel,
    predictor: Predictor,
    plan: ActorPlan,
    scratch: Path,
) -> dict[str, Any]:
    """The job from a store at 10 labels beside a plain loop over the same files."""
    store = scratch / "store"
    write_store(store, predictor.embedder.fingerprint, config.rows)
    labels = LabelSet.parse(label_names(10, next(_new)))
    columns = Columns(text=None, embedding="embedding", id="row_id")
    corpus = open_corpus([str(store)])
    shards = plan_corpus(corpus, columns)
    stage = Classification(model, labels, columns, AnswerColumns()).stage(plan, "parquet")

    def by_ray() -> float:
        run = OutputRun.open(str(scratch / "answers"), {"benchmark": 1})
        limit = ErrorLimit(count=0)
        work = run_bulk_stage(run, shards, stage, plan, limit, "benchmark").work
        shutil.rmtree(scratch / "answers")
        return work.rows_per_second

    def by_loop() -> float:
        started = time.perf_counter()
        for shard in shards:
            for block in read_shard(shard, columns):
                vectors = block["embedding"].combine_chunks().flatten().to_numpy()
                predictor.answer(vectors.reshape(-1, predictor.embedder.dimension), labels)
        return config.rows / (time.perf_counter() - started)

    by_loop()
    rounds = beside_bare(by_ray, by_loop, config.rounds)
    return {
        "rows": config.rows,
        "job": [round(rate, 1) for rate in rounds.rates],
        "loop": [round(rate, 1) for rate in rounds.bare],
    } | rounds.summary()


def _series(found: dict[str, Any]) -> dict[str, Rates]:
    series = {"SCE from the store": found["store"], "SCE from text": found["text"]}
    return series | found.get("peers", {}).get("texts_per_second", {})


def _markdown(found: dict[str, Any]) -> str:
    """Texts a second by number of labels, and the ratios."""
    series, peers, seconds = _series(found), found.get("peers", {}), found["label_set_seconds"]
    counts = sorted({k for rates in series.values() for k in rates})
    numbers = {"store over text": found["store_over_text"]}
    for side in ("store", "text"):
        over = peers.get(f"our_{side}_over_theirs", {})
        numbers |= {f"{side} over {name}": rates for name, rates in over.items()}
    cells = [
        *([name, *(_cell(rates.get(k)) for k in counts)] for name, rates in series.items()),
        ["seconds to embed the labels", *(_seconds(seconds.get(k)) for k in counts)],
        *([name, *(_cell(rates.get(k)) for k in counts)] for name, rates in numbers.items()),
    ]
    lines = [
        f"Texts a second, {found['text_tokens']} tokens a text, {found['threads']} threads on "
        f"{found['device']}, encoder in {found['encoder_dtype'].removeprefix('torch.')}; a new "
        "label set each time, the embedding of its labels included.",
        "",
        markdown_table(["", *(f"K = {k:,}" for k in counts)], cells),
        "",
        f"Embedding alone: {found['embed']:,.0f} texts a second. Store and text gave "
        f"{found['same_answers']} equal answers, largest difference of a score "
        f"{found['largest_score_gap']:.1e}.",
        f"At 10 labels the store path does {found['store_gflops']} GFLOP/s, "
        f"{found['share_of_matmul_rate']:.0%} of the {found['matmul_gflops']} of a bare matrix "
        "product (operations of the plain forward pass).",
    ]
    if ray := found.get("ray"):
        ratios = ", ".join(map(str, ray["ratios"]))
        lines.append(
            f"Ray job over bare loop, {ray['rows']:,} rows: {ray['ratio']} (rounds {ratios})."
        )
    peaks = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in found["peak_memory_bytes"].items())
    return "\n".join([*lines, f"Peak memory: {peaks}."]) + "\n"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
