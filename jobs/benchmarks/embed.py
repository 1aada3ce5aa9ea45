"""Measures what Ray costs: the embed job's path against the bare embedder on equal batches."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from itertools import product

import pyarrow as pa
import pyarrow.json as paj
import pyarrow.parquet as pq
from pydantic import Field

from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import in_turn
from sce.bulk.corpus import Columns, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.reading import BLOCK_ROWS
from sce.datasets.starter import read_starter
from sce.distributed.embed import embed_corpus
from sce.distributed.resources import ActorPlan, embed_actors, use_threads
from sce.distributed.settings import ResourcesConfig
from sce.distributed.stage import ACTOR_CPUS
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError
from sce.storage import Place, fetch


class EmbedBenchmark(Benchmark):
    """Settings of `benchmark.py embed`."""

    rows: int = Field(default=2 * BLOCK_ROWS, ge=1)
    """Distinct texts to embed."""
    rounds: int = Field(default=3, ge=1)
    """In each both sides run twice."""
    texts_file: Place | None = None
    """JSON lines with a field `text`; by default the starter corpus."""
    embedder: EmbedderConfig = EmbedderConfig()
    resources: ResourcesConfig = ResourcesConfig()


def benchmark_embed(config: EmbedBenchmark) -> Measured:
    """Texts a second of `embed_corpus` and of `TextEmbedder.embed`, side by side.

    Both embed the same texts in the same blocks with the same number of threads. Start-up is
    left out on both sides: Ray's time goes from the start of the first block to the end of
    the last one; meanwhile blocks are read and written, which the bare embedder does not do.
    """
    texts = _texts(config)
    plan = embed_actors(config.resources, default_cpus=ACTOR_CPUS)
    use_threads(plan.threads * plan.actors)
    bare = load_embedder(config.embedder.model_copy(update={"device": plan.device}))
    bare.embed(texts[:64])
    _ray_rate(texts[:64], config, plan)  # starts Ray Data's own actors, once a cluster

    sides = {
        "Ray": partial(_ray_rate, texts, config, plan),
        "bare": partial(_bare_rate, bare, texts),
    }
    turns = in_turn(sides, config.rounds)
    job = {"texts/s": turns.figure("Ray", "texts/s"), "over bare": turns.ratio("Ray", "bare")}
    return Measured(
        {"embedding": {"job on Ray": job, "bare": {"texts/s": turns.figure("bare", "texts/s")}}},
        arithmetic_of(embedder=bare),
        details={"embedder": str(bare.fingerprint), "actors": plan.actors},
        device=plan.device,
    )


def _ray_rate(texts: list[str], config: EmbedBenchmark, plan: ActorPlan) -> float:
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"text": texts}), f"{folder}/texts.parquet")
        corpus, limit = open_corpus([folder]), ErrorLimit(count=0)
        _, done = embed_corpus(corpus, Columns(), f"{folder}/store", config.embedder, plan, limit)
    return done["texts_per_second"]


def _bare_rate(embedder: TextEmbedder, texts: list[str]) -> float:
    started = time.perf_counter()
    for first in range(0, len(texts), BLOCK_ROWS):
        embedder.embed(texts[first : first + BLOCK_ROWS])
    return round(len(texts) / (time.perf_counter() - started), 1)


def _texts(config: EmbedBenchmark) -> list[str]:
    """Distinct real texts; the starter corpus goes on with pairs of its texts."""
    if config.texts_file is not None:
        try:
            found = paj.read_json(fetch(config.texts_file))["text"]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ConfigError(f"texts_file: {config.texts_file}: {error}") from None
        texts = list(dict.fromkeys(found.to_pylist()))
    else:
        texts = list(dict.fromkeys(t for s in read_starter() for t, _ in s.examples))
        single = len(texts)
        for gap, i in product(range(1, single), range(single)):
            if len(texts) >= config.rows:
                break
            texts.append(f"{texts[i]} {texts[(i + gap) % single]}")
    if len(texts) < config.rows:
        raise ConfigError(f"rows: {config.rows} asked for, {len(texts)} distinct texts found.")
    return texts[: config.rows]
