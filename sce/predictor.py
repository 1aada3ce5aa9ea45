"""`Predictor`: texts or embeddings and a label set in, predictions out.

The one class that answers; evaluation, bulk jobs and servers call it. The model sees a label
set in canonical order and the answer comes back in the user's, so every order of the same set
gives the same answer bit for bit.

Shapes: N rows, B rows of a batch, K labels, D the embedder's dimension, T best labels of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from scipy.special import softmax
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sce.embedding.embedder import TextEmbedder, choose_device, load_embedder
from sce.embedding.fingerprint import check_fingerprint
from sce.embedding.row_checks import (
    as_texts,
    as_vectors,
    bad_vectors,
    is_numeric_array,
    refuse_rows,
    text_errors,
)
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError, InputError
from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers, Prediction
from sce.model.arithmetic import choose_dtype
from sce.model.background import Background
from sce.model.calibration import Temperature
from sce.model.decisions import predictions, ranked_labels
from sce.model.encoder import SCEModel
from sce.model.evidence import Evidence
from sce.model.grouping import GroupScorer
from sce.model.independent import IndependentScorer
from sce.model.label_tree import answer_names, level_count, parse_set, parse_sets, tree_of
from sce.model.label_vectors import TextLookup, TextVectors, token_means_of
from sce.model.linear_labels import LinearLabels
from sce.model.options import (
    BEST_ALONE,
    AnswerOptions,
    EvidenceOptions,
    LongText,
    Mode,
    Pooling,
    Scoring,
)
from sce.model.pooling import ChunkVectors, answer_chunks
from sce.model.scoring import Scorer, best_labels
from sce.model.settings import SHORTLIST_ABOVE, SHORTLIST_SIZE
from sce.model.sharing import load_background, save_model, upload_model
from sce.storage import Place, absolute_model, fetch_model


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
            get probability 0. None for `SHORTLIST_ABOVE`; `sce.model.settings.EXACT` never uses
            one.
        shortlist_size: None for `SHORTLIST_SIZE`.
        background: what texts are like in general; None for `Background.isotropic`.

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
        background: Background | None = None,
    ) -> None:
        if model.config.embedder is not None:
            check_fingerprint(model.config.embedder, embedder.fingerprint, "the model")
        self.model = model.eval()
        self.embedder = embedder
        self.tokenizer = tokenizer
        self.temperature = Temperature(*model.config.calibration)
        self._evidence = Evidence(model.config.rejection)
        self.background = background or Background.isotropic(model.config.embedding_dim)
        self.shortlist_above = SHORTLIST_ABOVE if shortlist_above is None else shortlist_above
        if shortlist_size is None:
            shortlist_size = min(SHORTLIST_SIZE, self.shortlist_above)
        self.shortlist_size = shortlist_size
        if self.shortlist_size < 1:
            raise ConfigError("shortlist_above, shortlist_size: both must be at least 1.")
        if self.shortlist_above < self.shortlist_size:
            raise ConfigError(
                f"shortlist_above: {self.shortlist_above} is less than the shortlist's "
                f"{self.shortlist_size} labels."
            )
        self._scorer = Scorer(model, max_batch_tokens)
        self._groups = GroupScorer(
            self._scorer,
            None if tokenizer is None else token_means_of(model, tokenizer),
            self.shortlist_above,
            self.shortlist_size,
        )
        self._independent = IndependentScorer(model, self.background, self._groups)
        self._text_vectors = text_vectors or (lambda texts: embedder.embed(texts).vectors)
        self._loaded_by: dict[str, Any] | None = None
        self._folder: Path | None = None  # that the model was loaded from

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled it is where it was loaded from; it is loaded again where it arrives. Raises
        `TypeError`: it was made of parts that were loaded already."""
        if self._loaded_by is None:
            raise TypeError(
                "this Predictor was made of parts that were loaded already, and cannot be pickled; "
                "Predictor.from_pretrained(path) makes one that can."
            )
        return _load, (self._loaded_by,)

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
        asked: dict[str, Any] = {"path": absolute_model(str(path))}
        asked |= {"embedder": embedder, "device": device, "dtype": dtype}
        asked |= {"shortlist_above": shortlist_above, "shortlist_size": shortlist_size}
        can_again = text_vectors is None and not isinstance(embedder, TextEmbedder)
        device = choose_device(device)
        if dtype not in ("float32", "bfloat16", "auto"):
            raise ConfigError(f"dtype: {dtype!r} is not one of 'float32', 'bfloat16', 'auto'.")
        local = fetch_model(path)
        try:
            model = SCEModel.from_pretrained(local, dtype=torch.float32)
            model = model.cast_weights(choose_dtype(dtype, device)).to(device)
            tokenizer = None
            if model.config.label_source == "tokens":
                tokenizer = AutoTokenizer.from_pretrained(local, trust_remote_code=False)
            background = load_background(local, model.config.embedding_dim)
        except (OSError, ValueError) as error:
            raise InputError(f"no SCE model at {str(path)!r}: {error}") from error
        if not isinstance(embedder, TextEmbedder):
            settings = embedder or EmbedderConfig.from_fingerprint(model.config.embedder)
            embedder = load_embedder(settings)
        predictor = cls(
            model,
            embedder,
            tokenizer,
            text_vectors=text_vectors,
            shortlist_above=shortlist_above,
            shortlist_size=shortlist_size,
            background=background,
        )
        predictor._loaded_by = asked if can_again else None
        predictor._folder = Path(local) if Path(local).is_dir() else None
        return predictor

    def save_pretrained(self, place: str | Place) -> None:
        """Write the model to a folder or URI, as `from_pretrained`, `AutoModel` and `AutoConfig` of
        transformers read it; with its card where it was loaded from a folder that has one. The
        embedder is named in it, and stays where it is.

        Raises:
            InputError: the model was loaded in bfloat16, or `place` is a file.
        """
        save_model(self.model, self.tokenizer, place, self._folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub, which is
        made where it is missing; returns the commit's URL. `from_pretrained(repo_id)` loads it. The
        options (`private`, `token`, `revision`, `commit_message`) are those of
        `sce.model.sharing.upload_model`, and so are the errors."""
        return upload_model(self.model, self.tokenizer, repo_id, self._folder, **options)

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
        label_set = parse_set(candidate_labels, "candidate_labels")
        texts = as_texts(sequences)
        vectors_ND = self.embedder.embed(texts).vectors
        answers = self.answer(vectors_ND, label_set, Scoring(len(label_set)))
        found = ranked_labels(answers, texts, label_set.names)
        return found[0] if isinstance(sequences, str) else found

    def warm_up(self, labels: Any) -> None:
        """Do ahead what the first answer would wait for: the vectors of one label set, and the
        kernels and memory of a whole forward pass."""
        label_set = labels if isinstance(labels, LinearLabels) else parse_set(labels)
        rows = max(1, self._scorer.max_batch_tokens // (len(label_set) + 1))
        self.answer(np.zeros((rows, self.model.config.embedding_dim), np.float32), label_set)

    def new_label_texts(
        self, labels: LabelSet | RaggedLabels | LinearLabels, scoring: Scoring = BEST_ALONE
    ) -> list[str]:
        """Distinct label texts that `answer` would embed for these labels. A server embeds them
        among its other texts and gives `answer` their vectors."""
        if isinstance(labels, LinearLabels):
            return []
        if scoring.mode == "multi":
            return self._independent.new_texts(labels, scoring.contrast)
        return self._groups.new_texts(labels)

    def predict(
        self,
        texts: str | Sequence[str] | np.ndarray | None = None,
        labels: Any = None,
        *,
        embeddings: np.ndarray | None = None,
        threshold: float | Mapping[str, float] | None = None,
        top_k: int | None = None,
        return_scores: bool = False,
        mode: Mode = "single",
        at_least: int = 0,
        at_most: int | None = None,
        contrast_labels: Sequence[str] = (),
        candidate_labels: Any = None,
        errors: Literal["keep", "raise"] = "keep",
        long_text: LongText = "truncate",
        pooling: Pooling | None = None,
        **evidence: Unpack[EvidenceOptions],
    ) -> list[Prediction]:
        """Classify texts, or vectors of texts that were embedded before.

        Args:
            texts: a text, or several in a list, an array, a column of pandas or Arrow; or their
                embeddings (an array of numbers), or None with `embeddings`.
            labels: one label set or tree in any form that `LabelSet.parse` or `LabelTree.parse`
                accepts; a set for each text as a list of lists of names or `RaggedLabels`; or
                labels that were fitted to a corpus (`AdaptedLabels.load`).
            embeddings: unit vectors of the model's embedder, float32 [N, D].
            threshold: below this probability a prediction's label is None, or one a label; in a
                tree it is the deepest node on the way down that is not below.
            top_k: also return this many best labels.
            return_scores: also return every label's probability.
            candidate_labels: another name of `labels`, as in the transformers pipeline.
            errors: a row that cannot be answered (a blank text, a vector whose norm is not 1) has
                its `error` in its answer, or with "raise" is a `DataError`.
            mode, long_text and the others: see `AnswerOptions`.

        Raises:
            LabelError, InputError: see there.
        """
        labels = candidate_labels if labels is None else labels
        if (texts is None) == (embeddings is None):
            raise InputError("give either texts or embeddings.")
        basic = threshold, top_k, return_scores, long_text, pooling
        options = AnswerOptions(*basic, mode, at_least, at_most, contrast_labels, **evidence)
        labels = labels if isinstance(labels, LinearLabels) else parse_sets(labels)
        if is_numeric_array(texts):
            texts, embeddings = None, texts
        queries, truncated_G, refused = self._queries(texts, embeddings, options, errors)
        count = len(queries) + len(refused)
        sets = labels.names_by_row(count)
        options.check_labels(sets if tree_of(labels) is None else [answer_names(labels)])
        good = [i for i in range(count) if i not in refused]
        if refused and isinstance(labels, RaggedLabels):
            labels = labels.take(np.array(good, np.int64))
        answers, asked = self.answer(queries, labels, options.scoring), [sets[i] for i in good]
        cut, nodes = truncated_G.tolist(), answer_names(labels)
        found = iter(predictions(answers, asked, options, cut, nodes))
        return [
            Prediction.refused(refused[i]) if i in refused else next(found) for i in range(count)
        ]

    def _queries(
        self,
        texts: Any,
        embeddings: Any,
        options: AnswerOptions,
        errors: Literal["keep", "raise"],
    ) -> tuple[np.ndarray | ChunkVectors, np.ndarray, dict[int, str]]:
        """Vectors of the rows that can be answered, whether each one's text was cut, and the errors
        of the others by position."""
        if texts is not None:
            items = as_texts(texts)
            refused = text_errors(items)
            refuse_rows("texts", refused, errors)
            good_texts = [t for i, t in enumerate(items) if i not in refused]
            if options.long_text == "chunk":
                chunks, cut_G = self.embedder.embed_chunks(good_texts)
                return chunks, cut_G, refused
            embedded = self.embedder.embed(good_texts)
            return embedded.vectors, embedded.truncated, refused
        options.refuse_long_text("embeddings are given")
        queries_ND = as_vectors(embeddings, self.model.config.embedding_dim)
        refused = bad_vectors(queries_ND)
        refuse_rows("embeddings", refused, errors)
        queries_GD = np.delete(queries_ND, list(refused), axis=0) if refused else queries_ND
        return queries_GD, np.zeros(len(queries_GD), bool), refused

    def answer(
        self,
        queries_ND: np.ndarray | ChunkVectors,
        labels: Any,
        scoring: Scoring = BEST_ALONE,
        label_texts: Mapping[str, np.ndarray] | None = None,
    ) -> Answers:
        """Classify embeddings; the answers are arrays. What bulk work and servers call.

        Memory beside the answer is that of one batch, however many rows there are.

        Args:
            queries_ND: unit vectors of the model's embedder, float32 [N, D]; or those of chunks.
            labels: one label set or tree for all rows, in any form that `LabelSet.parse` or
                `LabelTree.parse` accepts, `RaggedLabels` with one for each, or `LinearLabels`.
            scoring: what the answers hold.
            label_texts: vectors of label texts that the caller has embedded; the others are
                embedded here.

        Raises:
            LabelError, InputError: see there.
        """
        if not isinstance(labels, (RaggedLabels, LinearLabels)):
            labels = parse_set(labels)
        if isinstance(queries_ND, ChunkVectors):
            return answer_chunks(
                partial(self.answer, label_texts=label_texts), queries_ND, labels, scoring
            )
        queries_ND = self._check_embeddings(queries_ND)
        if isinstance(labels, LinearLabels):
            return self._require(labels).answer(queries_ND, scoring)
        tree = tree_of(labels)
        counts_N = labels.counts_by_row(len(queries_ND))
        shortlisted = scoring.mode == "single" and bool((counts_N > self.shortlist_above).any())
        shortlist = self.shortlist_size if shortlisted else None
        answers = Answers.empty(counts_N, scoring, shortlist, level_count(labels))
        known = label_texts or {}
        text_vectors = TextLookup(known, self._text_vectors) if known else self._text_vectors
        if scoring.mode == "multi":
            self._independent.fill(answers, queries_ND, labels, scoring, text_vectors)
            return answers
        for group, batch in self._groups.batches(queries_ND, labels, text_vectors):
            rows_B = group.rows_R[batch.rows]
            self._evidence.fill_none(answers, rows_B, queries_ND, group, batch)
            scaled_BK = self.temperature.scale(batch.logits_BK.double(), group.width)
            top_BT, p_BT, p_BK = best_labels(scaled_BK, answers.top_NT.shape[1])
            kept = slice(top_BT.shape[1])  # the others have no more labels, or a shortlist
            answers.top_NT[rows_B, kept] = group.to_user(batch, top_BT)
            answers.top_scores_NT[rows_B, kept] = p_BT
            if answers.scores_M is not None:
                places_BK = answers.offsets[rows_B][:, None] + group.to_user(batch)
                answers.scores_M[places_BK] = p_BK.float().cpu().numpy()
            if tree is not None:
                answers.fill_path(rows_B, *tree.best_path(p_BK.cpu().numpy(), batch.kept))
        self._evidence.fill_nearest(answers, queries_ND, labels, text_vectors)
        return answers

    def probabilities(
        self, queries_ND: np.ndarray, labels: Any, calibrated: bool = True
    ) -> np.ndarray:
        """Probabilities float64 [N, K] in the order of `labels` (equation 3), of the scores as they
        are or `calibrated`, divided by the fitted temperature."""
        if isinstance(labels, LinearLabels):
            self._require(labels)
            if calibrated:
                return labels.probabilities(queries_ND)
            return softmax(labels.scores(queries_ND), axis=1)
        label_set = parse_set(labels)
        p_NK = np.zeros((len(queries_ND), len(label_set)))
        for group, batch in self._groups.batches(queries_ND, label_set, self._text_vectors):
            logits_BK = batch.logits_BK.cpu().numpy().astype(np.float64)
            if calibrated:
                logits_BK = self.temperature.scale(logits_BK, group.width)
            p_BK = softmax(logits_BK, axis=1)
            np.put_along_axis(p_NK[batch.rows], group.to_user(batch), p_BK, 1)
        return p_NK

    def scores(self, queries_ND: np.ndarray, labels: Any) -> np.ndarray:
        """Uncalibrated scores s_k, float32 [N, K], in the order of `labels`. Every label is
        contextualised, however many there are."""
        if isinstance(labels, LinearLabels):
            return self._require(labels).scores(queries_ND).astype(np.float32)
        label_set = parse_set(labels)
        scores_NK = np.empty((len(queries_ND), len(label_set)), np.float32)
        batches = self._groups.batches(queries_ND, label_set, self._text_vectors, exact=True)
        for group, batch in batches:
            logits_BK = batch.logits_BK.cpu().numpy()
            np.put_along_axis(scores_NK[batch.rows], group.to_user(batch), logits_BK, 1)
        return scores_NK

    def _require(self, labels: LinearLabels) -> LinearLabels:
        """These labels, if they read the vectors of this embedder."""
        check_fingerprint(
            labels.embedder, self.embedder.fingerprint, "the corpus of these adapted labels"
        )
        return labels

    def _check_embeddings(self, embeddings: Any) -> np.ndarray:
        queries_ND = as_vectors(embeddings, self.model.config.embedding_dim)
        bad = np.flatnonzero(~np.isfinite(queries_ND).all(1))
        if len(bad):
            raise InputError(f"embeddings[{bad[0]}]: holds NaN or infinity ({len(bad)} such rows).")
        return queries_ND


def _load(asked: dict[str, Any]) -> Predictor:
    return Predictor.from_pretrained(**asked)
