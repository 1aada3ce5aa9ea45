"""What a shortlist costs in accuracy and saves in time, on labelled rows with many labels."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from pydantic import Field

from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, in_turn
from sce.datasets.labelled import read_labelled
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError
from sce.model.settings import EXACT
from sce.predictor import Predictor
from sce.storage import Place


class ShortlistBenchmark(Benchmark):
    """Settings of `benchmark.py shortlist`."""

    model: str
    """Folder, URI or hub id of a trained model."""
    labelled: Place
    """Labelled rows: JSONL, CSV or Parquet with `text` and `label`."""
    sizes: list[int] = [5, 10, 25, 50, 100]
    """How many labels are contextualised; sizes of all labels or more are left out."""
    rounds: int = Field(default=3, ge=1)
    embedder: EmbedderConfig | None = None


def benchmark_shortlist(config: ShortlistBenchmark) -> Measured:
    """Accuracy, share of the exact answers that stay, and rows a second over exact.

    Raises:
        InputError: the model or the rows cannot be used.
    """
    texts, names, labels = read_labelled(config.labelled)
    sizes = [size for size in config.sizes if 1 <= size < len(labels)]
    if not sizes:
        raise ConfigError(f"sizes: none is from 1 to {len(labels) - 1}, below all labels.")
    exact = Predictor.from_pretrained(config.model, config.embedder, shortlist_above=EXACT)
    parts = exact.model, exact.embedder, exact.tokenizer
    predictors = {"exact": exact} | {
        f"nearest {n}": Predictor(*parts, shortlist_above=n, shortlist_size=n) for n in sizes
    }
    vectors_ND = exact.embedder.embed(texts).vectors
    truth_N = np.array([labels.index(name) for name in names])
    answers = {}

    def rate(side: str) -> float:
        predictor = predictors[side]
        predictor.answer(vectors_ND[:8], labels)  # the label vectors
        started = time.perf_counter()
        answers[side] = predictor.answer(vectors_ND, labels).top_NT[:, 0]
        return len(texts) / (time.perf_counter() - started)

    turns = in_turn({side: partial(rate, side) for side in predictors}, config.rounds)
    rows = {
        side: {
            "accuracy, %": _percent(answers[side] == truth_N),
            "same answers, %": _percent(answers[side] == answers["exact"]),
            "rows/s": turns.figure(side, "rows/s"),
            "over exact": turns.ratio(side, "exact"),
        }
        for side in predictors
    }
    details = {"rows": len(texts), "labels": len(labels)}
    kinds = arithmetic_of(embedder=exact.embedder, encoder=exact.model)
    device = exact.model.query_adaptor.weight.device.type
    return Measured({f"{len(labels)} labels": rows}, kinds, details=details, device=device)


def _percent(right_N: np.ndarray) -> Figure:
    return Figure.of(round(100 * float(right_N.mean()), 2), "%")
