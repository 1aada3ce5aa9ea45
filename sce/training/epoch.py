"""Loss, optimiser, schedule and one epoch of training, without Ray or a settings library.

Global batch n of an epoch holds the rows that the permutation of (seed, epoch) names, whatever
the number of workers: each worker takes every `world_size`-th row of it and weighs its loss so
that the average over the workers (what DDP does to gradients) is the mean over the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sce.training.episode_sampler import EpisodeSampler, EpisodeTables
from sce.training.random_keys import permutation

if TYPE_CHECKING:
    from sce.training.settings import TrainConfig


@dataclass(frozen=True)
class EpochStats:
    """What one epoch was like on this worker; the loss is summed over its rows."""

    loss_sum: float
    rows: int
    steps: int
    seconds: float
    overhead_seconds: float
    """Time outside forward pass, backward pass and optimiser."""
    tokens: int
    """Of all samples, and the squares of each one's: what `sce.evaluation.flops.total` wants."""
    squared_tokens: int


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters in three groups: matrices, vectors, scalars."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    scalars: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_scalar = parameter.dim() == 0 or name.endswith("example_weight")
            (scalars if is_scalar else matrices if parameter.dim() > 1 else vectors).append(
                parameter
            )
    groups: list[dict[str, Any]] = [
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
    end = config.final_learning_rate / config.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup - 1)
    left = 1 - done if config.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return end + (1 - end) * left


def steps_per_epoch(rows: int, config: TrainConfig) -> int:
    return math.ceil(rows / config.batch_size)


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision, or None for float32."""
    if config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return None


def train_epoch(
    model: nn.Module,
    sampler: EpisodeSampler,
    tables: EpisodeTables,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    on_step: Callable[[int, int], None] | None = None,
) -> EpochStats:
    """One pass over the training rows.

    Args:
        model: an `SCEModel`, or one wrapped by DDP.
        epoch: 0-based; with the sampler's seed it decides everything drawn.
        on_step: called with (steps done, steps in all) after every step.
    """
    model.train()
    device = tables.queries_ND.device
    dtype = autocast_dtype(config, device)
    order_N = permutation(sampler.seed, epoch, sampler.keys_N)
    steps = steps_per_epoch(len(order_N), config)
    total_steps = steps * config.epochs
    losses, rows, overhead = [], 0, 0.0
    tokens = squared_tokens = 0
    started = time.perf_counter()
    for step in range(steps):
        begin = time.perf_counter()
        batch_B = order_N[step * config.batch_size : (step + 1) * config.batch_size]
        mine_B = batch_B[rank::world_size]
        # A last batch with fewer rows than workers: this one still takes part in the reduction.
        weight = len(mine_B) * world_size / len(batch_B)
        episodes = sampler.draw(epoch, mine_B if len(mine_B) else batch_B[:1])
        inputs = tables.gather(episodes)
        tokens_B = episodes.mask_BK.sum(1)[: len(mine_B)] + 1  # the labels and the query
        tokens += int(tokens_B.sum())
        squared_tokens += int(np.square(tokens_B).sum())
        factor = rate_factor(epoch * steps + step, total_steps, config)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        overhead += time.perf_counter() - begin
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = model(**inputs).loss
        optimizer.zero_grad(set_to_none=True)
        (loss * weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        begin = time.perf_counter()
        losses.append(loss.detach() * len(mine_B))
        rows += len(mine_B)
        if on_step is not None:
            on_step(step + 1, steps)
        overhead += time.perf_counter() - begin
    loss_sum = float(torch.stack(losses).sum()) if losses else 0.0
    seconds = time.perf_counter() - started
    return EpochStats(loss_sum, rows, steps, seconds, overhead, tokens, squared_tokens)


def random_state() -> dict[str, Any]:
    """State of the generators that training may use (dropout)."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": np.random.get_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
