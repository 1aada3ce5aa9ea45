"""Which threshold to classify with: precision against coverage on labelled rows.

A row is answered if its score, the probability of its best label, is at least the threshold.
Coverage is the share of rows that are answered, precision the share of those that are right.

Legend of shapes: N labelled rows, T distinct scores. Scores and thresholds are float32, as in a
bulk output, so that the rows at the threshold are answered there as they are here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.text import Text
from scipy.stats import norm
from sklearn.metrics import confusion_matrix_at_thresholds

from sce.errors import InputError
from sce.evaluation.tables import Table

MIN_ROWS = 100
"""Fewer answered rows than this are called few."""
FEWEST_ROWS = 20
"""A threshold that fewer labelled rows reach is chance, and is not used unasked."""
MAX_ROUNDING = 1e-3
"""A threshold is rounded down to a short decimal, but not by more than this."""
SHOWN_POINTS = 10

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """A threshold and what it gives: rows answered, those of them that are right, and Wilson's 95 %
    interval of the precision."""

    threshold: float
    """The shortest decimal that answers the same labelled rows, so never above the lowest of their
    scores, as float32 or as float64, and at most 0.001 below it."""
    rows: int
    right: int
    coverage: float
    precision: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Every distinct score as a threshold, [T], the lowest first, which answers every row; `rows`
    with at least this score, [T], and those of them whose label is right, [T]."""

    thresholds: NDArray[np.float32]
    rows: IntArray
    right: IntArray

    def __len__(self) -> int:
        return len(self.thresholds)

    @property
    def coverage(self) -> FloatArray:
        """Share of the labelled rows that is answered, [T]."""
        return self.rows / self.rows[0]

    @property
    def precision(self) -> FloatArray:
        """Share of the answered rows that is right, [T]."""
        return self.right / self.rows

    @property
    def interval(self) -> tuple[FloatArray, FloatArray]:
        """95 % bounds of the precision at each threshold by itself, [T] and [T]."""
        return wilson_interval(self.right, self.rows)

    def point(self, index: int) -> Point:
        rows, right = int(self.rows[index]), int(self.right[index])
        low, high = map(float, wilson_interval(right, rows))
        threshold = _short(self.thresholds[index], self.thresholds[index - 1] if index else None)
        return Point(threshold, rows, right, rows / int(self.rows[0]), right / rows, low, high)


@dataclass(frozen=True)
class Choice:
    """The lowest threshold that reaches a precision, and how far to trust it.

    Attributes:
        point: the threshold chosen; None if no threshold reaches the target.
        best: the most precise threshold, of equally precise ones the lowest.
        cautious: the lowest threshold whose lower bound reaches the target, None if none does.
        warnings: what to know before relying on it, a sentence each.
    """

    target_precision: float
    point: Point | None
    best: Point
    cautious: Point | None
    warnings: tuple[str, ...]

    @property
    def threshold(self) -> float:
        """To be compared as `score >= threshold`. Raises `InputError` where none reaches the
        target, which says what precision is within reach; or where too few labelled rows reach it
        to know."""
        if self.point is None:
            raise InputError(self.headline())
        if self.point.rows < FEWEST_ROWS:
            raise InputError(
                f"{self.headline()} That rests on {self.point.rows:,} labelled row(s), too few to "
                f"know ({FEWEST_ROWS} at least): label more rows, lower the target precision, or "
                f"give the threshold itself."
            )
        return self.point.threshold

    def headline(self) -> str:
        """One sentence: the threshold and what it gives, or the best that can be had."""
        target, point = _percent(self.target_precision), self.point or self.best
        precision, coverage = _percent(point.precision), _percent(point.coverage)
        if self.point is None:
            return (
                f"No threshold reaches a precision of {target} on these rows; the best is "
                f"{precision} at threshold {point.threshold}, which answers {coverage} of them "
                f"({point.rows:,})."
            )
        return (
            f"Threshold {point.threshold}: precision {precision} {_interval(point)} for a target "
            f"of {target}, {coverage} of the rows answered ({point.rows:,})."
        )


def precision_coverage(scores_N: ArrayLike, right_N: ArrayLike) -> Curve:
    """The precision and coverage of every threshold that parts two rows (scikit-learn).

    Rows with equal scores are answered together or not at all.

    Args:
        scores_N: probability of each row's best label; taken as float32.
        right_N: whether that label is right; booleans or 0 and 1.

    Raises:
        InputError: no rows.
        ValueError: lengths that differ, a score that is not finite, or a `right` that is neither
            true nor false.
    """
    score_N, given_N = np.asarray(scores_N, dtype=np.float32), np.asarray(right_N)
    if score_N.ndim != 1 or score_N.shape != given_N.shape:
        raise ValueError(
            f"scores [N] and right [N] are needed, got {score_N.shape} and {given_N.shape}."
        )
    if not len(score_N):
        raise InputError("A threshold is chosen on labelled rows: there are none.")
    if not np.isfinite(score_N).all():
        raise ValueError("a score is not a finite number.")
    right = given_N.astype(bool)
    if (right != given_N).any():
        raise ValueError("right holds something that is neither true nor false.")
    _, wrong_T, _, right_T, falling_T = confusion_matrix_at_thresholds(right, score_N)
    return Curve(
        np.ascontiguousarray(falling_T[::-1], dtype=np.float32),
        (wrong_T + right_T)[::-1].astype(np.int64),
        right_T[::-1].astype(np.int64),
    )


def choose_threshold(curve: Curve, target_precision: float) -> Choice:
    """The lowest threshold whose precision reaches the target: the one that answers most rows.

    The precision of the threshold that was chosen for it is a little flattering: of many
    thresholds, one that got lucky is taken, and the interval does not know of the choice. So
    `warnings` speak up where the interval reaches below the target or the rows are few, and
    `cautious` is the choice by the lower bound. Rows set aside for it are the only real test.

    Args:
        target_precision: above 0 and at most 1.

    Raises:
        InputError: a target out of range.
    """
    if not 0 < target_precision <= 1:
        raise InputError(
            f"target precision: {target_precision} is not allowed. Allowed: above 0, at most 1."
        )
    reached = np.flatnonzero(curve.precision >= target_precision)
    safe = np.flatnonzero(curve.interval[0] >= target_precision)
    chosen = curve.point(int(reached[0])) if len(reached) else None
    cautious = curve.point(int(safe[0])) if len(safe) else None
    best = curve.point(int(np.argmax(curve.precision)))
    warnings = _warnings(int(curve.rows[0]), target_precision, chosen or best, cautious)
    return Choice(target_precision, chosen, best, cautious, tuple(warnings))


def wilson_interval(right: ArrayLike, rows: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Wilson's 95 % score interval (1927) of `right` of `rows`, elementwise; `rows` at least 1.

    scipy has it for one pair at a time (`binomtest(...).proportion_ci`), here are many.
    """
    k, n = np.asarray(right, np.float64), np.asarray(rows, np.float64)
    z = norm.ppf(0.975)
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    # Rounding must not leave a bound beside 0 or 1 where it is exactly that.
    return np.where(k == 0, 0.0, centre - half), np.where(k == n, 1.0, centre + half)


def to_terminal(curve: Curve, choice: Choice, console: Console) -> None:
    """Print the choice, its warnings and some ten points of the curve."""
    console.print(Text(choice.headline(), style="bold" if choice.point else "bold red"))
    for warning in choice.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"))
    console.print(to_table(curve, choice))


def to_markdown(curve: Curve, choice: Choice) -> str:
    """The same in GitHub Markdown, ending in a line break."""
    warnings = (f"**Warning:** {warning}" for warning in choice.warnings)
    parts = [choice.headline(), *warnings, to_table(curve, choice).to_markdown()]
    return "\n\n".join(parts) + "\n"


def to_table(curve: Curve, choice: Choice) -> Table:
    """Points at steps of coverage, from all rows down, and the chosen one (else the best)."""
    wanted = np.rint(np.linspace(1.0, 1.0 / SHOWN_POINTS, SHOWN_POINTS) * curve.rows[0])
    # The highest threshold that still answers as many rows; `rows` fall along the curve.
    steps = len(curve) - 1 - np.searchsorted(curve.rows[::-1], np.maximum(wanted, 1))
    marks = {(choice.point or choice.best).rows: "chosen" if choice.point else "best"}
    if choice.cautious and choice.cautious != choice.point:
        marks[choice.cautious.rows] = "lower bound reaches the target"
    marked = np.flatnonzero(np.isin(curve.rows, list(marks)))
    rows = []
    for index in np.union1d(steps, marked).tolist():
        point = curve.point(index)
        answered = (_percent(point.coverage), f"{point.rows:,}")
        precise = (_percent(point.precision), _interval(point))
        mark, style = marks.get(point.rows, ""), "bold" if point.rows in marks else ""
        cells = (str(point.threshold), *answered, *precise, mark)
        rows.append([Text(cell, style) for cell in cells])
    columns = ("threshold", "coverage", "rows", "precision", "95 % interval", "")
    return Table(columns, rows, left=("",), wrap=False)


def _warnings(labelled: int, target: float, chosen: Point, cautious: Point | None) -> list[str]:
    found = []
    if chosen.precision < target:
        found.append(f"No threshold reaches {_percent(target)}; the figures are of the best one.")
    elif chosen.low < target:
        instead = "none has its lower bound there"
        if cautious:
            instead = f"threshold {cautious.threshold} has its lower bound there and answers "
            instead += f"{_percent(cautious.coverage)} of the rows"
        found.append(
            f"The precision may well be below {_percent(target)} on other rows: its 95 % interval "
            f"begins at {_percent(chosen.low)}; {instead}."
        )
    if chosen.rows < MIN_ROWS:
        found.append(
            f"Only {chosen.rows:,} of {labelled:,} labelled rows are at or above the "
            f"threshold; label more rows (at least {MIN_ROWS:,} there) before relying on it."
        )
    if chosen.rows == labelled and chosen.precision >= target:
        found.append("Every labelled row is answered: the target is reached without a threshold.")
    return found


def _short(score: np.float32, next_lower: np.float32 | None) -> float:
    floor = float(score) - MAX_ROUNDING
    floor = floor if next_lower is None else max(floor, float(next_lower))
    for digits in range(1, 10):
        short = math.floor(float(score) * 10**digits) / 10**digits
        if floor < float(np.float32(short)) and short <= float(score):
            return short
    return float(score)


def _interval(point: Point) -> str:
    return f"[{_percent(point.low)}, {_percent(point.high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
