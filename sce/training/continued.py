"""Training a trained model further on a few labelled rows, and how long that helps.

A model that has seen 110 label sets forgets them over a few hundred rows of one: its old rows are
mixed among the new (`mixed_rows`). How many epochs are good for the new rows is found by folds, in
which each row is answered by a model that was not trained on it (`by_folds`); the schedule of the
learning rate is that of all `epochs`, however many are taken in the end.

Shapes: N rows, K labels of their set, E epochs, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp

from sce.labels import LabelSet
from sce.model.encoder import SCEModel
from sce.model.label_vectors import TextVectors, TokenMeans, encode_labels
from sce.model.scoring import score
from sce.training.data import Rows
from sce.training.episodes import EpisodeObjective, EpisodeSampler
from sce.training.epoch import make_optimizer, train_epoch
from sce.training.settings import AugmentConfig, TrainConfig


@dataclass(frozen=True)
class Continuation:
    """All that training a model further is done with, but for the rows.

    Attributes:
        model: as it was trained; it is not changed.
        old: rows that it was trained on, or of their kind, with their sets in `label_sets`.
        label_sets: by id, that of the new rows among them.
        token_means: equation 2, where the model reads labels as token means.
    """

    model: SCEModel
    old: Rows
    label_sets: Mapping[str, LabelSet]
    text_vectors: TextVectors
    token_means: TokenMeans | None
    augment: AugmentConfig
    train: TrainConfig
    seed: int

    def run(
        self,
        new: Rows,
        epochs: int,
        after_epoch: Callable[[int, SCEModel], None] = lambda epoch, model: None,
    ) -> SCEModel:
        """A model that was trained on `new` rows, the old ones among them, for the first `epochs`
        of `train.epochs`."""
        model = deepcopy(self.model)
        rows = mixed_rows(new, self.old)
        torch.manual_seed(self.seed)
        sampler = EpisodeSampler(
            rows,
            {name: self.label_sets[name] for name in dict.fromkeys(rows.sets)},
            self.text_vectors,
            self.token_means,
            self.augment,
            self.seed,
            model.config.label_vectors,
        )
        objective = EpisodeObjective(model, sampler, model.query_adaptor.weight.device)
        optimizer = make_optimizer(model, self.train)
        for epoch in range(epochs):
            train_epoch(objective, optimizer, self.train, epoch)
            after_epoch(epoch + 1, model)
        return model.eval()

    def by_folds(self, rows: Rows, fold_N: np.ndarray) -> np.ndarray:
        """Scores [E + 1, N, K] of rows of one set, in canonical order, after each epoch, the first
        being those of the model as it is: each row by a model trained on the other folds."""
        (name,) = set(rows.sets)
        canonical = self.label_sets[name].canonical()
        scores_ENK = np.empty((self.train.epochs + 1, len(rows), len(canonical)), np.float32)
        scores_ENK[0] = self.scores(self.model, rows.vectors_ND, canonical)
        for fold in np.unique(fold_N).tolist():
            held = np.flatnonzero(fold_N == fold)

            def keep(epoch: int, model: SCEModel, held: np.ndarray = held) -> None:
                scores_ENK[epoch, held] = self.scores(model, rows.vectors_ND[held], canonical)

            self.run(rows.take(np.flatnonzero(fold_N != fold)), self.train.epochs, keep)
        return scores_ENK

    def scores(self, model: SCEModel, vectors_ND: np.ndarray, canonical: LabelSet) -> np.ndarray:
        """Uncalibrated scores [N, K] of a set in canonical order."""
        version = model.config.label_vectors
        labels = encode_labels(canonical, version, self.text_vectors, self.token_means)
        return score(model.eval(), vectors_ND, labels)


def mixed_rows(new: Rows, old: Rows) -> Rows:
    """Both, one after the other; an epoch takes them in an order of its own."""
    return Rows(
        [*new.ids, *old.ids],
        [*new.datasets, *old.datasets],
        [*new.labels, *old.labels],
        [*new.sets, *old.sets],
        np.concatenate([new.vectors_ND, old.vectors_ND]),
    )


def best_epoch(scores_ENK: np.ndarray, targets_N: np.ndarray) -> int:
    """The epochs after which rows that were not trained on have the least mean negative log
    likelihood; the fewest of equal ones."""
    right_EN = scores_ENK[:, np.arange(len(targets_N)), targets_N]
    return int((logsumexp(scores_ENK, axis=2) - right_EN).mean(axis=1).argmin())


def scores_of_best(scores_ENK: np.ndarray, targets_N: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    """Scores [N, K] of each row after the number of epochs that is best for the other folds: no
    row has a part in choosing the model that answers it."""
    found_NK = np.empty_like(scores_ENK[0])
    for fold in np.unique(fold_N).tolist():
        mine = fold_N == fold
        found_NK[mine] = scores_ENK[best_epoch(scores_ENK[:, ~mine], targets_N[~mine]), mine]
    return found_NK
