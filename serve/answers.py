"""What a request is answered, whether it came to a route or stands in a file of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from pydantic_core import to_json

from sce.client.wire import ClassifyRequest, EmbeddingsRequest
from serve.convert import (
    check_chunks,
    classify_request,
    classify_response,
    embeddings_request,
    embeddings_response,
    parse,
)
from serve.ingress import Ingress

SMALL_BYTES = 64 * 2**10
"""Bodies up to this are read on the event loop: milliseconds."""
_LARGE = ThreadPoolExecutor(2, "large")
"""What is not read on the event loop. Python runs one thread at a time: of many, the loop would get
a small share."""
T = TypeVar("T")


class Answered(NamedTuple):
    """The body of an answer, about how many bytes writing it is worth, the name of the model that
    gave it, and the seconds of each step."""

    content: Any
    size: int
    model: str
    seconds: Mapping[str, float]


async def classified(ingress: Ingress, asked: ClassifyRequest, size: int) -> Answered:
    """Of a request that was sent as so many bytes. Raises `ApiError`."""
    name, chosen, set_labels = ingress.choose(asked.model), asked.label_set, 0
    if chosen is not None:
        models = await ingress.choose_label_set(chosen, asked.model)
        name, set_labels = next(iter(models.items()))
    dimension = (await ingress.info(name, 60.0))["dimension"]
    limits = ingress.limits
    work = await off_loop(size, classify_request, asked, limits, dimension, set_labels)
    answer = await ingress.models[name].answer(work)
    check_chunks(answer, limits)
    counts_N = work.label_counts
    numbers = int(counts_N.sum()) if work.scoring.return_scores else 0
    # Bytes of the answer, a quarter: writing takes less time than parsing as many.
    size = (200 * len(counts_N) + 30 * numbers) // 4
    found = await off_loop(size, classify_response, asked, work, answer, name)
    widest = int(counts_N.max(initial=0))
    ingress.metrics.classified(name, chosen or "", widest, found["data"])
    return Answered(found, size, name, answer.seconds)


async def embedded(ingress: Ingress, asked: EmbeddingsRequest, size: int) -> Answered:
    """As `classified`."""
    name = ingress.choose(asked.model)
    dimension = (await ingress.info(name, 60.0))["dimension"]
    work = embeddings_request(asked, ingress.limits, dimension)
    answer = await ingress.models[name].answer(work)
    size = 4 * dimension * len(work.queries)
    found = await off_loop(size, embeddings_response, asked, answer, name)
    return Answered(found, size, name, answer.seconds)


_ENDPOINTS: Mapping[str, tuple[type[Any], Callable[..., Awaitable[Answered]]]] = {
    "/v1/classify": (ClassifyRequest, classified),
    "/v1/embeddings": (EmbeddingsRequest, embedded),
}


async def answered(ingress: Ingress, endpoint: str, body: bytes) -> bytes:
    """What a route (`serve.file_forms.Endpoint`) answers to a body, as JSON. Raises `ApiError`."""
    kind, answer = _ENDPOINTS[endpoint]
    async with ingress.timed():
        asked = await off_loop(len(body), parse, kind, body)
        found = await answer(ingress, asked, len(body))
        return await off_loop(found.size, to_json, found.content)


async def off_loop(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Large things in a thread: other requests' answers go on meanwhile."""
    if size <= SMALL_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_LARGE, work, *arguments)
