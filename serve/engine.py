"""One loaded model: requests that come at the same time share its forward passes.

Knows nothing of Ray or HTTP. Texts go through the lane "embed", whose batches count tokens, and
then the vectors through the lane "classify", whose batches count label tokens; all of torch's work
is done in one thread, the tokenising in another, and the event loop only passes things on. A label
set that was fitted to a corpus needs no torch: its product is done beside the tokenising, at once.

Shapes: N rows of a request, G of them without an error, D the embedder's dimension.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sce.embedding.row_checks import text_errors, vector_errors
from sce.embedding.tokenising import TokenisedTexts
from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.label_tree import answer_names, tree_of
from sce.model.linear_labels import LinearLabels
from sce.model.options import Scoring
from sce.model.pooling import ChunkVectors, PooledRows, rows_for
from serve.batching import BatchReport, DeviceQueue, Lane, grouped, pieces_within
from serve.cache import CachedText, VectorCache
from serve.label_sets import ServedLabels
from serve.work import ModelAnswer, ModelRequest, NoSuchLabelSet

if TYPE_CHECKING:  # it imports torch
    from sce.predictor import Predictor

EMBED_BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
CLASSIFY_BATCH_TOKENS = {"cpu": 8192, "cuda": 262_144}
PIECES_WAITING = 2
"""Pieces of one request that may wait in a lane at a time: a large request keeps the device busy
and lets those that come later in between."""
OWN_PASS = 512
"""Label tokens of one label set in a batch that are worth forward passes of their own, in which
what the set's labels have in common is computed once."""

T = TypeVar("T")
AnyLabels = LabelSet | RaggedLabels | LinearLabels


@dataclass(frozen=True)
class LoadedModel:
    """A model, what `/info` says of it, and the label sets that it has."""

    predictor: Predictor
    info: Mapping[str, Any]
    label_sets: Mapping[str, ServedLabels] = field(default_factory=dict)

    @property
    def embedder_id(self) -> str:
        """Of equal vectors, to the bit but for what shares a batch."""
        found = self.predictor.embedder.fingerprint
        return f"{found.id}-{found.dtype}"

    def label_set(self, name: str) -> ServedLabels:
        """Raises `NoSuchLabelSet`: the model has none of the name."""
        if name not in self.label_sets:
            raise NoSuchLabelSet(name)
        return self.label_sets[name]

    def about_label_sets(self) -> list[Mapping[str, Any]]:
        """What `/v1/label_sets` shows of those that it has."""
        return [served.about for served in self.label_sets.values()]

    def with_label_sets(self, label_sets: Mapping[str, ServedLabels]) -> LoadedModel:
        """The same model with these, named in its `info` too."""
        about = {
            name: {"labels": len(served.labels), "fingerprint": served.about["fingerprint"]}
            for name, served in label_sets.items()
        }
        return replace(self, label_sets=label_sets, info={**self.info, "label_sets": about})


@dataclass(frozen=True)
class _EmbedItem:
    model: LoadedModel
    tokens: TokenisedTexts


@dataclass(frozen=True)
class _ClassifyItem:
    model: LoadedModel
    vectors_GD: np.ndarray
    labels: LabelSet | RaggedLabels
    label_texts: Mapping[str, np.ndarray]
    scoring: Scoring

    @property
    def label_tokens(self) -> int:
        """Tokens that the encoder reads: each row's labels, and its text as one."""
        return int((self.labels.counts_by_row(len(self.vectors_GD)) + 1).sum())


class Engine:
    """Answers requests with the model that was given last; those accepted before it finish with
    theirs.

    Args:
        device: "cpu" or "cuda", for the default budgets.
        executor: one thread, for all of torch's work; loading included.
        report: gets every batch.
        embed_tokens, classify_tokens: budgets of a batch; None for the device's.
    """

    def __init__(
        self,
        device: str,
        executor: Executor,
        cache: VectorCache,
        report: Callable[[BatchReport], None] = lambda batch: None,
        embed_tokens: int | None = None,
        classify_tokens: int | None = None,
    ) -> None:
        self.model: LoadedModel | None = None
        self.cache = cache
        self._device = device
        self._embed = Lane("embed", _embed_batch, 1)
        self._classify = Lane("classify", _classify_batch, 1)
        self.set_budgets(embed_tokens, classify_tokens)
        self._queue = DeviceQueue(executor, (self._classify, self._embed), report)
        self._tokenising = ThreadPoolExecutor(1, "tokenise")

    def set_budgets(self, embed_tokens: int | None, classify_tokens: int | None) -> None:
        """Tokens and label tokens of a batch; None for the device's default."""
        self._embed.budget = embed_tokens or EMBED_BATCH_TOKENS[self._device]
        self._classify.budget = classify_tokens or CLASSIFY_BATCH_TOKENS[self._device]

    @property
    def working_seconds(self) -> float:
        return self._queue.working_seconds

    def close(self) -> None:
        self._queue.close()
        self._tokenising.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: ModelRequest) -> ModelAnswer:
        """Every row has its answer or its error.

        Raises:
            NoSuchLabelSet: it asks for one that the model has not.
        """
        started = time.perf_counter()
        found = await self._answer(request)
        return replace(found, seconds={**found.seconds, "model": time.perf_counter() - started})

    async def _answer(self, request: ModelRequest) -> ModelAnswer:
        model = self.model  # another may take its place while this request is answered
        assert model is not None, "no model yet"
        labels: LabelSet | RaggedLabels | LinearLabels | None
        if isinstance(request.labels, str):
            labels = model.label_set(request.labels).labels
        else:
            labels = request.labels
        chunks: ChunkVectors | None = None
        if isinstance(request.queries, np.ndarray):
            found = _known_vectors(request.queries, request.errors)
        elif request.scoring.pooling is not None:
            found, chunks = await self._embed_chunks(model, request)
            if chunks is None:
                return found
        else:
            found = await self._embed_texts(model, request.queries, request.truncate)
        if labels is None:
            return found
        vectors_GD = found.vectors_GD
        assert vectors_GD is not None
        if not len(vectors_GD):
            return replace(found, vectors_GD=None)
        labels, scoring = labels.take(np.flatnonzero(found.good_N)), request.scoring
        if chunks is not None:
            return await self._answer_chunks(model, scoring, labels, found, chunks)
        return await self._answer_vectors(model, vectors_GD, labels, scoring, found)

    async def _answer_chunks(
        self,
        model: LoadedModel,
        scoring: Scoring,
        labels: AnyLabels,
        found: ModelAnswer,
        chunks: ChunkVectors,
    ) -> ModelAnswer:
        """Texts by their chunks, which are rows as any other."""
        asked = PooledRows.of(chunks, scoring)
        rows = asked.labels(labels)
        scored = await self._answer_vectors(model, asked.vectors_RD, rows, asked.scoring, found)
        assert scored.answers is not None
        return replace(scored, answers=asked.answers(scored.answers, labels))

    async def _answer_vectors(
        self,
        model: LoadedModel,
        vectors_GD: np.ndarray,
        labels: AnyLabels,
        scoring: Scoring,
        found: ModelAnswer,
    ) -> ModelAnswer:
        """What was `found` so far, with the answers for vectors."""
        if isinstance(labels, LinearLabels):
            began = time.perf_counter()
            work = model.predictor.answer
            answers = await self._off_loop(work, vectors_GD, labels, scoring)
            seconds = {**found.seconds, "classify": time.perf_counter() - began}
            names = answer_names(labels)
            return replace(found, names=names, answers=answers, vectors_GD=None, seconds=seconds)
        new_texts = await self._off_loop(model.predictor.new_label_texts, labels, scoring)
        known, new, _ = await self._look_up(model, new_texts, truncate=True)
        label_texts = {text: entry.vector for text, entry in known.items()}
        costs_G = labels.counts_by_row(len(vectors_GD)) + 1  # the text is a token too
        began = time.perf_counter()
        pieces = [
            _ClassifyItem(
                model,
                vectors_GD[start:end],
                labels.take(np.arange(start, end)),
                label_texts,
                scoring,
            )
            for start, end in pieces_within(costs_G, self._classify.budget)
        ]
        parts = await self._send("classify", pieces, [item.label_tokens for item in pieces])
        return replace(
            found,
            answers=Answers.join(parts),
            label_tokens=sum(item.label_tokens for item in pieces),
            embedded=found.embedded + new,
            vectors_GD=None,
            seconds={**found.seconds, "classify": time.perf_counter() - began},
        )

    async def _embed_texts(
        self, model: LoadedModel, texts: list[str], truncate: bool
    ) -> ModelAnswer:
        errors = await self._off_loop(text_errors, texts)
        good = {row: text for row, text in enumerate(texts) if row not in errors}
        distinct = list(dict.fromkeys(good.values()))
        known, embedded, seconds = await self._look_up(model, distinct, truncate)
        found = {row: known[text] for row, text in good.items()}
        cut = [row for row, text in found.items() if text.truncated]
        tokens = sum(text.tokens for text in found.values())
        if not truncate:
            for row in cut:
                del found[row]
            errors |= dict.fromkeys(cut, "text_too_long")
            cut = []
        good_N, truncated_N = np.zeros((2, len(texts)), bool)
        good_N[list(found)], truncated_N[cut] = True, True
        return ModelAnswer(
            good_N,
            errors,
            truncated_N,
            tokens,
            embedded,
            cached=len(distinct) - embedded,
            vectors_GD=np.array([text.vector for text in found.values()], np.float32),
            seconds=seconds,
        )

    async def _embed_chunks(
        self, model: LoadedModel, request: ModelRequest
    ) -> tuple[ModelAnswer, ChunkVectors | None]:
        """As `_embed_texts`, but each text in chunks, which are looked up as texts are; a text that
        has too many is cut there, or has an error without `truncate`, or where no request may have
        as many label tokens. Nothing is embedded where all texts together have too many."""
        texts = list(request.queries)
        errors = await self._off_loop(text_errors, texts)
        good = [row for row in range(len(texts)) if row not in errors]
        asked = [texts[row] for row in good]
        work = model.predictor.embedder.chunk
        cut = await self._off_loop(partial(work, max_chunks=request.max_chunks), asked)
        rows_G = rows_for(cut.counts_N, request.scoring)
        costs_G = rows_G * (request.label_counts[good] + 1)
        most = request.max_label_tokens or int(costs_G.sum())
        long_G = (cut.truncated_N & (not request.truncate)) | (costs_G > most)
        if long_G.any():
            errors |= dict.fromkeys([good[i] for i in np.flatnonzero(long_G)], "text_too_long")
            kept = np.flatnonzero(~long_G)
            good, asked = [good[i] for i in kept], [asked[i] for i in kept]
            cut = cut.take(kept)
        too_many = int(costs_G[~long_G].sum())
        if too_many > most:
            nothing = np.zeros(len(texts), bool)
            return ModelAnswer(nothing, errors, nothing, 0, 0, 0, too_many=too_many), None
        pieces = list(cut.texts(asked))
        distinct = list(dict.fromkeys(pieces))
        known, embedded, seconds = await self._look_up(model, distinct, truncate=True)
        found = [known[piece] for piece in pieces]
        vectors_CD = np.array([one.vector for one in found], np.float32)
        vectors_CD = vectors_CD.reshape(len(found), model.predictor.embedder.dimension)
        chunks = ChunkVectors(vectors_CD, cut.counts_N, cut.spans_C2)
        good_N, truncated_N = np.zeros((2, len(texts)), bool)
        good_N[good], truncated_N[good] = True, cut.truncated_N
        answer = ModelAnswer(
            good_N,
            errors,
            truncated_N,
            tokens=sum(one.tokens for one in found),
            embedded=embedded,
            cached=len(distinct) - embedded,
            vectors_GD=chunks.mean_vectors(),
            seconds=seconds,
        )
        return answer, chunks

    async def _look_up(
        self, model: LoadedModel, texts: list[str], truncate: bool
    ) -> tuple[dict[str, CachedText], int, dict[str, float]]:
        """What the embedder makes of distinct texts, from the cache or embedded now; how many were
        embedded, and the seconds. Without `truncate` a text that is too long is not embedded: its
        vector is 0."""
        if not texts:
            return {}, 0, {}
        began = time.perf_counter()
        known, new, tokens = await self._off_loop(self._tokenise_new, model, texts)
        seconds = {"tokenise": time.perf_counter() - began}
        places = [i for i, cut in enumerate(tokens.truncated) if truncate or not cut]
        vectors_WD = np.zeros((len(new), model.predictor.embedder.dimension), np.float32)
        if places:
            began = time.perf_counter()
            vectors_WD[places] = await self._embed_tokens(model, tokens.take(np.array(places)))
            seconds["embed"] = time.perf_counter() - began
        counts = zip(tokens.lengths.tolist(), tokens.truncated.tolist(), strict=True)
        # Copies, so that the cache does not hold the whole request's vectors for one of them.
        entries = [CachedText(vectors_WD[i].copy(), *count) for i, count in enumerate(counts)]
        keys = [VectorCache.key(model.embedder_id, new[i]) for i in places]
        self.cache.put(keys, [entries[i] for i in places])
        return known | dict(zip(new, entries, strict=True)), len(places), seconds

    def _tokenise_new(
        self, model: LoadedModel, texts: list[str]
    ) -> tuple[dict[str, CachedText], list[str], TokenisedTexts]:
        """What the cache has; the other texts, and their tokens."""
        entries = self.cache.get([VectorCache.key(model.embedder_id, text) for text in texts])
        known = {text: entry for text, entry in zip(texts, entries) if entry is not None}
        new = [text for text in texts if text not in known]
        return known, new, model.predictor.embedder.tokenise(new)

    async def _embed_tokens(self, model: LoadedModel, tokens: TokenisedTexts) -> np.ndarray:
        """Vectors float32 [W, D], embedded in pieces of texts of similar length."""
        order_W = np.argsort(-tokens.lengths, kind="stable")
        lengths_W = tokens.lengths[order_W]
        places = [order_W[a:b] for a, b in pieces_within(lengths_W, self._embed.budget)]
        items = [_EmbedItem(model, tokens.take(places_P)) for places_P in places]
        parts = await self._send("embed", items, [int(i.tokens.lengths.sum()) for i in items])
        vectors_WD = np.empty((len(tokens), model.predictor.embedder.dimension), np.float32)
        vectors_WD[order_W] = np.concatenate(parts)
        return vectors_WD

    async def _send(self, lane: str, items: Sequence[Any], costs: Sequence[int]) -> list[Any]:
        """Results in order; the first failure is raised, and what waits is taken back."""
        if len(items) == 1:
            return [await self._queue.submit(lane, items[0], costs[0])]
        places = asyncio.Semaphore(PIECES_WAITING)

        async def send(item: Any, cost: int) -> Any:
            async with places:
                return await self._queue.submit(lane, item, cost)

        tasks = [asyncio.create_task(send(*pair)) for pair in zip(items, costs, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    def _off_loop(self, work: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._tokenising, work, *arguments)


def _embed_batch(items: list[_EmbedItem]) -> list[np.ndarray]:
    """Items of several models, which have the same embedder as a rule, in one go each."""
    found: list[Any] = [None] * len(items)
    for places in grouped(range(len(items)), lambda i: items[i].model.embedder_id):
        joined = TokenisedTexts.join([items[i].tokens for i in places])
        vectors_WD = items[places[0]].model.predictor.embedder.embed_tokens(joined)
        ends = np.cumsum([len(items[i].tokens) for i in places])
        for i, part_WD in zip(places, np.split(vectors_WD, ends[:-1])):
            found[i] = part_WD
    return found


def _classify_batch(items: list[_ClassifyItem]) -> list[Answers]:
    """Rows with the same label set together where they are many, all others in mixed batches."""
    found: list[Any] = [None] * len(items)
    for of_model in grouped(
        range(len(items)), lambda i: (id(items[i].model), items[i].scoring.kind)
    ):
        predictor = items[of_model[0]].model.predictor
        groups = grouped(of_model, lambda i: _set_key(items[i].labels))
        mixed: list[int] = []
        for places in groups:
            cost = sum(items[i].label_tokens for i in places)
            if len(groups) == 1 or cost >= OWN_PASS or tree_of(items[places[0]].labels):
                _answer_together(predictor, items, places, found)
            else:
                mixed += places
        if mixed:
            _answer_together(predictor, items, mixed, found)
    return found


def _answer_together(
    predictor: Predictor, items: list[_ClassifyItem], places: list[int], found: list[Any]
) -> None:
    mine = [items[i] for i in places]
    vectors_GD = np.concatenate([item.vectors_GD for item in mine])
    labels: LabelSet | RaggedLabels = mine[0].labels
    if len({_set_key(item.labels) for item in mine}) > 1:
        labels = RaggedLabels.join([item.labels.by_row(len(item.vectors_GD)) for item in mine])
    answers = predictor.answer(
        vectors_GD,
        labels,
        reduce(Scoring.joined, (item.scoring for item in mine)),
        label_texts={text: vector for item in mine for text, vector in item.label_texts.items()},
    )
    start = 0
    for i, item in zip(places, mine):
        end = start + len(item.vectors_GD)
        found[i] = answers.part(start, end, item.scoring)
        start = end


def _set_key(labels: LabelSet | RaggedLabels) -> Any:
    """Equal for sets whose answers have the same places: the same labels in the same order."""
    if isinstance(labels, LabelSet):
        return (labels.fingerprint, tuple(labels.canonical_order))
    return id(labels)


def _known_vectors(vectors_ND: np.ndarray, known: Mapping[int, str]) -> ModelAnswer:
    """Embeddings that the user has: finite unit vectors, or an error for the row."""
    codes_N = vector_errors(vectors_ND)
    codes_N[list(known)] = list(known.values())
    good_N = codes_N == ""
    errors = {i: str(codes_N[i]) for i in np.flatnonzero(~good_N).tolist()}
    return ModelAnswer(
        good_N, errors, np.zeros(len(good_N), bool), 0, 0, 0, vectors_GD=vectors_ND[good_N]
    )
