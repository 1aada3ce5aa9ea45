"""Which text embedder to take: what each answers and costs, side by side, and a recommendation.

A dearer embedder is recommended where it answers clearly more rows rightly: on the rows that both
answered, each by the best of its own methods, the 95 % interval of the paired difference lies above
0, and the difference is at least `MIN_GAIN`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sce.evaluation.metrics import bootstrap_interval
from sce.evaluation.summaries import ADAPTED, Result
from sce.evaluation.tables import Cell, Table, bounds, number, percent

METHODS = {"cosine": "cosine", "sce": "SCE", ADAPTED: "adapted"}
"""Keys of the methods that stand in the table, and how they are called there."""
MIN_GAIN = 0.01
"""Of accuracy: below a point in a hundred no embedder is worth a multiple of the time."""
TEXTS = 1_000_000


@dataclass(frozen=True)
class MeasuredEmbedder:
    """An embedder with what was measured of it, the same sets for all.

    Attributes:
        name: as it was asked for, such as "mpnet".
        results: of its sets (`sce.evaluation.report`).
        predictions: of all its methods (`sce.evaluation.evaluate.PREDICTIONS`).
        model: folder of the trained model that SCE stands for; None without one.
        parameters: of the embedder.
        texts_per_second: from text to vector and answer, on this machine.
        peak_memory_bytes: of the process that answers, of its GPU where it has one.
        truncated: share of the rows that are longer than the embedder reads.
    """

    name: str
    results: Sequence[Result]
    predictions: pa.Table
    model: str | None
    dimension: int
    max_tokens: int
    parameters: int
    texts_per_second: float
    peak_memory_bytes: int
    truncated: float

    @property
    def hours(self) -> float:
        """For a million texts on this machine."""
        return TEXTS / self.texts_per_second / 3600

    @property
    def methods(self) -> list[str]:
        """Keys of those of `METHODS` that answered every set."""
        return [m for m in METHODS if all(m in result for result in self.results)]

    @property
    def best(self) -> str:
        """Key of the method with the highest mean accuracy over the sets, with all that is known
        of their labels."""
        richest = [r for r in self.results if r["information"] == "all"] or self.results
        means = {m: np.mean([r[m]["accuracy"] for r in richest]) for m in self.methods}
        return max(means, key=means.__getitem__)

    def right(self) -> dict[tuple[str, str], bool]:
        """Whether the best method was right, by set and row, with all information."""
        known = self.predictions.to_pandas()
        if (known["information"] == "all").any():
            known = known[known["information"] == "all"]
        known = known[known["method"] == self.best]
        keys = zip(known["set"], known["row_id"])
        return dict(zip(keys, (known["target"] == known["predicted"]).tolist()))


@dataclass(frozen=True)
class Recommendation:
    """The name of an embedder, and one sentence that says why."""

    name: str
    reason: str


def recommend(measured: Sequence[MeasuredEmbedder], seed: int = 0) -> Recommendation:
    """Of at least one embedder; the fastest unless a slower one is clearly better."""
    fastest, *others = sorted(measured, key=lambda one: one.hours)
    chosen, reason = fastest, f"{fastest.name}: there is no other."
    for one in others:
        mine, theirs = chosen.right(), one.right()
        gain_N = np.array([theirs[key] - right for key, right in mine.items()], float)
        gain = float(gain_N.mean())
        low, high = bootstrap_interval(gain_N, seed=seed)
        figures = f"{percent(gain, '+')} points{bounds(low, high, '+')} on {len(gain_N):,} rows"
        times = f"{one.hours / chosen.hours:.1f} times the time"
        cost = f"{times} ({_hours(one.hours)} rather than {_hours(chosen.hours)} a million texts)"
        pair = (
            f"{one.name} ({METHODS[one.best]}) beside {chosen.name} ({METHODS[chosen.best]}): "
            f"{figures}, for {cost}"
        )
        if low > 0 and gain >= MIN_GAIN:
            chosen, reason = one, f"{pair}."
        elif low > 0:
            reason = f"{pair}. That is clear, but less than {percent(MIN_GAIN)} points."
        else:
            reason = f"{pair}. That is no clear gain."
    return Recommendation(chosen.name, reason)


def accuracy_table(measured: Sequence[MeasuredEmbedder]) -> Table:
    """A group of rows for each set and kind of label information, and for the mean where there are
    several; in it a row for each embedder, a column for each method."""
    methods = [m for m in METHODS if any(m in one.methods for one in measured)]
    rows: list[list[Cell]] = []
    for of_set in zip(*(one.results for one in measured), strict=True):
        first = of_set[0]
        information = ", names alone" if first["group"].endswith("by name") else ""
        rows.append([f"{first['name']}{information}"])
        for one, result in zip(measured, of_set):
            cells = [result[m]["accuracy"] if m in one.methods else None for m in methods]
            rows.append([short_name(one.name), *map(percent, cells)])
    if len(measured[0].results) > 1:
        rows.append(["mean"])
        for one in measured:
            means = [
                float(np.mean([r[m]["accuracy"] for r in one.results]))
                if m in one.methods
                else None
                for m in methods
            ]
            rows.append([short_name(one.name), *map(percent, means)])
    caption = "Percent right. adapted: labels fitted to the texts, without their answers."
    if without := [one.name for one in measured if one.model is None]:
        caption += f" No trained model was found, so no SCE: {', '.join(without)}."
    headings = [METHODS[method] for method in methods]
    return Table(["embedder", *headings], rows, "Accuracy", caption, wrap=False)


def short_name(name: str) -> str:
    """Of a hub id or a folder the last part, for a table."""
    return name.rstrip("/").rpartition("/")[2]


def cost_table(measured: Sequence[MeasuredEmbedder]) -> Table:
    """What each embedder costs on this machine."""
    rows: list[Sequence[Cell]] = [
        ["parameters, millions", *(number(one.parameters / 1e6, 0) for one in measured)],
        ["texts a second", *(number(one.texts_per_second, 1) for one in measured)],
        ["a million texts", *(_hours(one.hours) for one in measured)],
        ["peak memory, GB", *(number(one.peak_memory_bytes / 1e9, 2) for one in measured)],
        [
            "a million vectors, GB",
            *(number(4 * one.dimension * TEXTS / 1e9, 1) for one in measured),
        ],
        ["tokens of a text at most", *(number(one.max_tokens, 0) for one in measured)],
        ["rows cut there, %", *(percent(one.truncated) for one in measured)],
    ]
    names = [short_name(one.name) for one in measured]
    return Table(["on this machine", *names], rows, "Cost")


def to_dict(one: MeasuredEmbedder) -> dict[str, Any]:
    """What a file keeps of an embedder beside its results."""
    return {
        "name": one.name,
        "model": one.model,
        "best": one.best,
        "dimension": one.dimension,
        "max_tokens": one.max_tokens,
        "parameters": one.parameters,
        "texts_per_second": round(one.texts_per_second, 2),
        "hours_per_million_texts": round(one.hours, 3),
        "peak_memory_bytes": one.peak_memory_bytes,
        "truncated": one.truncated,
    }


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
