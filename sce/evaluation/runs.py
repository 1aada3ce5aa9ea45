"""A method's answers, from one run or several seeds, and how two methods differ.

Legend of shapes: N rows of a label set.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.errors import DataError
from sce.evaluation.metrics import bootstrap_interval, mcnemar
from sce.evaluation.summaries import is_own, named_results


class Run(NamedTuple):
    """What one measured run wrote: its method's entry of `methods.json`, results as
    `sce.evaluation.report` describes them, and the method's `PREDICTIONS`."""

    described: Mapping[str, Any]
    results: Sequence[dict[str, Any]]
    predictions: pa.Table


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
    own: bool = False
    """Whether the rows are the user's."""


class MethodRuns:
    """The runs of one method that differ in their seed alone.

    Raises:
        DataError: they were measured on different rows.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run.described["seed"])
        self.seeds = [run.described["seed"] for run in self.runs]
        self.described = self.runs[0].described
        self.name, self.kind = str(self.described["name"]), str(self.described["kind"])

    @cached_property
    def sets(self) -> dict[str, SetAnswers]:
        parts = [_by_set(run.predictions) for run in self.runs]
        mine = {result["name"] for run in self.runs for result in run.results if is_own(result)}
        found = {}
        for name, table in parts[0].items():
            ids = table["row_id"].to_pylist()
            right = []
            for seed, part in zip(self.seeds, parts, strict=True):
                other = part.get(name)
                if other is None or other["row_id"].to_pylist() != ids:
                    raise DataError(
                        f"{self.name}: the runs with seeds {self.seeds[0]} and {seed} were not "
                        f"measured on the same rows of {name!r}."
                    )
                right.append(pc.equal(other["target"], other["predicted"]).to_numpy())
            dataset, group = table["dataset"][0].as_py(), table["group"][0].as_py()
            if name != dataset:  # the sets of one dataset may be seen and unseen ones
                dataset = f"{dataset} ({group})"
            labels, first_N = table["labels"][0].as_py(), np.asarray(right[0], float)
            right_N = np.mean(right, axis=0)
            found[name] = SetAnswers(
                name, dataset, group, labels, ids, right_N, first_N, name in mine
            )
        return found

    @cached_property
    def datasets(self) -> dict[str, list[SetAnswers]]:
        """Label sets by dataset."""
        found: dict[str, list[SetAnswers]] = {}
        for one in self.sets.values():
            found.setdefault(one.dataset, []).append(one)
        return found

    def accuracy(self, dataset: str, sets: Container[str] | None = None) -> Accuracy | None:
        """On `sets` of a dataset, by default all. None where the method was measured on none."""
        found = [s for s in self.datasets.get(dataset, []) if sets is None or s.name in sets]
        return Accuracy.of(found) if found else None

    def mean(self, group: str, figure: str, sets: Container[str] | None = None) -> float | None:
        """Mean of a figure over the datasets of a group, each the mean over its sets and seeds;
        over `sets` of them, by default all."""
        by_dataset: dict[str, list[float]] = {}
        for run in self.runs:
            for result in named_results(run.results):
                if sets is not None and result["name"] not in sets:
                    continue
                value = result[result["method"]].get(figure)
                if result["group"].removesuffix(" by name") == group and value is not None:
                    by_dataset.setdefault(result["dataset"], []).append(value)
        return float(np.mean([np.mean(v) for v in by_dataset.values()])) if by_dataset else None

    @property
    def training_flops(self) -> float | None:
        """Operations of the whole training, the embedding of its texts included; or of a fit of
        adapted labels to vectors that are there."""
        training = self.described.get("training")
        if "fit" in self.described:
            return float(self.described["fit"]["flops"])
        return training["flops"] + training["embedding_flops"] if training else None

    @property
    def caption(self) -> str:
        """What was run, at what size."""
        described = self.described
        parts = [described["model"], f"{described['parameters'] / 1e6:,.1f} M parameters"]
        parts.append("GPU" if described["cost"]["device"] == "cuda" else "CPU")
        if len(self.runs) > 1:
            parts.append(f"seeds {', '.join(map(str, self.seeds))}")
        parts += [described["note"]] if described.get("note") else []
        return f"{self.name}: {described['title']} ({', '.join(parts)})"


class Accuracy(NamedTuple):
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


class Difference(NamedTuple):
    """Accuracy of one method less that of another on the rows that both answered, with its 95 %
    interval, rows resampled in pairs; p of McNemar's exact test on the run with each method's
    lowest seed; rows that both answered, and those left out that only one did."""

    value: float
    low: float
    high: float
    p: float
    rows: int
    left_out: int


def groups_of(methods: Sequence[MethodRuns]) -> list[str]:
    """Groups of the label sets on which any of the methods was measured."""
    return list(dict.fromkeys(s.group for m in methods for s in m.sets.values()))


def own_datasets(methods: Sequence[MethodRuns]) -> list[str]:
    """Datasets of the user's rows, on which any of the methods was measured."""
    return list(dict.fromkeys(s.dataset for m in methods for s in m.sets.values() if s.own))


def common_sets(methods: Sequence[MethodRuns], group: str, by: str = "group") -> frozenset[str]:
    """Label sets of a group (or `by` "dataset", of a dataset) on which every method was measured
    that was measured on any: what their means may be compared on."""
    of_each = [frozenset(n for n, s in m.sets.items() if getattr(s, by) == group) for m in methods]
    measured = [names for names in of_each if names]
    return frozenset.intersection(*measured) if measured else frozenset()


def common_note(methods: Sequence[MethodRuns]) -> str:
    """On which sets means are compared, and which were left out for it, in a sentence a group."""
    said = []
    for group in groups_of(methods):
        common = common_sets(methods, group)
        sets = {n: s for m in methods for n, s in m.sets.items() if s.group == group}
        used = list(dict.fromkeys(s.dataset for n, s in sets.items() if n in common))
        out = list(dict.fromkeys(s.dataset for n, s in sets.items() if n not in common))
        text = f"{group}: {len(common)} set(s) that all were measured on ({', '.join(used)})"
        if not common:
            text = f"{group}: no set that all were measured on"
        said.append(text + (f", not {', '.join(out)}" if out else ""))
    return "; ".join(said)


def difference(a: MethodRuns, b: MethodRuns, dataset: str) -> Difference | None:
    """None where they have no row of the dataset in common."""
    gains, first_a, first_b, left_out = [], [], [], 0
    for name, mine in a.sets.items():
        theirs = b.sets.get(name)
        if mine.dataset != dataset or theirs is None:
            continue
        common, mine_C, theirs_C = np.intersect1d(
            mine.row_ids, theirs.row_ids, assume_unique=True, return_indices=True
        )
        left_out += len(mine.row_ids) + len(theirs.row_ids) - 2 * len(common)
        gains.append(mine.right_N[mine_C] - theirs.right_N[theirs_C])
        first_a.append(mine.first_right_N[mine_C])
        first_b.append(theirs.first_right_N[theirs_C])
    gain_C = np.concatenate([*gains, []])
    if not len(gain_C):
        return None
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
