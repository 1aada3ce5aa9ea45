"""The picture of `benchmark.py adaptation`: what examples teach, and labels across the grain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METHODS = {"adapted": "#0072b2", "pooled": "#e69f00", "logistic regression": "#8c8c00"}
_GREY = "#777777"


def save_picture(file: Path, examples: Mapping[str, Any], across: Mapping[str, Any]) -> None:
    """A panel for each group of corpora with accuracy over the number of examples a label, and one
    with the gain of each set across the grain over its rows; error bars are standard errors."""
    groups = list(dict.fromkeys(name.split(": ")[0] for name in examples if ": " in name))
    sets = {name: values for name, values in across.items() if isinstance(values, list)}
    panels = len(groups) + bool(sets)
    figure = Figure(figsize=(4.6 * max(1, panels), 3.9), layout="constrained", facecolor="white")
    for place, group in enumerate(groups):
        axes = figure.add_subplot(1, panels, place + 1)
        _examples(axes, {m: examples[f"{group}: {m}"] for m in METHODS})
        axes.set_title(group)
    if sets:
        _across(figure.add_subplot(1, panels, panels), sets)
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(file))


def _examples(axes: Axes, methods: Mapping[str, Mapping[str, Any]]) -> None:
    for name, found in methods.items():
        places = np.arange(len(found["examples"]))
        axes.errorbar(
            places,
            found["mean"],
            found["standard_error"],
            color=METHODS[name],
            marker="o",
            ms=4,
            capsize=2,
            label=name,
        )
        axes.set_xticks(places, [str(count) for count in found["examples"]])
    axes.axhline(methods["adapted"]["mean"][0], color=_GREY, lw=1, ls=":", label="no example")
    axes.set(xlabel="examples a label", ylabel="accuracy, %")
    axes.legend(frameon=False, fontsize=8)


def _across(axes: Axes, sets: Mapping[str, Any]) -> None:
    """Each value: accuracy of cosine and of the adapted labels in per cent, rows."""
    cosine, adapted, rows = np.array(list(sets.values()), float).T
    # Of a difference of two answers to the same rows: at most those of two independent ones.
    error = 100 * np.sqrt((cosine * (100 - cosine) + adapted * (100 - adapted)) / 1e4 / rows)
    axes.errorbar(rows, adapted - cosine, error, fmt="o", ms=4, capsize=2, color="#0072b2")
    axes.axhline(0, color=_GREY, lw=1)
    axes.set(xlabel="labelled rows of the set", ylabel="gain over cosine, points")
    axes.set_title("label sets across the grain")
