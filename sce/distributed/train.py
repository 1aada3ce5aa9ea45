"""Fitting the encoder on Ray Train, its workers joined by DDP (`sce.distributed.workers`)."""

from __future__ import annotations

from typing import Any

import torch
from ray.train.torch import prepare_model

from sce.distributed.workers import Fitted, Reduce, Run, Worker, run_training
from sce.evaluation import flops
from sce.model.encoder import SCEModel
from sce.training.episodes import EpisodeObjective, EpisodeSampler
from sce.training.fresh_model import FreshModel
from sce.training.settings import TrainConfig
from sce.training.validation import Validator


def fit(
    fresh: FreshModel,
    sampler: EpisodeSampler,
    validator: Validator,
    train: TrainConfig,
    run: Run,
) -> tuple[SCEModel, Fitted]:
    """Train copies of `fresh` on Ray; returns the model of the epoch with the best validation
    accuracy, on the CPU, and the figures.

    Raises:
        ray.train.TrainingFailedError: more workers died than `train.max_failures` allows.
    """
    parts = (fresh.model, fresh.random_state, sampler, validator)
    fitted = run_training(EncoderTraining, parts, train, run)
    with fitted.checkpoint.as_directory() as folder:
        return SCEModel.from_pretrained(folder), fitted


class EncoderTraining(EpisodeObjective):
    """Training of the encoder as `sce.distributed.workers` has it.

    Args:
        parts: model, its random state, sampler and validator.
    """

    reduce: Reduce | None = None  # DDP averages the gradients

    def __init__(self, parts: tuple[Any, ...], worker: Worker) -> None:
        model, random_state, sampler, self._validator = parts
        # As if the model had been built here: the masks of dropout follow from the seed.
        torch.manual_seed(sampler.seed)
        torch.set_rng_state(random_state)
        self._model: SCEModel = model.to(worker.device)
        self._worker = worker
        self._architecture = flops.architecture_of(model.encoder.config)
        super().__init__(model, sampler, worker.device)
        if worker.world_size > 1:
            self.model = prepare_model(model, move_to_device=False)

    def sample_flops(self, tokens: float) -> float:
        return flops.encoder_sample(self._architecture, tokens, self._model.config.embedding_dim)

    def validate(self) -> dict[str, float]:
        worker, validator = self._worker, self._validator
        scores_VNK = validator.scores(self._model, worker.rank, worker.world_size)
        scores_VNK = worker.sum(torch.from_numpy(scores_VNK)).numpy()
        several = self._model.several_weight.tolist() if self._model.config.several else ()
        return validator.figures(scores_VNK, several)

    def save(self, folder: str) -> None:
        self._model.save_pretrained(folder)

    def load(self, folder: str) -> None:
        self._model.load_state_dict(SCEModel.from_pretrained(folder).state_dict())
