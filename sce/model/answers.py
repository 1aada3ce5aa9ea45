"""Answers: one row's as an object, many rows' as arrays that are filled batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sce.model.options import Scoring

EXAMPLES_SHOWN = 3
"""Nearest examples of an answer."""


@dataclass(frozen=True)
class Example:
    """A text that carries a label, and its cosine similarity to the text that is asked about; of a
    row of a corpus, which the model gave that label, also its id."""

    text: str
    label: str
    similarity: float
    row: str | None = None


@dataclass(frozen=True)
class Why:
    """What a label rests on.

    Attributes:
        nearest: of the label's own examples the most similar to the text, the most similar first.
        competitor: the next best label and its probability; None where there is no other.
    """

    nearest: tuple[Example, ...]
    competitor: tuple[str, float] | None


@dataclass(frozen=True)
class Prediction:
    """The answer for one text. What its numbers mean is the same through every door.

    In mode "single" `score` is the calibrated probability that the best label is the right one,
    given that one of the labels is; `none_score` is the probability that none of them is. They are
    of two questions: a text that fits no label may have one that is clearly the best of them.

    Attributes:
        label: the best label as the user wrote it; None below the threshold, or with an error.
        score: calibrated probability of the best label, also below the threshold; None with an
            error. In mode "single" that it is the one right label among those given, in mode
            "multi" that it is right, whatever the others are.
        scores: every label's probability in the user's order, where asked for.
        top: the best labels with their probabilities, best first, where asked for.
        path: in a tree, the way down to the most probable child at each level, as paths with their
            probabilities; None for other labels, and in mode "multi".
        truncated: the text was longer than the embedder reads and was cut.
        error: why there is no answer, a word of `sce.errors.ROW_ERRORS`; None where there is one.
        where: of a text that was read in chunks, the first character and the one behind the last
            of the chunk in which the best label is likeliest.
        labels: all labels that are answered with their probabilities, best first, in the modes in
            which that may be several; there `label` is the first of them.
    """

    label: str | None
    score: float | None
    scores: dict[str, float] | None = None
    top: list[tuple[str, float]] | None = None
    truncated: bool = False
    error: str | None = None
    where: tuple[int, int] | None = None
    path: list[tuple[str, float]] | None = None
    labels: list[tuple[str, float]] | None = None
    none_score: float | None = None
    why: Why | None = None

    @classmethod
    def refused(cls, error: str) -> Prediction:
        """Of a row that has no answer."""
        return cls(None, None, error=error)


@dataclass(frozen=True)
class Answers:
    """The answers for N rows. Positions count in the row's own label set in the user's order.

    Attributes:
        top_NT: int64 [N, T], the best labels, best first; equal scores in canonical order. T is
            the smaller of `top_k` and the widest row's number of labels; -1 where fewer labels
            of a row were scored, because it has no more or because of the shortlist.
        top_scores_NT: float32 [N, T], their calibrated probabilities; NaN beside -1.
        offsets: int64 [N + 1], where each row's scores begin in `scores_M`.
        scores_M: float32 [M], every label's calibrated probability, row after row in the user's
            order (N * K for one set; aligned with `RaggedLabels.ids_M`); None if not asked for.
            0 for a label that was not shortlisted. There in mode "multi" too, asked for or not.
        shortlist: how many labels were contextualised where a shortlist was used for any row;
            None if every label of every row was.
        where_N2: int64 [N, 2], of texts that were read in chunks: `Prediction.where`; -1 for none.
        path_NH, path_scores_NH: in a tree of H levels, the most probable child at each from the
            top, as places in `LabelTree.answer_names`, int64, -1 below a leaf; and their
            probabilities, float32. None for other labels.
        none_N: float32 [N], probability that no label fits; None where it was not asked for.
        nearest_N: of each row what `Why.nearest` says; None where it was not asked for.
    """

    top_NT: np.ndarray
    top_scores_NT: np.ndarray
    offsets: np.ndarray
    scores_M: np.ndarray | None = None
    shortlist: int | None = None
    where_N2: np.ndarray | None = None
    path_NH: np.ndarray | None = None
    path_scores_NH: np.ndarray | None = None
    none_N: np.ndarray | None = None
    nearest_N: list[tuple[Example, ...]] | None = None

    def __len__(self) -> int:
        return len(self.top_NT)

    @classmethod
    def empty(
        cls,
        counts_N: np.ndarray,
        scoring: Scoring,
        shortlist: int | None = None,
        levels: int | None = None,
    ) -> Answers:
        """Arrays for rows of so many labels each, in which nothing has been scored yet; of a tree
        of so many levels, which in mode "multi" has no one way down."""
        path = None if levels is None or scoring.mode == "multi" else (len(counts_N), levels)
        shape = len(counts_N), min(scoring.top_k, int(counts_N.max(initial=1)))
        return cls(
            np.full(shape, -1, np.int64),
            np.full(shape, np.nan, np.float32),
            np.concatenate([[0], np.cumsum(counts_N)]),
            np.zeros(int(counts_N.sum()), np.float32) if scoring.every_score else None,
            shortlist,
            path_NH=None if path is None else np.full(path, -1, np.int64),
            path_scores_NH=None if path is None else np.full(path, np.nan, np.float32),
            none_N=np.full(len(counts_N), np.nan, np.float32) if scoring.none_of_these else None,
            nearest_N=[()] * len(counts_N) if scoring.explain else None,
        )

    def fill_path(self, rows: Any, path_BH: Any, scores_BH: Any) -> None:
        """Write `path_NH` and `path_scores_NH` of some rows."""
        assert self.path_NH is not None
        assert self.path_scores_NH is not None
        self.path_NH[rows], self.path_scores_NH[rows] = path_BH, scores_BH

    def part(self, start: int, end: int, scoring: Scoring) -> Answers:
        """The rows `start` to `end`, with no more than is asked for."""
        offsets, scores_M = self.offsets[start : end + 1], None
        if scoring.every_score:
            assert self.scores_M is not None
            scores_M = self.scores_M[offsets[0] : offsets[-1]]
        return Answers(
            self.top_NT[start:end, : scoring.top_k],
            self.top_scores_NT[start:end, : scoring.top_k],
            offsets - offsets[0],
            scores_M,
            self.shortlist,
            None if self.where_N2 is None else self.where_N2[start:end],
            None if self.path_NH is None else self.path_NH[start:end],
            None if self.path_scores_NH is None else self.path_scores_NH[start:end],
            None if self.none_N is None or not scoring.none_of_these else self.none_N[start:end],
            None if self.nearest_N is None or not scoring.explain else self.nearest_N[start:end],
        )

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        """The rows of several, one after another."""
        if len(parts) == 1:
            return parts[0]
        counts_N = np.concatenate([np.diff(part.offsets) for part in parts])
        scores = [part.scores_M for part in parts if part.scores_M is not None]
        shortlist = next((part.shortlist for part in parts if part.shortlist is not None), None)
        width = max(part.top_NT.shape[1] for part in parts)
        levels = None if parts[0].path_NH is None else parts[0].path_NH.shape[1]
        joined = cls.empty(counts_N, Scoring(width), shortlist, levels)
        start = 0
        for part in parts:
            place = slice(start, start := start + len(part)), slice(part.top_NT.shape[1])
            joined.top_NT[place], joined.top_scores_NT[place] = part.top_NT, part.top_scores_NT
            if part.path_NH is not None and part.path_scores_NH is not None:
                joined.fill_path(place[0], part.path_NH, part.path_scores_NH)
        none = [part.none_N for part in parts if part.none_N is not None]
        nearest = [one for part in parts for one in part.nearest_N or ()]
        where = [part.where_N2 for part in parts if part.where_N2 is not None]
        return replace(
            joined,
            scores_M=np.concatenate(scores) if scores else None,
            where_N2=np.concatenate(where) if where else None,
            none_N=np.concatenate(none) if none else None,
            nearest_N=nearest or None,
        )
