"""From label sets to the tensors that the model reads.

h_k comes from the token dictionary (equation 2) or from the text embedder; g_k always from
the text embedder, which embeds the name, every synonym, the description and every example
text as a whole. The mean over name, synonyms and description is one part of g_k, the mean
over the examples the other; `pool_labels` joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sce.errors import DataError
from sce.labels import Label, LabelSet
from sce.model.encoder import SCEModel

TextVectors = Callable[[Sequence[str]], np.ndarray]
"""Texts to unit vectors, float32 [N, D]."""
TokenMeans = Callable[[Sequence[str]], torch.Tensor]
"""Label names to h_k by equation 2, [K, H]."""


@dataclass(frozen=True)
class LabelVectors:
    """The tensors of one label set, in its order (shapes: see `SCEModel.forward`)."""

    text_KD: torch.Tensor | None
    examples_KD: torch.Tensor | None
    example_counts_K: torch.Tensor | None
    tokens_KH: torch.Tensor | None

    def __len__(self) -> int:
        part = self.text_KD if self.text_KD is not None else self.tokens_KH
        assert part is not None
        return len(part)

    def to(self, device: torch.device | str) -> LabelVectors:
        return LabelVectors(*(None if t is None else t.to(device) for t in self._parts()))

    def take(self, places_K: torch.Tensor) -> LabelVectors:
        """The labels at these places."""
        return LabelVectors(*(None if t is None else t[places_K] for t in self._parts()))

    def joined(self, other: LabelVectors) -> LabelVectors:
        """These labels and then the `other`; a part without examples counts none."""
        mine, theirs = self, other
        if (mine.examples_KD is None) != (theirs.examples_KD is None):
            mine, theirs = mine._with_examples(), theirs._with_examples()
        pairs = zip(mine._parts(), theirs._parts(), strict=True)
        return LabelVectors(
            *(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
        )

    def _with_examples(self) -> LabelVectors:
        if self.examples_KD is not None or self.text_KD is None:
            return self
        counts_K = self.text_KD.new_zeros(len(self))
        return replace(self, examples_KD=torch.zeros_like(self.text_KD), example_counts_K=counts_K)

    def _parts(self) -> tuple[torch.Tensor | None, ...]:
        return (self.text_KD, self.examples_KD, self.example_counts_K, self.tokens_KH)


def encode_labels(
    label_set: LabelSet,
    text_vectors: TextVectors | None,
    token_means: TokenMeans | None = None,
) -> LabelVectors:
    """Vectors of a label set, in the set's own order.

    Args:
        text_vectors: the text embedder; None where the model has no use for g_k.
        token_means: equation 2; None where the labels come from the text embedder.
    """
    text_KD = examples_KD = counts_K = None
    if text_vectors is not None:
        info = [label.info_texts for label in label_set.labels]
        examples = [list(label.examples) for label in label_set.labels]
        vectors_MD = text_vectors(list(chain(*info, *examples)))
        infos = sum(map(len, info))
        text_KD = torch.from_numpy(_segment_means(vectors_MD[:infos], [len(t) for t in info]))
        if infos < len(vectors_MD):
            counts = [len(t) for t in examples]
            examples_KD = torch.from_numpy(_segment_means(vectors_MD[infos:], counts))
            counts_K = torch.tensor(counts, dtype=torch.float32)
    tokens_KH = None if token_means is None else token_means([lb.key for lb in label_set.labels])
    return LabelVectors(text_KD, examples_KD, counts_K, tokens_KH)


class TextLookup:
    """Vectors of texts that were embedded before; stands in for a text embedder.

    Args:
        vectors: by text, float32 [D] each.
        embed: called with the texts that are not there, whose vectors are then kept.
    """

    def __init__(self, vectors: Mapping[str, np.ndarray], embed: TextVectors | None = None) -> None:
        self._vectors = dict(vectors)
        self._embed = embed

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, float32 [N, D].

        Raises:
            DataError: one of them is not there, and there is no `embed`.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            if self._embed is None:
                raise DataError(
                    f"the embedding store lacks the label text {new[0]!r:.80}. "
                    "Run jobs/embed.py again on this data."
                )
            self._vectors |= zip(new, self._embed(new))
        return np.stack([self._vectors[text] for text in texts])


class LabelBank:
    """Vectors of labels that were encoded before, label by label, for sets that overlap.

    Args:
        limit: when more labels than this would be kept, only those just asked for are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._places: dict[Label, int] = {}
        self._vectors: LabelVectors | None = None

    def unknown(self, labels: Sequence[Label]) -> list[Label]:
        """Those that would have to be encoded."""
        return [label for label in labels if label not in self._places]

    def vectors(
        self, labels: Sequence[Label], encode: Callable[[LabelSet], LabelVectors]
    ) -> LabelVectors:
        """Vectors of distinct labels, in their order.

        New labels are encoded together, in the order of `labels`: the caller sorts them, so that
        the order in which a user gave them does not reach the vectors.
        """
        new = self.unknown(labels)
        if len(self._places) + len(new) > self._limit:
            self._places, self._vectors, new = {}, None, list(labels)
        if new:
            found = encode(LabelSet(tuple(new)))
            self._vectors = found if self._vectors is None else self._vectors.joined(found)
            self._places |= {label: len(self._places) + i for i, label in enumerate(new)}
        assert self._vectors is not None
        return self._vectors.take(torch.tensor([self._places[label] for label in labels]))


def token_means_of(model: SCEModel, tokenizer: PreTrainedTokenizerBase) -> TokenMeans:
    """Equation 2 with the model's frozen dictionary E; no special tokens.

    With the configuration's `label_prefix_space` a name is tokenised after a space, as a word
    inside a sentence is; that matters to byte-level tokenizers alone.
    """
    prefix = " " if model.config.label_prefix_space else ""

    def token_means(names: Sequence[str]) -> torch.Tensor:
        found = tokenizer([prefix + name for name in names], add_special_tokens=False)
        ids = [label_ids or [tokenizer.unk_token_id or 0] for label_ids in found["input_ids"]]
        weight = model.token_embeddings.weight.detach()
        flat = torch.tensor(list(chain(*ids)), device=weight.device)
        offsets = torch.tensor([0, *accumulate(map(len, ids))][:-1], device=weight.device)
        return torch.nn.functional.embedding_bag(flat, weight, offsets, mode="mean")

    return token_means


def _segment_means(vectors_MD: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Mean over consecutive segments, float32 [len(lengths), D]; 0 for an empty segment."""
    owner_M = np.repeat(np.arange(len(lengths)), lengths)
    sums_KD = np.zeros((len(lengths), vectors_MD.shape[1]), np.float32)
    np.add.at(sums_KD, owner_M, vectors_MD)
    return sums_KD / np.maximum(np.asarray(lengths, np.float32), 1)[:, None]
