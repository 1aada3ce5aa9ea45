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
            none.
    """

    label_N: np.ndarray


def decide(answers: Answers, options: AnswerOptions) -> Decisions:
    """The label of each row: its best one, or none below the threshold. Probabilities are compared
    in float32, as an output holds them."""
    label_N = answers.top_NT[:, 0]
    if options.threshold is not None:
        sure_N = answers.top_scores_NT[:, 0] >= np.float32(options.threshold)
        label_N = np.where(sure_N, label_N, -1)
    return Decisions(label_N)


def predictions(
    answers: Answers,
    sets: Sequence[Sequence[str]],
    options: AnswerOptions,
    truncated: Sequence[bool],
) -> list[Prediction]:
    """The answers as objects.

    Args:
        sets: names of each row's labels in the user's order.
        truncated: of each row's text.
    """
    labels = decide(answers, options).label_N.tolist()
    tops, top_scores = answers.top_NT.tolist(), answers.top_scores_NT.tolist()
    bounds = answers.offsets.tolist()
    found = []
    places = None if answers.where_N2 is None else answers.where_N2.tolist()
    for row, names in enumerate(sets):
        scores = top = where = None
        if answers.scores_M is not None:
            scores_K = answers.scores_M[bounds[row] : bounds[row + 1]]
            scores = dict(zip(names, scores_K.tolist(), strict=True))
        if options.top_k is not None:
            pairs = zip(tops[row], top_scores[row], strict=True)
            top = [(names[k], p) for k, p in pairs if k >= 0]
        if places is not None and places[row][0] >= 0:
            where = (places[row][0], places[row][1])
        label = names[labels[row]] if labels[row] >= 0 else None
        score = top_scores[row][0]
        found.append(Prediction(label, score, scores, top, truncated[row], where=where))
    return found
