"""What a shortlist costs in accuracy and saves in time, on labelled rows with many labels."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from pydantic import Field

from sce.config import JobConfig
from sce.datasets.labelled import read_labelled
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError
from sce.labels import LabelSet
from sce.model.settings import EXACT
from sce.predictor import Predictor
from sce.storage import Place


class ShortlistBenchmark(JobConfig):
    """Settings of `benchmark.py shortlist`."""

    model: str
    """Folder, URI or hub id of a trained model."""
    labelled: Place
    """Labelled rows: JSONL, CSV or Parquet with `text` and `label`."""
    sizes: list[int] = [5, 10, 25, 50, 100]
    """How many labels are contextualised; sizes of all labels or more are left out."""
    rounds: int = Field(default=3, ge=1)
    embedder: EmbedderConfig | None = None


def benchmark_shortlist(config: ShortlistBenchmark) -> dict[str, Any]:
    """Accuracy, share of the exact answers that stay, and texts a second against exact.

    Raises:
        InputError: the model or the rows cannot be used.
    """
    texts, names, labels = read_labelled(config.labelled)
    sizes = [size for size in config.sizes if 1 <= size < len(labels)]
    if not sizes:
        raise ConfigError(f"sizes: none is from 1 to {len(labels) - 1}, below all labels.")
    exact = Predictor.from_pretrained(config.model, config.embedder, shortlist_above=EXACT)
    vectors_ND = exact.embedder.embed(texts).vectors
    truth_N = np.array([labels.index(name) for name in names])
    answers_N, _ = _timed(exact, vectors_ND, labels)
    found: dict[str, Any] = {
        "rows": len(texts),
        "labels": len(labels),
        "exact_accuracy": _percent(answers_N == truth_N),
        "shortlist": {},
    }
    model = exact.model, exact.embedder, exact.tokenizer
    for size in sizes:
        short = Predictor(*model, shortlist_above=size, shortlist_size=size)
        ratios = []
        for _ in range(config.rounds):
            _, before = _timed(exact, vectors_ND, labels)
            short_N, seconds = _timed(short, vectors_ND, labels)
            ratios.append(before / seconds)
        found["shortlist"][size] = {
            "accuracy": _percent(short_N == truth_N),
            "same_answers": _percent(short_N == answers_N),
            "times_as_fast": round(float(np.median(ratios)), 2),
        }
    return found


def _timed(
    predictor: Predictor, vectors_ND: np.ndarray, labels: LabelSet
) -> tuple[np.ndarray, float]:
    """The place of each row's label, and the seconds that the answers took."""
    predictor.answer(vectors_ND[:8], labels)  # the label vectors
    started = time.perf_counter()
    best_N = predictor.answer(vectors_ND, labels).top_NT[:, 0]
    return best_N, time.perf_counter() - started


def _percent(right_N: np.ndarray) -> float:
    return round(100 * float(right_N.mean()), 2)
