"""The methods of a comparison, ready to be measured: what answers, and what it is.

Each knows how it is called in reports, what it is made of, and after it has answered what that
took. All are measured by `sce.evaluation.evaluate` on the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sce.adaptation.adapt import adapt
from sce.adaptation.artefact import AdaptedLabels
from sce.adaptation.settings import FITS
from sce.baselines.cosine import cosine_scores
from sce.baselines.settings import PromptedConfig
from sce.distributed.settings import ResourcesConfig
from sce.embedding.embedder import TextEmbedder
from sce.evaluation import flops
from sce.evaluation.costs import AnswerCost, FitCost, TrainingCost, answer_cost
from sce.evaluation.evaluate import EvaluationSet, Method, Request, VectorMethod
from sce.evaluation.folds import draw_examples, share_out
from sce.evaluation.summaries import ADAPTED
from sce.labels import LabelSet
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
    "adapted": "labels adapted to the texts by their vectors",
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


@dataclass(frozen=True)
class _Fits:
    """Label sets that answer the rows of a set: row i is answered by `fits[fold_N[i]]`. `short`
    counts labels that have fewer examples than were asked for, in the fold that has fewest."""

    fits: list[AdaptedLabels]
    fold_N: np.ndarray
    short: int


class AdaptedMethod(Method):
    """Labels fitted to the texts of each set, by the vectors of one embedder, without the answers;
    or with `examples` labelled rows a label, where each half of the rows is answered by a fit that
    had its examples from the other half.

    Adapted labels are the same for every order of the set, which their own tests hold.

    Args:
        version: of the label vectors (`sce.model.label_vectors`).
        seed: of the halves, and of which rows are the examples.
    """

    reorders = False

    def __init__(
        self,
        embedder: TextEmbedder,
        text_vectors: TextVectors,
        version: int,
        examples: int = 0,
        seed: int = 0,
    ) -> None:
        self.name = f"{ADAPTED}+{examples}" if examples else ADAPTED
        self._embedder, self._text_vectors, self._version = embedder, text_vectors, version
        self._examples, self._seed = examples, seed
        self._fitted: dict[tuple[str, str], _Fits] = {}
        self._costs: list[FitCost] = []

    def applies_to(self, rows: EvaluationSet) -> bool:
        return rows.corpus_MD is not None

    def answer(self, requests: Sequence[Request]) -> list[np.ndarray]:
        return [self._scores(request) for request in requests]

    def calibrated(self, scores_NK: np.ndarray, request: Request) -> np.ndarray:
        found = self._fits_of(request)
        temperatures = np.array([fit.temperature for fit in found.fits])
        return scores_NK / temperatures[found.fold_N][:, None]

    def remarks(self, request: Request) -> dict[str, Any]:
        found = self._fits_of(request)
        trusts = dict.fromkeys(str(fit.report["trust"]) for fit in found.fits)
        said = {"trust": ", ".join(trusts), "fitted_rows": found.fits[0].report["fitted_rows"]}
        return said | ({"short_labels": found.short} if self._examples else {})

    def describe(self, sets: Sequence[EvaluationSet]) -> dict[str, Any]:
        sets = [rows for rows in sets if self.applies_to(rows)]
        labels = {rows.label_set.fingerprint: self._fits_of(rows.request).fits[0] for rows in sets}
        cost = answer_cost(
            self._embedder,
            lambda vectors_ND, label_set: labels[label_set.fingerprint].scores(vectors_ND),
            sets,
            COST_ROWS,
            lambda count: count * self._embedder.dimension,
        )
        model = f"on {self._embedder.fingerprint.model}"
        model += f", {self._examples} labelled rows a label" if self._examples else ""
        found = _description("adapted", model, self._embedder.parameters, None, cost)
        return found | {"fit": asdict(FitCost.mean(self._costs))}

    def _scores(self, request: Request) -> np.ndarray:
        assert request.vectors_ND is not None, "this method reads vectors"
        found = self._fits_of(request)
        scores_NK = np.empty((len(request.vectors_ND), len(request.label_set)))
        for fold, fit in enumerate(found.fits):
            mine_N = found.fold_N == fold
            scores_NK[mine_N] = fit.scores(request.vectors_ND[mine_N])
        return scores_NK

    def _fits_of(self, request: Request) -> _Fits:
        rows, label_set = request.rows, request.label_set
        assert rows is not None, "this method learns from the set"
        key = rows.name, label_set.fingerprint
        if key not in self._fitted:
            self._fitted[key] = self._fit(rows, label_set)
        return self._fitted[key]

    def _fit(self, rows: EvaluationSet, label_set: LabelSet) -> _Fits:
        if not self._examples:
            return _Fits([self._adapted(rows, label_set, None)], np.zeros(len(rows), np.int64), 0)
        assert rows.vectors_ND is not None, "this method reads vectors"
        targets = [label_set.index(name) for name in rows.labels]
        fold_N = share_out(rows.texts, rows.labels, self._seed)
        fits, shorts = [], []
        for fold in (0, 1):
            places, short = draw_examples(
                rows.texts, rows.labels, fold_N, fold, self._examples, self._seed
            )
            labelled = (
                (rows.vectors_ND[places], [targets[i] for i in places]) if len(places) else None
            )
            fits.append(self._adapted(rows, label_set, labelled))
            shorts.append(short)
        return _Fits(fits, fold_N, max(shorts))

    def _adapted(
        self,
        rows: EvaluationSet,
        label_set: LabelSet,
        labelled: tuple[np.ndarray, list[int]] | None,
    ) -> AdaptedLabels:
        assert rows.corpus_MD is not None, "there is no corpus to adapt to"
        started = time.perf_counter()
        fingerprint = self._embedder.fingerprint
        found = adapt(
            rows.corpus_MD,
            label_set,
            self._text_vectors,
            fingerprint.to_dict() | {"id": fingerprint.id},
            version=self._version,
            labelled=labelled,
        )
        seconds, report = time.perf_counter() - started, found.report
        trusts = [f["trust"] for f in (report["choice"] or {"fits": [report]})["fits"]]
        rounds = [FITS[trust].rounds for trust in trusts if trust != "none"]
        size = report["fitted_rows"], len(label_set), self._embedder.dimension
        self._costs.append(FitCost(size[0], seconds, flops.mixture_fit(*size, rounds)))
        return found


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
    names = [s.name for s in sets for _ in s.labels]
    return fit_temperature(logits, targets, names).temperature


def _description(
    kind: str, model: str, parameters: int, training: TrainingCost | None, cost: AnswerCost
) -> dict[str, Any]:
    found = {"kind": kind, "title": KINDS[kind], "model": model, "parameters": parameters}
    if training is not None:
        found["training"] = asdict(training) | {"epoch_seconds": training.epoch_seconds}
    return found | {"cost": asdict(cost)}
