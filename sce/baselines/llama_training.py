"""LoRA fine-tuning: the rows as micro-batches, and the loss for `training.epoch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sce.baselines.lora import Samples, collate, label_loss
from sce.baselines.prompted import PromptedClassifier
from sce.baselines.settings import LlamaTrainConfig
from sce.labels import LabelSet
from sce.training.random_keys import row_keys, uniforms


@dataclass(frozen=True)
class LlamaRows:
    """Labelled texts, and the names of their right labels and label sets."""

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


class LlamaObjective:
    """What `sce.training.epoch.train_epoch` lowers: the loss on the tokens of the right labels.
    What is drawn of the rows follows from (seed, epoch, row id).

    Args:
        classifier: the model with adapters; writes the prompts and tokenises the labels.
    """

    def __init__(
        self, classifier: PromptedClassifier, rows: LlamaRows, config: LlamaTrainConfig, seed: int
    ) -> None:
        self.model: torch.nn.Module = classifier.model
        self.device, self.seed, self.keys_N = classifier.model.device, seed, row_keys(rows.ids)
        self._classifier, self._rows, self._shuffle = classifier, rows, config.shuffle_labels

    def samples(self, epoch: int, places_B: Sequence[int]) -> Samples:
        """A micro-batch of these rows."""
        rows, classifier = self._rows, self._classifier
        prompts, answers = [], []
        for i in places_B:
            names = rows.label_sets[rows.sets[i]].names
            if self._shuffle:
                keys = uniforms(self.seed, epoch, "labels", self.keys_N[i : i + 1], len(names))
                names = [names[k] for k in np.argsort(keys[0])]
            prompts.append(classifier.prompt_tokens(rows.texts[i], names).ids)
            answers.append(classifier.label_tokens([rows.labels[i]])[0])
        end, pad = classifier.tokenizer.eos_token_id, classifier.tokenizer.pad_token_id
        return collate(prompts, answers, end, end if pad is None else pad)

    def draw(self, epoch: int, rows_B: np.ndarray) -> tuple[Samples, np.ndarray]:
        """A micro-batch of these rows, and how many tokens each sample has."""
        samples = self.samples(epoch, rows_B.tolist())
        return samples.to(self.device), samples.mask_BT.sum(1).numpy()

    def loss(self, samples: Samples) -> torch.Tensor:
        return label_loss(self.model, samples)
