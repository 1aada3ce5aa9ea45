"""`Predictor`: texts or embeddings and a label set in, predictions out.

The one class that answers; evaluation, bulk jobs and servers call it. The model sees a label
set in canonical order and the answer comes back in the user's, so every order of the same set
gives the same answer bit for bit.

Shapes: N rows, B rows of a batch, R rows of a group, K labels, L distinct labels of all rows,
D the embedder's dimension, T best labels of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sce.embedding.embedder import EmbedderConfig, TextEmbedder, check_fingerprint, load_embedder
from sce.errors import ConfigError, InputError
from sce.labels import LabelSet, RaggedLabels, is_set_a_row
from sce.model.answers import Answers, AnswerWriter, Prediction
from sce.model.calibration import Temperature
from sce.model.encoder import SCEModel
from sce.model.label_vectors import (
    LabelBank,
    LabelVectors,
    TextVectors,
    encode_labels,
    token_means_of,
)
from sce.model.scoring import (
    EXACT,
    SHORTLIST_ABOVE,
    SHORTLIST_SIZE,
    PreparedLabels,
    ScoredBatch,
    Scorer,
    multiplies_bfloat16,
)
from sce.storage import Place, fetch_model

__all__ = ["EXACT", "SHORTLIST_ABOVE", "SHORTLIST_SIZE", "Answers", "Prediction", "Predictor"]

CACHED_SETS = 64
CACHED_SET_LABELS = 4096
"""Prepared label sets are kept up to this many sets and this many labels in all of them."""
CACHED_LABELS = 32_768
"""Vectors of single labels are kept up to this many, for sets that differ from row to row."""
TABLE_LABELS = 16_384
"""Rows with sets of their own are scored in chunks of at most this many labels, repeats counted:
a chunk's distinct labels are prepared together."""


@dataclass(frozen=True)
class _Group:
    """Rows that are scored together; all have K labels.

    Attributes:
        rows_R: which of the N rows.
        labels: one set, or with `ids_RK` a table that the rows choose from.
        ids_RK: each row's labels as places in `labels`, in canonical order; None for one set.
        user_places: for each canonical place the place in the user's order, [K] or [R, K].
    """

    rows_R: np.ndarray
    labels: PreparedLabels
    ids_RK: np.ndarray | None
    user_places: np.ndarray

    @property
    def width(self) -> int:
        """K."""
        return self.user_places.shape[-1]

    def to_user(self, batch: ScoredBatch, places_BX: np.ndarray) -> np.ndarray:
        """From places among a batch's scores to places in the user's order."""
        if batch.kept_BM is not None:
            places_BX = np.take_along_axis(batch.kept_BM.cpu().numpy(), places_BX, 1)
        if self.user_places.ndim == 1:
            return self.user_places[places_BX]
        return np.take_along_axis(self.user_places[batch.rows], places_BX, 1)


class Predictor:
    """Classifies texts into any label set with a trained model. Safe to call from several threads.

    Args:
        model: in evaluation mode; its weights must not change afterwards.
        embedder: the text embedder that the model was trained with.
        tokenizer: of the encoder, where the model reads labels as token means.
        max_batch_tokens: of one forward pass; None for the device's default.
        text_vectors: where the vectors of label texts come from; by default the embedder.
        shortlist_above: sets of more labels than this are scored by shortlist: the
            `shortlist_size` labels nearest to the text by cosine are contextualised, the others
            get probability 0. None for `SHORTLIST_ABOVE`; `EXACT` never uses one.
        shortlist_size: None for `SHORTLIST_SIZE`.

    Raises:
        FingerprintMismatch: `embedder` is not the one that the model was trained with.
        ConfigError: the shortlist is empty, or larger than the sets that it is for.
    """

    def __init__(
        self,
        model: SCEModel,
        embedder: TextEmbedder,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_batch_tokens: int | None = None,
        text_vectors: TextVectors | None = None,
        shortlist_above: int | None = None,
        shortlist_size: int | None = None,
    ) -> None:
        if model.config.embedder is not None:
            check_fingerprint(model.config.embedder, embedder.fingerprint, "the model")
        self.model = model.eval()
        self.embedder = embedder
        self.tokenizer = tokenizer
        self.temperature = Temperature(*model.config.calibration)
        self.shortlist_above = SHORTLIST_ABOVE if shortlist_above is None else shortlist_above
        self.shortlist_size = min(SHORTLIST_SIZE, self.shortlist_above)
        if shortlist_size is not None:
            self.shortlist_size = shortlist_size
        if self.shortlist_size < 1:
            raise ConfigError("shortlist_above, shortlist_size: both must be at least 1.")
        if self.shortlist_above < self.shortlist_size:
            raise ConfigError(
                f"shortlist_above: {self.shortlist_above} is less than the shortlist's "
                f"{self.shortlist_size} labels."
            )
        self._scorer = Scorer(model, max_batch_tokens)
        self._token_means = None if tokenizer is None else token_means_of(model, tokenizer)
        self._text_vectors = text_vectors or (lambda texts: embedder.embed(texts).vectors)
        self._lock = Lock()
        self._prepared_sets: dict[tuple[str, bool], PreparedLabels] = {}
        self._banks = {
            with_text: LabelBank(partial(self._encode, with_text=with_text), CACHED_LABELS)
            for with_text in (False, True)
        }

    @classmethod
    def from_pretrained(
        cls,
        path: str | Place,
        embedder: TextEmbedder | EmbedderConfig | None = None,
        device: str = "auto",
        dtype: str = "float32",
        text_vectors: TextVectors | None = None,
        shortlist_above: int | None = None,
        shortlist_size: int | None = None,
    ) -> Predictor:
        """Load a trained model and the embedder that it was trained with.

        Args:
            path: folder, URI or hub id of a model that `jobs/train_sce.py` wrote.
            embedder: one that is loaded already, or where to find it; by default the one that
                the model's fingerprint names.
            device: "auto" (a GPU where there is one), "cpu" or "cuda".
            dtype: of the encoder: "float32", "bfloat16", or "auto", which is bfloat16 on a GPU
                or CPU that multiplies it natively and float32 elsewhere. Scores are float32
                throughout. On a CPU with AVX512-BF16 bfloat16 is about 1.7 times as fast; it
                changed no answer of 1,500 on clinc150, 2 of 637 on unseen starter sets, and no
                probability by more than 0.006.
            text_vectors, shortlist_above, shortlist_size: as in the constructor.

        Raises:
            FingerprintMismatch: `embedder` is not the one that the model was trained with.
            InputError: there is no model at `path`.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype not in ("float32", "bfloat16", "auto"):
            raise ConfigError(f"dtype: {dtype!r} is not one of 'float32', 'bfloat16', 'auto'.")
        half = dtype == "bfloat16" or (dtype == "auto" and multiplies_bfloat16(device))
        local = fetch_model(path)
        try:
            model = SCEModel.from_pretrained(local, dtype=torch.float32)
            model = model.cast_weights(torch.bfloat16 if half else torch.float32).to(device)
            tokenizer = None
            if model.config.label_source == "tokens":
                tokenizer = AutoTokenizer.from_pretrained(local)
        except (OSError, ValueError) as error:
            raise InputError(f"no SCE model at {str(path)!r}: {error}") from error
        if not isinstance(embedder, TextEmbedder):
            settings = embedder or EmbedderConfig.from_fingerprint(model.config.embedder)
            embedder = load_embedder(settings)
        return cls(
            model,
            embedder,
            tokenizer,
            text_vectors=text_vectors,
            shortlist_above=shortlist_above,
            shortlist_size=shortlist_size,
        )

    def __call__(
        self, sequences: str | Sequence[str], candidate_labels: Any
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer as the zero-shot-classification pipeline of transformers does.

        Args:
            sequences: one text or several.
            candidate_labels: one label set in any form that `LabelSet.parse` accepts, or names
                separated by commas.

        Returns:
            For each text a dictionary `{"sequence", "labels", "scores"}`, the labels best first;
            a list of them unless `sequences` is one text.
        """
        if isinstance(candidate_labels, str):
            candidate_labels = [n.strip() for n in candidate_labels.split(",") if n.strip()]
        label_set = LabelSet.parse(candidate_labels, "candidate_labels")
        texts = [sequences] if isinstance(sequences, str) else list(sequences)
        answers = self.answer(self.embedder.embed(texts).vectors, label_set, len(label_set))
        names, places = label_set.names, range(len(label_set))
        found = []
        for text, top, scores in zip(
            texts, answers.top_NT.tolist(), answers.top_scores_NT.tolist()
        ):
            kept = [k for k in top if k >= 0]
            rest = sorted(set(places) - set(kept))  # not shortlisted
            found.append(
                {
                    "sequence": text,
                    "labels": [names[k] for k in kept + rest],
                    "scores": scores[: len(kept)] + [0.0] * len(rest),
                }
            )
        return found[0] if isinstance(sequences, str) else found

    def warm_up(self, labels: Any) -> None:
        """Do ahead what the first answer would wait for: the vectors of one label set, and the
        kernels and memory of a whole forward pass."""
        label_set = LabelSet.parse(labels)
        rows = max(1, self._scorer.max_batch_tokens // (len(label_set) + 1))
        self.answer(np.zeros((rows, self.model.config.embedding_dim), np.float32), label_set)

    def new_label_texts(self, labels: LabelSet | RaggedLabels) -> list[str]:
        """Distinct texts that `text_vectors` would be asked for by an answer with these labels."""
        if isinstance(labels, RaggedLabels):
            with_text = self._needs_text(int(labels.label_counts.max(initial=1)))
            new = self._banks[with_text].unknown(labels.labels)
        else:
            with_text = self._needs_text(len(labels))
            key = (labels.fingerprint, len(labels) <= self.shortlist_above)
            new = [] if key in self._prepared_sets else list(labels.labels)
        if not with_text:
            return []
        texts = (text for label in new for text in (*label.info_texts, *label.examples))
        return list(dict.fromkeys(texts))

    def predict(
        self,
        texts: str | Sequence[str] | np.ndarray | None = None,
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
            texts: the texts, or their embeddings (an array of numbers), or None with
                `embeddings`.
            labels: one label set in any form that `LabelSet.parse` accepts. To give each text
                a set of its own, a list of lists of names as long as the texts, or
                `RaggedLabels`.
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
        if _is_numeric_array(texts):
            texts, embeddings = None, texts  # type: ignore[assignment]
        if texts is not None:
            embedded = self.embedder.embed([texts] if isinstance(texts, str) else list(texts))
            queries_ND, truncated = embedded.vectors, embedded.truncated.tolist()
        else:
            queries_ND = self._check_embeddings(embeddings)
            truncated = [False] * len(queries_ND)

        if isinstance(labels, RaggedLabels):
            ragged = labels
        elif is_set_a_row(labels):
            _check_set_count(len(labels), len(queries_ND))
            ragged = RaggedLabels.from_sets(labels)
        else:
            ragged, labels = None, LabelSet.parse(labels)
        answers = self.answer(
            queries_ND, labels if ragged is None else ragged, top_k or 1, return_scores
        )
        sets = [labels.names] * len(answers) if ragged is None else ragged.names()
        return answers.predictions(sets, threshold, top_k is not None, truncated)

    def answer(
        self,
        queries_ND: np.ndarray,
        labels: Any,
        top_k: int = 1,
        return_scores: bool = False,
    ) -> Answers:
        """Classify embeddings; the answers are arrays. What bulk work calls.

        Memory beside the answer is that of one batch, however many rows there are.

        Args:
            queries_ND: unit vectors of the model's embedder, float32 [N, D].
            labels: one label set for all rows, in any form that `LabelSet.parse` accepts, or
                `RaggedLabels` with one for each.
            top_k: how many best labels.
            return_scores: also every label's probability.

        Raises:
            LabelError, InputError: see there.
        """
        if top_k < 1:
            raise InputError(f"top_k: {top_k}, but at least 1 is needed.")
        queries_ND = self._check_embeddings(queries_ND)
        if isinstance(labels, RaggedLabels):
            _check_set_count(len(labels), len(queries_ND))
            counts_N, offsets = labels.label_counts, labels.offsets
        else:
            labels = LabelSet.parse(labels)
            counts_N = np.full(len(queries_ND), len(labels))
            offsets = np.arange(len(queries_ND) + 1) * len(labels)
        width = len(labels) if isinstance(labels, LabelSet) else int(counts_N.max(initial=1))
        writer = AnswerWriter(offsets, min(top_k, width), return_scores)
        for group in self._groups(labels, len(queries_ND)):
            for batch in self._scored(queries_ND, group):
                top_BT, p_BT, p_BK = self._best(batch, group.width, writer.width, return_scores)
                rows_B = group.rows_R[batch.rows]
                writer.write_top(rows_B, group.to_user(batch, top_BT), p_BT)
                if p_BK is not None:
                    places_BK = np.broadcast_to(np.arange(p_BK.shape[1]), p_BK.shape)
                    writer.write_scores(rows_B, group.to_user(batch, places_BK), p_BK)
        shortlisted = bool((counts_N > self.shortlist_above).any())
        return writer.answers(self.shortlist_size if shortlisted else None)

    def probabilities(
        self, queries_ND: np.ndarray, labels: Any, calibrated: bool = True
    ) -> np.ndarray:
        """Probabilities float64 [N, K] in the order of `labels` (equation 3).

        Args:
            calibrated: divide the scores by the fitted temperature first.
        """
        label_set = LabelSet.parse(labels)
        p_NK = np.zeros((len(queries_ND), len(label_set)))
        for group in self._groups(label_set, len(queries_ND)):
            for batch in self._scored(queries_ND, group):
                logits_BK = batch.logits_BK.cpu().numpy().astype(np.float64)
                if calibrated:
                    logits_BK = self.temperature.scale(logits_BK, group.width)
                places_BK = np.broadcast_to(np.arange(logits_BK.shape[1]), logits_BK.shape)
                user_BK = group.to_user(batch, places_BK)
                np.put_along_axis(p_NK[batch.rows], user_BK, softmax(logits_BK, axis=1), 1)
        return p_NK

    def scores(self, queries_ND: np.ndarray, labels: Any) -> np.ndarray:
        """Uncalibrated scores s_k, float32 [N, K], in the order of `labels`. Every label is
        contextualised, however many there are."""
        label_set = LabelSet.parse(labels)
        prepared, order = self._prepared(label_set, exact=True), label_set.canonical_order
        scores_NK = np.empty((len(queries_ND), len(label_set)), np.float32)
        for batch in self._scorer.batches(queries_ND, prepared):
            scores_NK[batch.rows, order] = batch.logits_BK.cpu().numpy()
        return scores_NK

    def _scored(self, queries_ND: np.ndarray, group: _Group) -> Iterator[ScoredBatch]:
        every = len(group.rows_R) == len(queries_ND)  # they ascend, so no copy is needed
        return self._scorer.batches(
            queries_ND if every else queries_ND[group.rows_R],
            group.labels,
            group.ids_RK,
            self.shortlist_size if group.width > self.shortlist_above else None,
        )

    def _best(
        self, batch: ScoredBatch, label_count: int, width: int, return_scores: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The best places of each row's scores, their probabilities, and all probabilities.

        Equal scores come in canonical order. With a shortlist the temperature is that of the
        whole set: it holds the labels that are hard to tell apart, so its scores are as sharp as
        those of the whole (on clinc150 the best T is 0.98 for 150 labels and for the nearest 64
        of them, 0.95 for 64 random ones).
        """
        logits_BK = batch.logits_BK.double()
        p_BK = torch.softmax(self.temperature.scale(logits_BK, label_count), dim=1)
        if width == 1:
            top_BT = logits_BK.argmax(1, keepdim=True)
        else:
            top_BT = logits_BK.sort(dim=1, descending=True, stable=True).indices[:, :width]
        p_BT = p_BK.gather(1, top_BT).float().cpu().numpy()
        return top_BT.cpu().numpy(), p_BT, p_BK.float().cpu().numpy() if return_scores else None

    def _groups(self, labels: LabelSet | RaggedLabels, rows: int) -> Iterator[_Group]:
        """Rows by what can be scored together; every row is in one group."""
        if isinstance(labels, LabelSet):
            order_K = np.array(labels.canonical_order)
            yield _Group(np.arange(rows), self._prepared(labels), None, order_K)
            return
        if rows == 0:
            return
        canonical_L, ids_M = labels.canonical_ids()
        places_M = labels.canonical_places(ids_M)
        user_M = places_M - np.repeat(labels.offsets[:-1], labels.label_counts)
        vectors = self._banks[self._needs_text(int(labels.label_counts.max()))].vectors(canonical_L)
        for count in np.unique(labels.label_counts).tolist():
            rows_R = np.flatnonzero(labels.label_counts == count)
            flat_RK = labels.offsets[rows_R][:, None] + np.arange(count)
            ids_RK, user_RK = ids_M[places_M[flat_RK]], user_M[flat_RK]
            sets_SK, set_R, sizes_S = np.unique(
                ids_RK, axis=0, return_inverse=True, return_counts=True
            )
            shared_S = self._scorer.fills_a_batch(sizes_S, count) & (count <= self.shortlist_above)
            for s in np.flatnonzero(shared_S).tolist():
                mine_R = np.flatnonzero(set_R == s)
                prepared = self._scorer.prepare(vectors.take(torch.from_numpy(sets_SK[s])))
                yield _Group(rows_R[mine_R], prepared, None, user_RK[mine_R])
            own_R = np.flatnonzero(~shared_S[set_R])
            size = max(1, TABLE_LABELS // count)
            for start in range(0, len(own_R), size):
                mine_R = own_R[start : start + size]
                table_L, chosen_RK = np.unique(ids_RK[mine_R], return_inverse=True)
                table = vectors.take(torch.from_numpy(table_L))
                prepared = self._scorer.prepare(table, shared=False)
                chosen_RK = chosen_RK.reshape(-1, count)
                yield _Group(rows_R[mine_R], prepared, chosen_RK, user_RK[mine_R])

    def _prepared(self, label_set: LabelSet, exact: bool = False) -> PreparedLabels:
        """A label set in canonical order; the last ones used are kept.

        Args:
            exact: every label is to be contextualised, however many there are.
        """
        shared = exact or len(label_set) <= self.shortlist_above
        key = (label_set.fingerprint, shared)
        with self._lock:
            if key not in self._prepared_sets:
                vectors = self._encode(label_set.canonical(), self._needs_text(len(label_set)))
                self._prepared_sets[key] = self._scorer.prepare(vectors, shared)
            prepared = self._prepared_sets[key]
            while len(self._prepared_sets) > 1 and (
                len(self._prepared_sets) > CACHED_SETS
                or sum(map(len, self._prepared_sets.values())) > CACHED_SET_LABELS
            ):
                self._prepared_sets.pop(next(iter(self._prepared_sets)))
            return prepared

    def _needs_text(self, label_count: int) -> bool:
        """Whether the text embedder's vectors of the labels are needed: by the model or by the
        shortlist."""
        return self.model.uses_embedded_labels or label_count > self.shortlist_above

    def _encode(self, label_set: LabelSet, with_text: bool) -> LabelVectors:
        text_vectors = self._text_vectors if with_text else None
        return encode_labels(label_set, text_vectors, self._token_means)

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


def _is_numeric_array(value: Any) -> bool:
    """Whether a value is an array of numbers (numpy, torch or alike) rather than texts."""
    return hasattr(value, "__array__") and np.asarray(value).dtype.kind in "fiu"


def _check_set_count(sets: int, rows: int) -> None:
    if sets != rows:
        raise InputError(f"labels: {sets} label sets for {rows} texts; one a text.")
