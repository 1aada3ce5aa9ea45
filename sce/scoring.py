"""The one place where a trained model scores texts: batches under a budget of label tokens."""

from __future__ import annotations

import numpy as np
import torch

from sce.label_vectors import LabelVectors
from sce.model import SCEModel

MAX_BATCH_TOKENS = 16_384
"""Tokens (query and labels) of one forward pass. Larger ones are no faster on two cores."""


@torch.inference_mode()
def score(
    model: SCEModel,
    queries_ND: np.ndarray,
    labels: LabelVectors,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> np.ndarray:
    """Uncalibrated scores of every label of one set for every query.

    Args:
        model: in evaluation mode; its device is used.
        queries_ND: unit vectors of the text embedder, float32 [N, D].
        labels: vectors of the K labels; the caller has put them in canonical order.

    Returns:
        float32 [N, K].
    """
    device = next(model.parameters()).device
    inputs = labels.to(device).model_inputs()
    rows = max(1, max_batch_tokens // (len(labels) + 1))
    scores_NK = np.empty((len(queries_ND), len(labels)), np.float32)
    for start in range(0, len(queries_ND), rows):
        queries_BD = torch.from_numpy(np.ascontiguousarray(queries_ND[start : start + rows]))
        logits_BK = model(queries_BD.to(device), **inputs).logits
        scores_NK[start : start + rows] = logits_BK.cpu().numpy()
    return scores_NK
