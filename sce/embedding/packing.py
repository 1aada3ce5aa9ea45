"""Texts of different lengths in one forward pass without padding.

All layers but attention look at one token at a time: they take the tokens of all texts as one
sequence, and attention alone sees the texts apart, padded. Nothing is computed for padding, short
texts beside a long one cost what they cost alone, and a vector on a CPU is the same to the bit
whatever texts share its pass.

Shapes: B texts, T tokens of all of them, L tokens of the longest, H heads, E numbers a head, D the
embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sce.embedding.tokenising import TokenisedTexts

LANES = 16
"""Texts are padded to a multiple of this. Where a row's softmax ends in a part of a processor's
vector, that part is computed otherwise, and its last bits differ."""
PADDED_SLOTS = 2
"""In attention, padding included, for each token that a pass may have: a long text and many short
ones are not padded to each other's length."""

_ATTENTION = "packed"
_FIRST_POSITION = {
    "bert": lambda config: 0,
    "roberta": lambda config: config.pad_token_id + 1,
    "xlm-roberta": lambda config: config.pad_token_id + 1,
    "jina_embeddings_v3": lambda config: 0,
}
"""Of a text, by `model_type`: models whose attention can be replaced and takes positions."""


@dataclass(frozen=True)
class Pack:
    """Texts of one forward pass, the longest first.

    Attributes:
        positions: which texts, int64 [B].
        input_ids: of one text after another, int64 [T].
        lengths: in tokens, int64 [B].
    """

    positions: np.ndarray
    input_ids: np.ndarray
    lengths: np.ndarray


def packs(tokens: TokenisedTexts, max_tokens: int) -> Iterator[Pack]:
    """Texts of similar length, longest first, at most `max_tokens` together; one that is longer
    goes alone."""
    order_N = np.argsort(-tokens.lengths, kind="stable")
    ends_N = np.cumsum(tokens.lengths[order_N])
    first = 0
    while first < len(order_N):
        width, before = int(tokens.lengths[order_N[first]]), ends_N[first - 1] if first else 0
        end = int(np.searchsorted(ends_N, before + max_tokens, side="right"))
        end = min(end, first + PADDED_SLOTS * max_tokens // width)
        rows_B = order_N[first : max(first + 1, end)]
        first += len(rows_B)
        taken = tokens.take(rows_B)
        yield Pack(rows_B, taken.ids, taken.lengths)


def can_pack(model_type: str, device: str) -> bool:
    """Whether `unpadded_states` takes such a model: on a CPU, where padding costs what tokens
    cost."""
    return device == "cpu" and model_type in _FIRST_POSITION


def pack_attention(model: PreTrainedModel) -> None:
    """Let a model's attention see texts apart, where a pass has `layout`."""
    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    model.set_attn_implementation(_ATTENTION)


def is_packed(model: PreTrainedModel) -> bool:
    """Whether `pack_attention` was called."""
    return model.config._attn_implementation == _ATTENTION


def padded_states(model: Any, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """A forward pass: hidden states [B, L, D], zero behind a text's end, and lengths [B, 1]."""
    layout = _Layout.of(pack.lengths, model.device)
    starts_B = np.cumsum(pack.lengths) - pack.lengths
    places_T = np.arange(len(pack.input_ids)) - np.repeat(starts_B, pack.lengths)
    places_T += _FIRST_POSITION[model.config.model_type](model.config)
    states_TD = model(
        input_ids=torch.from_numpy(pack.input_ids)[None].to(model.device),
        position_ids=torch.from_numpy(places_T)[None].to(model.device),
        layout=layout,
    ).last_hidden_state[0]
    return layout.apart(states_TD), torch.from_numpy(pack.lengths)[:, None].to(model.device)


@dataclass(frozen=True)
class _Layout:
    """Where tokens that follow one another lie when texts are apart.

    Attributes:
        slots: of each token, int64 [T], of B x L.
        mask: bool [B, 1, 1, L], True at tokens; None where all are.
    """

    texts: int
    width: int
    slots: torch.Tensor
    mask: torch.Tensor | None

    @classmethod
    def of(cls, lengths_B: np.ndarray, device: torch.device) -> _Layout:
        width = -(-int(lengths_B.max()) // LANES) * LANES
        mask_BL = np.arange(width) < lengths_B[:, None]
        mask = None if mask_BL.all() else torch.from_numpy(mask_BL[:, None, None]).to(device)
        slots = torch.from_numpy(np.flatnonzero(mask_BL)).to(device)
        return cls(len(lengths_B), width, slots, mask)

    def apart(self, flat_T: torch.Tensor) -> torch.Tensor:
        """[T, ...] as [B, L, ...], zero at padding."""
        if self.texts == 1:
            behind = self.width - len(flat_T)
            return pad(flat_T, (0, 0) * (flat_T.ndim - 1) + (0, behind))[None]
        found = flat_T.new_zeros(self.texts * self.width, *flat_T.shape[1:])
        found[self.slots] = flat_T
        return found.view(self.texts, self.width, *flat_T.shape[1:])

    def together(self, apart_BL: torch.Tensor) -> torch.Tensor:
        """Inverse of `apart`."""
        flat = apart_BL.flatten(0, 1)
        return flat[: len(self.slots)] if self.texts == 1 else flat[self.slots]


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: _Layout | None = None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it, with [1, H, T, E] each; returns [1, T, H, E]."""
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
    query, key, value = (
        layout.apart(states[0].transpose(0, 1)).transpose(1, 2) for states in (query, key, value)
    )
    found_BHLE = scaled_dot_product_attention(query, key, value, layout.mask, scale=scaling)
    return layout.together(found_BHLE.transpose(1, 2))[None], None
