"""One epoch of LoRA fine-tuning, without Ray.

As in `sce.training`, step n of an epoch takes the rows that the permutation of (seed, epoch)
names, whatever the number of workers: each takes every `world_size`-th row of it, in micro-batches,
and the gradients of all are summed to that of the mean over the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import nn

from sce.baselines.lora import Samples, collate, label_loss
from sce.baselines.prompted import PromptedClassifier
from sce.labels import LabelSet
from sce.random_keys import permutation, row_keys, uniforms
from sce.training import EpochStats, TrainConfig, autocast_dtype, rate_factor, steps_per_epoch

Reduce = Callable[[Sequence[torch.Tensor]], None]
"""Sums tensors over the workers, in place."""


class LlamaTrainConfig(TrainConfig):
    """How the adapters are fitted. The paper gives micro-batches and accumulation (appendix R);
    learning rate, schedule and epochs are ours, those that are usual for LoRA."""

    micro_batch_size: int = Field(2, ge=1)
    """Samples of one forward pass."""
    accumulation_steps: int = Field(32, ge=1)
    """Micro-batches of an optimiser step, over all workers."""
    batch_size: int = Field(64, ge=1)
    """micro_batch_size * accumulation_steps; not to be set by itself."""
    epochs: int = Field(1, ge=0)
    learning_rate: float = Field(1e-4, gt=0)
    warmup_fraction: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_text_tokens: int = Field(1024, ge=1)
    """Longer texts are cut before they go into the prompt, and counted."""
    shuffle_labels: bool = True
    """Another order of the labels in every prompt, since the model sees their places."""

    def model_post_init(self, context: object) -> None:
        wanted = self.micro_batch_size * self.accumulation_steps
        if "batch_size" in self.model_fields_set and self.batch_size != wanted:
            raise ValueError(
                f"batch_size: {self.batch_size} is not micro_batch_size * accumulation_steps "
                f"({wanted}); leave it out"
            )
        object.__setattr__(self, "batch_size", wanted)


@dataclass(frozen=True)
class LlamaRows:
    """Labelled texts: ids, texts, right labels and label sets by name."""

    ids: list[str]
    texts: list[str]
    labels: list[str]
    sets: list[str]
    label_sets: Mapping[str, LabelSet]

    def __len__(self) -> int:
        return len(self.ids)


def right_answers(
    classifier: PromptedClassifier, rows: LlamaRows, places: Sequence[int]
) -> np.ndarray:
    """Whether each of the rows at `places` is answered right, labels as they are given; bool, in
    the order of `places`."""
    right = np.zeros(len(places), bool)
    for name in dict.fromkeys(rows.sets[i] for i in places):
        members = [n for n, i in enumerate(places) if rows.sets[i] == name]
        label_set = rows.label_sets[name]
        scores = classifier.scores([rows.texts[places[n]] for n in members], label_set)
        targets = np.array([label_set.index(rows.labels[places[n]]) for n in members])
        right[members] = scores.argmax(1) == targets
    return right


class LlamaSampler:
    """Turns rows into micro-batches. What it draws follows from (seed, epoch, row id).

    Args:
        classifier: writes the prompts and tokenises the labels.
        end, pad: token ids of the end of a turn and of padding.
    """

    def __init__(
        self,
        rows: LlamaRows,
        classifier: PromptedClassifier,
        end: int,
        pad: int,
        config: LlamaTrainConfig,
        seed: int,
    ) -> None:
        self.rows, self.seed = rows, seed
        self.keys_N = row_keys(rows.ids)
        self._classifier, self._end, self._pad = classifier, end, pad
        self._shuffle = config.shuffle_labels

    def draw(self, epoch: int, places_B: Sequence[int]) -> tuple[Samples, int]:
        """A micro-batch of these rows, and how many of their texts were cut."""
        prompts, answers, truncated = [], [], 0
        for i in places_B:
            names = self.rows.label_sets[self.rows.sets[i]].names
            if self._shuffle:
                keys = uniforms(self.seed, epoch, "labels", self.keys_N[i : i + 1], len(names))
                names = [names[k] for k in np.argsort(keys[0])]
            prompt = self._classifier.prompt_tokens(self.rows.texts[i], names)
            prompts.append(prompt.ids)
            truncated += prompt.truncated
            answers.append(self._classifier.label_tokens([self.rows.labels[i]])[0])
        return collate(prompts, answers, self._end, self._pad), truncated


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
    """One pass over the training rows; arguments as in `sce.training.train_epoch`."""
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
