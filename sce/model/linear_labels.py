"""Labels as a linear classifier on the text embedder's vectors: scores x.w_k + b_k.

What a label set becomes once it was fitted to a corpus (`sce.adaptation`); the predictor takes it
in place of labels. Vectors and weights are integers times a power of two, small enough that a
float64 product of them is exact. So an answer is the same bit for bit whichever rows share a
batch, and however a library orders its sums.

Shapes: N rows, K labels, D the embedder's dimension, T best labels of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sce.errors import InputError
from sce.labels import LabelSet
from sce.model.answers import Answers
from sce.model.label_tree import tree_of
from sce.model.options import BEST_ALONE, Scoring

VECTOR_BITS = 18
"""A vector's numbers are taken as multiples of 2^-18: of 384 numbers with unit norm, to 1e-4."""
WEIGHT_BITS = 24
"""A weight has as many bits, the largest of a set all of them: float32 holds it."""
BLOCK_ROWS = 8192
"""Rows that are answered at a time."""


def vector_integers(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors times 2^18, rounded: integers in float64 [N, D]."""
    given_ND = np.asarray(vectors_ND)
    if given_ND.dtype != np.float32:
        return np.rint(given_ND.astype(np.float64) * 2.0**VECTOR_BITS)
    # A power of two rounds nothing in float32 either, where this takes a quarter of the time.
    scaled_ND = given_ND * np.float32(2.0**VECTOR_BITS)
    return np.rint(scaled_ND, out=scaled_ND).astype(np.float64)


def weight_exponent(weight_KD: np.ndarray) -> int:
    """e, so that the weights times 2^e are integers of at most `WEIGHT_BITS` bits."""
    largest = float(np.abs(weight_KD).max(initial=0.0))
    return WEIGHT_BITS - int(np.ceil(np.log2(largest))) if largest > 0 else WEIGHT_BITS


def round_weights(weight_KD: np.ndarray) -> np.ndarray:
    """Weights rounded to multiples of one power of two, float32 [K, D]; rounding twice changes
    nothing."""
    scale = 2.0 ** weight_exponent(weight_KD)
    return (np.rint(np.asarray(weight_KD, np.float64) * scale) / scale).astype(np.float32)


def exact_products(vectors_ND: np.ndarray, weight_KD: np.ndarray) -> np.ndarray:
    """x.w_k without a rounding error, float64 [N, K].

    Args:
        vectors_ND: what `vector_integers` gave; of norm at most 2^19.
        weight_KD: what `round_weights` gave. By Cauchy and Schwarz no partial sum exceeds
            2^19 2^24 sqrt(D), which is below 2^53 for D up to 2^20.
    """
    exponent = weight_exponent(weight_KD)
    products_NK = vectors_ND @ (weight_KD.astype(np.float64) * 2.0**exponent).T
    return products_NK * 2.0 ** -(VECTOR_BITS + exponent)


@dataclass(frozen=True, eq=False)
class LinearLabels:
    """A label set whose scores are linear in a text's vector.

    Attributes:
        label_set: the labels in the user's order.
        weight_KD: float32 [K, D], as `round_weights` makes them.
        bias_K: float64 [K].
        temperature: what scores are divided by before the softmax.
        embedder: fingerprint of the embedder whose vectors it reads.
    """

    label_set: LabelSet
    weight_KD: np.ndarray
    bias_K: np.ndarray
    temperature: float
    embedder: Mapping[str, Any]

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

    def answer(self, queries_ND: np.ndarray, scoring: Scoring = BEST_ALONE) -> Answers:
        """As `Predictor.answer`; equal scores come in canonical order."""
        rows, count, order_K = len(queries_ND), len(self), self._canonical[2]
        tree = tree_of(self)
        levels = None if tree is None else len(tree.levels)
        answers = Answers.empty(self.counts_by_row(rows), scoring, levels=levels)
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
        return answers
