"""What is measured of answers in a tree of labels: level by level, and by the nodes on their paths.

A node is its path from the top, a tuple of names. An answer may stop at an inner node, or be none:
an empty path.

Shapes: N rows, K leaves, V nodes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sce.evaluation import metrics
from sce.labels import Label, LabelSet, only_names
from sce.model.answers import Answers
from sce.model.decisions import decide
from sce.model.label_tree import LabelTree
from sce.model.options import AnswerOptions, Scoring

STOP_BELOW = 0.5
"""Threshold of the answers that may stop at a node: those that are more likely right than not."""

Path = tuple[str, ...]
NO_ANSWER: Path = ()


@dataclass(frozen=True)
class Hierarchical:
    """Precision and recall over the nodes on the paths of N rows, summed before they are divided
    (Kiritchenko et al. 2006; Silla and Freitas 2011, section 4.2). The top of the tree, which every
    path has, counts in neither. NaN where there is nothing to divide by."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        if np.isnan(total):
            return float("nan")
        return 2 * self.precision * self.recall / total if total else 0.0


def hierarchical(answered: Sequence[Path], right: Sequence[Path]) -> Hierarchical:
    """How much of the answered paths is right, and how much of the right ones was answered.

    Raises:
        ValueError: as many answers as rows are needed, and no right path is empty.
    """
    _check_rows(answered, right)
    shared = sum(_shared(a, b) for a, b in zip(answered, right))
    said, there = sum(map(len, answered)), sum(map(len, right))
    return Hierarchical(
        shared / said if said else float("nan"), shared / there if there else float("nan")
    )


@dataclass(frozen=True)
class Level:
    """Answers down to one level; the nodes at the top are level 1.

    Attributes:
        rows: those whose right path goes as deep.
        answered: share of them whose answer does.
        accuracy: share of them that are answered as deep, and rightly down to there.
        precision: share of the answers as deep that are right down to there; NaN for none.
    """

    level: int
    rows: int
    answered: float
    accuracy: float
    precision: float


def accuracy_by_level(answered: Sequence[Path], right: Sequence[Path]) -> list[Level]:
    """The answers down to each level that a right path has. Raises as `hierarchical`."""
    _check_rows(answered, right)
    shared_N = np.array([_shared(a, b) for a, b in zip(answered, right)])
    said_N, there_N = np.array([*map(len, answered)]), np.array([*map(len, right)])
    found = []
    for level in range(1, int(there_N.max(initial=0)) + 1):
        asked_N = there_N >= level
        deep_N = asked_N & (said_N >= level)
        good = int((asked_N & (shared_N >= level)).sum())
        rows, deep = int(asked_N.sum()), int(deep_N.sum())
        precision = good / deep if deep else float("nan")
        found.append(Level(level, rows, deep / rows, good / rows, precision))
    return found


def node_probabilities(
    probabilities: ArrayLike, paths: Sequence[Path], level: int
) -> tuple[np.ndarray, list[Path], np.ndarray]:
    """Sums of the leaves' probabilities below each node of a level.

    Args:
        probabilities: of the leaves, [N, K].
        paths: of the leaves. One that ends above the level is a node of it.

    Returns:
        float64 [N, V], the nodes, and each leaf's place among them, int64 [K].
    """
    p_NK = np.asarray(probabilities, np.float64)
    cut = [path[:level] for path in paths]
    nodes = sorted(set(cut))
    place_of = {node: place for place, node in enumerate(nodes)}
    place_K = np.array([place_of[node] for node in cut], np.int64)
    p_VN = np.zeros((len(nodes), len(p_NK)))
    np.add.at(p_VN, place_K, p_NK.T)
    return p_VN.T, nodes, place_K


def figures_by_level(
    probabilities: ArrayLike, paths: Sequence[Path], targets: ArrayLike
) -> list[dict[str, float]]:
    """How good and how well calibrated the nodes' probabilities are, level by level.

    Args:
        probabilities: of the leaves, [N, K].
        targets: each row's right leaf, a place, [N].

    Returns:
        Of each level: level, nodes, accuracy (of the likeliest node), accuracy_of_best_leaf (of the
        node above the likeliest leaf), nll and ece. The last level is that of the leaves.
    """
    leaf_N = metrics.predicted(probabilities)
    targets_N = np.asarray(targets, np.int64)
    found = []
    for level in range(1, max(map(len, paths)) + 1):
        p_NV, nodes, place_K = node_probabilities(probabilities, paths, level)
        right_N = place_K[targets_N]
        found.append(
            {
                "level": level,
                "nodes": len(nodes),
                "accuracy": float(metrics.correct(p_NV, right_N).mean()),
                "accuracy_of_best_leaf": float((place_K[leaf_N] == right_N).mean()),
                # Sums of rounded numbers may be above 1 by their last bit.
                "nll": metrics.nll(np.minimum(p_NV, 1.0), right_N),
                "ece": metrics.ece(np.minimum(p_NV, 1.0), right_N),
            }
        )
    return found


def tree_figures(tree: LabelTree, probabilities: ArrayLike, targets: ArrayLike) -> dict[str, Any]:
    """What a result says of a method's answers in a tree, as JSON.

    Args:
        probabilities: of the leaves in the user's order, [N, K].
        targets: each row's right leaf, a place, [N].

    Returns:
        levels, as `figures_by_level`; leaf, precision, recall and f1 (`Hierarchical`) of the best
        leaves; and stopped, the same of answers with the threshold `STOP_BELOW`, with what
        `accuracy_by_level` says of them.
    """
    p_NK, targets_N = np.asarray(probabilities, np.float64), np.asarray(targets, np.int64)
    right = [tree.paths[k] for k in targets_N.tolist()]
    nodes: list[Path] = [*tree.paths, *tree.inner_paths]
    best = [tree.paths[k] for k in metrics.predicted(p_NK).tolist()]
    answers = Answers.empty(tree.counts_by_row(len(p_NK)), Scoring(), levels=len(tree.levels))
    order_K = tree.canonical_order
    best_N = np.array(order_K)[p_NK[:, order_K].argmax(1)]
    answers.top_NT[:, 0] = best_N
    answers.top_scores_NT[:, 0] = p_NK[np.arange(len(p_NK)), best_N]
    answers.fill_path(np.arange(len(p_NK)), *tree.best_path(p_NK[:, order_K]))
    label_N = decide(answers, AnswerOptions(STOP_BELOW), tree.names, tree.answer_names).label_N
    stopped = [nodes[k] if k >= 0 else NO_ANSWER for k in label_N.tolist()]
    levels = [_known(vars(level)) for level in accuracy_by_level(stopped, right)]
    return {
        "levels": figures_by_level(p_NK, tree.paths, targets_N),
        "leaf": _hierarchical(best, right),
        "stopped": _hierarchical(stopped, right) | {"threshold": STOP_BELOW, "levels": levels},
    }


def _hierarchical(answered: Sequence[Path], right: Sequence[Path]) -> dict[str, Any]:
    found = hierarchical(answered, right)
    return _known(vars(found) | {"f1": found.f1})


def _known(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in figures.items()}


def without_information(label_set: LabelSet) -> LabelSet:
    """The same labels, or the same tree, with nothing but names."""
    if not isinstance(label_set, LabelTree):
        return only_names(label_set)
    inner = tuple(Label(node.name) for node in label_set.inner)
    return replace(label_set, labels=only_names(label_set).labels, inner=inner)


def reordered(label_set: LabelSet, order: Sequence[int] | np.ndarray) -> LabelSet:
    """The same labels, or the same tree, in another order."""
    labels = tuple(label_set.labels[i] for i in order)
    if not isinstance(label_set, LabelTree):
        return LabelSet(labels)
    return replace(label_set, labels=labels, paths=tuple(label_set.paths[i] for i in order))


def _shared(one: Path, other: Path) -> int:
    """How many nodes two paths have in common, from the top."""
    count = 0
    for a, b in zip(one, other):
        if a != b:
            break
        count += 1
    return count


def _check_rows(answered: Sequence[Path], right: Sequence[Path]) -> None:
    if len(answered) != len(right):
        raise ValueError(f"{len(answered)} answers for {len(right)} rows.")
    if NO_ANSWER in right:
        raise ValueError("a right path is empty.")
