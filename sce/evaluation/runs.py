"""A method's answers, from one run or several seeds, and how two methods differ.

Legend of shapes: N rows of a label set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.errors import DataError
from sce.evaluation.evaluate import named_results
from sce.evaluation.metrics import bootstrap_interval, mcnemar


@dataclass(frozen=True)
class Run:
    """What one measured run wrote.

    Attributes:
        described: its entry of `methods.json`.
        results: as `sce.evaluation.report` describes them.
        predictions: `sce.evaluation.evaluate.PREDICTIONS`, of the method that was measured alone.
    """

    described: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]
    predictions: pa.Table

    @property
    def name(self) -> str:
        return str(self.described["name"])

    @property
    def seed(self) -> int:
        return int(self.described["seed"])


@dataclass(frozen=True)
class SetAnswers:
    """One label set, its labels by their bare names: ids of its N rows, and the share of the runs
    in which each is right."""

    name: str
    dataset: str
    group: str
    labels: int
    row_ids: list[str]
    right_N: np.ndarray
    first_right_N: np.ndarray
    """The same in the run with the lowest seed alone, 0 or 1."""


class MethodRuns:
    """The runs of one method that differ in their seed alone.

    Raises:
        DataError: they were measured on different rows.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run.seed)
        self.described = self.runs[0].described
        self.name = self.runs[0].name
        self.kind = str(self.described["kind"])
        self.results = [named_results(run.results) for run in self.runs]  # type: ignore[arg-type]

    @cached_property
    def sets(self) -> dict[str, SetAnswers]:
        parts = [_by_set(run.predictions) for run in self.runs]
        found = {}
        for name, table in parts[0].items():
            ids = table["row_id"].to_pylist()
            right = []
            for run, part in zip(self.runs, parts, strict=True):
                other = part.get(name)
                if other is None or other["row_id"].to_pylist() != ids:
                    raise DataError(
                        f"{self.name}: the runs with seeds {self.runs[0].seed} and {run.seed} were "
                        f"not measured on the same rows of {name!r}."
                    )
                right.append(pc.equal(other["target"], other["predicted"]).to_numpy())
            dataset, group = table["dataset"][0].as_py(), table["group"][0].as_py()
            found[name] = SetAnswers(
                name,
                # The sets of one dataset may be seen and unseen ones.
                dataset if name == dataset else f"{dataset} ({group})",
                group,
                table["labels"][0].as_py(),
                ids,
                np.mean(right, axis=0),
                np.asarray(right[0], float),
            )
        return found

    @cached_property
    def datasets(self) -> dict[str, list[SetAnswers]]:
        """Label sets by dataset."""
        found: dict[str, list[SetAnswers]] = {}
        for one in self.sets.values():
            found.setdefault(one.dataset, []).append(one)
        return found

    def accuracy(self, dataset: str) -> Accuracy | None:
        """None where the method was not measured on it."""
        sets = self.datasets.get(dataset)
        return None if sets is None else Accuracy.of(sets)

    def mean(self, group: str, figure: str) -> float | None:
        """Mean of a figure over the datasets of a group, each the mean over its sets and seeds."""
        by_dataset: dict[str, list[float]] = {}
        for results in self.results:
            for result in results:
                value = result[result["method"]].get(figure)
                if result["group"].removesuffix(" by name") == group and value is not None:
                    by_dataset.setdefault(result["dataset"], []).append(value)
        return float(np.mean([np.mean(v) for v in by_dataset.values()])) if by_dataset else None

    @property
    def training_flops(self) -> float | None:
        """Operations of the whole training, the embedding of its texts included."""
        training = self.described.get("training")
        return training["flops"] + training["embedding_flops"] if training else None

    @property
    def caption(self) -> str:
        """What was run, at what size."""
        found = f"{self.name}: {self.described['title']} ({self.described['model']}, "
        found += f"{self.described['parameters'] / 1e6:,.1f} M parameters"
        found += f", {'GPU' if self.described['cost']['device'] == 'cuda' else 'CPU'}"
        if len(self.runs) > 1:
            found += f", seeds {', '.join(str(run.seed) for run in self.runs)}"
        note = self.described.get("note")
        return f"{found}{', ' + note if note else ''})"


@dataclass(frozen=True)
class Accuracy:
    """Mean over the sets of a dataset, with its 95 % interval: rows resampled where it is one set,
    sets where there are several."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, sets: Sequence[SetAnswers]) -> Accuracy:
        means = np.array([one.right_N.mean() for one in sets])
        low, high = bootstrap_interval(sets[0].right_N if len(sets) == 1 else means)
        return cls(float(means.mean()), low, high)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one method less that of another on the rows that both answered.

    Attributes:
        low, high: 95 % interval, rows resampled in pairs.
        p: of McNemar's exact test, on the run with each method's lowest seed.
        rows: that both answered; `left_out` that only one did.
    """

    value: float
    low: float
    high: float
    p: float
    rows: int
    left_out: int


def groups_of(methods: Sequence[MethodRuns]) -> list[str]:
    """Groups of the label sets on which any of the methods was measured."""
    return list(dict.fromkeys(s.group for m in methods for s in m.sets.values()))


def difference(a: MethodRuns, b: MethodRuns, dataset: str) -> Difference | None:
    """None where they have no row of the dataset in common."""
    gains, first_a, first_b, left_out = [], [], [], 0
    for name, mine in a.sets.items():
        theirs = b.sets.get(name)
        if mine.dataset != dataset or theirs is None:
            continue
        place = {row_id: i for i, row_id in enumerate(theirs.row_ids)}
        common = [(i, place[r]) for i, r in enumerate(mine.row_ids) if r in place]
        left_out += len(mine.row_ids) + len(theirs.row_ids) - 2 * len(common)
        if not common:
            continue
        mine_C, theirs_C = np.array(common).T
        gains.append(mine.right_N[mine_C] - theirs.right_N[theirs_C])
        first_a.append(mine.first_right_N[mine_C])
        first_b.append(theirs.first_right_N[theirs_C])
    if not gains:
        return None
    gain_C = np.concatenate(gains)
    low, high = bootstrap_interval(gain_C)
    p = mcnemar(np.concatenate(first_a), np.concatenate(first_b))
    return Difference(float(gain_C.mean()), low, high, p, len(gain_C), left_out)


def _by_set(predictions: pa.Table) -> dict[str, pa.Table]:
    """Each set's rows by id, with bare names where both kinds of information were measured."""
    found = {}
    for name in predictions["set"].unique().to_pylist():
        table = predictions.filter(pc.equal(predictions["set"], name))
        by_name = table.filter(pc.equal(table["information"], "name"))
        found[name] = (by_name if len(by_name) else table).sort_by("row_id")
    return found
