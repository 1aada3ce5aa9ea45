"""Pictures of a fit: the corpus in a plane with the labels' old and new places, and each label's
share before and after.

Made without pyplot, so nothing global is touched. On white, which stands in light and dark pages
alike; colours of Okabe and Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from sce.adaptation.illustration import Illustration
from sce.adaptation.report import Report

MAX_COLOURED_LABELS = 20
NAMED_LABELS = 15
"""So many labels, those with most rows, have their names in the plane where there are more than
`MAX_COLOURED_LABELS`."""
SHARE_LABELS = 40
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c00")
_MARKERS = "o^s"
_INK, _GREY = "#222222", "#9a9a9a"
_NAME_CHARS = 28


def corpus_figure(illustration: Illustration, title: str = "") -> Figure:
    """The sample in its plane; for each label a line from its own vector (a ring) to the middle of
    the rows that it answers (filled). Up to 20 labels have a colour and a marker each."""
    found, count = illustration, len(illustration.names)
    rows_K = np.bincount(found.answers_S, minlength=count)
    coloured = count <= MAX_COLOURED_LABELS
    figure = Figure(figsize=(9.0, 6.8), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    size = float(np.clip(25_000 / max(1, len(found)), 7, 24))
    shown = np.flatnonzero(rows_K > 0) if coloured else np.argsort(-rows_K)[:NAMED_LABELS]
    shown = shown[rows_K[shown] > 0]
    if coloured:
        for k in range(count):
            points = found.points_S2[found.answers_S == k]
            _dots(axes, points, _colour(k), _marker(k), size, 0.55)
    else:
        _dots(axes, found.points_S2, _GREY, "o", size, 0.35)
    halo = [withStroke(linewidth=3, foreground="white")]
    for k in shown.tolist():
        ink, marker = (_colour(k), _marker(k)) if coloured else (_INK, "o")
        old, new = found.old_places_K2[k], found.new_places_K2[k]
        axes.plot(*np.array([old, new]).T, color=_INK, lw=1.1, alpha=0.8, path_effects=halo)
        axes.plot(*old, "o", ms=7, mfc="white", mec=_INK, mew=1.2, zorder=4)
        axes.plot(*new, marker, ms=9, mfc=ink, mec="white", mew=1.4, zorder=5)
    if coloured:
        for k in np.flatnonzero(rows_K == 0).tolist():
            axes.plot(*found.old_places_K2[k], "x", ms=8, mec=_INK, mew=1.8, zorder=4)
        shown = np.concatenate([shown, np.flatnonzero(rows_K == 0)])
    axes.set(xticks=[], yticks=[])
    axes.set_title(_plain(title or "The corpus and its labels", 80), parse_math=False)
    axes.margins(0.06)
    note = "ring: the label's own vector; filled mark: the middle of the texts that it answers now"
    if (rows_K == 0).any() and coloured:
        note += "; cross: a label that answers no text"
    if not coloured:
        note += f"; the {len(shown)} of {count:,} labels with most texts"
    axes.set_xlabel(note, fontsize=8.5, color=_INK)
    for side in axes.spines.values():
        side.set_color("#cccccc")
    places_K2 = np.where(np.isfinite(found.new_places_K2), found.new_places_K2, found.old_places_K2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        _write_names(
            axes, [found.names[k] for k in shown], found.old_places_K2[shown], places_K2[shown]
        )
    return figure


def shares_figure(report: Report, title: str = "") -> Figure:
    """For each label, the share of the corpus that its own vector answers (a ring) and that it
    answers now (a disc); of many labels the 40 whose share changed most."""
    labels = sorted(report["labels"], key=lambda r: (-abs(change_of(r)), r["name"]))
    total, labels = len(labels), labels[:SHARE_LABELS]
    labels.sort(key=lambda r: (r["mass_after"], r["name"]))
    figure = Figure(figsize=(9.0, 1.3 + 0.27 * len(labels)), layout="constrained")
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    places = range(len(labels))
    before = [100 * r["mass_before"] for r in labels]
    after = [100 * r["mass_after"] for r in labels]
    axes.hlines(places, before, after, color=_GREY, lw=2.2, zorder=1)
    axes.plot(before, places, "o", ms=7, mfc="white", mec=_INK, mew=1.2, label="own vector")
    axes.plot(after, places, "o", ms=7.5, mfc=_COLOURS[0], mec="white", label="adapted")
    axes.set_yticks(places, [_plain(r["name"]) for r in labels], fontsize=9, parse_math=False)
    axes.set(xlabel="per cent of the corpus", ylim=(-0.7, len(labels) - 0.3))
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    shown = "" if len(labels) == total else f": the {len(labels)} of {total:,} that changed most"
    axes.set_title(title or f"Share of each label{shown}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def change_of(label: Report) -> float:
    """How much of the corpus a label gained, or lost below zero."""
    return float(label["mass_after"] - label["mass_before"])


def _dots(
    axes: Axes, points_S2: np.ndarray, colour: str, marker: str, size: float, alpha: float
) -> None:
    x_S, y_S = points_S2.T
    axes.scatter(x_S, y_S, s=size, c=colour, marker=marker, alpha=alpha, linewidths=0)


def _write_names(
    axes: Axes, names: Sequence[str], old_L2: np.ndarray, places_L2: np.ndarray
) -> None:
    """Write each name near its place, where it covers the fewest names, marks and lines."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout is settled, and with it what a text covers
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    taken = []
    for share in np.linspace(0, 1, 15):
        half = 6.0 if share in (0, 1) else 2.5  # a mark, or a bit of the line
        for mark in axes.transData.transform((1 - share) * old_L2 + share * places_L2):
            taken.append(Bbox.from_extents(*(mark - half), *(mark + half)))
    steps = [(x, y) for far in (1.0, 1.8, 2.8, 4.0) for x, y in _ring(far)]
    for name, place in zip(names, places_L2, strict=True):
        text = axes.annotate(
            _plain(name), place, (0, 0), textcoords="offset points", fontsize=9, color=_INK,
            ha="center", va="center", zorder=6, parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        box = text.get_window_extent(canvas.get_renderer())
        offsets = [(x * (box.width / 2 + 8), y * (box.height / 2 + 7)) for x, y in steps]
        costs = [_cost(box.translated(*offset), taken, frame, offset) for offset in offsets]
        offset = offsets[int(np.argmin(costs))]
        points = 72 / figure.dpi
        text.set_position((offset[0] * points, offset[1] * points))
        taken.append(box.translated(*offset))


def _ring(far: float) -> list[tuple[float, float]]:
    """Directions around a place: above and below, sides, corners."""
    sides = [(0, far), (0, -far), (1, 0), (-1, 0)] if far == 1 else [(0, far), (0, -far)]
    return [*sides, *((x, y * far) for x, y in product((1, -1), (0.9, -0.9)))]


def _cost(box: Bbox, taken: Sequence[Bbox], frame: Bbox, offset: tuple[float, float]) -> float:
    """Pixels that a name would cover of others, and leave the frame by; then how far it is."""
    covered = sum(
        max(0.0, min(box.x1, other.x1) - max(box.x0, other.x0))
        * max(0.0, min(box.y1, other.y1) - max(box.y0, other.y0))
        for other in taken
    )
    outside = max(0, frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1)
    return covered + 100 * outside + 2 * float(np.hypot(*offset))


def _colour(k: int) -> str:
    return _COLOURS[k % len(_COLOURS)]


def _marker(k: int) -> str:
    return _MARKERS[k // len(_COLOURS) % len(_MARKERS)]


def _plain(text: str, chars: int = _NAME_CHARS) -> str:
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "�" for c in line)
    return line if len(line) <= chars else line[: chars - 1] + "…"
