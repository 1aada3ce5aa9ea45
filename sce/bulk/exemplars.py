"""Rows of a corpus that a label was given to: what `why` names beside a label's own examples.

Shapes: N rows that were answered, G rows that are asked about, X exemplars, D the embedder's
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.embedding.store import embedding_matrix
from sce.model.answers import EXAMPLES_SHOWN, Example
from sce.model.products import exact_cosines

MOST_A_LABEL = 50
"""The surest rows of a label."""


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Rows of a corpus with the label that was given to each, by no one but the model.

    Attributes:
        places: of each label's exemplars among the others.
        vectors_XD: float32.
    """

    places: dict[str, np.ndarray]
    ids: list[str]
    texts: list[str]
    vectors_XD: np.ndarray

    @classmethod
    def of(cls, block: pa.Table, texts: pa.ChunkedArray, answered: pa.Table) -> Exemplars:
        """The surest rows of each label, a text once.

        Args:
            block: N rows with `id` and `embedding`.
            texts: theirs.
            answered: theirs, with `label` and `score`; null for a row without a label.
        """
        usable = pc.and_(pc.is_valid(answered["label"]), pc.is_valid(texts))
        rows = np.flatnonzero(usable.to_numpy())
        score_N = answered["score"].to_numpy()
        rows = rows[np.argsort(-score_N[rows], kind="stable")]
        labels, known = answered["label"].to_pylist(), texts.to_pylist()
        found: dict[str, dict[str, int]] = {}
        for row in rows.tolist():
            of_label = found.setdefault(labels[row], {})
            if len(of_label) < MOST_A_LABEL:
                of_label.setdefault(known[row], row)
        chosen = [row for of_label in found.values() for row in of_label.values()]
        ends = np.cumsum([len(of_label) for of_label in found.values()])
        places = [np.arange(end - len(one), end) for one, end in zip(found.values(), ends)]
        taken = pa.array(chosen, pa.int64())
        return cls(
            dict(zip(found, places)),
            block["id"].take(taken).to_pylist(),
            [known[row] for row in chosen],
            np.array(embedding_matrix(block["embedding"].take(taken)), np.float32),
        )

    def beside(
        self,
        own_G: Sequence[tuple[Example, ...]],
        labels_G: Sequence[str | None],
        ids_G: Sequence[str],
        vectors_GD: np.ndarray,
    ) -> list[tuple[Example, ...]]:
        """The nearest `EXAMPLES_SHOWN` of each row's own examples and the exemplars of its label,
        the most similar first; a row is no reason for itself."""
        found = list(own_G)
        rows_of: dict[str, list[int]] = {}
        for row, label in enumerate(labels_G):
            if label in self.places:
                rows_of.setdefault(label, []).append(row)
        for label, rows in rows_of.items():
            places = self.places[label]
            similar_RX = exact_cosines(vectors_GD[rows], self.vectors_XD[places])
            # One more than is shown, for the row itself.
            order_RX = np.argsort(-similar_RX, axis=1, kind="stable")[:, : EXAMPLES_SHOWN + 1]
            for row, order_X, similar_X in zip(rows, order_RX, similar_RX, strict=True):
                near = [
                    Example(self.texts[x], label, float(np.float32(s)), self.ids[x])
                    for x, s in zip(places[order_X].tolist(), similar_X[order_X])
                    if self.ids[x] != ids_G[row]
                ]
                both = sorted((*own_G[row], *near), key=lambda one: -one.similarity)
                found[row] = tuple(both[:EXAMPLES_SHOWN])
        return found
