"""The forward pass of the text embedder, without a settings library.

Shapes: B texts in a batch, L tokens, D the embedder's dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sce.embedding.tokenising import Batch

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of one forward pass, padding included."""


@torch.inference_mode()
def embed_batch(model: Any, batch: Batch, pooling: str) -> np.ndarray:
    """One forward pass, pooling, normalisation; float32 [B, D], unit norm."""
    mask_BL = torch.from_numpy(batch.attention_mask).to(model.device)
    ids_BL = torch.from_numpy(batch.input_ids).to(model.device)
    output = model(input_ids=ids_BL, attention_mask=mask_BL)
    pooled_BD = _pool(output.last_hidden_state, mask_BL, pooling)
    return torch.nn.functional.normalize(pooled_BD, dim=1).cpu().numpy()


def _pool(hidden_BLD: torch.Tensor, mask_BL: torch.Tensor, pooling: str) -> torch.Tensor:
    """One float32 vector a text, [B, D]."""
    if pooling == "cls":
        return hidden_BLD[:, 0].float()
    lengths_B1 = mask_BL.sum(dim=1, keepdim=True)
    if pooling == "lasttoken":
        rows_B = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
        return hidden_BLD[rows_B, lengths_B1[:, 0] - 1].float()
    return (hidden_BLD.float() * mask_BL[:, :, None]).sum(dim=1) / lengths_B1
