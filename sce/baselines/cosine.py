"""Cosine similarity with the same embedder and the same label information (appendix E).

It needs no training, so it is the bar: a trained model that does not beat it is worth nothing.
"""

from __future__ import annotations

import numpy as np
import torch

from sce.labels import LabelSet
from sce.model.encoder import pool_labels
from sce.model.label_vectors import TextVectors, encode_labels

SCALE = 20.0
"""Cosines lie within [-1, 1]; the fitted temperature divides this multiple of them."""
EXAMPLE_WEIGHT = torch.tensor((-1.0, 0.5))
"""w(n) = exp(a + b log n) of the mean of n examples; fitted once on training label sets."""


def cosine_scores(
    queries_ND: np.ndarray, label_set: LabelSet, text_vectors: TextVectors
) -> np.ndarray:
    """Uncalibrated scores 20 cos(q, g_k), float32 [N, K], in the order of the labels.

    g_k = unit(unit(mean of the label's texts) + w(n) mean of its n examples).
    """
    vectors = encode_labels(label_set.canonical(), text_vectors)
    assert vectors.text_KD is not None
    g_KD = pool_labels(
        vectors.text_KD, vectors.examples_KD, vectors.example_counts_K, EXAMPLE_WEIGHT
    )
    scores_NK = np.empty((len(queries_ND), len(label_set)), np.float32)
    scores_NK[:, label_set.canonical_order] = SCALE * (
        np.asarray(queries_ND, np.float32) @ g_KD.numpy().T
    )
    return scores_NK
