"""From probabilities to labels: the one place where a threshold is compared.

Bulk jobs make columns of a decision, all others objects. Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sce.model.answers import Answers, Prediction
from sce.model.options import AnswerOptions


@dataclass(frozen=True)
class Decisions:
    """What is answered to N rows.

    Attributes:
        label_N: int64 [N], position of the label in the row's own set in the user's order; -1 for
            none. Of a tree a place in `LabelTree.answer_names`.
        score_N: float32 [N], probability of the best label, or in a tree of the node answered.
    """

    label_N: np.ndarray
    score_N: np.ndarray


def decide(answers: Answers, options: AnswerOptions) -> Decisions:
    """The label of each row: its best one, or none below the threshold. Probabilities are compared
    in float32, as an output holds them.

    In a tree: the best leaf, or where it is below the threshold the deepest node on the way down
    from the top that is not; the score of no node is that of the most probable at the top.
    """
    label_N, score_N = answers.top_NT[:, 0], answers.top_scores_NT[:, 0]
    if options.threshold is None:
        return Decisions(label_N, score_N)
    sure_N = score_N >= np.float32(options.threshold)
    if answers.path_NH is None or answers.path_scores_NH is None:
        return Decisions(np.where(sure_N, label_N, -1), score_N)
    # Probabilities only fall on the way down, so the sure nodes are its first ones.
    depth_N = (answers.path_scores_NH >= np.float32(options.threshold)).sum(axis=1)
    place_N = np.arange(len(answers)), np.maximum(depth_N - 1, 0)
    node_N = np.where(depth_N > 0, answers.path_NH[place_N], -1)
    return Decisions(
        np.where(sure_N, label_N, node_N),
        np.where(sure_N, score_N, answers.path_scores_NH[place_N]),
    )


def predictions(
    answers: Answers,
    sets: Sequence[Sequence[str]],
    options: AnswerOptions,
    truncated: Sequence[bool],
    nodes: Sequence[str] = (),
) -> list[Prediction]:
    """The answers as objects.

    Args:
        sets: names of each row's labels in the user's order.
        truncated: of each row's text.
        nodes: of a tree, `LabelTree.answer_names`.
    """
    decided = decide(answers, options)
    labels, label_scores = decided.label_N.tolist(), decided.score_N.tolist()
    tops, top_scores = answers.top_NT.tolist(), answers.top_scores_NT.tolist()
    bounds = answers.offsets.tolist()
    found = []
    places = None if answers.where_N2 is None else answers.where_N2.tolist()
    for row, names in enumerate(sets):
        scores = top = where = path = None
        if answers.scores_M is not None:
            scores_K = answers.scores_M[bounds[row] : bounds[row + 1]]
            scores = dict(zip(names, scores_K.tolist(), strict=True))
        if options.top_k is not None:
            pairs = zip(tops[row], top_scores[row], strict=True)
            top = [(names[k], p) for k, p in pairs if k >= 0]
        if places is not None and places[row][0] >= 0:
            where = (places[row][0], places[row][1])
        if answers.path_NH is not None and answers.path_scores_NH is not None:
            steps = zip(answers.path_NH[row].tolist(), answers.path_scores_NH[row].tolist())
            path = [(nodes[k], p) for k, p in steps if k >= 0]
        label = (nodes or names)[labels[row]] if labels[row] >= 0 else None
        score, cut = label_scores[row], truncated[row]
        found.append(Prediction(label, score, scores, top, cut, where=where, path=path))
    return found
