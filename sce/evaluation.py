"""One evaluation for every method: same rows, same labels, same figures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field
from scipy.special import softmax

from sce import metrics
from sce.calibration import Temperature
from sce.config import Section
from sce.labels import LabelSet, only_names

Information = Literal["name", "all"]


class EvaluateConfig(Section):
    """What is measured, and how."""

    sets: list[str] = []
    """Label sets or datasets to measure; none means every set with test rows."""
    information: list[Information] = ["name", "all"]
    """What each method is told of the labels: bare names, all that is known of them. A set
    whose labels have nothing but names is measured once."""
    flip_shuffles: int = Field(5, ge=0)
    """Shuffles of the label order for the flip rate."""
    flip_rows: int = Field(200, ge=1)
    """Rows of a set on which the flip rate is measured."""
    bootstrap_samples: int = Field(1000, ge=100)
    pictures: bool = True
    """Draw a confusion matrix for each set."""
    labelled: Path | None = None
    """The user's own labelled rows (JSONL, CSV or Parquet with the columns `text` and
    `label`): "how good is it on my data". Measured alone, or beside the `sets` that are named."""
    labelled_labels: Path | None = None
    """A YAML or JSON file with the label set of `labelled`; by default the labels found there."""
    text_column: str = "text"
    label_column: str = "label"


class Method(Protocol):
    """What evaluation needs of a classifier: scores [N, K], and the temperature that makes
    softmax(scores / T) its probabilities."""

    temperature: Temperature

    def scores(self, queries_ND: np.ndarray, labels: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled rows of one label set: vectors [N, D] and right labels by name."""

    name: str
    dataset: str
    group: str
    label_set: LabelSet
    vectors_ND: np.ndarray
    labels: Sequence[str]


@dataclass(frozen=True)
class Evaluated:
    """A result as `sce.report` describes it, with the confusion matrix of the first method."""

    result: dict[str, Any]
    confusion_KK: np.ndarray
    label_names: list[str]


def evaluate_set(
    evaluation_set: EvaluationSet,
    sce: Method,
    cosine: Method,
    config: EvaluateConfig,
    information: Information = "all",
    seed: int = 0,
) -> Evaluated:
    """Measure a trained model and the cosine baseline on the same rows."""
    label_set = evaluation_set.label_set
    if information == "name":
        label_set = only_names(label_set)
    targets_N = np.array([label_set.index(name) for name in evaluation_set.labels])
    queries_ND = evaluation_set.vectors_ND
    result: dict[str, Any] = {
        "name": evaluation_set.name,
        "dataset": evaluation_set.dataset,
        "group": evaluation_set.group,
        "information": information,
        "rows": len(targets_N),
        "labels": len(label_set),
    }
    right: dict[str, np.ndarray] = {}
    confusion_KK: np.ndarray = np.zeros((0, 0))
    for name, method in (("sce", sce), ("cosine", cosine)):
        scores_NK = method.scores(queries_ND, label_set).astype(np.float64)
        calibrated_NK = softmax(method.temperature.scale(scores_NK, len(label_set)), axis=1)
        raw_NK = softmax(scores_NK, axis=1)
        figures = metrics.summarise(calibrated_NK, targets_N, seed=seed)
        figures["nll_uncalibrated"] = metrics.nll(raw_NK, targets_N)
        figures["ece_uncalibrated"] = metrics.ece(raw_NK, targets_N)
        figures["flip_rate"] = _flip_rate(method, queries_ND, label_set, config, seed)
        result[name] = figures
        right[name] = metrics.correct(calibrated_NK, targets_N)
        if name == "sce":
            confusion_KK = metrics.confusion(calibrated_NK, targets_N)
    gain_N = right["sce"] - right["cosine"]
    low, high = metrics.bootstrap_interval(gain_N, samples=config.bootstrap_samples, seed=seed)
    result["difference"] = float(gain_N.mean())
    result["difference_low"], result["difference_high"] = low, high
    result["mcnemar_p"] = metrics.mcnemar(right["sce"], right["cosine"])
    return Evaluated(result, confusion_KK, label_set.names)


def evaluate_sets(
    sets: Sequence[EvaluationSet],
    sce: Method,
    cosine: Method,
    config: EvaluateConfig,
    seed: int = 0,
    on_set: Callable[[int, int], None] | None = None,
) -> list[Evaluated]:
    """`evaluate_set` for every set and every kind of label information in the configuration.

    A set whose labels have names alone is measured once. Where both kinds are measured, the
    bare-name result's group ends in "by name".
    """
    evaluated = []
    for place, evaluation_set in enumerate(sets):
        richer = only_names(evaluation_set.label_set) != evaluation_set.label_set
        kinds: list[Information] = list(dict.fromkeys(config.information)) if richer else ["all"]
        for kind in kinds:
            found = evaluate_set(evaluation_set, sce, cosine, config, kind, seed)
            if richer and kind == "name":
                found.result["group"] += " by name"
            evaluated.append(found)
        if on_set is not None:
            on_set(place + 1, len(sets))
    return evaluated


def headline_metrics(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Figures by name for a tracker: every set, and the mean over each dataset's sets."""
    found: dict[str, float] = {}
    by_dataset: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        suffix = "_by_name" if result["group"].endswith("by name") else ""
        key = f"test/{result['name']}"
        found[f"{key}/accuracy{suffix}"] = result["sce"]["accuracy"]
        found[f"{key}/cosine_accuracy{suffix}"] = result["cosine"]["accuracy"]
        mean_of = f"test/{result['group']}/{result['dataset']}"
        by_dataset.setdefault(mean_of, []).append(result)
    for name, members in by_dataset.items():
        for method, suffix in (("sce", "accuracy"), ("cosine", "cosine_accuracy")):
            values = [member[method]["accuracy"] for member in members]
            found[f"{name}/mean_{suffix}"] = float(np.mean(values))
        for figure in ("nll", "ece", "macro_f1"):
            values = [member["sce"][figure] for member in members]
            found[f"{name}/mean_{figure}"] = float(np.mean(values))
    return found


def _flip_rate(
    method: Method, queries_ND: np.ndarray, label_set: LabelSet, config: EvaluateConfig, seed: int
) -> float | None:
    """Share of rows whose answer changes under any of some shuffles of the labels."""
    if config.flip_shuffles == 0 or len(label_set) < 2:
        return None
    some_ND = queries_ND[: config.flip_rows]
    names = np.array(label_set.names, dtype=object)
    reference = names[method.scores(some_ND, label_set).argmax(1)]
    random = np.random.default_rng([seed, zlib.crc32(label_set.fingerprint.encode())])
    shuffled = []
    for _ in range(config.flip_shuffles):
        order = random.permutation(len(label_set))
        moved = LabelSet(tuple(label_set.labels[i] for i in order))
        shuffled.append(names[order][method.scores(some_ND, moved).argmax(1)])
    return metrics.flip_rate(reference, shuffled)
