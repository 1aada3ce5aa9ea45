"""A label set for each row: many small sets over one table of distinct labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sce.labels import Label, LabelSet


@dataclass(frozen=True)
class RaggedLabels:
    """One label set a row; row i's is `labels[ids_M[offsets[i]:offsets[i + 1]]]`.

    The caller has made sure that every row has a label and that no row has two labels with the
    same key (`Label.key`); `from_sets` does. Different rows may know different things of a key.

    Attributes:
        labels: the distinct labels of all rows, in any order.
        ids_M: int64 [M], places in `labels`, row after row in the user's order.
        offsets: int64 [N + 1].
    """

    labels: tuple[Label, ...]
    ids_M: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_sets(cls, sets: Iterable[Any], where: str = "labels") -> RaggedLabels:
        """Read one label set a row, each in any form that `LabelSet.parse` accepts.

        Raises:
            LabelError: as `LabelSet.parse`, with the row's position.
        """
        places: dict[Label, int] = {}
        known: dict[tuple[str, ...], list[int]] = {}  # lists of names that were parsed before
        rows: list[list[int]] = []
        for row, item in enumerate(sets):
            names: tuple[str, ...] | None = None
            if isinstance(item, (list, tuple)) and all(isinstance(name, str) for name in item):
                names = tuple(item)
                if names in known:
                    rows.append(known[names])
                    continue
            label_set = LabelSet.parse(item, f"{where}[{row}]")
            ids = [places.setdefault(label, len(places)) for label in label_set.labels]
            if names is not None:
                known[names] = ids
            rows.append(ids)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        ids_M = np.fromiter((i for ids in rows for i in ids), np.int64, int(offsets[-1]))
        return cls(tuple(places), ids_M, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def label_counts(self) -> np.ndarray:
        """K of each row, int64 [N]."""
        return np.diff(self.offsets)

    def names(self) -> list[list[str]]:
        """Of each row's labels, in the user's order."""
        names, bounds = [label.name for label in self.labels], self.offsets.tolist()
        flat = [names[i] for i in self.ids_M.tolist()]
        return [flat[start:end] for start, end in pairwise(bounds)]

    def take(self, rows_G: np.ndarray) -> RaggedLabels:
        """The sets of these rows."""
        counts_G = self.label_counts[rows_G]
        offsets = np.concatenate([[0], np.cumsum(counts_G)])
        flat = np.repeat(self.offsets[rows_G] - offsets[:-1], counts_G) + np.arange(offsets[-1])
        return RaggedLabels(self.labels, self.ids_M[flat], offsets)

    @classmethod
    def join(cls, parts: Sequence[RaggedLabels]) -> RaggedLabels:
        """The rows of several, one after another."""
        places: dict[Label, int] = {}
        ids, counts = [], []
        for part in parts:
            place_L = [places.setdefault(label, len(places)) for label in part.labels]
            ids.append(np.array(place_L, np.int64)[part.ids_M])
            counts.append(part.label_counts)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        return cls(tuple(places), np.concatenate(ids), offsets)

    @classmethod
    def repeat(cls, label_set: LabelSet, rows: int) -> RaggedLabels:
        """The same set for every row."""
        size = len(label_set)
        ids_M = np.tile(np.arange(size), rows)
        return cls(label_set.labels, ids_M, np.arange(rows + 1) * size)

    def label_set(self, row: int) -> LabelSet:
        """One row's set, in the user's order."""
        ids = self.ids_M[self.offsets[row] : self.offsets[row + 1]]
        return LabelSet(tuple(self.labels[i] for i in ids))

    def canonical_ids(self) -> tuple[list[Label], np.ndarray]:
        """The labels in use, sorted by key and then by what else is known of them, and `ids_M`
        as places among those. The order in which the user gave them does not matter to either,
        but for the places of ids within a row."""
        used_L, ids_M = np.unique(self.ids_M, return_inverse=True)
        order_L = sorted(range(len(used_L)), key=lambda i: _sort_key(self.labels[used_L[i]]))
        rank_L = np.empty(len(used_L), np.int64)
        rank_L[order_L] = np.arange(len(used_L))
        return [self.labels[used_L[i]] for i in order_L], rank_L[ids_M]

    def canonical_places(self, canonical_ids_M: np.ndarray) -> np.ndarray:
        """Flat places that put each row's labels in canonical order, int64 [M]."""
        row_M = np.repeat(np.arange(len(self)), self.label_counts)
        return np.lexsort((canonical_ids_M, row_M))


def _sort_key(label: Label) -> tuple[object, ...]:
    return (label.key, label.description, label.synonyms, label.examples, label.name)


def is_set_a_row(labels: Any) -> bool:
    """Whether `labels` is a list of label sets rather than one set.

    It is when any item of the sequence is a list, a tuple or a `LabelSet`; mappings in it are
    the labels of one set.
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        return False
    return any(isinstance(item, (list, tuple, LabelSet)) for item in labels)
