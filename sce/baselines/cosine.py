"""Cosine similarity with the same embedder and the same label information (appendix E).

It needs no training, so it is the bar: a trained model that does not beat it is worth nothing.
"""

from __future__ import annotations

import numpy as np

from sce.labels import LabelSet
from sce.model.label_vectors import TextVectors, label_vectors

SCALE = 20.0
"""Cosines lie within [-1, 1]; the fitted temperature divides this multiple of them."""


def cosine_scores(
    queries_ND: np.ndarray, label_set: LabelSet, text_vectors: TextVectors, version: int
) -> np.ndarray:
    """Uncalibrated scores 20 cos(q, g_k), float32 [N, K], in the order of the labels; g_k as
    `label_vectors` has it by this version."""
    g_KD = label_vectors(label_set.seen(), text_vectors, version)
    scores_NK = np.empty((len(queries_ND), len(label_set)), np.float32)
    scores_NK[:, label_set.canonical_order] = SCALE * (np.asarray(queries_ND, np.float32) @ g_KD.T)
    return scores_NK
