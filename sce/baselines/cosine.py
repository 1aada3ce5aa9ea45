"""Cosine similarity with the same embedder and the same label information (appendix E).

It needs no training, so it is the bar: a trained model that does not beat it is worth nothing.
It scores through the same method as `sce.predictor.Predictor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sce.labels import LabelSet
from sce.model.calibration import Temperature
from sce.model.encoder import pool_labels
from sce.model.label_vectors import TextVectors, encode_labels

SCALE = 20.0
"""Cosines lie within [-1, 1]; the fitted temperature divides this multiple of them."""
EXAMPLE_WEIGHT = (-1.0, 0.5)
"""w(n) = exp(a + b log n) of the mean of n examples; fitted once on training label sets."""


class CosineBaseline:
    """Scores 20 cos(q, g_k), with g_k pooled from all that is known of a label.

    Args:
        text_vectors: the text embedder.
        temperature: fitted on validation rows, as the model's is.
    """

    def __init__(self, text_vectors: TextVectors, temperature: Temperature | None = None) -> None:
        self._text_vectors = text_vectors
        self.temperature = temperature or Temperature()

    def scores(self, queries_ND: np.ndarray, labels: Any) -> np.ndarray:
        """Uncalibrated scores float32 [N, K] in the order of `labels`."""
        label_set = LabelSet.parse(labels)
        scores_NK = np.empty((len(queries_ND), len(label_set)), np.float32)
        scores_NK[:, label_set.canonical_order] = cosine_scores(
            queries_ND, label_set.canonical(), self._text_vectors
        )
        return scores_NK


def cosine_scores(
    queries_ND: np.ndarray,
    label_set: LabelSet,
    text_vectors: TextVectors,
    example_weight: Sequence[float] = EXAMPLE_WEIGHT,
) -> np.ndarray:
    """20 cos(q, g_k) float32 [N, K]; g_k = unit(unit(mean of texts) + w(n) mean of examples)."""
    vectors = encode_labels(label_set, text_vectors)
    assert vectors.text_KD is not None
    g_KD = pool_labels(
        vectors.text_KD,
        vectors.examples_KD,
        vectors.example_counts_K,
        torch.tensor(example_weight),
    )
    return SCALE * (np.asarray(queries_ND, np.float32) @ g_KD.numpy().T)
