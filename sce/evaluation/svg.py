"""Charts of a page as HTML with inline SVG: sharp at any size, in the page's colours, and without a
file beside it.

Every function takes plain values and returns HTML; what users wrote is escaped here. Colours are
the page's variables `--m0`, `--m1`, ... (`overview.html`). Where a chart is as wide as the page,
positions are percentages, so that nothing is stretched; the letters keep their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from sce.evaluation.tables import one_line

MARK_PIXELS = 16
"""Height of a mark's line in `intervals`, that of a line of `.values`."""
COUNTED_LABELS = 16
NAME_CHARS = 24
_SIDE, _LEFT, _TOP = 320, 44, 8
"""Of a square chart: its side, and the room for the axes."""


@dataclass(frozen=True)
class Mark:
    """A share between 0 and 1 with its interval; `colour` is a place in the page's palette."""

    colour: int
    value: float
    low: float | None = None
    high: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Bar:
    """A name, what is said below it, and the marks or parts beside it."""

    name: str
    about: str
    marks: Sequence[Mark]


def legend(names: Sequence[tuple[int, str]]) -> str:
    """A dot of each colour with its name."""
    items = (
        f'<span><i style="background:var(--m{colour})"></i>{escape(name)}</span>'
        for colour, name in names
    )
    return f'<div class="legend">{"".join(items)}</div>'


def intervals(bars: Sequence[Bar]) -> str:
    """For each bar a line a mark: a dot at its share of the width, its interval as a stroke, the
    text of the mark at the right."""
    parts = []
    for bar in bars:
        marks, said = [], []
        for line, mark in enumerate(bar.marks):
            y, colour = MARK_PIXELS * line + MARK_PIXELS / 2, f"var(--m{mark.colour})"
            if mark.low is not None and mark.high is not None:
                marks.append(
                    f'<line x1="{_percent(mark.low)}" x2="{_percent(mark.high)}" y1="{y}" y2="{y}" '
                    f'stroke="{colour}" stroke-width="3" stroke-opacity=".45"/>'
                )
            marks.append(f'<circle cx="{_percent(mark.value)}" cy="{y}" r="5" fill="{colour}"/>')
            said.append(f'<span style="color:{colour}">{mark.text}</span>')
        height = MARK_PIXELS * len(bar.marks)
        parts.append(
            f'{_named(bar)}<svg height="{height}" aria-hidden="true">{_grid(height)}'
            f'{"".join(marks)}</svg><div class="values">{"<br>".join(said)}</div>'
        )
    ticks = "".join(
        f'<text x="{share}%" y="12" text-anchor="{anchor}">{share}</text>'
        for share, anchor in ((0, "start"), (25, "middle"), (50, "middle"), (75, "middle"),
                              (100, "end"))
    )  # fmt: skip
    axis = f'<div class="axis"><svg height="16" aria-hidden="true">{ticks}</svg></div>'
    return f'<div class="bars">{"".join(parts)}{axis}</div>'


def parts_of(bars: Sequence[Bar]) -> str:
    """For each bar the shares of its marks one over the other, the longest first, as blocks that
    begin at the left; the text of the first at the right."""
    lines = []
    for bar in bars:
        blocks = "".join(
            f'<rect width="{_percent(mark.value)}" height="14" rx="3" fill="var(--m{mark.colour})" '
            f'fill-opacity="{0.3 if place < len(bar.marks) - 1 else 1}"/>'
            for place, mark in enumerate(bar.marks)
        )
        said = bar.marks[0].text
        lines.append(
            f'{_named(bar)}<svg height="14" aria-hidden="true">{blocks}</svg>'
            f'<div class="values">{said}</div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def reliability(curves: Sequence[tuple[int, Sequence[tuple[float, float, int]]]]) -> str:
    """Share that is right against the probability that was given, for each colour its points
    (probability, share right, rows); the more rows, the larger the dot."""
    drawn = [f'<path d="M{_xy(0, 0)}L{_xy(1, 1)}" class="line" stroke-dasharray="4 4"/>']
    for colour, points in curves:
        total = sum(rows for *_, rows in points) or 1
        path = "L".join(_xy(x, y) for x, y, _ in points)
        drawn.append(
            f'<path d="M{path}" fill="none" stroke="var(--m{colour})" stroke-width="1.5"/>'
        )
        for x, y, rows in points:
            radius = 2.5 + 11 * float(np.sqrt(rows / total))
            title = f"{100 * x:.0f} % sure, {100 * y:.0f} % right, {rows:,} rows"
            drawn.append(_dot(x, y, radius, colour, title, 0.55))
    return _square(drawn, "probability of the answer, %", "of these right, %")


def scatter(points: Iterable[tuple[int, float, float, str]], across: str, up: str) -> str:
    """A dot for each (colour, x, y, title), shares both, and the line on which they are equal."""
    drawn = [f'<path d="M{_xy(0, 0)}L{_xy(1, 1)}" class="line" stroke-dasharray="4 4"/>']
    drawn += [_dot(x, y, 4, colour, title, 0.6) for colour, x, y, title in points]
    return _square(drawn, across, up)


def confusion(counts_KK: np.ndarray, names: Sequence[str]) -> str:
    """Rows by right label (downwards) and answer (across), each line divided by its sum. Columns
    have the numbers of the lines; up to `COUNTED_LABELS` labels show their counts."""
    size, cell, left, top = len(names), 26, 170, 22
    totals = counts_KK.sum(axis=1)
    drawn = []
    for i, name in enumerate(names):
        y = top + i * cell
        short = escape(one_line(name, NAME_CHARS))
        drawn.append(
            f'<text class="ink" x="{left - 8}" y="{y + 17}" text-anchor="end">{short} '
            f'<tspan fill="var(--muted)">{i + 1}</tspan><title>{escape(name)}</title></text>'
            f'<text x="{left + i * cell + cell / 2}" y="14" text-anchor="middle">{i + 1}</text>'
        )
        for j in range(size):
            count = int(counts_KK[i, j])
            share = count / totals[i] if totals[i] else 0.0
            colour = "var(--m0)" if i == j else "var(--bad)"
            opacity = f"{0.1 + 0.6 * share:.3f}"
            title = f"{name}, answered {names[j]}: {count} of {int(totals[i])}"
            drawn.append(
                f'<rect x="{left + j * cell + 1}" y="{y + 1}" width="{cell - 2}" '
                f'height="{cell - 2}" rx="3" fill="var(--faint)"/>'
            )
            if not count:
                continue
            drawn.append(
                f'<rect x="{left + j * cell + 1}" y="{y + 1}" width="{cell - 2}" '
                f'height="{cell - 2}" rx="3" fill="{colour}" fill-opacity="{opacity}">'
                f"<title>{escape(title)}</title></rect>"
            )
            if size <= COUNTED_LABELS:
                drawn.append(
                    f'<text class="ink" x="{left + j * cell + cell / 2}" y="{y + 17}" '
                    f'text-anchor="middle" font-size="11" pointer-events="none">{count}</text>'
                )
    width, height = left + size * cell, top + size * cell
    # On a phone larger ones are scrolled: letters half the size could not be read.
    style = f"width:100%;max-width:{round(1.25 * width)}px;min-width:{round(0.8 * width)}px"
    return (
        f'<div class="scroll"><svg viewBox="0 0 {width} {height}" style="{style}" role="img" '
        f'aria-label="Confusion matrix">{"".join(drawn)}</svg></div>'
    )


def _named(bar: Bar) -> str:
    about = f"<small>{escape(bar.about)}</small>" if bar.about else ""
    return f'<div class="name">{escape(bar.name)}{about}</div>'


def _grid(height: float) -> str:
    return "".join(
        f'<line x1="{x}%" x2="{x}%" y1="0" y2="{height}" class="line"/>' for x in range(0, 101, 25)
    )


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _xy(x: float, y: float) -> str:
    return f"{_LEFT + x * _SIDE:.1f} {_TOP + (1 - y) * _SIDE:.1f}"


def _dot(x: float, y: float, radius: float, colour: int, title: str, opacity: float) -> str:
    at_x, at_y = _xy(x, y).split()
    return (
        f'<circle cx="{at_x}" cy="{at_y}" r="{radius:.1f}" fill="var(--m{colour})" '
        f'fill-opacity="{opacity}"><title>{escape(title)}</title></circle>'
    )


def _square(drawn: Sequence[str], across: str, up: str) -> str:
    """A chart of shares, both axes from 0 to 100 %."""
    axes = []
    for share in (0, 25, 50, 75, 100):
        x, y = _LEFT + share / 100 * _SIDE, _TOP + (1 - share / 100) * _SIDE
        axes.append(
            f'<line class="line" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y}" y2="{y}"/>'
            f'<line class="line" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_TOP + _SIDE}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{share}</text>'
            f'<text x="{x}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{share}</text>'
        )
    middle = _TOP + _SIDE / 2
    names = (
        f'<text x="{_LEFT + _SIDE / 2}" y="{_TOP + _SIDE + 34}" text-anchor="middle">'
        f"{escape(across)}</text>"
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>"
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_LEFT + _SIDE + 16} {_TOP + _SIDE + 42}" role="img" '
        f'aria-label="{escape(up)} against {escape(across)}">'
        f"{''.join(axes)}{names}{''.join(drawn)}</svg>"
    )
