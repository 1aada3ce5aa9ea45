"""One evaluation for every method: same rows, same labels, same figures."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.special import softmax

from sce.config import Section
from sce.evaluation import metrics
from sce.labels import LabelSet, only_names
from sce.model.calibration import Temperature
from sce.storage import Place

ScoreVectors = Callable[[np.ndarray, LabelSet], np.ndarray]
Information = Literal["name", "all"]
Result = dict[str, Any]
"""As `sce.evaluation.report` describes it."""


class EvaluateConfig(Section):
    """What is measured, and how."""

    sets: list[str] = []
    """Label sets or datasets to measure; none means every set with test rows."""
    information: list[Information] = ["name", "all"]
    """What each method is given of the labels: bare names, all that is known of them. A set
    whose labels have nothing but names is measured once."""
    flip_shuffles: int = Field(5, ge=0)
    """Shuffles of the label order for the flip rate."""
    flip_rows: int = Field(200, ge=1)
    """Rows of a set on which the flip rate is measured."""
    rows_per_set: int | None = Field(None, ge=1)
    """Rows of a set at most, the same for every method; for those that are slow. None means all."""
    calibration_rows: int = Field(1000, ge=0)
    """Validation rows at most on which the temperature of a method without training is fitted."""
    bootstrap_samples: int = Field(1000, ge=100)
    pictures: bool = True
    """Draw a confusion matrix for each set."""
    labelled: Place | None = None
    """The user's own labelled rows (JSONL, CSV or Parquet with the columns `text` and
    `label`): "how good is it on my data". Measured alone, or beside the `sets` that are named."""
    labelled_labels: Place | None = None
    """A YAML or JSON file with the label set of `labelled`; by default the labels found there."""
    text_column: str = "text"
    label_column: str = "label"
    note: str = ""
    """What every report is to say of the method, such as "random weights"."""


@dataclass(frozen=True)
class Request:
    """Texts, and their vectors where there are any, to be scored against one label set."""

    texts: Sequence[str]
    vectors_ND: np.ndarray | None
    label_set: LabelSet


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled rows of one label set: ids, texts, right labels by name, and the texts' vectors
    [N, D] where the method reads those."""

    name: str
    dataset: str
    group: str
    label_set: LabelSet
    row_ids: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[str]
    vectors_ND: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def request(self) -> Request:
        return Request(self.texts, self.vectors_ND, self.label_set)


class Method(ABC):
    """A classifier that is measured.

    Attributes:
        name: its key in the results, such as "sce".
        information: what it can be given of the labels.
        temperature: makes softmax(scores / T) its probabilities; read after it has answered.
    """

    name: str
    information: tuple[Information, ...] = ("name", "all")
    temperature: Temperature

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """Scores [N, K] of each request, in the order of its labels. All at once, so that a
        method may load its model once and batch as it likes."""

    @abstractmethod
    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        """Kind, model, parameters, training and answer cost, as JSON; after it has answered."""


class VectorMethod(Method):
    """A method that reads vectors: `score` gives scores [N, K] of vectors [N, D] and labels."""

    def __init__(self, score: ScoreVectors, temperature: Temperature) -> None:
        self.score, self.temperature = score, temperature

    def answer(self, requests: Sequence[Request]) -> list[np.ndarray]:
        assert all(r.vectors_ND is not None for r in requests), "this method reads vectors"
        return [self.score(r.vectors_ND, r.label_set) for r in requests]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Evaluated:
    """A result as `report` describes it, with the confusion matrix of the first method and every
    method's predictions (`PREDICTIONS`)."""

    result: dict[str, Any]
    confusion_KK: np.ndarray
    label_names: list[str]
    predictions: pa.Table


PREDICTIONS = pa.schema(
    [
        ("method", pa.string()),
        ("set", pa.string()),
        ("dataset", pa.string()),
        ("group", pa.string()),
        ("information", pa.string()),
        ("labels", pa.int32()),
        ("row_id", pa.string()),
        ("target", pa.string()),
        ("predicted", pa.string()),
        ("probability", pa.float32()),
        ("target_probability", pa.float32()),
    ]
)
"""A row for each row and method; probabilities are calibrated."""


@dataclass(frozen=True)
class _Task:
    """A set with the label information that the methods are given, and the permutations of its
    labels for the flip rate."""

    rows: EvaluationSet
    information: Information
    label_set: LabelSet
    group: str
    orders: list[np.ndarray]

    def requests(self, config: EvaluateConfig) -> Iterator[Request]:
        """All rows in the order of the labels, then the first rows in every other order."""
        texts, vectors_ND = self.rows.texts, self.rows.vectors_ND
        yield Request(texts, vectors_ND, self.label_set)
        texts = texts[: config.flip_rows]
        vectors_ND = None if vectors_ND is None else vectors_ND[: config.flip_rows]
        for order in self.orders:
            moved = LabelSet(tuple(self.label_set.labels[i] for i in order))
            yield Request(texts, vectors_ND, moved)


def evaluate_sets(
    sets: Sequence[EvaluationSet], methods: Sequence[Method], config: EvaluateConfig, seed: int = 0
) -> list[Evaluated]:
    """Measure methods on the same rows: every set, with every kind of label information that is
    asked for and that the first method can be given; a second method is what that is compared with.

    A set whose labels have names alone is measured once. Where both kinds are measured, the
    bare-name result's group ends in "by name".
    """
    readable = methods[0].information
    kinds = [kind for kind in dict.fromkeys(config.information) if kind in readable] or readable
    tasks = [task for rows in sets for task in _tasks(rows, kinds, config.flip_shuffles, seed)]
    requests = [request for task in tasks for request in task.requests(config)]
    answers = [iter(method.answer(requests)) for method in methods]
    found = []
    for task in tasks:
        of_task = [list(islice(answer, 1 + len(task.orders))) for answer in answers]
        found.append(_evaluated(task, methods, of_task, config, seed))
    return found


def _tasks(
    rows: EvaluationSet, kinds: Sequence[Information], shuffles: int, seed: int
) -> Iterator[_Task]:
    bare = only_names(rows.label_set)
    richer = bare != rows.label_set
    for kind in kinds if richer else ("all",):
        by_name = richer and kind == "name"
        label_set = bare if by_name else rows.label_set
        # The same for every method, whatever other sets are measured.
        random = np.random.default_rng([seed, zlib.crc32(label_set.fingerprint.encode())])
        count = len(label_set)
        orders = [random.permutation(count) for _ in range(shuffles)] if count > 1 else []
        yield _Task(rows, kind, label_set, rows.group + " by name" * by_name, orders)


def _evaluated(
    task: _Task,
    methods: Sequence[Method],
    answers: Sequence[Sequence[np.ndarray]],
    config: EvaluateConfig,
    seed: int,
) -> Evaluated:
    """The result of a task from the answers of each method to its requests."""
    rows, label_set = task.rows, task.label_set
    names = np.array(label_set.names, dtype=object)
    targets_N = np.array([label_set.index(name) for name in rows.labels])
    result: dict[str, Any] = {
        "name": rows.name,
        "dataset": rows.dataset,
        "group": task.group,
        "information": task.information,
        "rows": len(rows),
        "labels": len(label_set),
        "method": methods[0].name,
    }
    probabilities, tables = [], []
    for method, (scores_NK, *moved) in zip(methods, answers, strict=True):
        scores_NK = scores_NK.astype(np.float64)
        calibrated_NK = softmax(method.temperature.scale(scores_NK, len(label_set)), axis=1)
        raw_NK = softmax(scores_NK, axis=1)
        figures = metrics.summarise(calibrated_NK, targets_N, seed=seed)
        figures["nll_uncalibrated"] = metrics.nll(raw_NK, targets_N)
        figures["ece_uncalibrated"] = metrics.ece(raw_NK, targets_N)
        figures["flip_rate"] = None
        if task.orders:
            shuffled = [names[o][s.argmax(1)] for o, s in zip(task.orders, moved, strict=True)]
            reference = names[scores_NK[: config.flip_rows].argmax(1)]
            figures["flip_rate"] = metrics.flip_rate(reference, shuffled)
        result[method.name] = figures
        probabilities.append(calibrated_NK)
        tables.append(_predictions(method.name, task, names, targets_N, calibrated_NK))
    if len(methods) > 1:
        right, other = (metrics.correct(p_NK, targets_N) for p_NK in probabilities[:2])
        gain_N = right - other
        low, high = metrics.bootstrap_interval(gain_N, samples=config.bootstrap_samples, seed=seed)
        result["difference"] = float(gain_N.mean())
        result["difference_low"], result["difference_high"] = low, high
        result["mcnemar_p"] = metrics.mcnemar(right, other)
    confusion_KK = metrics.confusion(probabilities[0], targets_N)
    return Evaluated(result, confusion_KK, label_set.names, pa.concat_tables(tables))


def _predictions(
    method: str, task: _Task, names: np.ndarray, targets_N: np.ndarray, p_NK: np.ndarray
) -> pa.Table:
    size, rows = len(targets_N), task.rows
    best_N = metrics.predicted(p_NK)
    columns: dict[str, Any] = {
        "method": method,
        "set": rows.name,
        "dataset": rows.dataset,
        "group": rows.group,
        "information": task.information,
        "labels": len(names),
    }
    columns = {name: pa.repeat(value, size) for name, value in columns.items()}
    columns |= {
        "row_id": list(rows.row_ids),
        "target": names[targets_N],
        "predicted": names[best_N],
        "probability": p_NK[np.arange(size), best_N].astype(np.float32),
        "target_probability": p_NK[np.arange(size), targets_N].astype(np.float32),
    }
    return pa.table(columns, schema=PREDICTIONS)


def headline_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Figures by name for a tracker: every set, and the mean over each dataset's sets."""
    found: dict[str, float] = {}
    for result in results:
        suffix = "_by_name" if result["group"].endswith("by name") else ""
        key = f"test/{result['name']}"
        found[f"{key}/accuracy{suffix}"] = result[result["method"]]["accuracy"]
        if "cosine" in result:
            found[f"{key}/cosine_accuracy{suffix}"] = result["cosine"]["accuracy"]
    for (group, dataset), members in by_dataset(results).items():
        key, main = f"test/{group}/{dataset}/mean", members[0]["method"]
        for figure in ("accuracy", "nll", "ece", "macro_f1"):
            found[f"{key}_{figure}"] = float(np.mean([m[main][figure] for m in members]))
        if all("cosine" in m for m in members):
            accuracies = [m["cosine"]["accuracy"] for m in members]
            found[f"{key}_cosine_accuracy"] = float(np.mean(accuracies))
    return found


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
                dataset: metrics.mean_of_known(m[m["method"]][figure] for m in members)
                for (of_group, dataset), members in grouped.items()
                if of_group == group
            }
            if figure == "accuracy":
                found |= {f"compare/{group}/{name}/accuracy": mean for name, mean in means.items()}
            found[f"compare/{group}/{figure}"] = metrics.mean_of_known(means.values())
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
