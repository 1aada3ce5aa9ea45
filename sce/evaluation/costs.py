"""What a method takes: operations, seconds, memory.

Operations are counted as the paper does (`sce.evaluation.flops`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from sce.embedding.embedder import TextEmbedder
from sce.evaluation.evaluate import EvaluationSet, ScoreVectors
from sce.evaluation.flops import architecture_of, embedding_sample, mean
from sce.evaluation.peak_memory import peak_bytes, reset_peak

TRAINING_FILE = "training.json"
FLOPS_TEXTS = 20_000
"""Texts at most that are tokenised again for the count of operations."""


@dataclass(frozen=True)
class TrainingCost:
    """What a training took; a model's folder keeps it.

    Attributes:
        rows: of an epoch.
        epochs: that were run, the best one and those after it.
        seconds, flops: of all epochs, validation apart.
        embedding_flops: of embedding the training texts, once; 0 where none are embedded.
        workers: processes, and what they ran on.
    """

    rows: int
    epochs: int
    seconds: float
    flops: float
    embedding_flops: float
    trainable_parameters: int
    workers: str

    @property
    def epoch_seconds(self) -> float | None:
        return self.seconds / self.epochs if self.epochs else None

    def save(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1) + "\n"
        (folder / TRAINING_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainingCost | None:
        """None where the folder says nothing of it."""
        path = folder / TRAINING_FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True)
class FitCost:
    """What it took to adapt a label set to a corpus whose vectors are there: texts that it was
    fitted to, seconds, operations."""

    rows: float
    seconds: float
    flops: float

    @classmethod
    def mean(cls, costs: Sequence[FitCost]) -> FitCost:
        return cls(*(float(np.mean([getattr(c, f.name) for c in costs])) for f in fields(cls)))


def embedding_flops(embedder: TextEmbedder, texts: Sequence[str]) -> float:
    """Operations of embedding all these texts, from a sample of them where there are many."""
    some = texts[:: -(-len(texts) // FLOPS_TEXTS)]
    lengths_N = embedder.tokenise(some).lengths
    cost = partial(embedding_sample, architecture_of(embedder.architecture))
    return mean(cost, lengths_N) * len(texts)


@dataclass(frozen=True)
class AnswerCost:
    """What answers to some rows took: from text to answer, in one process, start-up apart, and from
    a vector that is there (`embedded_`), None where there is no such thing. The memory is that of
    the process that answers, of its GPU where it has one; the device is "cpu" or "cuda"."""

    texts_per_second: float
    embedded_texts_per_second: float | None
    peak_memory_bytes: int
    flops_per_text: float
    embedded_flops_per_text: float | None
    rows: int
    device: str


def answer_cost(
    embedder: TextEmbedder,
    score: ScoreVectors,
    sets: Sequence[EvaluationSet],
    rows: int,
    label_flops: Callable[[int], float],
) -> AnswerCost:
    """Answer some rows of every set from their texts, as many of each as its share, and measure.

    Args:
        rows: in all, about.
        label_flops: operations of one text's answer from its vector, by the number of labels.
    """
    share = min(1.0, rows / sum(map(len, sets)))
    some = [range(max(1, round(len(s) * share))) for s in sets]
    texts = [s.texts[i] for s, places in zip(sets, some, strict=True) for i in places]
    for one in sets:  # the vectors of the labels are there before the clock runs
        score(np.zeros((1, embedder.dimension), np.float32), one.label_set)
    embedding = _embedded(embedder, texts)
    reset_peak(embedder.device)
    started = time.perf_counter()
    first, flops = 0, 0.0
    for one, places in zip(sets, some, strict=True):
        score(embedding.vectors_ND[first : first + len(places)], one.label_set)
        first += len(places)
        flops += len(places) * label_flops(len(one.label_set))
    seconds, size = time.perf_counter() - started, len(texts)
    return AnswerCost(
        texts_per_second=size / (embedding.seconds + seconds),
        embedded_texts_per_second=size / seconds,
        peak_memory_bytes=max(embedding.peak_bytes, peak_bytes(embedder.device)),
        flops_per_text=(embedding.flops + flops) / size,
        embedded_flops_per_text=flops / size,
        rows=size,
        device=embedder.device.type,
    )


@dataclass(frozen=True)
class _Embedding:
    """Vectors of some texts, and what they took."""

    vectors_ND: np.ndarray
    seconds: float
    peak_bytes: int
    flops: float


_EMBEDDED: WeakKeyDictionary[TextEmbedder, dict[tuple[str, ...], _Embedding]] = WeakKeyDictionary()
"""Measured once for all methods that answer the same texts by the vectors of one embedder."""


def _embedded(embedder: TextEmbedder, texts: Sequence[str]) -> _Embedding:
    known, key = _EMBEDDED.setdefault(embedder, {}), tuple(texts)
    if key not in known:
        reset_peak(embedder.device)
        started = time.perf_counter()
        vectors_ND = embedder.embed(texts).vectors
        seconds = time.perf_counter() - started
        flops = embedding_flops(embedder, texts)
        known[key] = _Embedding(vectors_ND, seconds, peak_bytes(embedder.device), flops)
    return known[key]
