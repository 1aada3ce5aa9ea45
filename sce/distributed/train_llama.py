"""Fitting LoRA adapters on Ray Train: workers that share every step, checkpoints, retry, resume.

Gradients are summed over the workers by hand after the accumulation, once a step: the adapters are
small beside the model, and a model in 4 bits cannot be wrapped as others are. A checkpoint holds
the adapters, the optimiser and the place in training, after every epoch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from peft import load_peft_weights, set_peft_model_state_dict
from ray.train.torch import get_device

from sce.baselines.adapters import add_adapters
from sce.baselines.llama_epochs import train_llama_epoch
from sce.baselines.llama_training import LlamaRows, LlamaSampler, LlamaTrainConfig, right_answers
from sce.baselines.lora import LoraSettings, load_base, load_chat_tokenizer
from sce.baselines.prompted import PromptedClassifier
from sce.baselines.settings import PromptName
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
from sce.model.encoder import trainable_parameters
from sce.storage import Place
from sce.training.epoch import (
    make_optimizer,
    random_state,
    rate_factor,
    restore_random_state,
    steps_per_epoch,
)
from sce.workflows.tracking import Tracker

STATE_FILE = "training_state.pt"


@dataclass(frozen=True)
class LlamaFitSettings:
    """Everything that decides what the adapters are (the data apart)."""

    base: str
    prompt: PromptName
    lora: LoraSettings
    train: LlamaTrainConfig
    seed: int


@dataclass(frozen=True)
class LlamaFit:
    """The best epoch's adapters, as a folder, with the figures of that epoch and the last."""

    adapter: Path
    trainable_parameters: int
    best: dict[str, float]
    last: dict[str, float]


def fit_llama(
    train: LlamaRows,
    validation: LlamaRows,
    settings: LlamaFitSettings,
    workers: WorkerPlan,
    storage: Place,
    run_name: str,
    tracker: Tracker,
    target: Path,
) -> LlamaFit:
    """Train on Ray; the adapters of the epoch with the best validation accuracy go to `target`.

    Args:
        storage, run_name: as of `run_training`.

    Raises:
        ray.train.TrainingFailedError: more workers died than `train.max_failures` allows.
    """
    data = (train, validation)
    checkpoint, best, last = run_training(
        _train_worker, data, settings, settings.train, workers, storage, run_name, tracker
    )
    checkpoint.to_directory(target)
    (target / STATE_FILE).unlink()
    adapters = load_peft_weights(str(target), device="cpu")
    return LlamaFit(target, sum(a.numel() for a in adapters.values()), best, last)


def _train_worker(config: dict[str, Any]) -> None:
    """What each worker runs. Every decision is taken on figures that all workers share."""
    quiet()
    settings: LlamaFitSettings = config["settings"]
    train = settings.train
    use_threads(config["threads"])
    rows, validation = ray.get(config["data"][0])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()

    tokenizer = load_chat_tokenizer(settings.base)
    base = load_base(settings.base, settings.lora, str(device))
    torch.manual_seed(settings.seed)
    model = add_adapters(base, settings.lora)
    classifier = PromptedClassifier(model, tokenizer, settings.prompt, train.max_text_tokens)  # type: ignore[arg-type]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    sampler = LlamaSampler(rows, classifier, tokenizer.eos_token_id, pad, train, settings.seed)
    optimizer = make_optimizer(model, train)
    sample_flops = partial(
        flops.lora_sample, flops.architecture_of(base.config), r=settings.lora.rank
    )

    def reduce(gradients: Sequence[torch.Tensor]) -> None:
        if world_size > 1:
            for gradient in gradients:
                torch.distributed.all_reduce(gradient)

    state = _restore(model, optimizer, device, rank, world_size)
    steps = steps_per_epoch(len(rows), train)

    def close_epoch(figures: dict[str, float]) -> None:
        """Validate, remember the best, write a checkpoint and report."""
        found = _validate(classifier, validation, device, rank, world_size)
        accuracy = found["validation/accuracy"]
        better = accuracy > state["best"]
        state["best"] = max(accuracy, state["best"])
        state["epochs_without_gain"] = 0 if better else state["epochs_without_gain"] + 1
        state["optimizer"] = optimizer.state_dict()
        state["random"] = gather(random_state(), world_size)
        report = {"epoch": state["epoch"], "score": accuracy, **found, **figures}
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
        stats = train_llama_epoch(
            model, sampler, optimizer, train, state["epoch"], device, rank, world_size, reduce,
            progress,
        )  # fmt: skip
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
                "samples_per_second": len(rows) / seconds,
            }
        )


def _validate(
    classifier: PromptedClassifier,
    rows: LlamaRows,
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[str, float]:
    """Accuracy on the validation rows, each worker's share of them, labels as they are given."""
    classifier.model.eval()
    right_N = np.zeros(len(rows))
    mine = range(rank, len(rows), world_size)
    right_N[mine] = right_answers(classifier, rows, mine)
    right_N = sum_over_workers(torch.from_numpy(right_N), device, world_size).numpy()
    datasets = np.array([name.split("/")[0] for name in rows.sets])
    return {"validation/accuracy": float(right_N.mean())} | {
        f"validation/{dataset}/accuracy": float(right_N[datasets == dataset].mean())
        for dataset in sorted(set(datasets.tolist()))
    }


def _restore(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[str, Any]:
    """The state of the last checkpoint, put into model and optimiser; a fresh one if none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return FRESH_STATE.copy()
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE_FILE, weights_only=False, map_location="cpu")
        set_peft_model_state_dict(model, load_peft_weights(folder, device=str(device)))
    state = FRESH_STATE | state
    optimizer.load_state_dict(state["optimizer"])
    if len(state["random"]) == world_size:
        restore_random_state(state["random"][rank])
    if rank == 0:
        print(f"going on after epoch {state['epoch']}", flush=True)
    return state
