"""Labels as a linear classifier on the text embedder's vectors: scores x.w_k + b_k.

What a label set becomes once it was fitted to a corpus (`sce.adaptation`); the predictor takes it
in place of labels. Products are exact (`sce.model.products`), so an answer is the same bit for bit
whichever rows share a batch.

Shapes: N rows, K labels, D the embedder's dimension, T best labels of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sce.errors import InputError
from sce.labels import LabelSet
from sce.model.answers import Answers
from sce.model.label_tree import level_count, tree_of
from sce.model.logistic import NONE_FITTED_SHARE, OF_CORPUS, fill_answers
from sce.model.options import BEST_ALONE, Scoring
from sce.model.products import exact_cosines, exact_products, vector_integers
from sce.model.rejection import Rejection, at_share

BLOCK_ROWS = 8192
"""Rows that are answered at a time."""


@dataclass(frozen=True, eq=False)
class LinearLabels:
    """A label set whose scores are linear in a text's vector.

    Attributes:
        label_set: the labels in the user's order.
        weight_KD: float32 [K, D], as `round_weights` makes them.
        bias_K: float64 [K].
        temperature: what scores are divided by before the softmax.
        embedder: fingerprint of the embedder whose vectors it reads.
        usual_2K: mean and standard deviation of each label's score over its corpus, float64 [2, K];
            None where they are not known. Mode "multi" needs them.
        own_KD: float32 [K, D], the labels' vectors as they were without the corpus; None where they
            are not known. `none_of_these` needs them, and `rejection`.
        rejection: of the largest cosine to these, at the level of the corpus.
    """

    label_set: LabelSet
    weight_KD: np.ndarray
    bias_K: np.ndarray
    temperature: float
    embedder: Mapping[str, Any]
    usual_2K: np.ndarray | None = field(default=None, kw_only=True)
    own_KD: np.ndarray | None = field(default=None, kw_only=True)
    rejection: Rejection | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.label_set)

    @property
    def names(self) -> list[str]:
        """Of the labels, in the user's order."""
        return self.label_set.names

    def counts_by_row(self, rows: int) -> np.ndarray:
        return self.label_set.counts_by_row(rows)

    def names_by_row(self, rows: int) -> list[list[str]]:
        return self.label_set.names_by_row(rows)

    def take(self, rows_G: np.ndarray) -> LinearLabels:
        """These labels: those of any rows."""
        return self

    @cached_property
    def _canonical(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights and biases in canonical order, and each one's place in the user's."""
        order_K = np.array(self.label_set.canonical_order)
        return self.weight_KD[order_K], self.bias_K[order_K], order_K

    def _scores(self, queries_ND: np.ndarray) -> np.ndarray:
        """In canonical order, in which the sums over labels are the same for every order of the
        set."""
        if queries_ND.ndim != 2 or queries_ND.shape[1] != self.weight_KD.shape[1]:
            raise InputError(
                f"embeddings: shape {queries_ND.shape}, but these adapted labels read "
                f"[N, {self.weight_KD.shape[1]}]."
            )
        weight_KD, bias_K, _ = self._canonical
        return exact_products(vector_integers(queries_ND), weight_KD) + bias_K

    def scores(self, queries_ND: np.ndarray) -> np.ndarray:
        """Uncalibrated scores, float64 [N, K], in the user's order, of unit vectors of the
        embedder, float32 [N, D]."""
        return self._in_user_order(self._scores(queries_ND))

    def probabilities(self, queries_ND: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64 [N, K], in the user's order."""
        from scipy.special import softmax  # a third of a second, where labels are only looked at

        return self._in_user_order(softmax(self._scores(queries_ND) / self.temperature, axis=1))

    def _in_user_order(self, values_NK: np.ndarray) -> np.ndarray:
        found_NK = np.empty_like(values_NK)
        found_NK[:, self._canonical[2]] = values_NK
        return found_NK

    def check_scoring(self, scoring: Scoring) -> None:
        """Raises `InputError`: these labels have no such probabilities."""
        if scoring.none_of_these and (self.own_KD is None or self.rejection is None):
            raise InputError(
                "none_of_these: these adapted labels were fitted by an earlier version, which kept "
                "nothing that tells texts that no label fits. Run jobs/adapt.py again."
            )
        if scoring.mode != "multi":
            return
        if self.usual_2K is None:
            raise InputError(
                "mode: these adapted labels were fitted by an earlier version, which kept nothing "
                "that tells several labels of a text from one. Run jobs/adapt.py again."
            )
        if scoring.contrast:
            raise InputError(
                "contrast_labels: adapted labels are held against their corpus and each other, "
                "not against further labels."
            )

    def _z_scores(self, queries_ND: np.ndarray) -> np.ndarray:
        """How many standard deviations each score stands above that label's mean over the corpus,
        float64 [N, K], in canonical order."""
        assert self.usual_2K is not None
        mean_K, deviation_K = self.usual_2K[:, self._canonical[2]]
        return (self._scores(queries_ND) - mean_K) / deviation_K

    def none_scores(self, queries_ND: np.ndarray) -> np.ndarray:
        """Probability that no label fits, float32 [N], as `Rejection.scores` gives it. A corpus
        says where its groups lie, not which of its texts belong to none: what tells these is still
        how near a text is to what the labels say."""
        assert self.own_KD is not None
        assert self.rejection is not None
        nearest_N = exact_cosines(queries_ND, self.own_KD).max(axis=1)
        return self.rejection.scores(nearest_N, np.full(len(queries_ND), len(self)))

    def answer(self, queries_ND: np.ndarray, scoring: Scoring = BEST_ALONE) -> Answers:
        """As `Predictor.answer`; equal scores come in canonical order. Raises `InputError`: see
        `check_scoring`."""
        self.check_scoring(scoring)
        rows, count, order_K = len(queries_ND), len(self), self._canonical[2]
        tree = tree_of(self)
        answers = Answers.empty(self.counts_by_row(rows), scoring, levels=level_count(self))
        if scoring.mode == "multi":
            for start in range(0, rows, BLOCK_ROWS):
                rows_B = np.arange(start, min(start + BLOCK_ROWS, rows))
                p_BK = OF_CORPUS(self._z_scores(queries_ND[rows_B]))
                fill_answers(answers, rows_B, p_BK, order_K)
                if answers.none_N is not None:
                    none_B = self.none_scores(queries_ND[rows_B])
                    answers.none_N[rows_B] = at_share(none_B, NONE_FITTED_SHARE)
            return answers
        width = answers.top_NT.shape[1]
        from scipy.special import softmax

        for start in range(0, rows, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, rows))
            scores_BK = self._scores(queries_ND[block])
            p_BK = softmax(scores_BK / self.temperature, axis=1)
            if width == 1:
                top_BT = scores_BK.argmax(1)[:, None]
            else:
                top_BT = np.argsort(-scores_BK, axis=1, kind="stable")[:, :width]
            answers.top_NT[block] = order_K[top_BT]
            answers.top_scores_NT[block] = np.take_along_axis(p_BK, top_BT, 1)
            if answers.scores_M is not None:
                flat = slice(start * count, block.stop * count)
                answers.scores_M[flat] = self._in_user_order(p_BK).reshape(-1)
            if tree is not None:
                answers.fill_path(block, *tree.best_path(p_BK))
            if answers.none_N is not None:
                answers.none_N[block] = self.none_scores(queries_ND[block])
        return answers
