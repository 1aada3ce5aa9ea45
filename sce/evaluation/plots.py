"""Pictures of an evaluation: confusion matrix, reliability, accuracy bars, precision-coverage.

Each function returns a `matplotlib.figure.Figure` made without pyplot, so nothing global is
touched and any thread may draw. `save` writes it as PNG.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sce.evaluation.metrics import Reliability
from sce.evaluation.thresholds import Choice, Curve

MAX_BYTES = 300_000
MAX_COUNTED_LABELS = 15
MAX_NAMED_LABELS = 60
MAX_CURVE_POINTS = 2000
_NAME_CHARS = 28
_SCE_COLOUR, _COSINE_COLOUR = "#1f5fa8", "#b9b9b9"


def confusion_figure(matrix: ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """Confusion matrix of one label set, each row divided by its sum.

    Up to 15 labels show their counts in the cells (0 as a blank), up to 60 their names, more
    are an image.

    Args:
        matrix: [K, K] counts, targets on the first axis.
        names: K label names; long ones are cut.
    """
    counts = np.asarray(matrix)
    size = len(names)
    if counts.shape != (size, size):
        raise ValueError(f"{size} names need a [{size}, {size}] matrix, got {counts.shape}.")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = float(np.clip(3.2 + 0.32 * size, 4.5, 12.0))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true label's rows", shrink=0.8)
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.set_title(_plain(title or "Confusion matrix", 80), parse_math=False)
    if size <= MAX_NAMED_LABELS:
        points = float(np.clip(220 / size, 5.0, 10.0))
        shown = [_plain(name) for name in names]
        axes.set_xticks(range(size), shown, rotation=90, fontsize=points, parse_math=False)
        axes.set_yticks(range(size), shown, fontsize=points, parse_math=False)
    else:
        axes.set_title(f"{axes.get_title()} ({size} labels)", parse_math=False)
    if size <= MAX_COUNTED_LABELS:
        for i, j in np.argwhere(counts):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=8)
    return figure


def reliability_figure(
    before: Reliability, after: Reliability | None = None, title: str = ""
) -> Figure:
    """How often the model is right against how sure it is, before and after calibration."""
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes, rows_axes = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1, label="perfect")
    curves = [("before", before, _COSINE_COLOUR), ("after", after, _SCE_COLOUR)]
    for name, curve, colour in curves:
        if curve is None:
            continue
        filled = curve.counts > 0
        label = f"{name} calibration (ECE {curve.error:.3f})"
        axes.plot(curve.confidence[filled], curve.accuracy[filled], "o-", color=colour, label=label)
        rows_axes.stairs(curve.counts, curve.edges, color=colour, fill=name == "before")
    axes.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(_plain(title or "Reliability", 80), parse_math=False)
    axes.legend(loc="upper left")
    rows_axes.set(xlabel="probability of the predicted label", ylabel="rows")
    return figure


def accuracy_figure(results: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Accuracy of SCE beside cosine similarity with 95 % intervals, one pair of bars a set.

    Args:
        results: evaluation results as `sce.evaluation.report` describes them; at least one.
    """
    if not results:
        raise ValueError("accuracy_figure needs at least one result.")
    figure = Figure(figsize=(8.0, 1.4 + 0.42 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(results))[::-1]
    methods = (("sce", "SCE", _SCE_COLOUR, 0.2), ("cosine", "cosine", _COSINE_COLOUR, -0.2))
    for key, name, colour, shift in methods:
        values = np.array([result[key]["accuracy"] for result in results], dtype=float)
        low = np.array([result[key]["accuracy_low"] for result in results], dtype=float)
        high = np.array([result[key]["accuracy_high"] for result in results], dtype=float)
        errors = np.clip(np.stack([values - low, high - values]), 0.0, None)
        axes.barh(places + shift, values, 0.38, xerr=errors, color=colour, label=name, capsize=2)
    shown = [f"{_plain(result['name'])} ({result['labels']})" for result in results]
    axes.set_yticks(places, shown, parse_math=False)
    axes.set(xlabel="accuracy (95 % interval)", xlim=(0, 1))
    axes.set_title(_plain(title or "SCE and cosine similarity", 80), parse_math=False)
    figure.legend(loc="outside upper right", ncols=2)
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
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(coverage, low, high, color=_COSINE_COLOUR, alpha=0.5, label="95 % interval")
    axes.plot(coverage, precision, color=_SCE_COLOUR, label="precision")
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


def rates_figure(series: Mapping[str, Mapping[int, float]], title: str = "") -> Figure:
    """Texts a second against the number of labels, both on logarithmic axes.

    Args:
        series: by method, the rate at each number of labels.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, rates) in enumerate(series.items()):
        counts = sorted(rates)
        style = "-" if place < 2 else "--"
        axes.plot(counts, [rates[k] for k in counts], style, marker="o", label=_plain(name, 40))
    ticks = sorted({k for rates in series.values() for k in rates})
    axes.set(xscale="log", yscale="log", xlabel="labels", ylabel="texts a second")
    axes.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.set_title(title or "A new label set, its labels embedded")
    axes.legend(frameon=False)
    return figure


def save(figure: Figure, path: str | Path, max_bytes: int = MAX_BYTES) -> Path:
    """Write `figure` as a PNG of at most `max_bytes`, lowering the resolution if it must.

    Returns:
        The path. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        for dpi in (110, 80, 55, 35):
            figure.savefig(path, dpi=dpi, format="png")
            if path.stat().st_size <= max_bytes:
                break
    return path


def _plain(text: str, chars: int = _NAME_CHARS) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= chars else text[: chars - 1] + "…"
