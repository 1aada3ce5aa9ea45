"""One evaluation for every method: same rows, same labels, same figures."""

from __future__ import annotations

import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import softmax

from sce.evaluation import metrics
from sce.evaluation.levels import reordered, tree_figures, without_information
from sce.evaluation.settings import EvaluateConfig, Information
from sce.labels import LabelSet
from sce.model.calibration import Temperature
from sce.model.label_tree import LabelTree

log = logging.getLogger(__name__)

ScoreVectors = Callable[[np.ndarray, LabelSet], np.ndarray]


@dataclass(frozen=True)
class Request:
    """Texts, and their vectors where there are any, to be scored against one label set."""

    texts: Sequence[str]
    vectors_ND: np.ndarray | None
    label_set: LabelSet
    rows: EvaluationSet | None = None
    """The rows whose texts these are, for a method that learns from the corpus of the set, or from
    labels of other rows than those that it answers."""


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled rows of one label set: ids, texts, right labels by name, and the texts' vectors
    [N, D] where the method reads those. `corpus_MD` are vectors of the texts that the labels are to
    be adapted to; None where they are not to be."""

    name: str
    dataset: str
    group: str
    label_set: LabelSet
    row_ids: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[str]
    vectors_ND: np.ndarray | None = None
    corpus_MD: np.ndarray | None = None
    own: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def request(self) -> Request:
        return Request(self.texts, self.vectors_ND, self.label_set, self)


class Method(ABC):
    """A classifier that is measured.

    Attributes:
        name: its key in the results, such as "sce".
        information: what it can be given of the labels.
        reorders: whether the flip rate is measured. Not of a method that sorts the labels first.
        temperature: makes softmax(scores / T) its probabilities; read after it has answered.
    """

    name: str
    information: tuple[Information, ...] = ("name", "all")
    reorders: bool = True
    temperature: Temperature

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """Scores [N, K] of each request, in the order of its labels. All at once, so that a
        method may load its model once and batch as it likes."""

    def applies_to(self, rows: EvaluationSet) -> bool:
        """Whether it is measured on these rows."""
        return True

    def calibrated(self, scores_NK: np.ndarray, request: Request) -> np.ndarray:
        """What the softmax makes probabilities of, from the scores that it answered with."""
        return self.temperature.scale(scores_NK, len(request.label_set))

    def remarks(self, request: Request) -> dict[str, Any]:
        """What else a result is to say of its answer to a request."""
        return {}

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
    """A result as `report` describes it, with the confusion matrix of the first method, every
    method's predictions (`PREDICTIONS`), and the texts in the order of a method's rows there."""

    result: dict[str, Any]
    confusion_KK: np.ndarray
    label_names: list[str]
    predictions: pa.Table
    texts: Sequence[str]


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

    @property
    def request(self) -> Request:
        """All rows, in the order of the labels."""
        return Request(self.rows.texts, self.rows.vectors_ND, self.label_set, self.rows)

    def requests(self, config: EvaluateConfig, method: Method) -> Iterator[Request]:
        """What a method is asked: all rows in the order of the labels, then the first rows in
        every other order; nothing where the rows are not for it."""
        if not method.applies_to(self.rows):
            return
        yield self.request
        texts, vectors_ND = self.rows.texts[: config.flip_rows], self.rows.vectors_ND
        vectors_ND = None if vectors_ND is None else vectors_ND[: config.flip_rows]
        for order in self.orders if method.reorders else ():
            yield Request(texts, vectors_ND, reordered(self.label_set, order))


def evaluate_sets(
    sets: Sequence[EvaluationSet],
    methods: Sequence[Method],
    config: EvaluateConfig,
    seed: int = 0,
    adapted: Sequence[Method] = (),
) -> list[Evaluated]:
    """Measure methods on the same rows: every set, with every kind of label information that is
    asked for and that the first method can be given; a second method is what that is compared with.

    A set whose labels have names alone is measured once. Where both kinds are measured, the
    bare-name result's group ends in "by name".

    Args:
        adapted: further methods, each compared with the last of `methods` on the sets that it
            applies to.
    """
    readable = methods[0].information
    kinds = [kind for kind in dict.fromkeys(config.information) if kind in readable] or readable
    tasks = [task for rows in sets for task in _tasks(rows, kinds, config.flip_shuffles, seed)]
    every = [*methods, *adapted]
    answers = [_answers(method, tasks, config) for method in every]
    found = []
    for task, of_task in zip(tasks, zip(*answers)):
        answered = [(m, answer) for m, answer in zip(every, of_task) if answer]
        found.append(_evaluated(task, answered, len(methods), config, seed))
    return found


def _answers(
    method: Method, tasks: Sequence[_Task], config: EvaluateConfig
) -> list[list[np.ndarray]]:
    """What a method answers to the requests of each task; it is asked once."""
    requests = [list(task.requests(config, method)) for task in tasks]
    log.info("%s: %d label sets", method.name, len(requests))
    found = iter(method.answer([request for of_task in requests for request in of_task]))
    return [list(islice(found, len(of_task))) for of_task in requests]


def _tasks(
    rows: EvaluationSet, kinds: Sequence[Information], shuffles: int, seed: int
) -> Iterator[_Task]:
    bare = without_information(rows.label_set)
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
    answered: Sequence[tuple[Method, list[np.ndarray]]],
    compared: int,
    config: EvaluateConfig,
    seed: int,
) -> Evaluated:
    """The result of a task from the answers of each method to its requests.

    Args:
        compared: how many methods come before those of adapted labels.
    """
    rows, label_set = task.rows, task.label_set
    names = np.array(label_set.names, dtype=object)
    targets_N = np.array([label_set.index(name) for name in rows.labels])
    result: dict[str, Any] = {
        "name": rows.name,
        "dataset": rows.dataset,
        "group": task.group,
        "own": rows.own,
        "information": task.information,
        "rows": len(rows),
        "labels": len(label_set),
        "method": answered[0][0].name,
    }
    probabilities, tables = [], []
    for method, (scores_NK, *moved) in answered:
        scores_NK = scores_NK.astype(np.float64)
        calibrated_NK = softmax(method.calibrated(scores_NK, task.request), axis=1)
        raw_NK = softmax(scores_NK, axis=1)
        figures = metrics.summarise(calibrated_NK, targets_N, seed=seed)
        figures["nll_uncalibrated"] = metrics.nll(raw_NK, targets_N)
        figures["ece_uncalibrated"] = metrics.ece(raw_NK, targets_N)
        figures["flip_rate"] = None
        if moved:
            shuffled = [names[o][s.argmax(1)] for o, s in zip(task.orders, moved, strict=True)]
            reference = names[scores_NK[: config.flip_rows].argmax(1)]
            figures["flip_rate"] = metrics.flip_rate(reference, shuffled)
        result[method.name] = figures | method.remarks(task.request)
        if isinstance(label_set, LabelTree):
            trees = result.setdefault("tree", {})
            trees[method.name] = tree_figures(label_set, calibrated_NK, targets_N)
        probabilities.append(calibrated_NK)
        tables.append(_predictions(method.name, task, names, targets_N, calibrated_NK))
    right = [metrics.correct(p_NK, targets_N) for p_NK in probabilities]
    if compared > 1:
        result |= _difference(right[0], right[1], config, seed)
    for (method, _), mine in list(zip(answered, right))[compared:]:
        result[method.name] |= _difference(mine, right[compared - 1], config, seed)
    confusion_KK = metrics.confusion(probabilities[0], targets_N)
    predictions = pa.concat_tables(tables)
    return Evaluated(result, confusion_KK, label_set.names, predictions, rows.texts)


def _difference(
    right_N: np.ndarray, other_N: np.ndarray, config: EvaluateConfig, seed: int
) -> dict[str, float]:
    """How much oftener one method is right than another on the same rows."""
    gain_N = right_N - other_N
    low, high = metrics.bootstrap_interval(gain_N, samples=config.bootstrap_samples, seed=seed)
    return {
        "difference": float(gain_N.mean()),
        "difference_low": low,
        "difference_high": high,
        "mcnemar_p": metrics.mcnemar(right_N, other_N),
    }


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
