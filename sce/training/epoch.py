"""One epoch of training: optimiser, schedule and the loop, for every model that we train.

What differs between models (what is drawn for a row, the loss on it) is an `Objective`.

Global batch n of an epoch holds the rows that the permutation of (seed, epoch) names, whatever
the number of workers: each worker takes every `world_size`-th row of it and weighs its loss so
that what the workers' gradients come to together is the gradient of the mean over the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sce.training.random_keys import permutation
from sce.training.settings import TrainConfig

Reduce = Callable[[Sequence[torch.Tensor]], None]
"""Sums tensors over the workers, in place."""


class Objective(Protocol):
    """What an epoch runs over and what it lowers.

    Attributes:
        model: its trainable parameters are fitted.
        seed, keys_N: of the training rows (`sce.training.random_keys`); they decide the order.
        device: where the model is.
    """

    model: nn.Module
    seed: int
    keys_N: np.ndarray
    device: torch.device

    def draw(self, epoch: int, rows_B: np.ndarray) -> tuple[Any, np.ndarray]:
        """Samples of the rows at these places, on the device, and the tokens of each one [B]."""

    def loss(self, samples: Any) -> torch.Tensor:
        """Mean loss of the samples, a scalar."""


@dataclass(frozen=True)
class EpochStats:
    """What one epoch was like on this worker; the loss is summed over its rows."""

    loss_sum: float
    rows: int
    seconds: float
    overhead_seconds: float
    """Time in which samples were drawn and brought to the device."""
    tokens: int
    """Tokens of all samples, and the sum of each one's square: `sce.evaluation.flops.total`."""
    squared_tokens: int


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters in three groups: matrices, vectors, scalars."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    scalars: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_scalar = parameter.dim() == 0 or name.endswith(("example_weight", "several_weight"))
            group = scalars if is_scalar else matrices if parameter.dim() > 1 else vectors
            group.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate": config.learning_rate},
        {"params": vectors, "weight_decay": 0.0, "rate": config.learning_rate},
        {"params": scalars, "weight_decay": 0.0, "rate": config.scale_learning_rate},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind([g for g in groups if g["params"]], lr=config.learning_rate)


def rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate of a step (0-based) as a share of `learning_rate`."""
    warmup = round(total_steps * config.warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    if config.decay == "constant":
        return 1.0
    # From 1 at the end of the warm-up to `end` on the very last step.
    end = config.final_learning_rate / config.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup - 1)
    left = 1 - done if config.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return end + (1 - end) * left


def steps_per_epoch(rows: int, config: TrainConfig) -> int:
    return math.ceil(rows / config.batch_size)


def train_epoch(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    reduce: Reduce | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> EpochStats:
    """One pass over the training rows.

    Args:
        epoch: 0-based; with the objective's seed it decides everything drawn.
        reduce: called with this worker's gradients before each step. None where the model itself
            averages them over the workers, as DDP does.
        on_step: called with (steps done, steps in all) after every step.
    """
    model, device = objective.model, objective.device
    model.train()
    by_device = "bfloat16" if device.type == "cuda" else "float32"
    mixed = (by_device if config.precision == "auto" else config.precision) == "bfloat16"
    trained = [p for p in model.parameters() if p.requires_grad]
    order_N = permutation(objective.seed, epoch, objective.keys_N)
    steps = steps_per_epoch(len(order_N), config)
    total_steps = steps * config.epochs
    losses, rows, overhead = [], 0, 0.0
    tokens = squared_tokens = 0
    started = time.perf_counter()
    for step in range(steps):
        batch_B = order_N[step * config.batch_size : (step + 1) * config.batch_size]
        mine_B = batch_B[rank::world_size]
        factor = rate_factor(epoch * steps + step, total_steps, config)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        optimizer.zero_grad(set_to_none=True)
        # A last batch with fewer rows than workers: one without any still takes part in the
        # reduction, with a row that weighs nothing.
        drawn_B = mine_B if len(mine_B) else batch_B[:1]
        for first in range(0, len(drawn_B), config.pass_rows):
            part_B = drawn_B[first : first + config.pass_rows]
            begin = time.perf_counter()
            count = len(part_B) if len(mine_B) else 0
            samples, tokens_B = objective.draw(epoch, part_B)
            tokens += int(tokens_B[:count].sum())
            squared_tokens += int(np.square(tokens_B[:count]).sum())
            overhead += time.perf_counter() - begin
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                loss = objective.loss(samples)
            # The share of the batch; times the workers where their average is taken, not the sum.
            weight = count * (world_size if reduce is None else 1) / len(batch_B)
            (loss * weight).backward()
            losses.append(loss.detach() * count)  # stays on the device: to read it would wait
        if reduce is not None:
            reduce([p.grad for p in trained if p.grad is not None])
        nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        rows += len(mine_B)
        if on_step is not None:
            on_step(step + 1, steps)
    loss_sum = float(torch.stack(losses).sum()) if losses else 0.0
    seconds = time.perf_counter() - started
    return EpochStats(loss_sum, rows, seconds, overhead, tokens, squared_tokens)


def random_state() -> dict[str, Any]:
    """State of the generators that training may use (dropout), as tensors and plain numbers."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = [kind, np.asarray(keys).tolist(), *rest]
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": numpy_state}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
