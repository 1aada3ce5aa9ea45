"""What several results come to: by dataset, as figures for a tracker, as a job's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sce.evaluation.metrics import mean_of_known

Result = dict[str, Any]
"""As `sce.evaluation.report` describes it."""
ADAPTED = "adapted"
"""Key of labels adapted to the set's texts; with n examples a label it is "adapted+n"."""


def headline_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Figures by name for a tracker: every set, and the mean over each dataset's sets."""
    found: dict[str, float] = {}
    for result in results:
        suffix = "_by_name" if result["group"].endswith("by name") else ""
        key = f"test/{result['name']}"
        found[f"{key}/accuracy{suffix}"] = result[result["method"]]["accuracy"]
        for name in others(result):
            found[f"{key}/{_tracked(name)}_accuracy{suffix}"] = result[name]["accuracy"]
    for (group, dataset), members in by_dataset(results).items():
        key, main = f"test/{group}/{dataset}/mean", members[0]["method"]
        for figure in ("accuracy", "nll", "ece", "macro_f1"):
            found[f"{key}_{figure}"] = float(np.mean([m[main][figure] for m in members]))
        for name in others(members[0]):
            if all(name in m for m in members):
                accuracies = [m[name]["accuracy"] for m in members]
                found[f"{key}_{_tracked(name)}_accuracy"] = float(np.mean(accuracies))
    return found


def is_own(result: Mapping[str, Any]) -> bool:
    """Whether the rows are the user's."""
    return bool(result.get("own")) or str(result["group"]).startswith("own")


def adapted_methods(result: Result) -> list[str]:
    """Keys of the methods of adapted labels that were measured, in order."""
    return [key for key in result if key == ADAPTED or key.startswith(f"{ADAPTED}+")]


def others(result: Result) -> list[str]:
    """Keys of the methods that the measured one is shown beside: cosine, adapted labels."""
    return [*(["cosine"] if "cosine" in result else []), *adapted_methods(result)]


def _tracked(name: str) -> str:
    """A method's key as MLflow takes it, which refuses a plus sign."""
    return name.replace("+", "_")


def rounded_means(results: Sequence[Result]) -> dict[str, float]:
    """The means of `headline_metrics` as a job's summary has them."""
    return {k: round(v, 4) for k, v in headline_metrics(results).items() if "mean_" in k}


def summary_metrics(results: Sequence[Result]) -> dict[str, float]:
    """The figures by which methods are compared in a tracker: means over the datasets of a group,
    each dataset the mean over its sets, with bare label names where both kinds were measured."""
    grouped = by_dataset(
        [r | {"group": r["group"].removesuffix(" by name")} for r in named_results(results)]
    )
    found: dict[str, float | None] = {}
    for group in dict.fromkeys(group for group, _ in grouped):
        for figure in ("accuracy", "macro_f1", "nll", "ece", "flip_rate"):
            means = {
                dataset: mean_of_known(m[m["method"]][figure] for m in members)
                for (of_group, dataset), members in grouped.items()
                if of_group == group
            }
            if figure == "accuracy":
                found |= {f"compare/{group}/{name}/accuracy": mean for name, mean in means.items()}
            found[f"compare/{group}/{figure}"] = mean_of_known(means.values())
    return {name: value for name, value in found.items() if value is not None}


def by_dataset(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by group and dataset; one that names no dataset stands for its group."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        group = result["group"]
        found.setdefault((group, str(result.get("dataset", group))), []).append(result)
    return found


def named_results(results: Sequence[Result]) -> list[Result]:
    """One result a set: with bare label names where both kinds were measured."""
    chosen: dict[str, Result] = {}
    for result in results:
        if result["information"] == "name" or result["name"] not in chosen:
            chosen[result["name"]] = result
    return list(chosen.values())
