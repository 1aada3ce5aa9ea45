"""A block's answers from what is loaded in this process: a model, or adapted labels alone.

Model and embedder are imported where they are loaded: who sends a job on its way needs neither.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from sce.bulk.answering import BlockAnswers, Vectors
from sce.bulk.vectors import embed_for
from sce.embedding.settings import EmbedderConfig
from sce.model.answers import Answers
from sce.model.linear_labels import LinearLabels
from sce.model.options import Scoring
from sce.model.pooling import ChunkVectors, answer_chunks


class LocalPredictor:
    """A block's answers from a `Predictor` in this process."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    @property
    def dimension(self) -> int:
        return self._predictor.embedder.dimension

    def warm_up(self, labels: Any) -> None:
        self._predictor.warm_up(labels)

    def answer_texts(self, texts_G: pa.Array, labels: Any, scoring: Scoring) -> BlockAnswers:
        vectors_GD, truncated_G = embed_for(self._predictor.embedder, texts_G, scoring)
        found = self.answer_vectors(vectors_GD, labels, scoring)
        return replace(found, truncated_G=truncated_G)

    def answer_vectors(self, vectors_GD: Vectors, labels: Any, scoring: Scoring) -> BlockAnswers:
        return _without_errors(self._predictor.answer(vectors_GD, labels, scoring))


class LinearPredictor:
    """A block's answers from adapted labels, without a model; the embedder is loaded where there
    are texts.

    Args:
        dimension: of the embedder.
    """

    def __init__(self, embedder: EmbedderConfig, dimension: int) -> None:
        self._config, self._dimension = embedder, dimension
        self._embedder: Any = None

    @property
    def dimension(self) -> int:
        return self._dimension

    def warm_up(self, labels: Any) -> None:
        """There is nothing to do ahead."""

    def answer_texts(
        self, texts_G: pa.Array, labels: LinearLabels, scoring: Scoring
    ) -> BlockAnswers:
        if self._embedder is None:
            from sce.embedding.embedder import load_embedder

            self._embedder = load_embedder(self._config)
        vectors_GD, truncated_G = embed_for(self._embedder, texts_G, scoring)
        found = self.answer_vectors(vectors_GD, labels, scoring)
        return replace(found, truncated_G=truncated_G)

    def answer_vectors(
        self, vectors_GD: Vectors, labels: LinearLabels, scoring: Scoring
    ) -> BlockAnswers:
        if isinstance(vectors_GD, ChunkVectors):

            def answer(vectors_RD: np.ndarray, labels: LinearLabels, asked: Scoring) -> Answers:
                return labels.answer(vectors_RD, asked)

            return _without_errors(answer_chunks(answer, vectors_GD, labels, scoring))
        return _without_errors(labels.answer(vectors_GD, scoring))


def _without_errors(answers: Answers) -> BlockAnswers:
    rows = len(answers)
    return BlockAnswers(answers, np.zeros(rows, bool), np.full(rows, "", object))
