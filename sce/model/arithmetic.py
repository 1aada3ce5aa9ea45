"""Which numbers a model is computed in: float32, or bfloat16 where the device multiplies it."""

from __future__ import annotations

import torch


def choose_dtype(asked: str, device: str) -> torch.dtype:
    """The type that a setting means on "cpu" or "cuda": "auto" is bfloat16 where the device has
    instructions for products of such numbers, else float32."""
    if asked == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def multiplies_bfloat16(device: str) -> bool:
    """Whether a device has instructions for products of bfloat16 numbers."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
