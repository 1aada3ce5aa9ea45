"""Scores of every validation row, with what a figure on them needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sce.labels import LabelSet, only_names
from sce.model.encoder import SCEModel
from sce.model.label_vectors import LabelVectors, TextVectors, TokenMeans, encode_labels
from sce.model.scoring import score
from sce.training.data import Rows

VALIDATION_VIEWS: dict[str, Callable[[LabelSet], LabelSet]] = {
    "name": only_names,
    "all": lambda s: s,
}
"""What the model sees of each label: the bare names, and all that is known of them."""
ScoreRows = Callable[[np.ndarray, LabelSet, LabelVectors], np.ndarray]
"""Scores [n, K] for vectors of texts [n, D], a label set as a view shows it, and its vectors."""


class Validator:
    """Scores validation rows under each view of their label sets.

    The vectors of the labels are computed once: they depend on frozen weights alone. `version` is
    the model's of label vectors.
    """

    def __init__(
        self,
        rows: Rows,
        label_sets: dict[str, LabelSet],
        text_vectors: TextVectors,
        token_means: TokenMeans | None,
        version: int,
    ) -> None:
        self.rows = rows
        set_N = np.array(rows.sets)
        self._groups: list[tuple[int, np.ndarray, LabelSet, LabelVectors]] = []
        self.targets_N = np.empty(len(rows), np.int64)
        self.label_counts_N = np.empty(len(rows), np.int64)
        for name in dict.fromkeys(rows.sets):
            canonical = label_sets[name].canonical()
            members = np.flatnonzero(set_N == name)
            self.targets_N[members] = [canonical.index(rows.labels[i]) for i in members]
            self.label_counts_N[members] = len(canonical)
            for view, reduce in enumerate(VALIDATION_VIEWS.values()):
                reduced = reduce(canonical)
                vectors = encode_labels(reduced, version, text_vectors, token_means)
                self._groups.append((view, members, reduced, vectors))
        self.width = int(self.label_counts_N.max())

    def scores(self, model: SCEModel, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Uncalibrated scores of the model, as `collect` has them."""
        model.eval()
        return self.collect(
            lambda vectors_nD, _, labels: score(model, vectors_nD, labels), rank, world_size
        )

    def collect(self, score_rows: ScoreRows, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Scores float32 [V, N, Kmax] of all rows, V the views; 0 where a set has fewer labels.

        With several workers each scores every `world_size`-th row of a set, and the rows of the
        others stay 0: the sum over the workers is the whole.
        """
        scores_VNK = np.zeros((len(VALIDATION_VIEWS), len(self.rows), self.width), np.float32)
        for view, members, label_set, vectors in self._groups:
            mine = members[rank::world_size]
            if len(mine):
                found = score_rows(self.rows.vectors_ND[mine], label_set, vectors)
                scores_VNK[view, mine, : found.shape[1]] = found
        return scores_VNK

    def right(self, scores_VNK: np.ndarray) -> np.ndarray:
        """The share of the views under which each row is right, [N], from whole scores."""
        padding_NK = np.arange(self.width) >= self.label_counts_N[:, None]
        found_VN = np.where(padding_NK, -np.inf, scores_VNK).argmax(2)
        return np.asarray((found_VN == self.targets_N).mean(0))

    def figures(self, scores_VNK: np.ndarray) -> dict[str, float]:
        """Figures of whole (summed) scores, each the mean over the views: mean NLL of the rows,
        accuracy by dataset, and the mean of those (every dataset counts the same)."""
        padding_NK = np.arange(self.width) >= self.label_counts_N[:, None]
        scores_VNK = np.where(padding_NK, -np.inf, scores_VNK)
        logits = torch.from_numpy(scores_VNK).double()
        targets = torch.tensor(self.targets_N).expand(len(VALIDATION_VIEWS), -1)
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        right_N = self.right(scores_VNK)
        datasets = np.array(self.rows.datasets)
        by_dataset = {d: float(right_N[datasets == d].mean()) for d in sorted(set(datasets))}
        return {
            "validation/accuracy": float(np.mean(list(by_dataset.values()))),
            "validation/nll": float(nll),
            **{f"validation/{d}/accuracy": accuracy for d, accuracy in by_dataset.items()},
        }
