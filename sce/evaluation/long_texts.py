"""What it is worth to read long texts whole: beginnings of them beside their chunks, by each way of
pooling these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sce.evaluation.folds import share_out
from sce.evaluation.metrics import (
    ReliabilityBin,
    bootstrap_interval,
    correct,
    ece,
    nll,
    reliability,
)
from sce.evaluation.tables import Table, bounds, number, percent
from sce.labels import LabelSet
from sce.model.answers import Answers
from sce.model.options import POOLINGS, Pooling, Scoring
from sce.model.pooling import ChunkVectors

Vectors = np.ndarray | ChunkVectors
Answer = Callable[[Vectors, LabelSet, Scoring], Answers]


@dataclass(frozen=True)
class Reading:
    """How well texts are answered by one method, read in one way.

    Attributes:
        method: "sce" or "cosine".
        reading: which part of each text is read, in words.
        vectors: that are scored for a text, on average.
        chosen: accuracy on the half of the rows that settings may be chosen on.
        accuracy, low, high: on the other half, with its 95 % interval.
        nll, ece: there too.
        bins: of the reliability diagram of the best labels, there too.
    """

    method: str
    reading: str
    vectors: float
    chosen: float
    accuracy: float
    low: float
    high: float
    nll: float
    ece: float
    bins: list[ReliabilityBin] = field(default_factory=list)


def compare_readings(
    readings: Mapping[str, Vectors],
    methods: Mapping[str, Answer],
    texts: Sequence[str],
    labels: Sequence[str],
    label_set: LabelSet,
    seed: int = 0,
) -> list[Reading]:
    """Every method on every reading; of chunks by each pooling.

    Args:
        readings: vectors of the texts by what was read of them.
        labels: the right one of each text.
    """
    y_N = np.array([label_set.index(name) for name in labels])
    other_N = share_out(texts, labels, seed) == 1
    found = []
    for method, answer in methods.items():
        for what, vectors in readings.items():
            chunked = isinstance(vectors, ChunkVectors)
            pooled: Sequence[Pooling | None] = POOLINGS if chunked else (None,)  # type: ignore[assignment]
            for pooling in pooled:
                scoring = Scoring(return_scores=True, pooling=pooling)
                scores_M = answer(vectors, label_set, scoring).scores_M
                assert scores_M is not None
                p_NK = scores_M.reshape(len(y_N), -1).astype(np.float64)
                right_N = correct(p_NK, y_N)
                rows = len(vectors.vectors_CD) if isinstance(vectors, ChunkVectors) else len(y_N)
                found.append(
                    Reading(
                        method,
                        what if pooling is None else f"{what}, {pooling}",
                        rows / len(y_N),
                        float(right_N[~other_N].mean()),
                        float(right_N[other_N].mean()),
                        *bootstrap_interval(right_N[other_N], seed=seed),
                        nll(p_NK[other_N], y_N[other_N]),
                        ece(p_NK[other_N], y_N[other_N]),
                        reliability(p_NK[other_N].max(axis=1), right_N[other_N]),
                    )
                )
    return found


def to_table(found: Sequence[Reading], title: str) -> Table:
    """A line for each."""
    columns = ["tokens read", "method", "vectors", "choice", "accuracy", "95 %", "nll", "ece"]
    rows = [
        [
            one.reading,
            one.method,
            number(one.vectors, 1),
            percent(one.chosen),
            percent(one.accuracy),
            bounds(one.low, one.high),
            number(one.nll, 3),
            number(one.ece, 3),
        ]
        for one in found
    ]
    caption = "choice: accuracy on the half of the rows to choose by; the rest on the other half"
    return Table(columns, rows, title=title, caption=caption, left=("tokens read", "method"))


def to_records(found: Sequence[Reading]) -> list[dict[str, Any]]:
    """As JSON has them."""
    return [asdict(one) for one in found]


def to_curves(found: Sequence[Reading]) -> dict[str, tuple[float, list[ReliabilityBin]]]:
    """Of the method that is measured, what `plots.reliability_figure` draws."""
    return {one.reading: (one.ece, one.bins) for one in found if one.method == found[0].method}
