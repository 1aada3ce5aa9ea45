"""Asks a language model which label fits, on Ray Data: `sce.baselines.prompted` in many actors.

All requests are one execution, so that the model is loaded once an actor whatever the number of
label sets. A block has texts of one request, of similar length; an actor reads a label set once,
and answers with the row's place, its scores and figures of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext

from sce.baselines.prompted import (
    Candidates,
    PromptedClassifier,
    check_prompted,
    label_tokens,
    load_prompted,
    parameter_count,
)
from sce.baselines.settings import PromptedConfig
from sce.distributed.actors import arguments_by_value
from sce.distributed.resources import ActorPlan, TorchThread, embed_actors
from sce.distributed.settings import ResourcesConfig
from sce.embedding.row_checks import check_texts
from sce.errors import DataError, InputError
from sce.evaluation import flops
from sce.evaluation.costs import AnswerCost
from sce.evaluation.evaluate import Request
from sce.evaluation.peak_memory import peak_bytes
from sce.labels import LabelSet

BLOCK_ROWS = (64, 1024)
BLOCKS_PER_ACTOR = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptedAnswers:
    """What `score_prompts` gives.

    Attributes:
        scores: of each request, float32 [N, K] in the order of its texts and labels: the mean
            log-likelihood of a label's tokens. softmax over K is equation 4.
        truncated: rows whose text was cut.
        tokens_N: read of each row, prompt and candidates, int64; in no particular order.
        parameters: adapters included.
        cost: timed from the first row to the last, start-up and loading apart; memory is that of
            the largest actor; operations are those of the model without adapters.
    """

    scores: list[np.ndarray]
    truncated: int
    tokens_N: np.ndarray
    parameters: int
    cost: AnswerCost


def score_prompts(
    requests: Sequence[Request], config: PromptedConfig, resources: ResourcesConfig
) -> PromptedAnswers:
    """Score the labels of each request for each of its texts.

    Args:
        requests: whose texts are read. The order of a label set is that of the prompt, so another
            order is another request.

    Raises:
        InputError: there is no such model, or there are no such adapters, or they do not fit.
        DataError: a text is empty or not a text; names request and position. No texts at all.
        ConfigError: two labels of a request have the same tokens; the tokenizer has no chat
            template; the cluster cannot give what `resources` asks for.
    """
    tokenizer, model_config = check_prompted(config)
    for number, request in enumerate(requests):
        try:
            check_texts(request.texts)
            label_tokens(tokenizer, request.label_set.names)
        except InputError as error:
            raise type(error)(f"request {number}: {error}") from None
    rows = sum(len(request.texts) for request in requests)
    if not rows:
        raise DataError("requests: there is no text in them.")
    local: dict[str, Any] = {}
    if Path(config.base).is_dir():
        local["base"] = str(Path(config.base).resolve())
    if config.adapter is not None:
        local["adapter"] = config.adapter.resolve()
    plan = embed_actors(resources, what="prompting", io_cpus=0.0)
    report = _run(requests, rows, config.model_copy(update=local), plan)
    seconds = pc.max(report["finished"]).as_py() - pc.min(report["started"]).as_py()
    truncated = pc.sum(report["truncated"]).as_py()
    log.info("asked %d texts in %.1f s; %d were cut", rows, seconds, truncated)
    tokens_N = report["tokens"].to_numpy()
    a = flops.architecture_of(model_config)
    cost = AnswerCost(
        texts_per_second=rows / seconds,
        embedded_texts_per_second=None,
        peak_memory_bytes=pc.max(report["peak_memory_bytes"]).as_py(),
        flops_per_text=a.blocks * flops.mean(partial(flops.forward_block, a), tokens_N),
        embedded_flops_per_text=None,
        rows=rows,
        device=plan.device,
    )
    parameters = pc.max(report["parameters"]).as_py()
    return PromptedAnswers(_in_order(report, requests), truncated, tokens_N, parameters, cost)


def _run(
    requests: Sequence[Request], rows: int, config: PromptedConfig, plan: ActorPlan
) -> pa.Table:
    """The actors' answers to all rows, in no particular order."""
    size = int(np.clip(rows // (plan.actors * BLOCKS_PER_ACTOR), *BLOCK_ROWS))
    blocks = [block for pair in enumerate(requests) for block in _blocks(*pair, size)]
    label_sets = [request.label_set for request in requests]
    context = DataContext.get_current()
    before = (context.enable_progress_bars, context.raise_original_map_exception)
    # With its own type, a user's mistake can be known from a bug.
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    try:
        dataset = ray.data.from_arrow(blocks).map_batches(
            PromptedActor,
            fn_constructor_args=(label_sets, config, plan.device, plan.threads),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(plan.actors, len(blocks))),
            **plan.ray_arguments(),
        )
        with arguments_by_value():
            return pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    finally:
        context.enable_progress_bars, context.raise_original_map_exception = before


def _blocks(number: int, request: Request, size: int) -> list[pa.Table]:
    """A request's rows, the longest texts first: its number, a text's place in it, and the text."""
    places = sorted(range(len(request.texts)), key=lambda i: -len(request.texts[i]))
    text = pa.array([request.texts[i] for i in places], pa.large_string())
    number_N = pa.repeat(number, len(places))
    table = pa.table({"request": number_N, "place": places, "text": text})
    return [table.slice(i, size) for i in range(0, len(places), size)]


def _in_order(report: pa.Table, requests: Sequence[Request]) -> list[np.ndarray]:
    """Scores [N, K] of each request.

    Raises:
        RuntimeError: a row was answered not at all, or twice.
    """
    found = []
    for number, request in enumerate(requests):
        mine = report.filter(pc.equal(report["request"], number)).sort_by("place")
        rows = len(request.texts)
        if mine["place"].to_pylist() != list(range(rows)):
            raise RuntimeError(f"request {number}: {len(mine)} answers to {rows} texts.")
        scores = pc.list_flatten(mine["scores"]).to_numpy()
        found.append(scores.reshape(rows, len(request.label_set)))
    return found


class PromptedActor:
    """One language model; turns rows into scores. It is loaded with the first block: what goes
    wrong then comes to the user as what it is, and not as the death of an actor."""

    def __init__(
        self,
        label_sets: Sequence[LabelSet],
        config: PromptedConfig,
        device: Literal["cpu", "cuda"],
        threads: int,
    ) -> None:
        self._torch = TorchThread(threads)
        self._config, self._device = config, device
        self._label_sets = label_sets
        self._candidates: dict[int, Candidates] = {}

    @cached_property
    def _classifier(self) -> PromptedClassifier:
        return self._torch.run(load_prompted, self._config, self._device)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Columns request, place and text in; request, place, scores and figures out."""
        classifier = self._classifier  # loaded before the clock runs
        started = time.time()
        number = block["request"][0].as_py()
        if number not in self._candidates:
            self._candidates[number] = classifier.candidates(self._label_sets[number])
        texts = block["text"].to_pylist()
        answered = self._torch.run(classifier.answer, texts, self._candidates[number])
        figures = {
            "started": started,
            "finished": time.time(),
            "peak_memory_bytes": peak_bytes(torch.device(self._device)),
            "parameters": parameter_count(classifier.model),
        }
        return pa.table(
            {
                "request": block["request"],
                "place": block["place"],
                "scores": pa.array(list(answered.scores_NK), pa.list_(pa.float32())),
                "truncated": answered.truncated_N,
                "tokens": answered.tokens_N,
                **{name: pa.repeat(value, len(texts)) for name, value in figures.items()},
            }
        )
