"""The methods of the paper's comparison, ready to be measured: what answers, and what it is.

Each knows how it is called in reports, what it is made of, and after it has answered what that
took. All are measured by `sce.evaluation.evaluate` on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sce.baselines.cosine import cosine_scores
from sce.baselines.settings import PromptedConfig
from sce.distributed.resources import ResourcesConfig
from sce.embedding.embedder import TextEmbedder
from sce.evaluation import flops
from sce.evaluation.costs import AnswerCost, TrainingCost, answer_cost
from sce.evaluation.evaluate import EvaluationSet, Method, Request, VectorMethod
from sce.model.calibration import Temperature, fit_temperature
from sce.model.label_vectors import TextVectors
from sce.predictor import Predictor
from sce.storage import fetch

COST_ROWS = 512
"""Rows whose answers are timed, of all sets together."""
KINDS = {
    "sce": "Soft Contextualized Encoder",
    "similarity": "cosine similarity of embeddings",
    "prompted": "prompted language model",
    "lora": "language model fine-tuned with LoRA",
}


class SceMethod(VectorMethod):
    """A trained model, whose folder says what its training took."""

    name = "sce"

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        super().__init__(predictor.scores, predictor.temperature)
        self._predictor, self._folder = predictor, folder

    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        embedder, model = self._predictor.embedder, self._predictor.model
        a = flops.architecture_of(model.encoder.config)

        def label_flops(labels: int) -> float:
            # The labels and the query through the encoder, the query through the affine map.
            return a.blocks * flops.forward_block(a, labels + 1) + a.d * model.config.embedding_dim

        return _description(
            "sce",
            f"{model.config.encoder['model_type']}, {a.blocks} layers of {a.d}, "
            f"on {embedder.fingerprint.model}",
            embedder.parameters + sum(p.numel() for p in model.parameters()),
            TrainingCost.load(self._folder),
            answer_cost(embedder, self.score, sets, COST_ROWS, label_flops),
        )


class SimilarityMethod(VectorMethod):
    """Cosine similarity of the text's and the labels' vectors by one embedder (appendix E).

    Args:
        version: of the label vectors (`sce.model.label_vectors`).
    """

    name = "cosine"

    def __init__(self, embedder: TextEmbedder, text_vectors: TextVectors, version: int) -> None:
        score = partial(cosine_scores, text_vectors=text_vectors, version=version)
        super().__init__(score, Temperature())
        self._embedder = embedder

    def calibrate(self, validation: Sequence[EvaluationSet]) -> None:
        self.temperature = _fitted(self.answer([s.request for s in validation]), validation)

    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        embedder = self._embedder
        cost = answer_cost(
            embedder, self.score, sets, COST_ROWS, lambda labels: labels * embedder.dimension
        )
        model = f"{embedder.fingerprint.model}, {embedder.fingerprint.pooling} pooling"
        return _description("similarity", model, embedder.parameters, None, cost)


class PromptedMethod(Method):
    """A language model that is asked (appendix D), as it is or with LoRA adapters (section 3.3).
    Its temperature is fitted on the rows of `validation`."""

    name = "prompted"
    information = ("name",)  # the paper's prompts name the labels and say nothing else of them

    def __init__(
        self,
        config: PromptedConfig,
        resources: ResourcesConfig,
        validation: Sequence[EvaluationSet],
    ) -> None:
        self._config, self._resources, self._validation = config, resources, validation
        self.temperature = Temperature()
        self._parameters = 0
        self._cost: AnswerCost | None = None

    def answer(self, requests: Sequence[Request]) -> list[np.ndarray]:
        # Imported here: peft and bitsandbytes cost seconds that the other methods need not pay.
        from sce.distributed.prompted import score_prompts

        asked = [*(s.request for s in self._validation), *requests]
        answered = score_prompts(asked, self._config, self._resources)
        first = len(self._validation)
        self.temperature = _fitted(answered.scores[:first], self._validation)
        self._parameters, self._cost = answered.parameters, answered.cost
        return answered.scores[first:]

    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        config = self._config
        assert self._cost is not None, "it has not answered yet"
        model = f"{Path(config.base).name}, prompt {config.prompt!r}"
        model += ", nf4" if config.quantisation == "nf4" else ""
        if config.adapter is None:
            return _description("prompted", model, self._parameters, None, self._cost)
        training = TrainingCost.load(fetch(config.adapter))
        return _description("lora", model, self._parameters, training, self._cost)


def _fitted(scores: Sequence[np.ndarray], sets: Sequence[EvaluationSet]) -> Temperature:
    """A temperature for these scores [N, K] of labelled rows; the identity for none."""
    if not scores:
        return Temperature()
    logits = [row_K for scores_NK in scores for row_K in scores_NK]
    targets = [s.label_set.index(name) for s in sets for name in s.labels]
    return fit_temperature(logits, targets).temperature


def _description(
    kind: str, model: str, parameters: int, training: TrainingCost | None, cost: AnswerCost
) -> dict[str, Any]:
    found = {"kind": kind, "title": KINDS[kind], "model": model, "parameters": parameters}
    if training is not None:
        found["training"] = asdict(training) | {"epoch_seconds": training.epoch_seconds}
    return found | {"cost": asdict(cost)}
