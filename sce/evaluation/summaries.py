"""What several results come to: by dataset, as figures for a tracker, as a job's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sce.evaluation.metrics import mean_of_known

Result = dict[str, Any]
"""As `sce.evaluation.report` describes it."""
FIGURES = ("accuracy", "macro_f1", "nll", "ece")
ADAPTED = "adapted"
"""Key of labels adapted to the set's texts; with n examples a label it is "adapted+n"."""


def dataset_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Figures by name for a tracker and a job's summary, such as "accuracy/starter unseen": of each
    dataset the mean over its label sets, with all that is known of the labels; and the accuracy of
    the methods beside the measured one, "accuracy_cosine/...", where every set has it."""
    chosen: dict[str, Result] = {}
    for result in results:
        if result["information"] == "all" or result["name"] not in chosen:
            chosen[result["name"]] = _without_kind(result)
    found: dict[str, float] = {}
    for (group, dataset), members in by_dataset(list(chosen.values())).items():
        key, main = dataset_key(group, dataset), members[0]["method"]
        for figure in FIGURES:
            found[f"{figure}/{key}"] = float(np.mean([m[main][figure] for m in members]))
        for name in others(members[0]):
            if all(name in m for m in members):
                accuracies = [m[name]["accuracy"] for m in members]
                found[f"accuracy_{_tracked(name)}/{key}"] = float(np.mean(accuracies))
    return found


def dataset_key(group: str, dataset: str) -> str:
    """What names a dataset's figures in a tracker, behind the figure's own name: MLflow puts all
    charts before a slash into one section, and shows the rest as their titles."""
    return group if dataset == group else f"{dataset} {group}"


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


def rounded_metrics(results: Sequence[Result]) -> dict[str, float]:
    """`dataset_metrics` as a job's summary has them."""
    return {name: round(value, 4) for name, value in dataset_metrics(results).items()}


def comparison_metrics(results: Sequence[Result]) -> dict[str, float]:
    """The figures by which methods are compared in a tracker, such as "accuracy_by_name/unseen":
    means over the datasets of a group, each dataset the mean over its sets, with bare label names
    where both kinds were measured."""
    grouped = by_dataset([_without_kind(r) for r in named_results(results)])
    found: dict[str, float | None] = {}
    for group in dict.fromkeys(group for group, _ in grouped):
        for figure in (*FIGURES, "flip_rate"):
            means = [
                mean_of_known(m[m["method"]][figure] for m in members)
                for (of_group, _), members in grouped.items()
                if of_group == group
            ]
            found[f"{figure}_by_name/{group}"] = mean_of_known(means)
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


def _without_kind(result: Result) -> Result:
    """Of the same group, whether it was given bare names or all that is known."""
    return result | {"group": result["group"].removesuffix(" by name")}
