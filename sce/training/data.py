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
from sce.labels import LabelSet, only_names
from sce.model.label_vectors import TextLookup, label_texts_to_keep, label_vectors
from sce.model.rejection import learn_rejection


@dataclass(frozen=True)
class Rows:
    """N labelled texts: ids, datasets, labels, label set ids, unit vectors [N, D].

    Attributes:
        labels: the name of the right label; where any number may be right, the names of all.
    """

    ids: list[str]
    datasets: list[str]
    labels: Sequence[str | Sequence[str]]
    sets: list[str]
    vectors_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: np.ndarray) -> Rows:
        """The rows at these places."""
        lists = (self.ids, self.datasets, self.labels, self.sets)
        ids, datasets, labels, sets = ([one[i] for i in places] for one in lists)
        return Rows(ids, datasets, labels, sets, self.vectors_ND[places])

    @classmethod
    def read(cls, table: pa.Table, store: EmbeddingStore) -> Rows:
        """Prepared rows (`sce.datasets.schema.ROWS`) with their vectors."""
        ids, datasets, label, several, sets = (
            table[column].to_pylist()
            for column in ("row_id", "dataset", "label", "labels", "label_set")
        )
        labels = [one if one is not None else tuple(more) for one, more in zip(label, several)]
        return cls(ids, datasets, labels, sets, store.vectors_for(ids))

    @property
    def several(self) -> np.ndarray:
        """Which rows may have any number of right labels, bool [N]."""
        return np.array([not isinstance(one, str) for one in self.labels], bool)

    def right(self, row: int) -> Sequence[str]:
        """The right labels of a row."""
        label = self.labels[row]
        return (label,) if isinstance(label, str) else label


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
        texts = label_texts_to_keep(every)
        vectors_MD = labels.vectors_for([text_hash(text) for text in texts])
        lookup = TextLookup(dict(zip(texts, vectors_MD)))
        return cls(train, validation, {name: prepared.label_sets[name] for name in used}, lookup)

    def __post_init__(self) -> None:
        if not len(self.train):
            raise DataError("there is no row in the split 'train': nothing to train on.")
        if not len(self.validation):
            raise DataError(
                "there is no row in the split 'validation': the best epoch and the temperature "
                "are chosen on it. Give some rows that split (data.sources)."
            )


def rejection_of(data: TrainingData, version: int) -> list[float]:
    """The coefficients of `Rejection`, of the training rows under the names of their labels. They
    see nothing of the model, so rows that it was trained on serve as well as others."""
    set_N = np.array(data.train.sets)
    sets = []
    one_N = ~data.train.several
    for name in dict.fromkeys(set_N[one_N].tolist()):
        labels = only_names(data.label_sets[name].canonical())
        rows = np.flatnonzero((set_N == name) & one_N)
        targets_N = np.array([labels.index(data.train.right(i)[0]) for i in rows.tolist()])
        g_KD = label_vectors(labels, data.label_texts, version)
        sets.append((data.train.vectors_ND[rows], g_KD, targets_N))
    found = learn_rejection(sets)
    return [found.bias, found.by_nearness, found.by_count]
