"""Answers for many rows as arrays, and how they are filled batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
            0 for a label that was not shortlisted.
        shortlist: how many labels were contextualised where a shortlist was used for any row;
            None if every label of every row was.
    """

    top_NT: np.ndarray
    top_scores_NT: np.ndarray
    offsets: np.ndarray
    scores_M: np.ndarray | None = None
    shortlist: int | None = None

    def __len__(self) -> int:
        return len(self.top_NT)


class AnswerWriter:
    """Fills `Answers` batch by batch.

    Args:
        offsets: as in `Answers`; a row's number of labels is the distance to the next.
        width: T.
        with_scores: keep every label's probability.
    """

    def __init__(self, offsets: np.ndarray, width: int, with_scores: bool) -> None:
        rows = len(offsets) - 1
        self.width = width
        self._offsets = offsets
        self._top_NT = np.full((rows, width), -1, np.int64)
        self._top_scores_NT = np.full((rows, width), np.nan, np.float32)
        self._scores_M = np.zeros(int(offsets[-1]), np.float32) if with_scores else None

    def write_top(self, rows_B: np.ndarray, places_BX: np.ndarray, p_BX: np.ndarray) -> None:
        """The best labels of some rows, X <= T of them, places in the user's order."""
        self._top_NT[rows_B, : places_BX.shape[1]] = places_BX
        self._top_scores_NT[rows_B, : places_BX.shape[1]] = p_BX

    def write_scores(self, rows_B: np.ndarray, places_BX: np.ndarray, p_BX: np.ndarray) -> None:
        """Probabilities of labels at places in the user's order; of others they stay 0."""
        assert self._scores_M is not None
        self._scores_M[self._offsets[rows_B][:, None] + places_BX] = p_BX

    def answers(self, shortlist: int | None) -> Answers:
        return Answers(self._top_NT, self._top_scores_NT, self._offsets, self._scores_M, shortlist)
