"""The pictures of a comparison, as `matplotlib.figure.Figure`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from sce.evaluation.measured import MeasuredMethod

_MARKERS = {"sce": "o", "similarity": "s", "prompted": "^", "lora": "D"}


def build_charts(methods: Sequence[MeasuredMethod]) -> dict[str, Figure]:
    """By name; charts without a point are left out."""

    def trained(m: MeasuredMethod) -> float | None:
        training = m.described.get("training")
        return training["flops"] + training["embedding_flops"] if training else None

    charts = {
        "accuracy": accuracy_chart(methods),
        "training_compute": cost_chart(
            methods, trained, "operations of the whole training", "Accuracy and training compute"
        ),
        "inference_cost": cost_chart(
            methods,
            lambda m: m.described["cost"]["flops_per_text"],
            "operations a text",
            "Accuracy and inference cost",
        ),
        "label_counts": label_count_chart(methods),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def accuracy_chart(methods: Sequence[MeasuredMethod]) -> Figure:
    """A group of bars for each dataset, 95 % intervals on them."""
    datasets = list(dict.fromkeys(d for m in methods for d in m.datasets))
    figure = Figure(figsize=(max(6.0, 1.3 * len(datasets) + 2), 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(methods)
    for place, m in enumerate(methods):
        found = [(i, m.accuracy(d)) for i, d in enumerate(datasets)]
        known = [(i, a) for i, a in found if a is not None]
        values = np.array([a.value for _, a in known])
        errors = np.array(
            [[a.value - a.low for _, a in known], [a.high - a.value for _, a in known]]
        )
        axes.bar(
            [i + (place - (len(methods) - 1) / 2) * width for i, _ in known],
            100 * values,
            width,
            yerr=100 * np.clip(errors, 0, None),
            capsize=2,
            label=m.name,
        )  # fmt: skip
    axes.set_xticks(range(len(datasets)), datasets, rotation=20)
    axes.set(ylabel="accuracy in per cent", ylim=(0, 100), title="Accuracy by dataset")
    figure.legend(loc="outside upper right", ncols=min(4, len(methods)))
    return figure


def cost_chart(
    methods: Sequence[MeasuredMethod],
    cost: Callable[[MeasuredMethod], float | None],
    label: str,
    title: str,
) -> Figure | None:
    """Mean accuracy of each group of label sets against a cost, on a logarithmic axis; a method
    that costs nothing stands at the left edge."""
    groups = list(dict.fromkeys(s.group for m in methods for s in m.sets.values()))
    costs = {m.name: cost(m) for m in methods}
    known = [c for c in costs.values() if c]
    if not known:
        return None
    edge = min(known) / 10
    figure = Figure(figsize=(4.2 * len(groups) + 0.8, 4.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, group in zip(panels, groups, strict=True):
        for m in methods:
            accuracy = m.mean(group, "accuracy")
            if accuracy is None:
                continue
            x = costs[m.name]
            name = m.name if x else f"{m.name} (none)"
            axes.plot([x or edge], [100 * accuracy], _MARKERS.get(m.kind, "o"), ms=9, label=name)
        axes.set(xscale="log", xlabel=label, title=f"{title}\n{group}", ylim=(0, 100))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy in per cent")
    panels[-1].legend(fontsize=8)
    return figure


def label_count_chart(methods: Sequence[MeasuredMethod]) -> Figure:
    """A point for each label set: accuracy against K."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
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
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title("Accuracy by number of labels")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
