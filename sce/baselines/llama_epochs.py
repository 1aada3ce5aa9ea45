"""One epoch of LoRA fine-tuning, without Ray or a settings library.

As in `sce.training.epoch`, step n of an epoch takes the rows that the permutation of (seed, epoch)
names, whatever the number of workers: each takes every `world_size`-th row of it, in micro-batches,
and the gradients of all are summed to that of the mean over the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from sce.baselines.adapters import label_loss
from sce.training.epoch import EpochStats, autocast_dtype, rate_factor, steps_per_epoch
from sce.training.random_keys import permutation

if TYPE_CHECKING:
    from sce.baselines.llama_training import LlamaSampler, LlamaTrainConfig

Reduce = Callable[[Sequence[torch.Tensor]], None]
"""Sums tensors over the workers, in place."""


def train_llama_epoch(
    model: nn.Module,
    sampler: LlamaSampler,
    optimizer: torch.optim.Optimizer,
    config: LlamaTrainConfig,
    epoch: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    reduce: Reduce = lambda tensors: None,
    on_step: Callable[[int, int], None] | None = None,
) -> EpochStats:
    """One pass over the training rows; arguments as in `sce.training.settings.train_epoch`."""
    model.train()
    dtype = autocast_dtype(config, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    order_N = permutation(sampler.seed, epoch, sampler.keys_N)
    steps = steps_per_epoch(len(order_N), config)
    total_steps = steps * config.epochs
    loss_sum, rows, overhead = 0.0, 0, 0.0
    tokens = squared_tokens = 0
    started = time.perf_counter()
    for step in range(steps):
        batch_B = order_N[step * config.batch_size : (step + 1) * config.batch_size]
        mine_B = batch_B[rank::world_size]
        factor = rate_factor(epoch * steps + step, total_steps, config)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        optimizer.zero_grad(set_to_none=False)
        for first in range(0, len(mine_B), config.micro_batch_size):
            begin = time.perf_counter()
            micro_B = mine_B[first : first + config.micro_batch_size]
            samples, _ = sampler.draw(epoch, micro_B.tolist())
            tokens_B = samples.mask_BT.sum(1)
            tokens += int(tokens_B.sum())
            squared_tokens += int(tokens_B.square().sum())
            samples = samples.to(device)
            overhead += time.perf_counter() - begin
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = label_loss(model, samples)
            (loss * len(micro_B) / len(batch_B)).backward()
            loss_sum += float(loss.detach()) * len(micro_B)
        for parameter in trained:  # a worker without rows in this step has none yet
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        reduce([p.grad for p in trained if p.grad is not None])
        nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        rows += len(mine_B)
        if on_step is not None:
            on_step(step + 1, steps)
    seconds = time.perf_counter() - started
    return EpochStats(loss_sum, rows, steps, seconds, overhead, tokens, squared_tokens)
