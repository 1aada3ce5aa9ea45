"""What the workers of every training on Ray have in common: their log, sums and progress."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from ray.train.v2._internal.execution import context as ray_train_context
from ray.train.v2.api.callback import UserCallback
from transformers import logging as transformers_logging

from sce.tracking import Tracker

PROGRESS_SECONDS = 15.0


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
