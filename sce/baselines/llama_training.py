"""LoRA fine-tuning: its settings, the rows as micro-batches, and the loss for `training.epoch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from sce.baselines.lora import Samples, collate, label_loss
from sce.baselines.prompted import PromptedClassifier
from sce.labels import LabelSet
from sce.training.epoch import TrainConfig
from sce.training.random_keys import row_keys, uniforms


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
    """Longer texts are cut before they go into the prompt."""
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

    @property
    def pass_rows(self) -> int:
        return self.micro_batch_size


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

    def draw(self, epoch: int, places_B: Sequence[int]) -> Samples:
        """A micro-batch of these rows."""
        prompts, answers = [], []
        for i in places_B:
            names = self.rows.label_sets[self.rows.sets[i]].names
            if self._shuffle:
                keys = uniforms(self.seed, epoch, "labels", self.keys_N[i : i + 1], len(names))
                names = [names[k] for k in np.argsort(keys[0])]
            prompts.append(self._classifier.prompt_tokens(self.rows.texts[i], names).ids)
            answers.append(self._classifier.label_tokens([self.rows.labels[i]])[0])
        return collate(prompts, answers, self._end, self._pad)


class LlamaObjective:
    """What `sce.training.epoch.train_epoch` lowers: the loss on the tokens of the right labels."""

    def __init__(self, model: torch.nn.Module, sampler: LlamaSampler, device: torch.device) -> None:
        self.model, self._sampler, self.device = model, sampler, device
        self.seed, self.keys_N = sampler.seed, sampler.keys_N

    def draw(self, epoch: int, rows_B: np.ndarray) -> tuple[Samples, np.ndarray]:
        """A micro-batch of these rows, and how many tokens each sample has."""
        samples = self._sampler.draw(epoch, rows_B.tolist())
        return samples.to(self.device), samples.mask_BT.sum(1).numpy()

    def loss(self, samples: Samples) -> torch.Tensor:
        return label_loss(self.model, samples)
