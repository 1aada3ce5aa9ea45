"""The one place where a trained model scores texts.

`Scorer` runs the weights of an `SCEModel` for inference (`sce.model.inference`). What does not
depend on the text is done once a label set (`PreparedLabels`), and batches keep to a budget of
tokens.

Tensor names carry their shape: B rows of a batch, R rows in all, K labels, L labels of a table
that rows choose from, D the embedder's dimension, H the encoder's width, T = K + 1 tokens,
A attention heads, P the width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from sce.model.encoder import SCEModel
from sce.model.inference import EncodedLabels, FastEncoder
from sce.model.label_vectors import LabelVectors

MAX_BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens (query and labels) of one forward pass, by type of device. On a CPU the activations of a
layer should stay in its cache: 1,024 to 4,096 tokens are within a few per cent of each other, 256
are a quarter slower and 16,384 a half."""


@dataclass(frozen=True)
class PreparedLabels:
    """What the model makes of labels before it sees a text.

    Attributes:
        g_KD: float32, for the prior; None in a model that does not read them.
        tokens_KH: h_k by equation 2; None in a model that does not read them.
        similarity_KD: unit vectors, float32; None where none were given.
        encoded: as the encoder reads them; None where positions tie them to their place.
        shortlist_KD: what the shortlist goes by in place of `similarity_KD`, not of unit length.
    """

    g_KD: torch.Tensor | None
    tokens_KH: torch.Tensor | None
    similarity_KD: torch.Tensor | None
    encoded: EncodedLabels | None
    shortlist_KD: torch.Tensor | None = None

    def __len__(self) -> int:
        part = self.g_KD if self.g_KD is not None else self.tokens_KH
        assert part is not None
        return len(part)


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of consecutive rows."""

    rows: slice
    logits_BK: torch.Tensor
    """Uncalibrated, float32, on the model's device; [B, M] with a shortlist."""
    kept_BM: torch.Tensor | None
    """With a shortlist: which labels of each row's set they belong to, ascending."""

    @property
    def kept(self) -> np.ndarray | None:
        """`kept_BM` as an array."""
        return None if self.kept_BM is None else self.kept_BM.cpu().numpy()


class Scorer:
    """Scores labels with the weights of a model, which must not change afterwards.

    Args:
        model: in evaluation mode; its device and dtype are used.
        max_batch_tokens: of one forward pass; None for the device's default.
    """

    def __init__(self, model: SCEModel, max_batch_tokens: int | None = None) -> None:
        self.model = model
        self.device: torch.device = model.query_adaptor.weight.device
        self.max_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS.get(
            self.device.type, MAX_BATCH_TOKENS["cuda"]
        )
        self._encoder = None if model.config.positions else FastEncoder(model)

    @torch.inference_mode()
    def prepare(self, labels: LabelVectors, shared: bool = True) -> PreparedLabels:
        """Everything about labels that no text changes.

        Args:
            labels: in canonical order. Vectors of their texts serve the shortlist also in a
                model that does not read them.
            shared: for rows that all have this very set.
        """
        labels = labels.to(self.device)
        similarity_KD = None
        if labels.text_KD is not None:
            parts = (labels.text_KD, labels.examples_KD, labels.example_counts_K)
            similarity_KD = self.model.pool_labels(*parts).float()
        g_KD = similarity_KD if self.model.uses_embedded_labels else None
        encoded = None
        if self._encoder is not None:
            h_KH = self.model.embed_labels(g_KD, labels.tokens_KH)
            encoded = self._encoder.encode_labels(h_KH, shared)
        return PreparedLabels(g_KD, labels.tokens_KH, similarity_KD, encoded)

    @torch.inference_mode()
    def batches(
        self,
        queries_RD: np.ndarray,
        labels: PreparedLabels,
        ids_RK: np.ndarray | None = None,
        shortlist: int | None = None,
    ) -> Iterator[ScoredBatch]:
        """Scores of R rows, batch by batch.

        Args:
            queries_RD: unit vectors of the text embedder, float32 [R, D].
            ids_RK: each row's labels as places in `labels`, in canonical order; None where all
                of `labels` is every row's set.
            shortlist: contextualise this many labels of each row, the nearest to the text.
        """
        width = len(labels) if ids_RK is None else ids_RK.shape[1]
        if shortlist is not None and shortlist >= width:
            shortlist = None
        rows = max(1, self.max_batch_tokens // ((shortlist or width) + 1))
        for start in range(0, len(queries_RD), rows):
            batch = slice(start, min(start + rows, len(queries_RD)))
            queries_BD = torch.from_numpy(np.array(queries_RD[batch], np.float32)).to(self.device)
            ids_BK = kept_BM = None
            if ids_RK is not None:
                ids_BK = torch.from_numpy(ids_RK[batch]).to(self.device)
            if shortlist is not None:  # those with the largest cosine
                near_KD = labels.shortlist_KD
                near_KD = labels.similarity_KD if near_KD is None else near_KD
                assert near_KD is not None
                cosine_BK = queries_BD @ near_KD.T
                if ids_BK is not None:
                    cosine_BK = cosine_BK.gather(1, ids_BK)
                nearest_BM = cosine_BK.topk(shortlist, dim=1, sorted=False).indices
                kept_BM = nearest_BM.sort(dim=1).values
                ids_BK = kept_BM if ids_BK is None else ids_BK.gather(1, kept_BM)
            yield ScoredBatch(batch, self.logits(queries_BD, labels, ids_BK), kept_BM)

    @torch.inference_mode()
    def logits(
        self, queries_BD: torch.Tensor, labels: PreparedLabels, ids_BK: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Uncalibrated scores, float32 [B, K], as `SCEModel.forward` gives them."""
        g_KD, tokens_KH = labels.g_KD, labels.tokens_KH
        if ids_BK is not None and g_KD is not None:
            g_KD = g_KD[ids_BK]
        if self._encoder is not None:
            assert labels.encoded is not None
            query_BH = self.model.embed_queries(queries_BD)[:, 0]
            e_BTH = self._encoder.contextualise(query_BH, labels.encoded, ids_BK)
            return self.model.score(e_BTH, queries_BD, g_KD)
        if ids_BK is not None and tokens_KH is not None:
            tokens_KH = tokens_KH[ids_BK]
        return self.model(queries_BD, label_embeddings=g_KD, label_tokens=tokens_KH).logits


def best_labels(scaled_BK: torch.Tensor, width: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """The best places of each row's calibrated scores, float64, no more than `width`, their
    probabilities, and all probabilities.

    Equal scores come in canonical order. With a shortlist the temperature is that of the whole set:
    it holds the labels that are hard to tell apart, so its scores are as sharp as those of the
    whole (on clinc150 the best T is 0.98 for 150 labels and for the nearest 64 of them, 0.95 for 64
    random ones).
    """
    p_BK = torch.softmax(scaled_BK, dim=1)
    if width == 1:
        top_BT = scaled_BK.argmax(1, keepdim=True)
    else:
        top_BT = scaled_BK.sort(dim=1, descending=True, stable=True).indices[:, :width]
    p_BT = p_BK.gather(1, top_BT).float().cpu().numpy()
    return top_BT.cpu().numpy(), p_BT, p_BK


def score(
    model: SCEModel,
    queries_ND: np.ndarray,
    labels: LabelVectors,
    max_batch_tokens: int | None = None,
) -> np.ndarray:
    """Uncalibrated scores float32 [N, K] of every label of one set for every query, from what
    `Scorer`, `Scorer.prepare` and `Scorer.batches` take."""
    scorer = Scorer(model, max_batch_tokens)
    scores_NK = np.empty((len(queries_ND), len(labels)), np.float32)
    for batch in scorer.batches(queries_ND, scorer.prepare(labels)):
        scores_NK[batch.rows] = batch.logits_BK.cpu().numpy()
    return scores_NK
