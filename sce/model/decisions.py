"""From probabilities to labels: the one place where a threshold is compared.

Bulk jobs make columns of a decision, all others objects. Shapes: N rows, K labels of a row, M
labels of all rows one after another, S labels that are answered to all rows one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from sce.labels import normalise_name
from sce.model.answers import Answers, Prediction, Why
from sce.model.logistic import NONE_FITTED_SHARE
from sce.model.options import NONE_THRESHOLD, AnswerOptions, Mode
from sce.model.rejection import FITTED_SHARE, NONE_SHARE, at_share


@dataclass(frozen=True)
class LabelLists:
    """Several labels a row, best first; row i's stand at `offsets[i]` to `offsets[i + 1]`.

    Attributes:
        offsets: int64 [N + 1].
        labels_S: int64, positions in the row's own set in the user's order.
        scores_S: float32, their probabilities.
    """

    offsets: np.ndarray
    labels_S: np.ndarray
    scores_S: np.ndarray

    def without(self, rows_N: np.ndarray) -> LabelLists:
        """None for the rows that are marked."""
        counts_N = np.diff(self.offsets)
        kept_S = np.repeat(~rows_N, counts_N)
        offsets = np.concatenate([[0], np.cumsum(np.where(rows_N, 0, counts_N))])
        return LabelLists(offsets, self.labels_S[kept_S], self.scores_S[kept_S])


@dataclass(frozen=True)
class Decisions:
    """What is answered to N rows.

    Attributes:
        label_N: int64 [N], position of the label in the row's own set in the user's order; -1 for
            none. Of a tree a place in `LabelTree.answer_names`.
        score_N: float32 [N], its probability; of the best label where none is answered.
        lists: all labels that are answered, in the modes in which that may be several.
        none_N: float32 [N], where it was asked for, the probability that no label fits.
    """

    label_N: np.ndarray
    score_N: np.ndarray
    lists: LabelLists | None = None
    none_N: np.ndarray | None = None


def fitted_share(mode: Mode) -> float:
    """Of rows that no label fits, for which `Answers.none_N` is calibrated."""
    return NONE_FITTED_SHARE if mode == "multi" else FITTED_SHARE


def decide(
    answers: Answers, options: AnswerOptions, names: Sequence[str], nodes: Sequence[str] = ()
) -> Decisions:
    """The label of each row: its best one, or none below the threshold; in mode "multi" all that
    reach theirs. Where no label is likelier to fit than the best one is to be right, none.
    Probabilities are compared in float32, as an output holds them.

    In a tree: the best leaf, or where it is below its threshold the deepest node on the way down
    from the top that is not; the score of no node is that of the most probable at the top.

    Args:
        names: of the labels, of the one set of all rows or row after row.
        nodes: of a tree, `LabelTree.answer_names`.
    """
    decided = _decide(answers, options, names, nodes)
    label_N, lists, none_N = decided.label_N, decided.lists, None
    if answers.none_N is not None and options.none_of_these:
        share = NONE_SHARE if options.none_share is None else options.none_share
        none_N = at_share(answers.none_N, share, fitted_share(options.mode))
        fits_none_N = _fits_none(none_N, decided.score_N, options)
        label_N = np.where(fits_none_N, -1, label_N)
        lists = None if lists is None else lists.without(fits_none_N)
    if options.coverage_cut is not None:
        lists = _label_sets(answers, options.coverage_cut)
    return Decisions(label_N, decided.score_N, lists, none_N)


def _fits_none(none_N: np.ndarray, score_N: np.ndarray, options: AnswerOptions) -> np.ndarray:
    """Whether "none" is what is answered, bool [N]. `score` is given that a label fits, so the
    best one is right with the product of the two: the likelier answer is right most often."""
    if options.none_threshold is not None:
        return none_N > np.float32(options.none_threshold)
    if options.mode == "multi":
        return none_N > np.float32(NONE_THRESHOLD)
    return none_N > (1 - none_N) * score_N


def _decide(
    answers: Answers, options: AnswerOptions, names: Sequence[str], nodes: Sequence[str]
) -> Decisions:
    """By the thresholds of labels alone."""
    best_N, score_N = answers.top_NT[:, 0], answers.top_scores_NT[:, 0]
    if options.mode == "multi":
        lists = _over_threshold(answers, options, names)
        first_N, some_N = lists.offsets[:-1], np.diff(lists.offsets) > 0
        label_N, score_N = np.full(len(answers), -1), score_N.copy()
        label_N[some_N] = lists.labels_S[first_N[some_N]]
        score_N[some_N] = lists.scores_S[first_N[some_N]]
        return Decisions(label_N, score_N, lists)
    if options.threshold is None:
        return Decisions(best_N, score_N)
    if answers.path_NH is not None and answers.path_scores_NH is not None:
        return _deepest(answers, options, nodes)
    least = options.thresholds_of(names)
    assert least is not None
    shared = _is_shared(answers, names)
    place_N = best_N if shared else answers.offsets[:-1] + best_N
    sure_N = score_N >= least[np.where(best_N < 0, 0, place_N)]
    return Decisions(np.where(sure_N, best_N, -1), score_N)


def _deepest(answers: Answers, options: AnswerOptions, nodes: Sequence[str]) -> Decisions:
    """The best leaf of a tree where it is sure, else the deepest node on the way down that is."""
    path_NH, scores_NH = answers.path_NH, answers.path_scores_NH
    assert path_NH is not None
    assert scores_NH is not None
    best_N, score_N = answers.top_NT[:, 0], answers.top_scores_NT[:, 0]
    least = options.thresholds_of(nodes)
    assert least is not None
    reached_NH = scores_NH >= least[np.maximum(path_NH, 0)]
    depth_N = np.where(reached_NH, np.arange(1, path_NH.shape[1] + 1), 0).max(axis=1, initial=0)
    place_N = np.arange(len(answers)), np.maximum(depth_N - 1, 0)
    sure_N = score_N >= least[np.maximum(best_N, 0)]
    node_N = np.where(depth_N > 0, path_NH[place_N], -1)
    return Decisions(
        np.where(sure_N, best_N, node_N), np.where(sure_N, score_N, scores_NH[place_N])
    )


def _is_shared(answers: Answers, names: Sequence[str]) -> bool:
    """Whether the names are those of one set for all rows."""
    return len(answers) == 1 or len(names) != answers.offsets[-1]


def _over_threshold(answers: Answers, options: AnswerOptions, names: Sequence[str]) -> LabelLists:
    """The labels that reach their thresholds, but no fewer than `at_least` and no more than
    `at_most`; equal probabilities in the order of the names, whatever the user's."""
    assert answers.scores_M is not None
    counts_N, scores_M = np.diff(answers.offsets), answers.scores_M
    shared = _is_shared(answers, names)
    least = options.thresholds_of(names, None if shared else np.repeat(counts_N, counts_N))
    assert least is not None
    rank = np.unique([normalise_name(name) for name in names], return_inverse=True)[1]
    if shared:
        least, rank = np.tile(least, len(answers)), np.tile(rank, len(answers))
    kept_M = scores_M >= least
    row_M = np.repeat(np.arange(len(answers)), counts_N)
    if options.at_least:
        kept_M |= _place_in_row(answers, scores_M, rank, row_M) < options.at_least
    chosen = np.flatnonzero(kept_M)
    chosen = chosen[np.lexsort((rank[chosen], -scores_M[chosen], row_M[chosen]))]
    kept_N = np.bincount(row_M[chosen], minlength=len(answers))
    if options.at_most is not None:
        first_S = np.repeat(np.cumsum(kept_N) - kept_N, kept_N)
        chosen = chosen[np.arange(len(chosen)) - first_S < options.at_most]
        kept_N = np.minimum(kept_N, options.at_most)
    offsets = np.concatenate([[0], np.cumsum(kept_N)])
    return LabelLists(offsets, chosen - answers.offsets[row_M[chosen]], scores_M[chosen])


def _place_in_row(
    answers: Answers, scores_M: np.ndarray, rank_M: np.ndarray, row_M: np.ndarray
) -> np.ndarray:
    """0 for a row's best label, 1 for the next, int64 [M]."""
    place_M = np.empty(len(scores_M), np.int64)
    order_M = np.lexsort((rank_M, -scores_M, row_M))
    place_M[order_M] = np.arange(len(scores_M)) - answers.offsets[row_M]
    return place_M


def _label_sets(answers: Answers, cut: float) -> LabelLists:
    """Of each row the labels of at least this probability, and always the best one; equal
    probabilities in the user's order."""
    assert answers.scores_M is not None
    counts_N, scores_M = np.diff(answers.offsets), answers.scores_M
    row_M = np.repeat(np.arange(len(answers)), counts_N)
    kept_M = scores_M >= np.float32(cut)
    best_N = answers.top_NT[:, 0]
    there_N = best_N >= 0  # a row with an error has no label
    first_N = answers.offsets[:-1][there_N] + best_N[there_N]
    kept_M[first_N] = True
    is_best_M = np.zeros(len(scores_M), bool)
    is_best_M[first_N] = True
    chosen = np.flatnonzero(kept_M)
    chosen = chosen[np.lexsort((-scores_M[chosen], ~is_best_M[chosen], row_M[chosen]))]
    kept_N = np.bincount(row_M[chosen], minlength=len(answers))
    offsets = np.concatenate([[0], np.cumsum(kept_N)])
    return LabelLists(offsets, chosen - answers.offsets[row_M[chosen]], scores_M[chosen])


def ranked_labels(
    answers: Answers, texts: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Texts with all labels of one set, best first, as the zero-shot-classification pipeline of
    transformers gives them; those that were not shortlisted come last, with a score of 0."""
    found = []
    for text, top, scores in zip(texts, answers.top_NT.tolist(), answers.top_scores_NT):
        kept = [k for k in top if k >= 0]
        rest = sorted(set(range(len(names))) - set(kept))
        labels = [names[k] for k in kept + rest]
        ranked = scores[: len(kept)].tolist() + [0.0] * len(rest)
        found.append({"sequence": text, "labels": labels, "scores": ranked})
    return found


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
        nodes: what `answer_names` says of the labels.
    """
    if not len(answers):
        return []
    decided = decide(answers, options, list(chain.from_iterable(sets)), nodes)
    labels, best = decided.label_N.tolist(), decided.score_N.tolist()
    tops, top_scores = answers.top_NT.tolist(), answers.top_scores_NT.tolist()
    bounds = answers.offsets.tolist()
    found = []
    places = None if answers.where_N2 is None else answers.where_N2.tolist()
    for row, names in enumerate(sets):
        scores = top = where = several = path = why = None
        if options.return_scores and answers.scores_M is not None:
            scores_K = answers.scores_M[bounds[row] : bounds[row + 1]]
            scores = dict(zip(names, scores_K.tolist(), strict=True))
        if options.top_k is not None:
            pairs = zip(tops[row], top_scores[row], strict=True)
            top = [(names[k], p) for k, p in pairs if k >= 0][: options.top_k]
        if answers.nearest_N is not None:
            rivals = [(names[k], p) for k, p in zip(tops[row][1:2], top_scores[row][1:2]) if k >= 0]
            why = Why(tuple(answers.nearest_N[row]), rivals[0] if rivals else None)
        if places is not None and places[row][0] >= 0:
            where = (places[row][0], places[row][1])
        if answers.path_NH is not None and answers.path_scores_NH is not None:
            steps = zip(answers.path_NH[row].tolist(), answers.path_scores_NH[row].tolist())
            path = [(nodes[k], p) for k, p in steps if k >= 0]
        if decided.lists is not None:
            one = slice(*decided.lists.offsets[row : row + 2].tolist())
            pairs = zip(decided.lists.labels_S[one].tolist(), decided.lists.scores_S[one].tolist())
            several = [(names[k], p) for k, p in pairs]
        found.append(
            Prediction(
                label=(nodes or names)[labels[row]] if labels[row] >= 0 else None,
                score=best[row],
                scores=scores,
                top=top,
                truncated=truncated[row],
                where=where,
                path=path,
                labels=several,
                none_score=None if decided.none_N is None else float(decided.none_N[row]),
                why=why,
            )
        )
    return found
