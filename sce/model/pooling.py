"""The answers for texts that were read in chunks.

A text of several chunks is answered by the mean of their vectors, or by what each chunk is answered
alone. What comes out are a text's `Answers` as any other, from which `decide` takes labels.

Shapes: N texts, C chunks of all of them, R rows that are scored for them, K labels of a text, D the
embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.label_tree import level_count, tree_of
from sce.model.linear_labels import LinearLabels
from sce.model.logistic import none_scores
from sce.model.options import Scoring

ATTENTION = 1.0
"""How sharply the pooling `attention` looks at the chunks that a label is likely in: weights are
exp(p)."""
SCORES_AT_ONCE = 4_000_000
"""Probabilities of rows that are held together, 16 MB; one text's are, however many."""
SAME = 1e-5
"""Chunks in which a label is as likely but for this are equal, and the first is taken: the last
bits of a probability depend on what shares its batch."""

Labels = LabelSet | RaggedLabels | LinearLabels


@dataclass(frozen=True)
class ChunkVectors:
    """The vectors of the chunks of N texts.

    Attributes:
        vectors_CD: float32, one text's after another's.
        counts_N: int64, how many each text has, at least one.
        spans_C2: int64, the first character of each and the one behind its last, in its text.
    """

    vectors_CD: np.ndarray
    counts_N: np.ndarray
    spans_C2: np.ndarray

    def __len__(self) -> int:
        return len(self.counts_N)

    @cached_property
    def firsts(self) -> np.ndarray:
        """The first chunk of each text."""
        return np.cumsum(self.counts_N) - self.counts_N

    @cached_property
    def owners(self) -> np.ndarray:
        """Which text each chunk is of."""
        return np.repeat(np.arange(len(self)), self.counts_N)

    def part(self, start: int, end: int) -> ChunkVectors:
        """The texts `start` to `end`."""
        mine = slice(self.firsts[start], self.firsts[end - 1] + self.counts_N[end - 1])
        return ChunkVectors(self.vectors_CD[mine], self.counts_N[start:end], self.spans_C2[mine])

    def mean_vectors(self) -> np.ndarray:
        """The mean of each text's chunks with unit norm, float32 [N, D]. That of one chunk is its
        vector, to the bit; where chunks cancel out, the first's."""
        if not len(self):
            return self.vectors_CD[:0]
        sums_ND = np.add.reduceat(self.vectors_CD.astype(np.float64), self.firsts, axis=0)
        norms_N1 = np.linalg.norm(sums_ND, axis=1, keepdims=True)
        alone_N1 = (self.counts_N[:, None] == 1) | (norms_N1 < 1e-6)
        scaled_ND = (sums_ND / np.maximum(norms_N1, 1e-6)).astype(np.float32)
        return np.where(alone_N1, self.vectors_CD[self.firsts], scaled_ND)


@dataclass(frozen=True)
class PooledRows:
    """What is scored for texts that were read in chunks. Make it with `of`.

    Attributes:
        vectors_RD: for the pooling `vector` one a text and then the chunks of texts that have
            several, for where a label was found; else the chunks.
        owner_R: which text each is for.
        scoring: of these rows.
    """

    vectors_RD: np.ndarray
    owner_R: np.ndarray
    scoring: Scoring
    _chunks: ChunkVectors
    _asked: Scoring

    @classmethod
    def of(cls, chunks: ChunkVectors, scoring: Scoring) -> PooledRows:
        """`scoring` is what is asked of the texts; its `pooling` says how."""
        vectors_CD, owners = chunks.vectors_CD, chunks.owners
        needed = replace(scoring, return_scores=True, pooling=None, explain=scoring.explain)
        if scoring.pooling == "vector":
            several_C = chunks.counts_N[owners] > 1
            vectors_RD = np.concatenate([chunks.mean_vectors(), vectors_CD[several_C]])
            owner_R = np.concatenate([np.arange(len(chunks)), owners[several_C]])
            return cls(vectors_RD, owner_R, needed, chunks, scoring)
        return cls(vectors_CD, owners, replace(needed, top_k=1), chunks, scoring)

    def labels(self, labels: Any) -> Any:
        """The label sets of the rows, of those of the texts."""
        return labels.take(self.owner_R)

    def answers(self, found: Answers, labels: Labels) -> Answers:
        """Of the texts, from those of the rows."""
        chunks, rows = self._chunks, len(self._chunks)
        if self._asked.pooling == "vector":
            answers = found.part(0, rows, self._asked)
            several_C = np.flatnonzero(chunks.counts_N[chunks.owners] > 1)
            offsets_C = found.offsets[rows:-1]
        else:
            answers = _pooled_answers(found, chunks, self._asked, labels)
            several_C, offsets_C = np.arange(len(chunks.spans_C2)), found.offsets[:-1]
        assert found.scores_M is not None
        where_N2 = chunks.spans_C2[chunks.firsts].copy()
        owner_C = chunks.owners[several_C]
        p_C = found.scores_M[offsets_C + answers.top_NT[owner_C, 0]]
        most_N = np.zeros(rows, np.float32)
        np.maximum.at(most_N, owner_C, p_C)
        likeliest_C = np.flatnonzero(p_C >= most_N[owner_C] - SAME)
        texts, first = np.unique(owner_C[likeliest_C], return_index=True)
        where_N2[texts] = chunks.spans_C2[several_C[likeliest_C[first]]]
        return replace(answers, where_N2=where_N2)


def rows_for(counts_N: np.ndarray, scoring: Scoring) -> np.ndarray:
    """How many rows `PooledRows` has for texts of so many chunks, int64 [N]."""
    if scoring.pooling != "vector":
        return counts_N
    return np.where(counts_N > 1, counts_N + 1, 1)


def answer_chunks(
    answer: Callable[[np.ndarray, Any, Scoring], Answers],
    chunks: ChunkVectors,
    labels: Labels,
    scoring: Scoring,
) -> Answers:
    """Answer texts by their chunks, as many texts at once as `SCORES_AT_ONCE` allows.

    Args:
        answer: vectors, labels and scoring to answers, as `Predictor.answer`.
        labels: one set for all texts, or one a text.
        scoring: of the texts.
    """
    costs_N = np.cumsum((chunks.counts_N + 1) * labels.counts_by_row(len(chunks)))
    parts, first = [], 0
    while first < len(chunks):
        spent = int(costs_N[first - 1]) if first else 0
        end = int(np.searchsorted(costs_N, spent + SCORES_AT_ONCE, "right"))
        end = max(first + 1, end)
        asked = PooledRows.of(chunks.part(first, end), scoring)
        mine = labels.take(np.arange(first, end))
        found = answer(asked.vectors_RD, asked.labels(mine), asked.scoring)
        parts.append(asked.answers(found, mine))
        first = end
    if not parts:
        return answer(chunks.vectors_CD, labels, replace(scoring, pooling=None))
    return Answers.join(parts)


def _pooled_answers(
    found: Answers, chunks: ChunkVectors, scoring: Scoring, labels: Labels
) -> Answers:
    """Of texts, from the probabilities of their chunks: those of labels and, in mode "single" or of
    adapted labels, that a label fits at all."""
    assert found.scores_M is not None
    assert scoring.pooling is not None
    sizes_N = labels.counts_by_row(len(chunks))
    canonical_M = _canonical_places(labels, len(chunks))
    tree = tree_of(labels)
    has_own_none = scoring.mode == "single" or isinstance(labels, LinearLabels)
    answers = Answers.empty(sizes_N, scoring, found.shortlist, level_count(labels))
    for size in np.unique(sizes_N).tolist():
        rows_R = np.flatnonzero(sizes_N == size)
        counts_R = chunks.counts_N[rows_R]
        first_R1 = answers.offsets[rows_R][:, None]
        # In canonical order, in which sums over labels are the same for every order of the set.
        order_RK = canonical_M[first_R1 + np.arange(size)] - first_R1
        places_C = found.offsets[np.flatnonzero((sizes_N == size)[chunks.owners])]
        p_CK = found.scores_M[places_C[:, None] + np.repeat(order_RK, counts_R, axis=0)]
        add_up = scoring.mode == "single"
        p_RK = pool(p_CK, counts_R, scoring.pooling, add_up).astype(np.float32)
        width = min(answers.top_NT.shape[1], size)
        top_RT = np.argsort(-p_RK, axis=1, kind="stable")[:, :width]
        p_RT = np.take_along_axis(p_RK, top_RT, 1)
        scored_RT = (p_RT > 0) | (found.shortlist is None)
        top_RT = np.take_along_axis(order_RK, top_RT, 1)
        answers.top_NT[rows_R, :width] = np.where(scored_RT, top_RT, -1)
        answers.top_scores_NT[rows_R, :width] = np.where(scored_RT, p_RT, np.nan)
        if answers.scores_M is not None:
            answers.scores_M[first_R1 + order_RK] = p_RK
        if answers.none_N is not None and not has_own_none:
            answers.none_N[rows_R] = none_scores(p_RK)
        if tree is not None and answers.path_NH is not None:
            answers.fill_path(rows_R, *tree.best_path(p_RK))
    if answers.none_N is not None and has_own_none:
        assert found.none_N is not None
        fits_C1 = 1 - found.none_N.astype(np.float64)[:, None]
        fits_N1 = pool(fits_C1, chunks.counts_N, scoring.pooling, add_up=False)
        answers.none_N[:] = 1 - fits_N1[:, 0]
    return answers


def pool(p_CK: np.ndarray, counts_R: np.ndarray, pooling: str, add_up: bool = True) -> np.ndarray:
    """Probabilities of R texts, float64 [R, K], from those of their chunks; they sum to 1 where
    those do: `add_up`."""
    p_CK = p_CK.astype(np.float64)
    starts_R = np.cumsum(counts_R) - counts_R
    if pooling == "max":
        found_RK = np.maximum.reduceat(p_CK, starts_R, axis=0)
    else:
        weights_CK = np.exp(ATTENTION * p_CK) if pooling == "attention" else np.ones_like(p_CK)
        found_RK = np.add.reduceat(weights_CK * p_CK, starts_R, axis=0)
        found_RK /= np.add.reduceat(weights_CK, starts_R, axis=0)
    return found_RK / found_RK.sum(1, keepdims=True) if add_up else found_RK


def _canonical_places(labels: Labels, rows: int) -> np.ndarray:
    """Of each row's labels, the places in canonical order, int64 [M]."""
    if isinstance(labels, RaggedLabels):
        return labels.canonical()[2]
    label_set = labels.label_set if isinstance(labels, LinearLabels) else labels
    order_K = np.array(label_set.canonical_order, np.int64)
    return (np.arange(rows)[:, None] * len(order_K) + order_K).reshape(-1)
