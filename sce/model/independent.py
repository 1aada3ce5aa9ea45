"""Several labels a text, from label sets as users give them: see `sce.model.logistic`.

Tensor names carry their shape: N rows, R rows that are scored together, K labels of a row, L
distinct labels of all rows, M labels of all rows one after another, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from sce.labels import Label, LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.background import Background
from sce.model.encoder import SCEModel
from sce.model.grouping import GroupScorer
from sce.model.label_vectors import LabelVectors, TextVectors, encode_labels, label_texts
from sce.model.logistic import fill_answers, logistic_of, trained_logistic
from sce.model.options import Scoring
from sce.model.products import COSINE_UNIT, exact_cosines, vector_integers

BLOCK_NUMBERS = 2**21
"""Of a block of rows: as many numbers are held at a time."""
CACHED_SETS = 64
CACHED_LABELS = 32_768


@dataclass(frozen=True)
class _Prepared:
    """Labels in canonical order: unit vectors [K, D], and the mean and deviation of each one's
    cosines to the background [K]."""

    g_KD: np.ndarray
    mean_K: np.ndarray
    deviation_K: np.ndarray

    def z_scores(self, queries_RD: np.ndarray) -> np.ndarray:
        """float64 [R, K]; no number depends on other rows or labels."""
        return (exact_cosines(queries_RD, self.g_KD) - self.mean_K) / self.deviation_K

    def z_scores_of(self, queries_RD: np.ndarray, ids_RK: np.ndarray) -> np.ndarray:
        """The same of each row's own labels, by their places."""
        x_RD, g_RKD = vector_integers(queries_RD), vector_integers(self.g_KD)[ids_RK]
        cosine_RK = np.einsum("rd,rkd->rk", x_RD, g_RKD) * COSINE_UNIT
        return (cosine_RK - self.mean_K[ids_RK]) / self.deviation_K[ids_RK]


class IndependentScorer:
    """Scores rows under one label set or one a row. Safe to call from several threads."""

    def __init__(self, model: SCEModel, background: Background, groups: GroupScorer) -> None:
        self._model, self._background, self._groups = model, background, groups
        self.logistic = logistic_of(background)
        several = model.config.several
        self._trained = trained_logistic(several) if several else None
        self._version = model.config.label_vectors
        self._lock = Lock()
        self._prepared: dict[str, _Prepared] = {}

    def _asks_encoder(self, contrast: Sequence[str]) -> bool:
        """Of a model that was trained on rows with several right labels; not with contrast labels:
        a label's score in the encoder depends on which others are asked for."""
        return self._trained is not None and not contrast

    def new_texts(self, labels: LabelSet | RaggedLabels, contrast: Sequence[str]) -> list[str]:
        """Distinct texts of labels whose vectors `fill` would ask for now."""
        seen = labels.seen() if isinstance(labels, LabelSet) else labels
        new = [] if self._key(labels) in self._prepared else list(seen.labels)
        if contrast and LabelSet.parse(contrast).fingerprint not in self._prepared:
            new += LabelSet.parse(contrast).labels
        texts = [text for label in new for text in label_texts(label, self._version)]
        if self._asks_encoder(contrast):
            texts += self._groups.new_texts(labels)
        return list(dict.fromkeys(texts))

    def fill(
        self,
        answers: Answers,
        queries_ND: np.ndarray,
        labels: LabelSet | RaggedLabels,
        scoring: Scoring,
        text_vectors: TextVectors,
    ) -> None:
        """Write the probabilities of every label of N rows, and their best labels, into `answers`.

        Args:
            queries_ND: unit vectors of the text embedder, float32.
            text_vectors: asked for the vectors of label texts that are not known yet.
        """
        contrast = scores_M = None
        if self._asks_encoder(scoring.contrast):
            scores_M = self._groups.scores(queries_ND, labels, text_vectors, answers.offsets)
        if scoring.contrast:
            contrast = self._prepare(LabelSet.parse(scoring.contrast), text_vectors)
        for rows_R, z_RK, user_places in self._z_scores(queries_ND, labels, text_vectors):
            contrast_RC = None if contrast is None else contrast.z_scores(queries_ND[rows_R])
            if scores_M is None:
                p_RK = self.logistic(z_RK, contrast_RC)
            else:
                assert self._trained is not None
                s_RK = scores_M[answers.offsets[rows_R][:, None] + user_places]
                p_RK = self._trained(z_RK, None, s_RK)
            fill_answers(answers, rows_R, p_RK, user_places)

    def _z_scores(
        self, queries_ND: np.ndarray, labels: LabelSet | RaggedLabels, text_vectors: TextVectors
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, their z-scores in canonical order, and each one's place in the user's order, block
        by block."""
        dimension = queries_ND.shape[1]
        if isinstance(labels, LabelSet):
            prepared = self._prepare(labels, text_vectors)
            order_K = np.array(labels.canonical_order)
            for rows_R in _blocks(np.arange(len(queries_ND)), max(len(labels), dimension)):
                yield rows_R, prepared.z_scores(queries_ND[rows_R]), order_K
            return
        if not len(labels):
            return
        canonical_L, ids_M, places_M = labels.canonical()
        prepared = self._encode(canonical_L, text_vectors)
        user_M = places_M - np.repeat(labels.offsets[:-1], labels.label_counts)
        for count in np.unique(labels.label_counts).tolist():
            of_count = np.flatnonzero(labels.label_counts == count)
            for rows_R in _blocks(of_count, count * dimension):
                flat_RK = labels.offsets[rows_R][:, None] + np.arange(count)
                z_RK = prepared.z_scores_of(queries_ND[rows_R], ids_M[places_M[flat_RK]])
                yield rows_R, z_RK, user_M[flat_RK]

    def _key(self, labels: LabelSet | RaggedLabels) -> str:
        return labels.fingerprint if isinstance(labels, LabelSet) else ""

    def _prepare(self, labels: LabelSet, text_vectors: TextVectors) -> _Prepared:
        """A label set in canonical order; the last ones used are kept."""
        key = labels.fingerprint
        with self._lock:
            if key not in self._prepared:
                self._prepared[key] = self._encode(list(labels.seen().labels), text_vectors)
            found = self._prepared[key]
            while len(self._prepared) > 1 and (
                len(self._prepared) > CACHED_SETS
                or sum(len(one.g_KD) for one in self._prepared.values()) > CACHED_LABELS
            ):
                self._prepared.pop(next(iter(self._prepared)))
            return found

    def _encode(self, labels: list[Label], text_vectors: TextVectors) -> _Prepared:
        vectors = encode_labels(LabelSet(tuple(labels)), self._version, text_vectors)
        g_KD = self._pooled(vectors)
        return _Prepared(g_KD, *self._background.cosines_of(g_KD))

    def _pooled(self, vectors: LabelVectors) -> np.ndarray:
        with torch.inference_mode():
            vectors = vectors.to(self._model.query_adaptor.weight.device)
            assert vectors.text_KD is not None
            parts = vectors.text_KD, vectors.examples_KD, vectors.example_counts_K
            return self._model.pool_labels(*parts).float().cpu().numpy()


def _blocks(rows_N: np.ndarray, numbers: int) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_NUMBERS // numbers)
    return (rows_N[start : start + size] for start in range(0, len(rows_N), size))
