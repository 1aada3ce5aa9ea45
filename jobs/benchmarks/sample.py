"""What reading more of a corpus teaches its labels: accuracy by the number of texts read.

Each set is halved. One half is enlarged to a corpus of any size by smoothing: to a vector of it a
part of the difference of two others with the same label is added, which keeps each label's mean and
the directions in which it varies. Labels are fitted to it, and answer the other half, which is real
and has no part in it.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from jobs.benchmarks.corpora import SETS, Bench, Corpus, accuracy, read_set
from jobs.benchmarks.records import Benchmark, Measured
from jobs.benchmarks.rounds import Figure, Figures

NOISE = 0.3
"""How much of the difference is added."""


class SampleBenchmark(Benchmark):
    """Settings of `benchmark.py sample`."""

    data: Path
    """Folder with the sets."""
    sets: dict[str, int] = {
        name: SETS[name] for name in ("ag_news", "huffpost_headlines_balanced", "clinc150")
    }
    """Sets, and how many rows of each at most."""
    rows: list[int] = [1000, 10_000, 100_000, 1_000_000]
    """Texts that a fit reads."""
    cache: Path = Path("runs/benchmark-adaptation")
    """Where vectors are kept."""


def benchmark_sample(config: SampleBenchmark) -> Measured:
    """Accuracy by the number of texts read, and seconds of each fit.

    Raises:
        DataError: a set is not in `data`.
    """
    bench = Bench(config.cache)
    figures: Figures = {"accuracy with so many texts, %": {}, "seconds of the fit": {}}
    for name, most in config.sets.items():
        corpus = read_set(bench, config.data, name, most)
        random = np.random.default_rng(3)
        first_N = random.random(len(corpus.targets_N)) < 0.5
        real, held = (corpus.take(np.flatnonzero(half_N)) for half_N in (first_N, ~first_N))
        accuracies = {"none": Figure.of(bench.cosine(held), "%")}
        seconds: dict[str, Figure] = {}
        for rows in config.rows:
            enlarged = _enlarged(real, rows, random)
            started = time.perf_counter()
            fitted = bench.adapt(enlarged)
            seconds[f"{rows:,}"] = Figure.of(time.perf_counter() - started, "s", "less")
            right = accuracy(fitted.scores(held.vectors_ND), held.targets_N)
            accuracies[f"{rows:,}"] = Figure.of(right, "%")
        row = f"{name}, {len(corpus.labels)} labels"
        for table, cells in zip(figures.values(), (accuracies, seconds)):
            table[row] = cells
    return Measured(figures)


def _enlarged(corpus: Corpus, rows: int, random: np.random.Generator) -> Corpus:
    """So many rows like those of a corpus."""
    order = np.argsort(corpus.targets_N, kind="stable")
    sizes_K = np.bincount(corpus.targets_N, minlength=len(corpus.labels))
    starts_K = np.cumsum(sizes_K) - sizes_K
    chosen = random.integers(len(order), size=rows)
    targets_N = corpus.targets_N[chosen]
    others = [
        order[starts_K[targets_N] + (random.random(rows) * sizes_K[targets_N]).astype(int)]
        for _ in range(2)
    ]
    vectors_ND = corpus.vectors_ND[others[0]]
    vectors_ND -= corpus.vectors_ND[others[1]]
    vectors_ND *= NOISE
    vectors_ND += corpus.vectors_ND[chosen]
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return Corpus(corpus.name, vectors_ND, targets_N, corpus.labels)
