"""`Predictor`: texts or embeddings and a label set in, predictions out.

The one class that answers; evaluation, bulk jobs and servers call it. The model sees a label
set in canonical order and the answer comes back in the user's, so every order of the same set
gives the same answer bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sce.calibration import Temperature
from sce.embedder import EmbedderConfig, TextEmbedder, check_fingerprint, load_embedder
from sce.errors import ConfigError, InputError
from sce.label_vectors import LabelVectors, TextVectors, encode_labels, token_means_of
from sce.labels import LabelSet
from sce.model import SCEModel
from sce.scoring import MAX_BATCH_TOKENS, score

LABEL_CACHE_SIZE = 64


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the best label as the user wrote it; None below the threshold.
        score: calibrated probability of the best label, also where `label` is None.
        scores: every label's probability in the user's order, where asked for.
        top: the best labels with their probabilities, best first, where asked for.
        truncated: the text was longer than the embedder reads and was cut.
    """

    label: str | None
    score: float
    scores: dict[str, float] | None = None
    top: list[tuple[str, float]] | None = None
    truncated: bool = False


class Predictor:
    """Classifies texts into any label set with a trained model.

    Args:
        model: in evaluation mode.
        embedder: the text embedder; None where only embeddings are classified and the model
            was told of it by its fingerprint.
        tokenizer: of the encoder, where the model reads labels as token means.
        text_vectors: where the vectors of label texts come from; by default the embedder.
    """

    def __init__(
        self,
        model: SCEModel,
        embedder: TextEmbedder,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        text_vectors: TextVectors | None = None,
    ) -> None:
        if model.config.embedder is not None:
            check_fingerprint(model.config.embedder, embedder.fingerprint, "the model")
        self.model = model.eval()
        self.embedder = embedder
        self.tokenizer = tokenizer
        self.temperature = Temperature(*model.config.calibration)
        self._token_means = None if tokenizer is None else token_means_of(model, tokenizer)
        self._max_batch_tokens = max_batch_tokens
        self._text_vectors = text_vectors or (lambda texts: embedder.embed(texts).vectors)
        self._label_cache: dict[str, LabelVectors] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        embedder: TextEmbedder | EmbedderConfig | None = None,
        device: str = "auto",
        dtype: str = "float32",
        text_vectors: TextVectors | None = None,
    ) -> Predictor:
        """Load a trained model and the embedder that it was trained with.

        Args:
            path: folder or hub id of a model that `jobs/train_sce.py` wrote.
            embedder: one that is loaded already, or where to find it; by default the one that
                the model's fingerprint names.
            device: "auto" (a GPU where there is one), "cpu" or "cuda".
            dtype: "float32" or "bfloat16", of the encoder.
            text_vectors: as in the constructor.

        Raises:
            FingerprintMismatch: `embedder` is not the one that the model was trained with.
            InputError: there is no model at `path`.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype: {dtype!r} is not one of 'float32', 'bfloat16'.")
        try:
            model = SCEModel.from_pretrained(path, dtype=getattr(torch, dtype)).to(device)
            tokenizer = None
            if model.config.label_source == "tokens":
                tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(f"no SCE model at {str(path)!r}: {error}") from error
        if not isinstance(embedder, TextEmbedder):
            settings = embedder or EmbedderConfig.from_fingerprint(model.config.embedder)
            embedder = load_embedder(settings)
        return cls(model, embedder, tokenizer, text_vectors=text_vectors)

    def predict(
        self,
        texts: str | Sequence[str] | None = None,
        labels: Any = None,
        *,
        embeddings: np.ndarray | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        return_scores: bool = False,
        candidate_labels: Any = None,
    ) -> list[Prediction]:
        """Classify texts, or vectors of texts that were embedded before.

        Args:
            texts: the texts, or None with `embeddings`.
            labels: one label set in any form that `LabelSet.parse` accepts. To give each text
                a set of its own, a list of lists of names as long as the texts.
            embeddings: unit vectors of the model's embedder, float32 [N, D].
            threshold: below this probability a prediction's label is None.
            top_k: also return this many best labels.
            return_scores: also return every label's probability.
            candidate_labels: another name of `labels`, as in the transformers pipeline.

        Raises:
            LabelError, InputError: see there.
        """
        labels = candidate_labels if labels is None else labels
        if (texts is None) == (embeddings is None):
            raise InputError("give either texts or embeddings.")
        truncated_N: np.ndarray
        if texts is not None:
            embedded = self.embedder.embed([texts] if isinstance(texts, str) else list(texts))
            queries_ND, truncated_N = embedded.vectors, embedded.truncated
        else:
            queries_ND = self._check_embeddings(embeddings)
            truncated_N = np.zeros(len(queries_ND), bool)

        predictions: list[Prediction | None] = [None] * len(queries_ND)
        for label_set, rows in self._label_sets(labels, len(queries_ND)):
            probabilities_NK = self.probabilities(queries_ND[rows], label_set)
            best_N = probabilities_NK.argmax(1)
            order_NT = None if top_k is None else np.argsort(-probabilities_NK, 1, "stable")
            for place, row in enumerate(rows):
                p_K = probabilities_NK[place]
                top = None
                if order_NT is not None:
                    top = [(label_set.names[k], float(p_K[k])) for k in order_NT[place, :top_k]]
                best = float(p_K[best_N[place]])
                sure = threshold is None or best >= threshold
                predictions[row] = Prediction(
                    label=label_set.names[best_N[place]] if sure else None,
                    score=best,
                    scores=dict(zip(label_set.names, p_K.tolist())) if return_scores else None,
                    top=top,
                    truncated=bool(truncated_N[row]),
                )
        return [p for p in predictions if p is not None]

    def probabilities(
        self, queries_ND: np.ndarray, labels: Any, calibrated: bool = True
    ) -> np.ndarray:
        """Probabilities float64 [N, K] in the order of `labels` (equation 3).

        Args:
            calibrated: divide the scores by the fitted temperature first.
        """
        label_set = LabelSet.parse(labels)
        scores_NK = self.scores(queries_ND, label_set).astype(np.float64)
        if calibrated:
            scores_NK = self.temperature.scale(scores_NK, len(label_set))
        return softmax(scores_NK, axis=1)

    def scores(self, queries_ND: np.ndarray, labels: Any) -> np.ndarray:
        """Uncalibrated scores s_k, float32 [N, K], in the order of `labels`."""
        label_set = LabelSet.parse(labels)
        canonical_NK = score(
            self.model, queries_ND, self.label_vectors(label_set), self._max_batch_tokens
        )
        scores_NK = np.empty_like(canonical_NK)
        scores_NK[:, label_set.canonical_order] = canonical_NK
        return scores_NK

    def label_vectors(self, label_set: LabelSet) -> LabelVectors:
        """Vectors of a label set in canonical order; the last ones used are kept."""
        key = label_set.fingerprint
        if key not in self._label_cache:
            if len(self._label_cache) >= LABEL_CACHE_SIZE:
                self._label_cache.pop(next(iter(self._label_cache)))
            self._label_cache[key] = encode_labels(
                label_set.canonical(),
                self._text_vectors if self.model.uses_embedded_labels else None,
                self._token_means,
            ).to(self.model.device)
        return self._label_cache[key]

    def _check_embeddings(self, embeddings: Any) -> np.ndarray:
        queries_ND = np.asarray(embeddings, np.float32)
        dimension = self.model.config.embedding_dim
        if queries_ND.ndim != 2 or queries_ND.shape[1] != dimension:
            raise InputError(
                f"embeddings: shape {queries_ND.shape}, but this model reads [N, {dimension}]."
            )
        bad = np.flatnonzero(~np.isfinite(queries_ND).all(1))
        if len(bad):
            raise InputError(f"embeddings[{bad[0]}]: holds NaN or infinity ({len(bad)} such rows).")
        return queries_ND

    def _label_sets(self, labels: Any, rows: int) -> list[tuple[LabelSet, np.ndarray]]:
        """Label sets with the rows that each serves; rows with the same set go together."""
        per_row = (
            isinstance(labels, Sequence)
            and not isinstance(labels, str)
            and any(isinstance(item, (list, tuple, LabelSet)) for item in labels)
        )
        if not per_row:
            return [(LabelSet.parse(labels), np.arange(rows))]
        if len(labels) != rows:
            raise InputError(f"labels: {len(labels)} label sets for {rows} texts; one a text.")
        groups: dict[tuple[str, ...], tuple[LabelSet, list[int]]] = {}
        for row, item in enumerate(labels):
            label_set = LabelSet.parse(item, f"labels[{row}]")
            key = (label_set.fingerprint, *label_set.names)
            groups.setdefault(key, (label_set, []))[1].append(row)
        return [(label_set, np.array(members)) for label_set, members in groups.values()]
