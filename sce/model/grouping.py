"""Rows by what can be scored together, and what was prepared for their labels, kept for the next.

Rows under one label set share everything that no text changes. Where each row has a set of its
own, rows with equally many labels share batches; a set that fills batches by itself is treated as
one set. Every row is in one group, and no answer depends on the grouping beyond rounding.

Tensor names carry their shape: N rows in all, R rows of a group, B rows of a batch, K labels of a
row, L distinct labels of all rows, M labels of all rows one after another, S distinct sets, D the
embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch

from sce.labels import LabelSet, RaggedLabels
from sce.model.label_tree import LabelTree
from sce.model.label_vectors import (
    LabelBank,
    LabelVectors,
    TextVectors,
    TokenMeans,
    encode_labels,
    label_texts,
)
from sce.model.scoring import PreparedLabels, ScoredBatch, Scorer

CACHED_SETS = 64
CACHED_SET_LABELS = 4096
"""Prepared label sets are kept up to this many sets and this many labels in all of them."""
CACHED_LABELS = 32_768
"""Vectors of single labels are kept up to this many, for sets that differ from row to row."""
TABLE_LABELS = 16_384
"""Rows with sets of their own are scored in chunks of at most this many labels, repeats counted:
a chunk's distinct labels are prepared together."""


@dataclass(frozen=True)
class Group:
    """Rows that are scored together; all have K labels.

    Attributes:
        rows_R: which of the N rows, ascending.
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

    def to_user(self, batch: ScoredBatch, places_BX: np.ndarray | None = None) -> np.ndarray:
        """Places in the user's order, from places among a batch's scores; by default all."""
        if places_BX is None:
            rows, width = batch.logits_BK.shape
            places_BX = np.broadcast_to(np.arange(width), (rows, width))
        if batch.kept_BM is not None:
            places_BX = np.take_along_axis(batch.kept_BM.cpu().numpy(), places_BX, 1)
        if self.user_places.ndim == 1:
            return self.user_places[places_BX]
        return np.take_along_axis(self.user_places[batch.rows], places_BX, 1)


class GroupScorer:
    """Scores rows under one label set or one a row. Safe to call from several threads.

    Args:
        token_means: equation 2; None where the labels come from the text embedder.
        shortlist_above: of larger sets, only the `shortlist_size` labels nearest to the text are
            contextualised.
    """

    def __init__(
        self,
        scorer: Scorer,
        token_means: TokenMeans | None,
        shortlist_above: int,
        shortlist_size: int,
    ) -> None:
        self._scorer, self._token_means = scorer, token_means
        self._version = scorer.model.config.label_vectors
        self._shortlist_above, self._shortlist_size = shortlist_above, shortlist_size
        # Held while labels are encoded: two threads with one new set encode it once.
        self._lock = Lock()
        self._prepared_sets: dict[tuple[str, bool], PreparedLabels] = {}
        self._banks = {False: LabelBank(CACHED_LABELS), True: LabelBank(CACHED_LABELS)}

    def new_texts(self, labels: LabelSet | RaggedLabels) -> list[str]:
        """Distinct texts of labels whose vectors `batches` would ask for now.

        Takes no lock, because an encoding in another thread may hold it for long; what that
        thread learns in the meantime is at worst named once more.
        """
        if isinstance(labels, RaggedLabels):
            with_text = self._needs_text(int(labels.label_counts.max(initial=1)))
            new = self._banks[with_text].unknown(labels.labels)
        else:
            with_text = self._needs_text(len(labels))
            known = self._set_key(labels, exact=False) in self._prepared_sets
            new = [] if known else list(labels.seen().labels)
        texts = (text for label in new for text in label_texts(label, self._version))
        return list(dict.fromkeys(texts)) if with_text else []

    def batches(
        self,
        queries_ND: np.ndarray,
        labels: LabelSet | RaggedLabels,
        text_vectors: TextVectors,
        exact: bool = False,
    ) -> Iterator[tuple[Group, ScoredBatch]]:
        """Scores of N rows, batch by batch; a batch's `rows` count within its group.

        Args:
            queries_ND: unit vectors of the text embedder, float32.
            text_vectors: asked for the vectors of label texts that are not known yet.
            exact: every label is contextualised, however many there are.
        """
        groups: Iterable[Group]
        if isinstance(labels, LabelSet):
            prepared = self._prepared(labels, text_vectors, exact)
            order_K = np.array(labels.canonical_order)
            groups = [Group(np.arange(len(queries_ND)), prepared, None, order_K)]
        else:
            groups = self._a_set_a_row(labels, text_vectors)
        for group in groups:
            every = len(group.rows_R) == len(queries_ND)  # they ascend, so no copy is needed
            shortlisted = not exact and group.width > self._shortlist_above
            for batch in self._scorer.batches(
                queries_ND if every else queries_ND[group.rows_R],
                group.labels,
                group.ids_RK,
                self._shortlist_size if shortlisted else None,
            ):
                yield group, batch

    def scores(
        self,
        queries_ND: np.ndarray,
        labels: LabelSet | RaggedLabels,
        text_vectors: TextVectors,
        offsets: np.ndarray,
    ) -> np.ndarray:
        """Scores of every label of N rows, row after row in the user's order, float32 [M]; every
        label is contextualised. Row n's begin at `offsets[n]`."""
        scores_M = np.empty(offsets[-1], np.float32)
        for group, batch in self.batches(queries_ND, labels, text_vectors, exact=True):
            places_BK = offsets[group.rows_R[batch.rows]][:, None] + group.to_user(batch)
            scores_M[places_BK] = batch.logits_BK.cpu().numpy()
        return scores_M

    def _a_set_a_row(self, labels: RaggedLabels, text_vectors: TextVectors) -> Iterator[Group]:
        if not len(labels):
            return
        canonical_L, ids_M, places_M = labels.canonical()
        user_M = places_M - np.repeat(labels.offsets[:-1], labels.label_counts)
        with_text = self._needs_text(int(labels.label_counts.max()))
        with self._lock:
            vectors = self._banks[with_text].vectors(
                canonical_L, lambda new: self._encode(new, with_text, text_vectors)
            )
        for count in np.unique(labels.label_counts).tolist():
            rows_R = np.flatnonzero(labels.label_counts == count)
            flat_RK = labels.offsets[rows_R][:, None] + np.arange(count)
            ids_RK, user_RK = ids_M[places_M[flat_RK]], user_M[flat_RK]
            sets_SK, set_R, sizes_S = np.unique(
                ids_RK, axis=0, return_inverse=True, return_counts=True
            )
            # Prepared as one set where its rows make a whole forward pass.
            shared_S = sizes_S * (count + 1) >= self._scorer.max_batch_tokens
            shared_S &= count <= self._shortlist_above
            for s in np.flatnonzero(shared_S).tolist():
                mine_R = np.flatnonzero(set_R == s)
                prepared = self._scorer.prepare(vectors.take(torch.from_numpy(sets_SK[s])))
                yield Group(rows_R[mine_R], prepared, None, user_RK[mine_R])
            # The other rows choose from a table of the labels that stand in their chunk's sets.
            own_R = np.flatnonzero(~shared_S[set_R])
            size = max(1, TABLE_LABELS // count)
            for start in range(0, len(own_R), size):
                mine_R = own_R[start : start + size]
                table_L, chosen_RK = np.unique(ids_RK[mine_R], return_inverse=True)
                table = vectors.take(torch.from_numpy(table_L))
                prepared = self._scorer.prepare(table, shared=False)
                chosen_RK = chosen_RK.reshape(-1, count)
                yield Group(rows_R[mine_R], prepared, chosen_RK, user_RK[mine_R])

    def _prepared(self, labels: LabelSet, text_vectors: TextVectors, exact: bool) -> PreparedLabels:
        """A label set in canonical order; the last ones used are kept."""
        key = self._set_key(labels, exact)
        with self._lock:
            if key not in self._prepared_sets:
                with_text = self._needs_text(len(labels))
                vectors = self._encode(labels.seen(), with_text, text_vectors)
                prepared = self._scorer.prepare(vectors, shared=key[1])
                if isinstance(labels, LabelTree) and not key[1]:
                    prepared = _near_parents(prepared, labels)
                self._prepared_sets[key] = prepared
            prepared = self._prepared_sets[key]
            while len(self._prepared_sets) > 1 and (
                len(self._prepared_sets) > CACHED_SETS
                or sum(map(len, self._prepared_sets.values())) > CACHED_SET_LABELS
            ):
                self._prepared_sets.pop(next(iter(self._prepared_sets)))
            return prepared

    def _set_key(self, labels: LabelSet, exact: bool) -> tuple[str, bool]:
        """By what a prepared set is kept; the second part: it is contextualised as a whole."""
        return labels.fingerprint, exact or len(labels) <= self._shortlist_above

    def _needs_text(self, label_count: int) -> bool:
        """Whether the model or the shortlist reads the text embedder's vectors of the labels."""
        return self._scorer.model.uses_embedded_labels or label_count > self._shortlist_above

    def _encode(self, labels: LabelSet, with_text: bool, text_vectors: TextVectors) -> LabelVectors:
        vectors = text_vectors if with_text else None
        return encode_labels(labels, self._version, vectors, self._token_means)


def _near_parents(prepared: PreparedLabels, tree: LabelTree) -> PreparedLabels:
    """The shortlist of a tree goes by the parents of its leaves too."""
    own_KD = prepared.similarity_KD
    assert own_KD is not None
    found = torch.from_numpy(tree.shortlist_vectors(own_KD.cpu().numpy())).to(own_KD.device)
    return replace(prepared, shortlist_KD=found)
