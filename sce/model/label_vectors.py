"""From label sets to the tensors that the model reads.

h_k comes from the token dictionary (equation 2) or from the text embedder; g_k always from
the text embedder, which embeds every text that a label has (`label_texts`) as a whole. The mean
over name, synonyms and description is one part of g_k, the mean over n examples the other, with
a weight w(n); `pool_labels` joins them. How, is a version, part of a model's configuration:

    0   the name stands as it is; w(n) = exp(a + b log n), learned with the model
    1   the name stands in `NAME_TEMPLATES`; w(n) = n / (4 + m), where m texts say what the label
        means: its name, synonyms and description

Of version 1: a name of several words counts half as it is, since it reads as a text already, and
half in templates. Examples count one each, what is said of the label four and one more for each
text: the more there is of it, the less an example changes.

Shapes: K labels, D the embedder's dimension, H the encoder's width, M texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sce.errors import DataError
from sce.labels import Label, LabelSet
from sce.model.encoder import SCEModel, pool_labels
from sce.model.settings import LABEL_VECTORS

TextVectors = Callable[[Sequence[str]], np.ndarray]
"""Texts to unit vectors, float32 [N, D]."""
TokenMeans = Callable[[Sequence[str]], torch.Tensor]
"""Label names to h_k by equation 2, [K, H]."""
NAME_TEMPLATES = ("This text is about {}.", "news about {}", "{} question")
OLD_EXAMPLE_WEIGHT = (-1.0, 0.5)
"""(a, b) of version 0 without a model, fitted once on training label sets."""


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


def label_texts(label: Label, version: int) -> list[str]:
    """Distinct texts whose vectors make a label's, the examples last."""
    said = (text for text, _ in _weighted_texts(label, version))
    return list(dict.fromkeys([*said, *label.examples]))


def label_texts_to_keep(labels: Iterable[Label]) -> list[str]:
    """Distinct texts of labels by every version, so that models of all of them share a store."""
    versions = range(LABEL_VECTORS + 1)
    texts = (label_texts(label, version) for label in labels for version in versions)
    return list(dict.fromkeys(chain.from_iterable(texts)))


def label_vectors(
    label_set: LabelSet, text_vectors: TextVectors, version: int, with_examples: bool = True
) -> np.ndarray:
    """g_k without a model: unit vectors float32 [K, D], in the set's own order.

    Give a canonical set where no order of the labels may reach the numbers: the embedder's last
    bits can depend on which texts share a batch.

    Args:
        version: see above.
        with_examples: False leaves the labels' examples out.
    """
    labels = label_set.labels
    if not with_examples:
        labels = tuple(replace(label, examples=()) for label in labels)
    parts = _parts(labels, text_vectors, version)
    return pool_labels(*parts, example_weights(labels, version)).numpy()


def encode_labels(
    label_set: LabelSet,
    version: int,
    text_vectors: TextVectors | None,
    token_means: TokenMeans | None = None,
) -> LabelVectors:
    """Vectors of a label set, in the set's own order.

    Args:
        version: the model's. From 1 on examples are pooled here, of 0 in the model, which has
            learned their weight.
        text_vectors: the text embedder; None where the model has no use for g_k.
        token_means: equation 2; None where the labels come from the text embedder.
    """
    text_KD = examples_KD = counts_K = None
    if text_vectors is not None and version:
        text_KD = torch.from_numpy(label_vectors(label_set, text_vectors, version))
    elif text_vectors is not None:
        text_KD, examples_KD, counts_K = _parts(label_set.labels, text_vectors, version)
    tokens_KH = None if token_means is None else token_means([lb.key for lb in label_set.labels])
    return LabelVectors(text_KD, examples_KD, counts_K, tokens_KH)


def mean_text_vectors(
    labels: Sequence[Label], text_vectors: TextVectors, version: int
) -> np.ndarray:
    """Means over what is said of labels, examples left out; float32 [K, D], not normalised."""
    labels = [replace(label, examples=()) for label in labels]
    return _parts(labels, text_vectors, version)[0].numpy()


def example_weights(labels: Sequence[Label], version: int) -> torch.Tensor:
    """(a, b) of w(n) = exp(a + b log n) for each label, float32 [K, 2]."""
    if version == 0:
        return torch.tensor(OLD_EXAMPLE_WEIGHT).expand(len(labels), 2)
    said_K = torch.tensor([float(len(label.info_texts)) for label in labels])
    return torch.stack([-torch.log(4 + said_K), torch.ones(len(labels))], dim=1)


def _weighted_texts(label: Label, version: int) -> list[tuple[str, float]]:
    """What is said of a label, and what each text counts in the mean; a name counts 1 in all."""
    name, *more = label.info_texts
    names = [(name, 1.0)]
    if version:
        is_phrase = len(name.replace("/", " ").split()) > 1
        share = (0.5 if is_phrase else 1.0) / len(NAME_TEMPLATES)
        names = [(template.format(name), share) for template in NAME_TEMPLATES]
        names += [(name, 0.5)] if is_phrase else []
    return names + [(text, 1.0) for text in more]


def _parts(
    labels: Sequence[Label], text_vectors: TextVectors, version: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What `pool_labels` joins: means over what is said of labels [K, D], means over their examples
    [K, D] and the number of these [K]; None for both where no label has any."""
    said = [_weighted_texts(label, version) for label in labels]
    examples = [label.examples for label in labels]
    texts = [text for text, _ in chain(*said)]
    vectors_MD = text_vectors([*texts, *chain(*examples)])
    weights = [np.array([weight for _, weight in one], np.float32) for one in said]
    text_KD = torch.from_numpy(_segment_means(vectors_MD[: len(texts)], weights))
    if len(texts) == len(vectors_MD):
        return text_KD, None, None
    ones = [np.ones(len(one), np.float32) for one in examples]
    examples_KD = torch.from_numpy(_segment_means(vectors_MD[len(texts) :], ones))
    return text_KD, examples_KD, torch.tensor([float(len(one)) for one in examples])


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


def _segment_means(vectors_MD: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Weighted means over K consecutive segments, float32 [K, D]; 0 for an empty segment."""
    owner_M = np.repeat(np.arange(len(weights)), [len(one) for one in weights])
    sums_KD = np.zeros((len(weights), vectors_MD.shape[1]), np.float32)
    np.add.at(sums_KD, owner_M, vectors_MD * np.concatenate(weights)[:, None])
    totals_K = np.array([one.sum() if len(one) else 1 for one in weights], np.float32)
    return sums_KD / totals_K[:, None]
