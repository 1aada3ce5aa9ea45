"""Pictures: of an evaluation, of a threshold's choice, of speed, of a comparison of methods.

Each function returns a `matplotlib.figure.Figure` made without pyplot, so nothing global is
touched and any thread may draw. `save` writes it as PNG.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from numpy.typing import ArrayLike

from sce.evaluation.metrics import ReliabilityBin
from sce.evaluation.runs import MethodRuns, common_sets, groups_of
from sce.evaluation.tables import one_line
from sce.evaluation.thresholds import Choice, Curve

log = logging.getLogger(__name__)

MAX_BYTES = 300_000
_FONT_FAMILIES = ("Noto Sans", "WenQuanYi", "IPA", "Takao", "Source Han Sans")
_FONTS = ("Arial Unicode MS", "Microsoft YaHei", "MS Gothic", "Malgun Gothic", "PingFang SC")
"""For letters that matplotlib's own font has not."""
MAX_COUNTED_LABELS = 15
MAX_NAMED_LABELS = 60
MAX_CURVE_POINTS = 2000
_NAME_CHARS = 28
_BLUE, _GREY = "#1f5fa8", "#b9b9b9"
_MARKERS = {"sce": "o", "similarity": "s", "prompted": "^", "lora": "D", "adapted": "*"}


def confusion_figure(matrix: ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """Confusion matrix of one label set, [K, K] counts with targets on the first axis, each row
    divided by its sum. Up to 15 labels show their counts in the cells (0 as a blank), up to 60
    their names (long ones are cut), more are an image."""
    counts = np.asarray(matrix)
    size = len(names)
    if counts.shape != (size, size):
        raise ValueError(f"{size} names need a [{size}, {size}] matrix, got {counts.shape}.")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = float(np.clip(3.2 + 0.32 * size, 4.5, 12.0))
    figure, axes = _axes(side + 0.8, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true label's rows", shrink=0.8)
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.set_title(_plain(title or "Confusion matrix", 80), parse_math=False)
    if size <= MAX_NAMED_LABELS:
        points = float(np.clip(220 / size, 5.0, 10.0))
        shown = [_drawable(_plain(name), i) for i, name in enumerate(names)]
        text: dict[str, Any] = {"fontsize": points, "parse_math": False, "fontfamily": _fonts()[0]}
        axes.set_xticks(range(size), shown, rotation=90, **text)
        axes.set_yticks(range(size), shown, **text)
    else:
        axes.set_title(f"{axes.get_title()} ({size} labels)", parse_math=False)
    if size <= MAX_COUNTED_LABELS:
        for i, j in np.argwhere(counts):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=8)
    return figure


def precision_coverage_figure(curve: Curve, choice: Choice, title: str = "") -> Figure:
    """Precision of the answered rows against the share that is answered, with its 95 % band, the
    target, and the chosen threshold or, if none reaches the target, the most precise one.

    A curve of more than 2,000 thresholds is drawn by as many of them, evenly spaced in order.
    """
    size = len(curve)
    shown = np.unique(np.linspace(0, size - 1, min(size, MAX_CURVE_POINTS)).round().astype(int))
    coverage, precision = curve.coverage[shown], curve.precision[shown]
    low, high = (bound[shown] for bound in curve.interval)
    figure, axes = _axes(6.5, 4.5)
    axes.fill_between(coverage, low, high, color=_GREY, alpha=0.5, label="95 % interval")
    axes.plot(coverage, precision, color=_BLUE, label="precision")
    target = choice.target_precision
    axes.axhline(target, color="#888888", linestyle="--", linewidth=1, label=f"target {target:g}")
    point, name = (choice.point, "chosen") if choice.point else (choice.best, "best, below target")
    label = f"{name}: threshold {point.threshold}"
    axes.plot([point.coverage], [point.precision], "o", color="black", label=label)
    axes.set(xlabel="share of rows answered", ylabel="share of them that is right")
    axes.set(xlim=(0, 1.01), ylim=(max(0.0, min(float(precision.min()), target) - 0.1), 1.01))
    axes.set_title(_plain(title or "Precision and coverage", 80), parse_math=False)
    axes.legend(loc="lower left")
    return figure


def reliability_figure(
    curves: Mapping[str, tuple[float, Sequence[ReliabilityBin]]], title: str = ""
) -> Figure:
    """Share that is right against the probability that was given, a line for each name with its
    calibration error and bins; the more rows a bin has, the larger its dot. What lies below the
    diagonal is too sure."""
    figure, axes = _axes(5.5, 5.0)
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
    for name, (error, bins) in curves.items():
        total = sum(one.rows for one in bins)
        x, y = [one.probability for one in bins], [one.right for one in bins]
        (line,) = axes.plot(x, y, label=f"{_plain(name, 40)}: ECE {error:.3f}", linewidth=1)
        sizes = [12 + 250 * one.rows / total for one in bins]
        axes.scatter(x, y, sizes, color=line.get_color(), alpha=0.6)
    axes.set(xlabel="probability that was given", ylabel="share that is right")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_title(_plain(title or "Reliability", 80), parse_math=False)
    axes.legend(loc="best", fontsize=8)
    return figure


def rates_figure(series: Mapping[str, Mapping[int, float]], title: str = "") -> Figure:
    """Texts a second against the number of labels, both on logarithmic axes; `series` has each
    method's rate at each number of labels."""
    figure, axes = _axes(7.5, 4.8)
    for place, (name, rates) in enumerate(series.items()):
        counts = sorted(rates)
        style = "-" if place < 2 else "--"
        axes.plot(counts, [rates[k] for k in counts], style, marker="o", label=_plain(name, 40))
    axes.set(xscale="log", yscale="log", xlabel="labels", ylabel="texts a second")
    _tick(axes, sorted({k for rates in series.values() for k in rates}))
    axes.grid(alpha=0.3)
    axes.set_title(title or "A new label set, its labels embedded")
    axes.legend(frameon=False)
    return figure


def build_charts(methods: Sequence[MethodRuns]) -> dict[str, Figure]:
    """The pictures of a comparison by name; those without a point are left out."""
    training = [m.training_flops for m in methods]
    answer = [m.described["cost"]["flops_per_text"] for m in methods]
    charts = {
        "accuracy": accuracy_chart(methods),
        "training_compute": cost_chart(
            methods, training, "operations of the whole training", "Accuracy and training compute"
        ),
        "inference_cost": cost_chart(
            methods, answer, "operations a text", "Accuracy and inference cost"
        ),
        "label_counts": label_count_chart(methods),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def accuracy_chart(methods: Sequence[MethodRuns]) -> Figure:
    """A group of bars for each dataset, 95 % intervals on them."""
    datasets = list(dict.fromkeys(d for m in methods for d in m.datasets))
    figure, axes = _axes(max(6.0, 1.3 * len(datasets) + 2), 4.5)
    width = 0.8 / len(methods)
    for place, m in enumerate(methods):
        common = [common_sets(methods, dataset, "dataset") for dataset in datasets]
        every = {i: m.accuracy(d, common[i]) for i, d in enumerate(datasets)}
        found = {i: accuracy for i, accuracy in every.items() if accuracy is not None}
        if not found:
            continue
        bars = [i + (place - (len(methods) - 1) / 2) * width for i in found]
        value, low, high = np.array(list(found.values())).reshape(-1, 3).T
        errors = 100 * np.clip([value - low, high - value], 0, None)
        axes.bar(bars, 100 * value, width, yerr=errors, capsize=2, label=m.name)
    axes.set_xticks(range(len(datasets)), datasets, rotation=20)
    axes.set(ylabel="accuracy in per cent", ylim=(0, 100), title="Accuracy by dataset")
    figure.legend(loc="outside upper right", ncols=min(4, len(methods)))
    return figure


def cost_chart(
    methods: Sequence[MethodRuns], costs: Sequence[float | None], label: str, title: str
) -> Figure | None:
    """Mean accuracy of each group of label sets against a cost, on a logarithmic axis; a method
    that costs nothing stands at the left edge."""
    groups = groups_of(methods)
    known = [cost for cost in costs if cost]
    if not known:
        return None
    edge = min(known) / 10
    figure = Figure(figsize=(4.2 * len(groups) + 0.8, 4.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, group in zip(panels, groups, strict=True):
        for m, x in zip(methods, costs, strict=True):
            accuracy = m.mean(group, "accuracy", common_sets(methods, group))
            if accuracy is None:
                continue
            name = m.name if x else f"{m.name} (none)"
            axes.plot([x or edge], [100 * accuracy], _MARKERS.get(m.kind, "o"), ms=9, label=name)
        axes.set(xscale="log", xlabel=label, title=f"{title}\n{group}", ylim=(0, 100))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy in per cent")
    panels[-1].legend(fontsize=8)
    return figure


def label_count_chart(methods: Sequence[MethodRuns]) -> Figure:
    """A point for each label set: accuracy against K."""
    figure, axes = _axes(7.0, 4.5)
    for m in methods:
        sets = sorted(m.sets.values(), key=lambda s: s.labels)
        accuracies = [100 * s.right_N.mean() for s in sets]
        axes.plot([s.labels for s in sets], accuracies, _MARKERS.get(m.kind, "o"), label=m.name,
                  alpha=0.7)  # fmt: skip
    counts = sorted({s.labels for m in methods for s in m.sets.values()})
    line = np.linspace(min(counts), max(counts), 200)
    axes.plot(line, 100 / line, color="#888888", linestyle="--", linewidth=1, label="chance")
    axes.set(xscale="log", xlabel="labels K", ylabel="accuracy in per cent", ylim=(0, 100))
    ticks = [k for k in (2, 3, 5, 10, 20, 50, 100, 150, 300) if min(counts) <= k <= max(counts)]
    _tick(axes, ticks)
    axes.set_title("Accuracy by number of labels")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def save(figure: Figure, path: str | Path, max_bytes: int = MAX_BYTES) -> Path:
    """Write `figure` as a PNG of at most `max_bytes`, lowering the resolution if it must; missing
    folders are made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        for dpi in (110, 80, 55, 35):
            figure.savefig(path, dpi=dpi, format="png")
            if path.stat().st_size <= max_bytes:
                break
    return path


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _tick(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xticks(counts, [f"{k:,}" for k in counts])
    axes.set_xticks([], minor=True)


@cache
def _fonts() -> tuple[list[str], list[FT2Font]]:
    """The installed fonts that are tried for each letter, one after another."""
    installed = font_manager.fontManager.get_font_names()
    names = [n for n in installed if n in _FONTS or n.startswith(_FONT_FAMILIES)]
    families = ["DejaVu Sans", *(name for name in names if name != "DejaVu Sans")]
    return families, [font_manager.get_font(font_manager.findfont(name)) for name in families]


def _drawable(name: str, place: int) -> str:
    """The name, or its number where no font has its letters: boxes would tell nothing."""
    if all(c.isspace() or any(f.get_char_index(ord(c)) for f in _fonts()[1]) for c in name):
        return name
    log.warning(
        "no font of this machine has the letters of %r: the picture has #%d there. Install one "
        "(such as fonts-noto-cjk).",
        name,
        place + 1,
    )
    return f"#{place + 1}"


def _plain(text: str, chars: int = _NAME_CHARS) -> str:
    return one_line(str(text), chars)
