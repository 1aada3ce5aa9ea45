"""What speaks for an answer beside its probability: whether any label is near, and the examples
that are nearest.

Tensor names carry their shape: N texts, B texts of a batch, K labels of a text, L labels of a
table, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sce.errors import InputError
from sce.labels import Label, LabelSet, RaggedLabels
from sce.model.answers import EXAMPLES_SHOWN, Answers, Example
from sce.model.grouping import Group
from sce.model.label_vectors import TextVectors
from sce.model.products import COSINE_UNIT, exact_cosines, vector_integers
from sce.model.rejection import STAND_IN, Rejection
from sce.model.scoring import ScoredBatch

KEPT_EXAMPLES = 32_768
"""Vectors of examples are kept up to this many."""


class Evidence:
    """Of one model; safe to call from several threads.

    Args:
        coefficients: of `Rejection`, as the model's configuration has them; () for the stand-in.
    """

    def __init__(self, coefficients: Sequence[float]) -> None:
        self.rejection = Rejection(*coefficients) if coefficients else STAND_IN
        self._examples: dict[str, np.ndarray] = {}

    def fill_none(
        self,
        answers: Answers,
        rows_B: np.ndarray,
        queries_ND: np.ndarray,
        group: Group,
        batch: ScoredBatch,
    ) -> None:
        """Write `none_N` of a batch's rows, where it is asked for; raises as `none_scores`."""
        if answers.none_N is not None:
            answers.none_N[rows_B] = self.none_scores(queries_ND[rows_B], group, batch)

    def fill_nearest(
        self,
        answers: Answers,
        queries_ND: np.ndarray,
        labels: LabelSet | RaggedLabels,
        text_vectors: TextVectors,
    ) -> None:
        """Write `nearest_N`, where it is asked for, by the best labels that stand there."""
        if answers.nearest_N is not None:
            best_N = answers.top_NT[:, 0]
            answers.nearest_N[:] = self.nearest(queries_ND, best_N, labels, text_vectors)

    def none_scores(self, queries_BD: np.ndarray, group: Group, batch: ScoredBatch) -> np.ndarray:
        """Probability that none of a text's labels fits, float32 [B]. Every label is looked at,
        shortlisted or not; no number depends on other rows.

        Raises:
            InputError: the model has no vectors of labels.
        """
        similarity_LD = group.labels.similarity_KD
        if similarity_LD is None:
            raise InputError("none_of_these: this model reads no vectors of labels.")
        g_LD = similarity_LD.float().cpu().numpy()
        if group.ids_RK is None:
            nearest_B = exact_cosines(queries_BD, g_LD).max(axis=1)
        else:
            nearest_B = _nearest_of(queries_BD, g_LD, group.ids_RK[batch.rows])
        return self.rejection.scores(nearest_B, np.full(len(queries_BD), group.width))

    def nearest(
        self,
        queries_ND: np.ndarray,
        best_N: np.ndarray,
        labels: LabelSet | RaggedLabels,
        text_vectors: TextVectors,
    ) -> list[tuple[Example, ...]]:
        """Of each text the examples of its best label that are most similar to it, the most
        similar first.

        Args:
            best_N: places of the best labels in the rows' own sets.
        """
        places_N = best_N
        if isinstance(labels, RaggedLabels):
            places_N = labels.ids_M[labels.offsets[:-1] + best_N]
        found: list[tuple[Example, ...]] = [()] * len(queries_ND)
        asked = [labels.labels[k] for k in np.unique(places_N).tolist()]
        vectors = self._vectors_of(asked, text_vectors)
        for k in np.unique(places_N).tolist():
            label = labels.labels[k]
            if not label.examples:
                continue
            rows = np.flatnonzero(places_N == k)
            texts = sorted(set(label.examples))
            e_XD = np.stack([vectors[text] for text in texts])
            similar_RX = exact_cosines(queries_ND[rows], e_XD)
            order_RX = np.argsort(-similar_RX, axis=1, kind="stable")[:, :EXAMPLES_SHOWN]
            for row, order_X, similar_X in zip(rows.tolist(), order_RX, similar_RX, strict=True):
                found[row] = tuple(
                    Example(texts[x], label.name, float(np.float32(similar_X[x])))
                    for x in order_X.tolist()
                )
        return found

    def _vectors_of(
        self, labels: Sequence[Label], text_vectors: TextVectors
    ) -> dict[str, np.ndarray]:
        texts = sorted({text for label in labels for text in label.examples})
        known = self._examples
        new = [text for text in texts if text not in known]
        if len(known) + len(new) > KEPT_EXAMPLES:
            known, new = {}, texts
        if new:
            known = known | dict(zip(new, text_vectors(new), strict=True))
            self._examples = known
        return known


def _nearest_of(queries_BD: np.ndarray, g_LD: np.ndarray, ids_BK: np.ndarray) -> np.ndarray:
    """The largest cosine of each text among its own labels, float64 [B]; a product a label set."""
    x_BD, g_LD = vector_integers(queries_BD), vector_integers(g_LD)
    sets_SK, set_B = np.unique(ids_BK, axis=0, return_inverse=True)
    nearest_B = np.empty(len(x_BD))
    order_B = np.argsort(set_B, kind="stable")
    ends_S = np.cumsum(np.bincount(set_B, minlength=len(sets_SK)))[:-1]
    for ids_K, rows in zip(sets_SK, np.split(order_B, ends_S), strict=True):
        nearest_B[rows] = (x_BD[rows] @ g_LD[ids_K].T).max(axis=1)
    return nearest_B * COSINE_UNIT
