"""Asks a language model which label fits, on Ray Data: `sce.baselines.prompted` in many actors.

All requests are one execution, so that the model is loaded once an actor whatever the number of
label sets. Rows are sorted by request and length; an actor reads a label set once, and answers
with the row's place, its scores and figures of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext
from transformers.utils import logging as transformers_logging

from sce.baselines.prompted import (
    Candidates,
    PromptedClassifier,
    check_prompted,
    label_tokens,
    load_prompted,
    parameter_count,
)
from sce.baselines.settings import PromptedConfig
from sce.distributed.resources import ActorPlan, ResourcesConfig, TorchThread, embed_actors
from sce.embedding.row_checks import check_texts
from sce.errors import DataError, InputError
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
        seconds, texts_per_second: from the first row to the last; start-up and loading apart.
        peak_memory_bytes: of the largest actor: allocated on the GPU, else resident.
        parameters: of the model, adapters included.
        device: "cuda" or "cpu".
    """

    scores: list[np.ndarray]
    truncated: int
    tokens_N: np.ndarray
    seconds: float
    texts_per_second: float
    peak_memory_bytes: int
    parameters: int
    device: str


def score_prompts(
    requests: Sequence[Request],
    config: PromptedConfig,
    resources: ResourcesConfig,
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
    tokenizer = check_prompted(config)
    for number, request in enumerate(requests):
        try:
            check_texts(request.texts)
            label_tokens(tokenizer, request.label_set.names)
        except InputError as error:
            raise type(error)(f"request {number}: {error}") from None
    table = _rows_of(requests)
    if not table.num_rows:
        raise DataError("requests: there is no text in them.")
    local = {}
    if Path(config.base).is_dir():
        local["base"] = str(Path(config.base).resolve())
    if config.adapter is not None:
        local["adapter"] = config.adapter.resolve()  # type: ignore[assignment]
    plan = embed_actors(resources, what="prompting")
    label_sets = [request.label_set for request in requests]
    report = _run(table, label_sets, config.model_copy(update=local), plan)
    seconds = pc.max(report["finished"]).as_py() - pc.min(report["started"]).as_py()
    truncated = pc.sum(report["truncated"]).as_py()
    log.info("asked %d texts in %.1f s; %d were cut", table.num_rows, seconds, truncated)
    return PromptedAnswers(
        scores=_in_order(report, requests),
        truncated=truncated,
        tokens_N=report["tokens"].to_numpy(),
        seconds=seconds,
        texts_per_second=table.num_rows / seconds,
        peak_memory_bytes=pc.max(report["peak_memory_bytes"]).as_py(),
        parameters=pc.max(report["parameters"]).as_py(),
        device=plan.device,
    )


def _rows_of(requests: Sequence[Request]) -> pa.Table:
    """Columns request, place (among the texts of its request) and text, by request, the longest
    texts first."""
    sizes = [len(request.texts) for request in requests]
    request_N = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    place_N = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, np.int64)])
    texts = [text for request in requests for text in request.texts]
    lengths_N = np.fromiter(map(len, texts), np.int64, len(texts))
    order_N = pa.array(np.lexsort((-lengths_N, request_N)))
    text = pa.array(texts, pa.large_string())
    return pa.table({"request": request_N, "place": place_N, "text": text}).take(order_N)


def _run(
    table: pa.Table, label_sets: Sequence[LabelSet], config: PromptedConfig, plan: ActorPlan
) -> pa.Table:
    """The actors' answers to all rows, in no particular order."""
    rows = table.num_rows
    size = int(np.clip(rows // (plan.actors * BLOCKS_PER_ACTOR), *BLOCK_ROWS))
    blocks = [table.slice(i, size) for i in range(0, rows, size)]
    context = DataContext.get_current()
    before = (context.enable_progress_bars, context.raise_original_map_exception)
    # With its own type, a user's mistake can be known from a bug.
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    try:
        dataset = ray.data.from_arrow(blocks).map_batches(
            PromptedActor,
            fn_constructor_args=([ray.put(list(label_sets))], config, plan.device, plan.threads),
            batch_size=size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(plan.actors, len(blocks))),
            **plan.ray_arguments(),
        )
        return pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    finally:
        context.enable_progress_bars, context.raise_original_map_exception = before


def _in_order(report: pa.Table, requests: Sequence[Request]) -> list[np.ndarray]:
    """Scores [N, K] of each request.

    Raises:
        RuntimeError: a row was answered not at all, or twice.
    """
    request_N = report["request"].to_numpy()
    place_N = report["place"].to_numpy()
    lengths_N = pc.list_value_length(report["scores"]).to_numpy()
    starts_N = np.cumsum(lengths_N) - lengths_N
    flat = pc.list_flatten(report["scores"]).to_numpy()
    found = []
    for number, request in enumerate(requests):
        texts, label_set = request.texts, request.label_set
        mine_N = np.flatnonzero(request_N == number)
        if not np.array_equal(np.sort(place_N[mine_N]), np.arange(len(texts))):
            raise RuntimeError(f"request {number}: {len(mine_N)} answers to {len(texts)} texts.")
        scores_NK = np.empty((len(texts), len(label_set)), np.float32)
        scores_NK[place_N[mine_N]] = flat[starts_N[mine_N, None] + np.arange(len(label_set))]
        found.append(scores_NK)
    return found


class PromptedActor:
    """One language model; turns rows into scores. It is loaded with the first block: what goes
    wrong then comes to the user as what it is, and not as the death of an actor."""

    def __init__(
        self,
        label_sets: Sequence[Any],
        config: PromptedConfig,
        device: Literal["cpu", "cuda"],
        threads: int,
    ) -> None:
        transformers_logging.disable_progress_bar()
        self._torch = TorchThread(threads)
        self._config, self._device = config, device
        self._label_sets: Sequence[LabelSet] = ray.get(label_sets[0])
        self._candidates: dict[int, Candidates] = {}

    @cached_property
    def _classifier(self) -> PromptedClassifier:
        return self._torch.run(load_prompted, self._config, self._device)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Columns request, place and text in; request, place, scores and figures out."""
        classifier = self._classifier  # loaded before the clock runs
        started = time.time()
        request_N = block["request"].to_numpy()
        texts = block["text"].to_pylist()
        order, flat, lengths, truncated, tokens = [], [], [], [], []
        for number in np.unique(request_N).tolist():
            mine = np.flatnonzero(request_N == number)
            if number not in self._candidates:
                self._candidates[number] = classifier.candidates(self._label_sets[number])
            answered = self._torch.run(
                classifier.answer, [texts[i] for i in mine], self._candidates[number]
            )
            order.append(mine)
            flat.append(answered.scores_NK.ravel())
            lengths.append(np.full(len(mine), answered.scores_NK.shape[1]))
            truncated.append(answered.truncated_N)
            tokens.append(answered.tokens_N)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32)
        rows = block.num_rows
        kept = block.select(["request", "place"]).take(pa.array(np.concatenate(order)))
        figures = {
            "started": started,
            "finished": time.time(),
            "peak_memory_bytes": peak_bytes(torch.device(self._device)),
            "parameters": parameter_count(classifier.model),
        }
        return pa.table(
            {
                "request": kept["request"],
                "place": kept["place"],
                "scores": pa.ListArray.from_arrays(offsets, np.concatenate(flat)),
                "truncated": np.concatenate(truncated),
                "tokens": np.concatenate(tokens),
                **{name: np.full(rows, value) for name, value in figures.items()},
            }
        )
