"""What training reads: texts as vectors, label sets, and the vectors of the labels' texts.

Plain arrays and lists, so that Ray's object store can share one copy among the workers of a
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sce.datasets.prepared import PreparedData
from sce.embedding.store import EmbeddingStore, text_hash
from sce.errors import DataError
from sce.labels import LabelSet
from sce.model.label_vectors import TextVectors


@dataclass(frozen=True)
class Rows:
    """N labelled texts: ids, datasets, label names, label set ids, unit vectors [N, D]."""

    ids: list[str]
    datasets: list[str]
    labels: list[str]
    sets: list[str]
    vectors_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read(cls, table: pa.Table, store: EmbeddingStore) -> Rows:
        """Prepared rows (`sce.datasets.schema.ROWS`) with their vectors."""
        ids, datasets, labels, sets = (
            table[column].to_pylist() for column in ("row_id", "dataset", "label", "label_set")
        )
        return cls(ids, datasets, labels, sets, store.vectors_for(ids))


class TextLookup:
    """Vectors of texts that were embedded beforehand; stands in for a text embedder.

    Args:
        embed: called with the texts that are not there, whose vectors are then kept.
    """

    def __init__(
        self, texts: Sequence[str], vectors_MD: np.ndarray, embed: TextVectors | None = None
    ) -> None:
        self._place = {text: i for i, text in enumerate(texts)}
        self._vectors_MD = vectors_MD
        self._embed = embed

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, float32 [N, D].

        Raises:
            DataError: one of them is not there, and there is no `embed`.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._place]
        if new:
            if self._embed is None:
                raise DataError(
                    f"the embedding store lacks the label text {new[0]!r:.80}. "
                    "Run jobs/embed.py again on this data."
                )
            self._place |= {text: len(self._vectors_MD) + i for i, text in enumerate(new)}
            self._vectors_MD = np.concatenate([self._vectors_MD, self._embed(new)])
        return self._vectors_MD[[self._place[text] for text in texts]]


@dataclass(frozen=True)
class TrainingData:
    """Training and validation rows with every label set and label text that they name."""

    train: Rows
    validation: Rows
    label_sets: dict[str, LabelSet]
    label_texts: TextLookup

    @classmethod
    def read(
        cls, prepared: PreparedData, rows: EmbeddingStore, labels: EmbeddingStore
    ) -> TrainingData:
        """Prepared data with the vectors of its rows, and of the labels' texts by their hash."""
        train = Rows.read(prepared.select("train"), rows)
        validation = Rows.read(prepared.select("validation"), rows)
        used = sorted({*train.sets, *validation.sets})
        every = [label for s in prepared.label_sets.values() for label in s.labels]
        texts = list(dict.fromkeys(t for lb in every for t in (*lb.info_texts, *lb.examples)))
        lookup = TextLookup(texts, labels.vectors_for([text_hash(text) for text in texts]))
        return cls(train, validation, {name: prepared.label_sets[name] for name in used}, lookup)

    def __post_init__(self) -> None:
        if not len(self.train):
            raise DataError("there is no row in the split 'train': nothing to train on.")
        if not len(self.validation):
            raise DataError(
                "there is no row in the split 'validation': the best epoch and the temperature "
                "are chosen on it. Give some rows that split (data.sources)."
            )
