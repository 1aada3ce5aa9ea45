"""Tokenised texts, and how they are packed into batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHARS_A_TOKEN = 64
"""Of a text's beginning that is looked at for each token that is read: far more than it takes."""
MAX_CHARS = 2**20
"""Of a text that are looked at where its beginning is not enough, as of one without white space."""


def beginning(text: str, chars: int) -> str:
    """The first `chars` characters of a longer text, up to a white space: no tokenizer's pieces
    reach over one, so its first tokens are those of the whole. `MAX_CHARS` where there is none."""
    if len(text) <= chars:
        return text
    last = max(text.rfind(" ", 0, chars), text.rfind("\n", 0, chars))
    return text[:last] if last > 0 else text[:MAX_CHARS]


@dataclass(frozen=True)
class TokenisedTexts:
    """N texts: the token ids of one after another, int64 [sum of lengths], special tokens included;
    their lengths, int64 [N]; and whether they were cut, bool [N]."""

    ids: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, places_P: np.ndarray) -> TokenisedTexts:
        """The texts at these places."""
        # A taken token lies as far behind its text's first token as in the old order.
        lengths_P = self.lengths[places_P]
        starts_N = np.cumsum(self.lengths) - self.lengths
        shift_P = starts_N[places_P] - (np.cumsum(lengths_P) - lengths_P)
        flat = np.repeat(shift_P, lengths_P) + np.arange(int(lengths_P.sum()))
        return TokenisedTexts(self.ids[flat], lengths_P, self.truncated[places_P])

    @classmethod
    def join(cls, parts: Sequence[TokenisedTexts]) -> TokenisedTexts:
        """The texts of several, one after another."""
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        positions: which texts, int64 [B], the longest first.
        input_ids: int64 [B, L].
        attention_mask: int64 [B, L], 1 at tokens and 0 at padding (which is on the right).
    """

    positions: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray


def batches(tokens: TokenisedTexts, max_batch_tokens: int, pad_id: int) -> Iterator[Batch]:
    """Batches of similar length, longest first, at most `max_batch_tokens` with padding. A single
    text that is longer than the budget makes a batch of its own."""
    order_N = np.argsort(-tokens.lengths, kind="stable")
    starts_N = np.cumsum(tokens.lengths) - tokens.lengths
    first: int = 0
    while first < len(order_N):
        width = int(tokens.lengths[order_N[first]])
        end = first + max(1, max_batch_tokens // width)
        rows_B = order_N[first:end]
        first = end
        columns_L = np.arange(width)
        mask_BL = columns_L < tokens.lengths[rows_B][:, None]
        place_BL = (starts_N[rows_B][:, None] + columns_L).clip(max=len(tokens.ids) - 1)
        ids_BL = np.where(mask_BL, tokens.ids[place_BL], pad_id)
        yield Batch(rows_B, ids_BL, mask_BL.astype(np.int64))
