"""Fitting LoRA adapters on Ray Train: workers that share every step (`sce.distributed.workers`).

Gradients are summed over the workers by hand after the accumulation, once a step: the adapters are
small beside the model, and a model in 4 bits cannot be wrapped as others are. A checkpoint holds
the adapters in place of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import set_peft_model_state_dict

from sce.baselines.llama_training import LlamaObjective, LlamaRows, right_answers
from sce.baselines.lora import adapter_weights, add_adapters, load_base, load_chat_tokenizer
from sce.baselines.prompted import PromptedClassifier
from sce.baselines.settings import LlamaTrainConfig, LoraSettings, PromptName
from sce.distributed.workers import STATE_FILE, Fitted, Reduce, Run, Worker, run_training
from sce.evaluation import flops


@dataclass(frozen=True)
class LlamaFitSettings:
    """Everything that decides what the adapters are (the data apart)."""

    base: str
    prompt: PromptName
    lora: LoraSettings
    train: LlamaTrainConfig
    seed: int


def fit_llama(
    train: LlamaRows, validation: LlamaRows, settings: LlamaFitSettings, run: Run, target: Path
) -> Fitted:
    """Train on Ray; the adapters of the epoch with the best validation accuracy go to `target`,
    with what the training took.

    Raises:
        ray.train.TrainingFailedError: more workers died than `train.max_failures` allows.
    """
    fitted = run_training(LlamaTraining, (train, validation, settings), settings.train, run)
    fitted.checkpoint.to_directory(target)
    (target / STATE_FILE).unlink()
    adapters = adapter_weights(target, "cpu")
    fitted.cost(len(train), sum(a.numel() for a in adapters.values())).save(target)
    return fitted


class LlamaTraining(LlamaObjective):
    """Training of LoRA adapters as `sce.distributed.workers` has it.

    Args:
        parts: training rows, validation rows and settings.
    """

    def __init__(
        self, parts: tuple[LlamaRows, LlamaRows, LlamaFitSettings], worker: Worker
    ) -> None:
        rows, self._validation, settings = parts
        self._worker = worker
        self.reduce: Reduce | None = worker.sum_in_place
        tokenizer = load_chat_tokenizer(settings.base)
        base = load_base(settings.base, settings.lora, str(worker.device))
        self._architecture, self._rank = flops.architecture_of(base.config), settings.lora.rank
        torch.manual_seed(settings.seed)
        self._adapted = add_adapters(base, settings.lora)
        classifier = PromptedClassifier(
            self._adapted,  # type: ignore[arg-type]
            tokenizer,
            settings.prompt,
            settings.train.max_text_tokens,
        )
        super().__init__(classifier, rows, settings.train, settings.seed)

    def sample_flops(self, tokens: float) -> float:
        return flops.lora_sample(self._architecture, tokens, self._rank)

    def validate(self) -> dict[str, float]:
        """Accuracy on the validation rows, labels as they are given."""
        rows, worker = self._validation, self._worker
        self._adapted.eval()
        right_N = np.zeros(len(rows))
        mine = range(worker.rank, len(rows), worker.world_size)
        right_N[mine] = right_answers(self._classifier, rows, mine)
        right_N = worker.sum(torch.from_numpy(right_N)).numpy()
        datasets = np.array([name.split("/")[0] for name in rows.sets])
        return {"validation/accuracy": float(right_N.mean())} | {
            f"validation/{dataset}/accuracy": float(right_N[datasets == dataset].mean())
            for dataset in sorted(set(datasets.tolist()))
        }

    def save(self, folder: str) -> None:
        self._adapted.save_pretrained(folder)

    def load(self, folder: str) -> None:
        weights = adapter_weights(folder, str(self.device))
        set_peft_model_state_dict(self._adapted, weights)
