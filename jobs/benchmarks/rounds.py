"""What the benchmarks share: sides that are measured in turn, figures with their spread, tables.

A round goes through the sides and back (A, B, B, A), so what drifts while it runs is as much one
side's as the other's. Compare ratios, of one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Better = Literal["more", "less"]


@dataclass(frozen=True)
class Figure:
    """What was measured, once or several times. With more than one value the spread is from the
    least to the most.

    Attributes:
        better: whether more of it is better, or less.
    """

    values: tuple[float, ...]
    unit: str
    better: Better = "more"

    @classmethod
    def of(cls, values: Sequence[float] | float, unit: str, better: Better = "more") -> Figure:
        given = values if isinstance(values, Sequence) else [values]
        return cls(tuple(map(float, given)), unit, better)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def scaled(self, by: float, unit: str) -> Figure:
        """The same in another unit."""
        return Figure(tuple(value * by for value in self.values), unit, self.better)

    def __str__(self) -> str:
        spread = f" ({number(self.low)}–{number(self.high)})" if len(self.values) > 1 else ""
        return f"{number(self.median)}{spread}"


Figures = dict[str, dict[str, dict[str, Figure | str]]]
"""By table, row and column; a text stands beside the figures and is compared with nothing."""


@dataclass(frozen=True)
class Turns:
    """What each side gave, two values a round, or one where nothing was measured on the way
    back."""

    values: Mapping[str, Sequence[float]]
    rounds: int

    def figure(self, side: str, unit: str, better: Better = "more") -> Figure:
        return Figure.of(self.values[side], unit, better)

    def ratio(self, side: str, over: str, better: Better = "more") -> Figure:
        """Of one side's mean to another's, round by round."""
        ratios = zip(self._sums(side), self._sums(over), strict=True)
        return Figure.of([one / other for one, other in ratios], "ratio", better)

    def _sums(self, side: str) -> list[float]:
        each = len(self.values[side]) // self.rounds
        return [sum(self.values[side][i * each : (i + 1) * each]) for i in range(self.rounds)]


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int, and_back: bool = True) -> Turns:
    """Measure every side, one after another and back, so many times.

    Args:
        sides: each call measures once.
        and_back: False for what takes long and does not drift: peaks of memory.
    """
    values: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in [*sides, *(reversed(list(sides)) if and_back else ())]:
            values[side].append(sides[side]())
    return Turns(values, rounds)


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def each_figure(figures: Figures) -> Iterator[tuple[str, Figure]]:
    """With its name: table, row, column."""
    for table, rows in figures.items():
        for row, columns in rows.items():
            for column, figure in columns.items():
                if isinstance(figure, Figure):
                    yield " / ".join(filter(None, (table, row, column))), figure


def figure_tables(figures: Figures) -> str:
    """Every table in Markdown, medians with their spread."""
    return "\n\n".join(_table(title, rows) for title, rows in figures.items())


def _table(title: str, rows: Mapping[str, Mapping[str, Figure | str]]) -> str:
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [[row, *(str(cells.get(c, "")) for c in columns)] for row, cells in rows.items()]
    return markdown_table([title, *columns], lines)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, its first column set left and the others right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float) -> str:
    """With three digits that count, large ones whole."""
    size = abs(value)
    if size >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.3g}"
