"""Answers the blocks of a bulk job by an endpoint (`jobs/classify.py --endpoint`).

Shapes: G rows of a block, D the embedder's dimension, T best labels of a row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from sce.bulk.answering import BlockAnswers, Endpoint, Vectors
from sce.client import Client, EndpointError
from sce.errors import ROW_ERRORS, ConfigError
from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.decisions import fitted_share
from sce.model.label_tree import level_count, tree_of
from sce.model.options import Scoring
from sce.model.pooling import ChunkVectors


class EndpointPredictor:
    """Answers the blocks of a bulk job by an endpoint: a `BlockPredictor`.

    After every block the server is asked which model it has: answers of two never get into one
    output. Nothing is asked yet where the endpoint says which model is expected.

    Raises:
        InputError, EndpointError: see `Client.info` and `Client.served_model`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._client = Client(
            endpoint.url,
            endpoint.token.get_secret_value() or None,
            endpoint.model,
            patience_seconds=endpoint.patience_seconds,
            concurrency=endpoint.concurrency,
        )
        self.served = endpoint.served or self._client.served_model()

    @property
    def dimension(self) -> int:
        """D."""
        return self.served.dimension

    def warm_up(self, labels: Any) -> None:
        """Nothing: the server keeps what it has made of labels."""

    def answer_texts(self, texts_G: pa.Array, labels: Any, scoring: Scoring) -> BlockAnswers:
        return self._answer(texts_G.to_pylist(), labels, scoring)

    def answer_vectors(self, vectors_GD: Vectors, labels: Any, scoring: Scoring) -> BlockAnswers:
        assert not isinstance(vectors_GD, ChunkVectors), "an endpoint takes texts to chunk"
        return self._answer(vectors_GD, labels, scoring)

    def _answer(
        self,
        queries: list[str] | np.ndarray,
        labels: LabelSet | RaggedLabels,
        scoring: Scoring,
    ) -> BlockAnswers:
        found = self._client.predict(
            queries,
            labels,
            top_k=scoring.top_k,
            long_text="truncate" if scoring.pooling is None else "chunk",
            pooling=scoring.pooling,
            return_scores=scoring.every_score,
            mode=scoring.mode,
            contrast_labels=scoring.contrast,
            none_of_these=scoring.none_of_these,
            none_share=fitted_share(scoring.mode) if scoring.none_of_these else None,
            explain=scoring.explain,
        )
        self._check_served()
        rows = len(found)
        counts_G = labels.counts_by_row(rows)
        if isinstance(labels, LabelSet):
            sets = [{name: k for k, name in enumerate(labels.names)}] * rows
        else:
            sets = [{name: k for k, name in enumerate(x)} for x in labels.names_by_row(rows)]
        above = self.served.shortlist_above
        shortlisted = above is not None and bool((counts_G > above).any())
        shortlisted = shortlisted and scoring.mode == "single"
        shortlist = self.served.shortlist_size if shortlisted else None
        tree = tree_of(labels)
        nodes = {} if tree is None else {name: k for k, name in enumerate(tree.answer_names)}
        answers = Answers.empty(counts_G, scoring, shortlist, level_count(labels))
        offsets, scores_M = answers.offsets, answers.scores_M
        where_N2 = np.full((rows, 2), -1, np.int64)
        truncated_G, errors_G = np.zeros(rows, bool), np.full(rows, "", object)
        for row, (item, places) in enumerate(zip(found, sets, strict=True)):
            if item.error is not None:
                if item.error not in ROW_ERRORS:
                    raise EndpointError(f"{self._client.url}: unknown row error, {item.error!r}.")
                errors_G[row] = item.error
                continue
            truncated_G[row] = item.truncated
            if item.where is not None:
                where_N2[row] = item.where
            if answers.none_N is not None:
                answers.none_N[row] = item.none_score
            if answers.nearest_N is not None and item.why is not None:
                answers.nearest_N[row] = item.why.nearest
            for t, (name, score) in enumerate(item.top or []):
                answers.top_NT[row, t], answers.top_scores_NT[row, t] = places[name], score
            for level, (name, score) in enumerate(item.path or []):
                answers.fill_path((row, level), nodes[name], score)
            if scores_M is not None and item.scores is not None:
                scores_M[offsets[row] : offsets[row + 1]] = [item.scores[name] for name in places]
        if scoring.pooling is not None:
            answers = replace(answers, where_N2=where_N2)
        return BlockAnswers(answers, truncated_G, errors_G)

    def _check_served(self) -> None:
        then, now = self.served.identity(), self._client.served_model().identity()
        if then == now:
            return
        lines = [f"  {k}: {then[k]} then, {now[k]} now" for k in then if then[k] != now[k]]
        raise ConfigError(
            f"{self._client.url} answers with another model than when the job began:\n"
            + "\n".join(lines)
            + "\nThe rows that were done before are kept, and go on with the model of then only."
        )
