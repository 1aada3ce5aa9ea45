"""What the trainings on Ray have in common: how one is run, its log, sums, progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution import context as ray_train_context
from ray.train.v2.api.callback import UserCallback
from transformers import logging as transformers_logging

from sce.distributed.resources import WorkerPlan
from sce.storage import Place
from sce.training.settings import TrainConfig
from sce.workflows.tracking import Tracker

PROGRESS_SECONDS = 15.0

Figures = dict[str, float]

FRESH_STATE: dict[str, Any] = {
    "epoch": 0,
    "best": -1.0,
    "epochs_without_gain": 0,
    "flops": 0.0,
    "seconds": 0.0,
}
"""Of a training that has not begun: epochs done, the best score, and what they took so far
(operations as the paper counts them, seconds without validation)."""


def run_training(
    worker: Callable[[dict[str, Any]], None],
    data: Any,
    settings: Any,
    train: TrainConfig,
    workers: WorkerPlan,
    storage: Place,
    run_name: str,
    tracker: Tracker,
) -> tuple[ray.train.Checkpoint, Figures, Figures]:
    """Run `worker` on Ray Train; it reports an epoch's figures with `epoch` and `score`.

    Args:
        worker: gets `data` (a list with one reference), `settings` and `threads`.
        storage: folder or URI of the checkpoints; with the same `run_name` a run that was cut short
            goes on from its last checkpoint. Every node must reach it.

    Returns:
        The checkpoint with the best score (the earliest of equal ones), its figures, the last.

    Raises:
        ray.train.TrainingFailedError: more workers died than `train.max_failures` allows.
    """
    trainer = TorchTrainer(
        worker,
        train_loop_config={
            "data": [ray.put(data)],
            "settings": settings,
            "threads": workers.threads,
        },
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.use_gpu,
            resources_per_worker=workers.resources,
            accelerator_type=workers.accelerator_type,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # typed as the V1 class
            name=run_name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="score"),
            callbacks=[EpochLog(tracker, train.epochs)],  # type: ignore[list-item]
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    result = trainer.fit()
    assert result.best_checkpoints, "every run reports a checkpoint"
    checkpoint, best = max(result.best_checkpoints, key=lambda c: (c[1]["score"], -c[1]["epoch"]))
    return checkpoint, best, dict(result.metrics or {})


def quiet() -> None:
    """In a worker: none of the lines that Ray and transformers write about themselves."""
    transformers_logging.disable_progress_bar()
    # Ray names this logger by its file, so that LoggingConfig does not reach it.
    logging.getLogger(ray_train_context.__file__).setLevel(logging.WARNING)


class EpochLog(UserCallback):
    """Says how each epoch went, in the log and to the tracker. Runs in Ray's controller."""

    def __init__(self, tracker: Tracker, epochs: int) -> None:
        self._tracker = tracker
        self._epochs = epochs

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        figures = metrics[0]
        epoch = int(figures["epoch"])
        line = f"epoch {epoch}/{self._epochs}"
        if epoch:
            line += (
                f"  loss {figures['train/loss']:.4f}  {figures['samples_per_second']:.0f} rows/s"
                f"  {figures['epoch_seconds']:.1f} s"
            )
        datasets = ", ".join(
            f"{name.split('/')[1]} {100 * value:.1f}"
            for name, value in figures.items()
            if name.startswith("validation/") and name.count("/") == 2
        )
        line += f"  validation {100 * figures['validation/accuracy']:.1f} ({datasets})"
        print(line, flush=True)
        self._tracker.log_metrics(
            {k: v for k, v in figures.items() if k not in ("epoch", "score")}, step=epoch
        )


def sum_over_workers(tensor: torch.Tensor, device: torch.device, world_size: int) -> torch.Tensor:
    """On the CPU."""
    if world_size == 1:
        return tensor
    moved = tensor.to(device)
    torch.distributed.all_reduce(moved)
    return moved.cpu()


def gather(value: Any, world_size: int) -> list[Any]:
    """The values of all workers, by rank."""
    values = [value] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


class Progress:
    """A line every few seconds for a person who watches."""

    def __init__(self, epoch: int, epochs: int) -> None:
        self._head = f"epoch {epoch}/{epochs}"
        self._started = self._last = time.monotonic()

    def __call__(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        left = (now - self._started) / step * (steps - step)
        print(f"{self._head}  step {step}/{steps}  {left:.0f} s left", flush=True)
