"""Measures bulk classification: what a new label set costs from a store and from text, what Ray
adds, how near the cores' limit it comes, and what users would take instead costs.

Every ratio's two sides run in turn in one run, so that a noisy machine is noisy for both. Weights
are random unless a model is given: speed does not depend on them.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from jobs.benchmarks.peers import cosine_similarity, gliclass, nli_pipeline
from jobs.benchmarks.process_memory import PeakMemory
from sce.bulk.classifier import AnswerColumns
from sce.bulk.corpus import Columns, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.output import OutputRun
from sce.bulk.reading import read_shard
from sce.config import JobConfig, resolve_output
from sce.datasets.starter import read_starter
from sce.distributed.backends import Classification, LocalModel
from sce.distributed.resources import ActorPlan, ResourcesConfig, embed_actors, use_threads
from sce.distributed.stage import ACTOR_CPUS, plan_corpus
from sce.distributed.stage import run_stage as run_bulk_stage
from sce.embedding.embedder import embedder_fingerprint
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import (
    Manifest,
    embedding_column,
    embeddings_schema,
    write_manifest,
    write_part,
)
from sce.evaluation.plots import rates_figure, save
from sce.labels import LabelSet
from sce.predictor import Predictor
from sce.storage import put, write_text
from sce.training.fresh_model import ModelConfig, build_model
from sce.workflows.tracking import Tracker, TrackingConfig

log = logging.getLogger(__name__)

Rates = dict[int, float]
"""Texts a second by the number of labels."""


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
        model = _model(config, Path(scratch))
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
        tracker.log_metrics(_flat(found))
        tracker.log_text(table, "benchmark.md")
        tracker.log_figure(figure, "benchmark.png")
        tracker.log_dict(found, "benchmark.json")
    print(table)
    return found


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
    """A label set that was never seen before."""
    return [f"topic {salt} number {i}" for i in range(count)]


def unit_vectors(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    vectors_ND = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def _model(config: ClassifyBenchmark, scratch: Path) -> LocalModel:
    folder = config.model
    if folder is None:
        fingerprint = embedder_fingerprint(config.embedder).to_dict()
        fresh = build_model(ModelConfig(), fingerprint, 0.0, seed=0)
        folder = str(scratch / "model")
        fresh.model.save_pretrained(folder)
    return LocalModel.find(folder, config.embedder, config.dtype, exact=False)


class _Salt:
    """Numbers for label sets that no cache has seen."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self) -> int:
        self._next += 1
        return self._next


_salt = _Salt()


def _measure_ours(
    config: ClassifyBenchmark, predictor: Predictor, texts: list[str]
) -> dict[str, Any]:
    """From text, from the store, embedding alone and the labels alone, round by round."""
    dimension = predictor.embedder.dimension
    embed_rates: list[float] = []
    text_rates: dict[int, list[float]] = {k: [] for k in config.label_counts}
    store_rates: dict[int, list[float]] = {k: [] for k in config.label_counts}
    label_seconds: dict[int, list[float]] = {k: [] for k in config.label_counts}
    rows_of = {}
    vectors_ND = predictor.embedder.embed(texts).vectors
    for k in config.label_counts:  # warm up, and see how many rows fill a round
        probe = unit_vectors(max(64, 20_000 // k), dimension)
        seconds = min(_seconds(partial(_answer, predictor, probe, k)) for _ in range(2))
        rows_of[k] = max(len(probe), int(config.store_seconds * len(probe) / seconds))
    same = _agreement(predictor, texts, vectors_ND, config.label_counts)
    for _ in range(config.rounds):
        seconds = _seconds(lambda: predictor.embedder.embed(texts))
        embed_rates.append(len(texts) / seconds)
        for k in config.label_counts:
            queries_ND = unit_vectors(rows_of[k], dimension)
            label_seconds[k].append(_seconds(partial(_answer, predictor, queries_ND[:1], k)))
            store_rates[k].append(
                len(queries_ND) / _seconds(partial(_answer, predictor, queries_ND, k))
            )
            text_rates[k].append(
                len(texts) / _seconds(lambda: predictor.predict(texts, label_names(k, _salt())))  # noqa: B023
            )
    return {
        "embed": median(embed_rates),
        "text": {k: median(rates) for k, rates in text_rates.items()},
        "store": {k: median(rates) for k, rates in store_rates.items()},
        "store_rows": rows_of,
        "label_set_seconds": {k: median(found) for k, found in label_seconds.items()},
        "store_over_text": {
            k: round(median([s / t for s, t in zip(store_rates[k], text_rates[k])]), 2)
            for k in config.label_counts
        },
    } | same


def _agreement(
    predictor: Predictor, texts: list[str], vectors_ND: np.ndarray, counts: Sequence[int]
) -> dict[str, Any]:
    """Whether text and store give the same answers."""
    same, gap = 0, 0.0
    for k in counts:
        labels = label_names(k, _salt())
        one = predictor.predict(texts, labels)
        other = predictor.predict(embeddings=vectors_ND, labels=labels)
        same += sum(a.label == b.label for a, b in zip(one, other, strict=True))
        gap = max(gap, *(abs(a.score - b.score) for a, b in zip(one, other, strict=True)))
    return {"same_answers": f"{same} of {len(texts) * len(counts)}", "largest_score_gap": gap}


def _answer(predictor: Predictor, queries_ND: np.ndarray, label_count: int) -> None:
    predictor.answer(queries_ND, LabelSet.parse(label_names(label_count, _salt())))


def _measure_limit(config: ClassifyBenchmark, predictor: Predictor) -> dict[str, Any]:
    """What share of the device's rate of matrix products the store path reaches at 10 labels,
    counting the operations of the plain forward pass, 2 for a multiplication and addition."""
    weight = predictor.model.query_adaptor.weight
    layers = len(predictor.model.encoder.layer)  # type: ignore[union-attr, arg-type]
    width = predictor.model.config.encoder["hidden_size"]
    inner = predictor.model.config.encoder["intermediate_size"]
    a = torch.randn(2048, width, dtype=weight.dtype, device=weight.device)
    b = torch.randn(width, inner, dtype=weight.dtype, device=weight.device)
    queries_ND, labels = unit_vectors(2048, predictor.embedder.dimension), label_names(10, _salt())
    predictor.answer(queries_ND, labels)
    tokens = 11
    operations = 2 * layers * (4 * tokens * width**2 + 2 * tokens * width * inner)
    operations += 2 * layers * 2 * tokens**2 * width + 2 * width * queries_ND.shape[1]
    products, passes = [], []
    with torch.inference_mode():
        for _ in range(5 * config.rounds):
            products.append(2 * a.shape[0] * width * inner * 20 / _seconds(lambda: _products(a, b)))
            rate = len(queries_ND) / _seconds(lambda: predictor.answer(queries_ND, labels))
            passes.append(rate * operations)
    shares = [done / limit for done, limit in zip(passes, products)]
    return {
        "matmul_gflops": round(median(products) / 1e9, 1),
        "store_gflops": round(median(passes) / 1e9, 1),
        "share_of_matmul_rate": round(median(shares), 3),
    }


def _products(a: torch.Tensor, b: torch.Tensor) -> None:
    for _ in range(20):
        torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize()


def _measure_peers(
    config: ClassifyBenchmark, predictor: Predictor, texts: list[str]
) -> dict[str, Any]:
    """A new label set on texts that are known: ours from the store, the others from the text."""
    device = predictor.model.query_adaptor.weight.device.type
    peers = {
        "sentence-transformers cosine": (cosine_similarity(device), lambda k: len(texts)),
        "GLiClass": (gliclass(device), lambda k: config.peer_rows),
        "NLI pipeline": (nli_pipeline(device), lambda k: max(2, config.peer_rows * 10 // k // 2)),
    }
    rates: dict[str, Rates] = {name: {} for name in peers}
    store_ratios: dict[str, Rates] = {name: {} for name in peers}
    text_ratios: dict[str, Rates] = {name: {} for name in peers}
    for k in config.peer_label_counts:
        queries_ND = unit_vectors(max(256, 100_000 // k), predictor.embedder.dimension)
        for name, (peer, rows) in peers.items():
            some = texts[: rows(k)]
            names = label_names(k, 0)
            peer(some[:2], names)
            found: list[tuple[float, float, float]] = []
            for _ in range(config.rounds):
                theirs = len(some) / _seconds(partial(peer, some, names))
                store = len(queries_ND) / _seconds(partial(_answer, predictor, queries_ND, k))
                ours = len(texts) / _seconds(
                    lambda: predictor.predict(texts, label_names(k, _salt()))  # noqa: B023
                )
                found.append((theirs, store / theirs, ours / theirs))
            rates[name][k], store_ratios[name][k], text_ratios[name][k] = (
                round(median(column), 3) for column in zip(*found)
            )
            log.info("%s, %d labels: %.2f texts/s", name, k, rates[name][k])
    return {
        "texts_per_second": rates,
        "our_store_over_theirs": store_ratios,
        "our_text_over_theirs": text_ratios,
    }


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
    labels = LabelSet.parse(label_names(10, _salt()))
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
    loops, rays = [by_loop()], []
    for _ in range(config.rounds):
        rays.append(by_ray())
        loops.append(by_loop())
    ratios = [2 * ray / (a + b) for ray, a, b in zip(rays, loops, loops[1:])]
    return {
        "rows": config.rows,
        "job": [round(rate, 1) for rate in rays],
        "loop": [round(rate, 1) for rate in loops],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(median(ratios), 3),
    }


def write_store(
    folder: Path, fingerprint: EmbedderFingerprint, rows: int, part_rows: int = 65_536
) -> None:
    """A store of random unit vectors with the ids r0, r1, ..."""
    folder.mkdir(parents=True)
    schema = embeddings_schema(fingerprint.dimension)
    parts = []
    for first in range(0, rows, part_rows):
        count = min(part_rows, rows - first)
        ids = pa.array([f"r{i}" for i in range(first, first + count)])
        vectors = embedding_column(unit_vectors(count, fingerprint.dimension, seed=first))
        parts.append(f"part-{first:09d}.parquet")
        table = pa.Table.from_arrays([ids, ids, vectors, pa.repeat(False, count)], schema=schema)
        write_part(folder / parts[-1], table)
    content = fingerprint.to_dict() | {"id": fingerprint.id}
    write_manifest(folder, Manifest(content, f"random {rows}", rows, 0, 1.0, 1.0, "", parts))


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _series(found: dict[str, Any]) -> dict[str, Rates]:
    series = {"SCE from the store": found["store"], "SCE from text": found["text"]}
    return series | found.get("peers", {}).get("texts_per_second", {})


def _markdown(found: dict[str, Any]) -> str:
    """Texts a second by number of labels, and the ratios."""
    series = _series(found)
    counts = sorted({k for rates in series.values() for k in rates})
    lines = [
        f"Texts a second, {found['text_tokens']} tokens a text, {found['threads']} threads on "
        f"{found['device']}, encoder in {found['encoder_dtype'].removeprefix('torch.')}; a new "
        "label set each time, the embedding of its labels included.",
        "",
        "| | " + " | ".join(f"K = {k:,}" for k in counts) + " |",
        "|---|" + "---:|" * len(counts),
    ]
    for name, rates in series.items():
        lines.append(f"| {name} | " + " | ".join(_cell(rates.get(k)) for k in counts) + " |")
    seconds = found["label_set_seconds"]
    lines.append(
        "| seconds to embed the labels | "
        + " | ".join(f"{seconds[k]:.2f}" if k in seconds else "" for k in counts)
        + " |"
    )
    ratios = found["store_over_text"]
    lines.append("| store over text | " + " | ".join(_cell(ratios.get(k)) for k in counts) + " |")
    for name, by_count in found.get("peers", {}).get("our_store_over_theirs", {}).items():
        cells = " | ".join(_cell(by_count.get(k)) for k in counts)
        lines.append(f"| store over {name} | {cells} |")
    for name, by_count in found.get("peers", {}).get("our_text_over_theirs", {}).items():
        cells = " | ".join(_cell(by_count.get(k)) for k in counts)
        lines.append(f"| text over {name} | {cells} |")
    lines += [
        "",
        f"Embedding alone: {found['embed']:,.0f} texts a second. Store and text gave "
        f"{found['same_answers']} equal answers, largest difference of a score "
        f"{found['largest_score_gap']:.1e}.",
        f"At 10 labels the store path does {found['store_gflops']} GFLOP/s, "
        f"{found['share_of_matmul_rate']:.0%} of the {found['matmul_gflops']} of a bare matrix "
        "product (operations of the plain forward pass).",
    ]
    if "ray" in found:
        ray = found["ray"]
        lines.append(
            f"Ray job over bare loop, {ray['rows']:,} rows: {ray['ratio']} (rounds "
            f"{', '.join(map(str, ray['ratios']))})."
        )
    peaks = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in found["peak_memory_bytes"].items())
    return "\n".join([*lines, f"Peak memory: {peaks}."]) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _flat(found: dict[str, Any], prefix: str = "benchmark") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in found.items():
        name = f"{prefix}/{key}"
        if isinstance(value, dict):
            flat |= _flat(value, name)
        elif isinstance(value, (int, float)):
            flat[name] = float(value)
    return flat
