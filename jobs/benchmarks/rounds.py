"""What the benchmarks share: both sides of a ratio in turn, and the tables that show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Rounds:
    """A rate for each round, and of the bare loop one before the first round and after each."""

    rates: list[float]
    bare: list[float]

    def summary(self) -> dict[str, Any]:
        """`ratios` of each rate to the mean of the bare ones around it; `ratio`, their median."""
        ratios = [2 * rate / (a + b) for rate, a, b in zip(self.rates, self.bare, self.bare[1:])]
        return {"ratios": [round(one, 3) for one in ratios], "ratio": round(median(ratios), 3)}


def beside_bare(rate: Callable[[], float], bare: Callable[[], float], rounds: int) -> Rounds:
    """Measure a side between two measurements of the bare loop, so that a noisy machine is noisy
    for both. Each call measures once and returns a rate."""
    rates, bares = [], [bare()]
    for _ in range(rounds):
        rates.append(rate())
        bares.append(bare())
    return Rounds(rates, bares)


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, its first column set left and the others right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
