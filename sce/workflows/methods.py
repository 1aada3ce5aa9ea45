"""The methods of the paper's comparison, ready to be measured: what answers, and what it is.

A contender knows how its method is called in reports, what it is made of, and after it has
answered what that took. All are measured by `sce.evaluation.evaluate` on the same rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoConfig

from sce.baselines.cosine import CosineBaseline
from sce.baselines.settings import PromptedConfig
from sce.distributed.resources import ResourcesConfig
from sce.embedding.embedder import TextEmbedder
from sce.evaluation import flops
from sce.evaluation.costs import AnswerCost, TrainingCost, answer_cost
from sce.evaluation.evaluate import ByVectors, EvaluateConfig, EvaluationSet, Method, Request
from sce.model.calibration import Temperature, fit_temperature
from sce.model.label_vectors import TextVectors
from sce.predictor import Predictor
from sce.storage import fetch, fetch_model

if TYPE_CHECKING:
    from sce.distributed.prompted import PromptedAnswers

COST_ROWS = 512
"""Rows whose answers are timed, of all sets together."""
KINDS = {
    "sce": "Soft Contextualized Encoder",
    "similarity": "cosine similarity of embeddings",
    "prompted": "prompted language model",
    "lora": "language model fine-tuned with LoRA",
}


class Contender(ABC):
    """A method and what a report says of it.

    Attributes:
        name: column of the results, such as "sce".
        method: what is measured.
    """

    name: str
    method: Method

    @abstractmethod
    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        """Kind, model, parameters, training and answer cost, as JSON; after it has answered."""


class SceContender(Contender):
    """A trained model.

    Args:
        folder: of the model.
    """

    name = "sce"

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self.method = ByVectors(predictor)
        self._predictor, self._folder = predictor, folder

    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        predictor = self._predictor
        embedder, model = predictor.embedder, predictor.model
        width = model.config.embedding_dim
        architecture = flops.architecture_of(model.encoder.config)

        def label_flops(labels: int) -> float:
            a = architecture
            return a.blocks * flops.forward_block(a, labels + 1) + a.d * width

        return _description(
            "sce",
            f"{model.config.encoder['model_type']}, {architecture.blocks} layers of "
            f"{architecture.d}, on {embedder.fingerprint.model}",
            embedder.parameters + sum(p.numel() for p in model.parameters()),
            TrainingCost.load(self._folder),
            answer_cost(embedder, predictor, sets, COST_ROWS, label_flops),
        )


class SimilarityContender(Contender):
    """Cosine similarity of the text's and the labels' vectors (appendix E).

    Args:
        temperature: fitted on validation rows; None where there are none.
    """

    name = "cosine"

    def __init__(
        self,
        embedder: TextEmbedder,
        text_vectors: TextVectors,
        temperature: Temperature | None = None,
    ) -> None:
        self._scorer = CosineBaseline(text_vectors, temperature)
        self.method = ByVectors(self._scorer)
        self._embedder = embedder

    def calibrate(self, validation: Sequence[EvaluationSet]) -> None:
        """Fit the temperature on these rows."""
        scores = [self._scorer.scores(s.vectors_ND, s.label_set) for s in validation]  # type: ignore[arg-type]
        self._scorer.temperature = fit(scores, validation)

    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        embedder = self._embedder
        cost = answer_cost(
            embedder, self._scorer, sets, COST_ROWS, lambda labels: labels * embedder.dimension
        )
        model = f"{embedder.fingerprint.model}, {embedder.fingerprint.pooling} pooling"
        return _description("similarity", model, embedder.parameters, None, cost)


class PromptedContender(Contender):
    """A language model that is asked (appendix D), as it is or with LoRA adapters (section 3.3).

    Args:
        validation: rows on which the temperature is fitted.
    """

    name = "prompted"

    def __init__(
        self,
        config: PromptedConfig,
        resources: ResourcesConfig,
        validation: Sequence[EvaluationSet] = (),
    ) -> None:
        self.config, self._resources, self._validation = config, resources, validation
        self.method = self
        self.temperature = Temperature()
        self._answered: PromptedAnswers | None = None

    @staticmethod
    def told(config: EvaluateConfig) -> EvaluateConfig:
        """The paper's prompts name the labels and say nothing else of them."""
        return config.model_copy(update={"information": ["name"]})

    def answer(self, requests: Sequence[Request]) -> list[np.ndarray]:
        # Imported here: peft and bitsandbytes cost seconds that the other methods need not pay.
        from sce.distributed.prompted import score_prompts

        asked = [(s.texts, s.label_set) for s in self._validation]
        asked += [(request.texts, request.label_set) for request in requests]
        self._answered = answered = score_prompts(asked, self.config, self._resources)
        first = len(self._validation)
        if first:
            self.temperature = fit(answered.scores[:first], self._validation)
        return answered.scores[first:]

    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        answered, config = self._answered, self.config
        assert answered is not None, "it has not answered yet"
        architecture = flops.architecture_of(AutoConfig.from_pretrained(fetch_model(config.base)))
        cost = AnswerCost(
            texts_per_second=answered.texts_per_second,
            embedded_texts_per_second=None,
            peak_memory_bytes=answered.peak_memory_bytes,
            flops_per_text=architecture.blocks
            * flops.mean(partial(flops.forward_block, architecture), answered.tokens_N),
            embedded_flops_per_text=None,
            rows=len(answered.tokens_N),
            device=answered.device,
        )
        kind = "prompted" if config.adapter is None else "lora"
        model = f"{Path(config.base).name}, prompt {config.prompt!r}" + (
            ", nf4" if config.quantisation == "nf4" else ""
        )
        training = None if config.adapter is None else TrainingCost.load(fetch(config.adapter))
        return _description(kind, model, answered.parameters, training, cost)


def fit(scores: Sequence[np.ndarray], sets: Sequence[EvaluationSet]) -> Temperature:
    """A temperature for these scores [N, K] of labelled rows; the identity for none."""
    if not scores:
        return Temperature()
    logits = [row_K for scores_NK in scores for row_K in scores_NK.astype(np.float64)]
    targets = [s.label_set.index(name) for s in sets for name in s.labels]
    return fit_temperature(logits, targets).temperature


def _description(
    kind: str, model: str, parameters: int, training: TrainingCost | None, cost: AnswerCost
) -> dict[str, Any]:
    found = {"kind": kind, "title": KINDS[kind], "model": model, "parameters": parameters}
    if training is not None:
        found["training"] = vars(training) | {"epoch_seconds": training.epoch_seconds}  # type: ignore[assignment]
    return found | {"cost": cost.to_dict()}
