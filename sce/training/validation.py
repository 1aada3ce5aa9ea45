"""Scores of every validation row, with what a figure on them needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from sce.labels import LabelSet, only_names
from sce.model.background import Background
from sce.model.encoder import SCEModel, pool_labels
from sce.model.label_vectors import LabelVectors, TextVectors, TokenMeans, encode_labels
from sce.model.logistic import trained_logistic
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

    The vectors of the labels are computed once: they depend on frozen weights alone.

    Args:
        version: the model's of label vectors.
        background: of the training texts; needed where rows have several right labels.
    """

    def __init__(
        self,
        rows: Rows,
        label_sets: dict[str, LabelSet],
        text_vectors: TextVectors,
        token_means: TokenMeans | None,
        version: int,
        background: Background | None = None,
    ) -> None:
        self.rows, self.several_N = rows, rows.several
        set_N = np.array(rows.sets)
        self._groups: list[tuple[int, np.ndarray, LabelSet, LabelVectors]] = []
        self._right: dict[int, list[int]] = {}
        self._z_scores: list[np.ndarray | None] = []
        self.label_counts_N = np.empty(len(rows), np.int64)
        for name in dict.fromkeys(rows.sets):
            canonical = label_sets[name].canonical()
            members = np.flatnonzero(set_N == name)
            for i in members.tolist():
                self._right[i] = [canonical.index(one) for one in rows.right(i)]
            self.label_counts_N[members] = len(canonical)
            for view, reduce in enumerate(VALIDATION_VIEWS.values()):
                reduced = reduce(canonical)
                vectors = encode_labels(reduced, version, text_vectors, token_means)
                self._groups.append((view, members, reduced, vectors))
                self._z_scores.append(self._z_scores_of(members, vectors, background))
        self.width = int(self.label_counts_N.max())
        self.right_NK = np.zeros((len(rows), self.width), bool)
        for i, places in self._right.items():
            self.right_NK[i, places] = True
        self.targets_N = np.where(self.several_N, -1, self.right_NK.argmax(1))

    def _z_scores_of(
        self, members: np.ndarray, labels: LabelVectors, background: Background | None
    ) -> np.ndarray | None:
        """Of the rows of a set in which several labels may be right, [n, K]."""
        if not self.several_N[members].any():
            return None
        assert background is not None
        assert labels.text_KD is not None
        parts = labels.text_KD, labels.examples_KD, labels.example_counts_K
        g_KD = pool_labels(*parts, torch.tensor((-1.0, 0.5))).numpy()
        return background.z_scores(self.rows.vectors_ND[members], g_KD)

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

    def several_parts(
        self, scores_VNK: np.ndarray
    ) -> Iterator[tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]]:
        """Of each set of rows in which several labels may be right: places [n], view, z-scores, the
        encoder's scores and which labels are right, [n, K] each."""
        for (view, members, label_set, _), z_nK in zip(self._groups, self._z_scores, strict=True):
            if z_nK is not None:
                count = len(label_set)
                scores_nK = scores_VNK[view, members, :count].astype(np.float64)
                yield members, view, z_nK, scores_nK, self.right_NK[members, :count]

    def figures(self, scores_VNK: np.ndarray, several: Sequence[float] = ()) -> dict[str, float]:
        """Figures of whole (summed) scores, each the mean over the views: of each dataset its
        accuracy or, where several labels may be right, the label ranking average precision and the
        log loss of a pair; the mean of the accuracies and precisions (every dataset counts the
        same); and the mean NLL of the rows with one right label.

        Args:
            several: the model's (a, b, c, d), where such rows are.
        """
        padding_NK = np.arange(self.width) >= self.label_counts_N[:, None]
        scores_VNK = np.where(padding_NK, -np.inf, scores_VNK)
        one_N = ~self.several_N
        found: dict[str, float] = {}
        if one_N.any():
            logits = torch.from_numpy(scores_VNK[:, one_N]).double()
            targets = torch.tensor(self.targets_N[one_N]).expand(len(VALIDATION_VIEWS), -1)
            nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            found["validation/nll"] = float(nll)
        right_N = self.right(scores_VNK)
        datasets = np.array(self.rows.datasets)
        by_dataset = {
            f"{d}/accuracy": float(right_N[one_N & (datasets == d)].mean())
            for d in sorted(set(datasets[one_N]))
        }
        by_dataset |= self._rankings(scores_VNK, several, found)
        means = list(by_dataset.values())
        return {
            "validation/accuracy": float(np.mean(means)) if means else 0.0,
            **found,
            **{f"validation/{name}": value for name, value in by_dataset.items()},
        }

    def _rankings(
        self, scores_VNK: np.ndarray, several: Sequence[float], found: dict[str, float]
    ) -> dict[str, float]:
        """ "DATASET/lrap" of the rows with several right labels; their log loss into `found`."""
        from sklearn.metrics import label_ranking_average_precision_score

        precisions: dict[str, list[float]] = defaultdict(list)
        losses: dict[str, list[float]] = defaultdict(list)
        for members, _, z_nK, scores_nK, right_nK in self.several_parts(scores_VNK):
            logit_nK = trained_logistic(several).logits(z_nK, None, scores_nK)
            loss_nK = np.logaddexp(0, np.where(right_nK, -logit_nK, logit_nK))
            for row, dataset in enumerate(self.rows.datasets[i] for i in members.tolist()):
                losses[dataset].append(float(loss_nK[row].mean()))
                if right_nK[row].any():
                    pair = right_nK[row : row + 1], logit_nK[row : row + 1]
                    precisions[dataset].append(label_ranking_average_precision_score(*pair))
        found |= {f"validation/{d}/log_loss": float(np.mean(x)) for d, x in losses.items()}
        return {f"{d}/lrap": float(np.mean(x)) for d, x in precisions.items()}
