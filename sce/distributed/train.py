"""Fitting the encoder on Ray Train: DDP workers, checkpoints, retry and resume.

A checkpoint is written after every epoch and holds the model, the optimiser, the random state
of every worker and the place in training, so that going on from it, after the death of a
worker or of the whole job, ends at the model that an undisturbed run ends at.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device, prepare_model

from sce.distributed.resources import WorkerPlan, use_threads
from sce.distributed.workers import (
    FRESH_STATE,
    Progress,
    gather,
    quiet,
    run_training,
    sum_over_workers,
)
from sce.evaluation import flops
from sce.model.encoder import SCEModel, trainable_parameters
from sce.model.label_vectors import token_means_of
from sce.storage import Place
from sce.training.data import TrainingData
from sce.training.episode_sampler import EpisodeSampler, EpisodeTables
from sce.training.episodes import AugmentConfig
from sce.training.epoch import (
    make_optimizer,
    random_state,
    rate_factor,
    restore_random_state,
    steps_per_epoch,
    train_epoch,
)
from sce.training.fresh_model import ModelConfig, build_model
from sce.training.settings import TrainConfig
from sce.training.validation import Validator
from sce.workflows.tracking import Tracker

STATE_FILE = "training_state.pt"


@dataclass(frozen=True)
class FitSettings:
    """Everything that decides what the fitted model is (the data apart)."""

    model: ModelConfig
    train: TrainConfig
    augment: AugmentConfig
    embedder: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class FitResult:
    """The best epoch's model, on the CPU, with the history of all epochs."""

    model: SCEModel
    best: dict[str, float]
    last: dict[str, float]


def fit(
    data: TrainingData,
    settings: FitSettings,
    workers: WorkerPlan,
    storage: Place,
    run_name: str,
    tracker: Tracker,
) -> FitResult:
    """Train on Ray and return the model of the epoch with the best validation accuracy.

    Args:
        workers: how many and on what (`training_workers`).
        storage, run_name: as of `run_training`.

    Raises:
        ray.train.TrainingFailedError: more workers died than `train.max_failures` allows.
    """
    checkpoint, best, last = run_training(
        _train_worker, data, settings, settings.train, workers, storage, run_name, tracker
    )
    with checkpoint.as_directory() as folder:
        model = SCEModel.from_pretrained(folder)
    return FitResult(model, best, last)


def _train_worker(config: dict[str, Any]) -> None:
    """What each worker runs. Every decision is taken on figures that all workers share."""
    quiet()
    settings: FitSettings = config["settings"]
    train = settings.train
    use_threads(config["threads"])
    data: TrainingData = ray.get(config["data"][0])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()

    fresh = build_model(settings.model, settings.embedder, train.dropout, settings.seed)
    model: SCEModel = fresh.model.to(device)  # type: ignore[arg-type]
    token_means = None if fresh.tokenizer is None else token_means_of(model, fresh.tokenizer)
    sampler = EpisodeSampler(
        data.train.ids,
        data.train.labels,
        data.train.sets,
        data.label_sets,
        data.label_texts,
        token_means,
        settings.augment,
        settings.seed,
    )
    tables = EpisodeTables(
        torch.from_numpy(np.array(data.train.vectors_ND)).to(device),
        torch.from_numpy(sampler.texts_MD).to(device) if model.uses_embedded_labels else None,
        sampler.tokens_MH,
    )
    validator = Validator(data.validation, data.label_sets, data.label_texts, token_means)
    wrapped = prepare_model(model, move_to_device=False) if world_size > 1 else model
    optimizer = make_optimizer(model, train)

    state = _restore(model, optimizer, rank, world_size)
    steps = steps_per_epoch(len(data.train), train)

    architecture = flops.architecture_of(model.encoder.config)
    sample_flops = partial(flops.encoder_sample, architecture, d_ext=model.config.embedding_dim)

    def close_epoch(figures: dict[str, float]) -> None:
        """Validate, remember the best, write a checkpoint and report."""
        scores_VNK = torch.from_numpy(validator.scores(model, rank, world_size))
        scores_VNK = sum_over_workers(scores_VNK, device, world_size)
        found = validator.figures(validator.finish(scores_VNK.numpy()))
        better = found.accuracy > state["best"]
        state["best"] = max(found.accuracy, state["best"])
        state["epochs_without_gain"] = 0 if better else state["epochs_without_gain"] + 1
        state["optimizer"] = optimizer.state_dict()
        state["random"] = gather(random_state(), world_size)
        report = {"epoch": state["epoch"], "score": found.accuracy, **found.metrics(), **figures}
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:
                model.save_pretrained(folder)
                torch.save(state, Path(folder) / STATE_FILE)
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(report, checkpoint=saved)

    if state["epoch"] == 0 and state["best"] < 0:
        close_epoch({"trainable_parameters": trainable_parameters(model)})
    while state["epoch"] < train.epochs and state["epochs_without_gain"] < train.patience:
        started = time.perf_counter()
        progress = Progress(state["epoch"] + 1, train.epochs) if rank == 0 else None
        stats = train_epoch(
            wrapped, sampler, tables, optimizer, train, state["epoch"], rank, world_size, progress
        )
        sums = [stats.loss_sum, stats.rows, stats.tokens, stats.squared_tokens]
        totals = torch.tensor(sums, dtype=torch.float64)
        totals = sum_over_workers(totals, device, world_size)
        seconds = time.perf_counter() - started
        state["epoch"] += 1
        samples, tokens, squares = totals[1:].tolist()
        state["flops"] += flops.total(sample_flops, tokens, squares, int(samples))
        state["seconds"] += seconds
        factor = rate_factor(state["epoch"] * steps - 1, steps * train.epochs, train)
        close_epoch(
            {
                "train/loss": float(totals[0] / totals[1]),
                "train/learning_rate": train.learning_rate * factor,
                "train/overhead_share": stats.overhead_seconds / stats.seconds,
                "train/flops": state["flops"],
                "train/seconds": state["seconds"],
                "epoch_seconds": seconds,
                "samples_per_second": len(data.train) / seconds,
            }
        )


def _restore(
    model: SCEModel, optimizer: torch.optim.Optimizer, rank: int, world_size: int
) -> dict[str, Any]:
    """The state of the last checkpoint, put into model and optimiser; a fresh one if none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return FRESH_STATE.copy()
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE_FILE, weights_only=False, map_location="cpu")
        model.load_state_dict(SCEModel.from_pretrained(folder).state_dict())
    state = FRESH_STATE | state
    optimizer.load_state_dict(state["optimizer"])
    if len(state["random"]) == world_size:
        restore_random_state(state["random"][rank])
    if rank == 0:
        print(f"going on after epoch {state['epoch']}", flush=True)
    return state
