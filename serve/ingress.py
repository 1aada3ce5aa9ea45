"""What stands before the models: which requests are let in, how much is worked on at a time, and
which model is asked. Holds no weights and computes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Protocol

from fastapi import Request
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from sce.errors import InputError, quoted
from serve.auth import Guard
from serve.batches import BatchJobs
from serve.convert import refused_option
from serve.file_batches import FileBatches
from serve.files import FileStore
from serve.metrics import GatewayMetrics
from serve.proxy import sent_along
from serve.refusals import ApiError
from serve.settings import Limits
from serve.work import ModelAnswer, ModelRequest, NoSuchLabelSet

ATTEMPTS = 3
"""A request whose replica died is sent again: classifying twice does no harm."""
INFO_SECONDS = 5.0
ALIVE_SECONDS = 10.0
"""As often as Ray itself looks."""
DRAIN = 4
"""A body that is too large: this many times the limit is read and thrown away, so that the
sender comes to read why; then the connection is closed."""

log = logging.getLogger("ray.serve")


class Model(Protocol):
    """What is asked of a model, wherever it is; each may raise `ApiError` (503)."""

    async def answer(self, request: ModelRequest) -> ModelAnswer: ...
    async def info(self) -> Mapping[str, Any]: ...
    async def label_sets(self) -> list[Mapping[str, Any]]: ...
    async def label_set(self, name: str) -> dict[str, Any]: ...
    async def report_page(self, name: str) -> bytes | None: ...


class Replicas:
    """A model's replicas, behind a handle."""

    def __init__(self, name: str, handle: DeploymentHandle, metrics: GatewayMetrics) -> None:
        self._name, self._handle, self._metrics = name, handle, metrics

    async def answer(self, request: ModelRequest) -> ModelAnswer:
        for attempt in range(1, ATTEMPTS + 1):
            response = self._handle.answer.remote(request)
            try:
                return await response
            except InputError as error:  # what the label set that was named cannot do
                raise refused_option(error) from None
            except asyncio.CancelledError:  # a timeout, or the caller has gone
                response.cancel()
                raise
            except RayActorError:
                self._metrics.retries.inc(1, {"model": self._name})
                log.warning("%s: a replica died (attempt %d)", self._name, attempt)
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise self._unavailable(str(error)) from None
        raise self._unavailable("its replicas died one after another")

    async def info(self) -> Mapping[str, Any]:
        return await self._look("info")

    async def label_sets(self) -> list[Mapping[str, Any]]:
        return await self._look("label_sets")

    async def label_set(self, name: str) -> dict[str, Any]:
        return await self._look("label_set", name)

    async def report_page(self, name: str) -> bytes | None:
        return await self._look("report_page", name)

    async def _look(self, what: str, *arguments: str) -> Any:
        """What a method of `ModelReplica` that computes nothing says."""
        try:
            async with asyncio.timeout(INFO_SECONDS):
                return await getattr(self._handle, what).remote(*arguments)
        except NoSuchLabelSet:  # a RayTaskError as well
            raise
        except (RayActorError, RayTaskError, BackPressureError, DeploymentUnavailableError) as e:
            raise self._unavailable(type(e).__name__) from None
        except TimeoutError:
            raise self._unavailable(f"no answer within {INFO_SECONDS:g} s") from None

    def _unavailable(self, reason: str) -> ApiError:
        message = f"the model {self._name!r} does not answer at the moment ({reason})."
        return ApiError(503, "model_unavailable", message, "model", {"Retry-After": "2"})


class Ingress:
    """What requests share: models, limits, tokens, and how much is being worked on.

    Args:
        models: by name, the default first.

    Attributes:
        ready: set, unless nothing can be answered yet.
        limits, log_texts, batches, files: may change at any time, for the requests that come after.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        guard: Guard,
        limits: Limits | None = None,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        self.models: dict[str, Model] = dict(models)
        self.guard = guard
        self.limits = limits or Limits()
        self.metrics = metrics or GatewayMetrics()
        self.batches = BatchJobs()
        self.files = FileStore()
        self.file_batches = FileBatches(self.files)
        self.log_texts = False
        self.ready = asyncio.Event()
        self.ready.set()
        self._requests = 0
        self._bytes = 0
        self._infos: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def choose(self, name: str | None) -> str:
        """The name of the model that is asked.

        Raises:
            ApiError: 404, there is none of the name.
        """
        if name is None:
            return next(iter(self.models))
        if name not in self.models:
            message = f"no model {quoted(name)}; there are: {', '.join(self.models)}."
            raise ApiError(404, "model_not_found", message, "model")
        return name

    async def choose_label_set(self, name: str, model: str | None = None) -> dict[str, int]:
        """The models that have a label set, the default first, with the number of its labels;
        `model` alone where it is given.

        Raises:
            ApiError: 404, no model has one of the name; 422, `model` has not.
        """
        found: dict[str, int] = {}
        known: set[str] = set()
        for seconds in (60.0, 1.0):  # one that came a moment ago is asked for anew
            for one in self.models:
                sets = (await self.info(one, seconds)).get("label_sets", {})
                known |= set(sets)
                if name in sets:
                    found[one] = sets[name]["labels"]
            if found and model in (None, *found):
                return found if model is None else {model: found[model]}
        if found:
            message = (
                f"the model {quoted(model)} does not have the label set {name!r}, which was fitted "
                f"to another embedder's vectors; these have it: {', '.join(found)}."
            )
            raise ApiError(422, "label_set_mismatch", message, "label_set")
        there = f"there are: {', '.join(sorted(known))}" if known else "this server has none"
        message = f"no label set {quoted(name)}; {there}."
        raise ApiError(404, "label_set_not_found", message, "label_set")

    async def label_sets(self) -> list[dict[str, Any]]:
        """Every label set once, with the models that have it."""
        found: dict[str, dict[str, Any]] = {}
        sets = await asyncio.gather(*(model.label_sets() for model in self.models.values()))
        for model, of_model in zip(self.models, sets):
            for about in of_model:
                found.setdefault(about["id"], {**about, "models": []})["models"].append(model)
        return list(found.values())

    async def info(self, name: str, seconds: float = 1.0) -> Mapping[str, Any]:
        """What a model says of itself, at most so old."""
        known = self._infos.get(name)
        if known is None or time.monotonic() - known[0] > seconds:
            known = (time.monotonic(), await self.models[name].info())
            self._infos[name] = known
        return known[1]

    async def see_ready(self, seconds: float) -> None:
        """Wait until something can be answered. Raises `ApiError` 503 after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self.ready.wait()
        except TimeoutError:
            message = "the model is being loaded; try again."
            raise ApiError(503, "starting", message, headers={"Retry-After": "2"}) from None

    async def see_alive(self, name: str) -> None:
        """See that a model answers, or did `ALIVE_SECONDS` ago: then it is asked again meanwhile,
        so that a probe does not wait in the queue of a model that has much to do.

        Raises:
            ApiError: 503, it does not answer.
        """
        known = self._infos.get(name)
        age = float("inf") if known is None else time.monotonic() - known[0]
        if age > ALIVE_SECONDS:
            await self.info(name, 0.0)
        elif age > 1.0 and name not in self._looking:
            self._looking[name] = task = asyncio.create_task(self._look_again(name))
            task.add_done_callback(lambda _: self._looking.pop(name))

    async def _look_again(self, name: str) -> None:
        with suppress(ApiError):  # said to the probe that comes when the last answer is too old
            await self.info(name, 0.0)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A place among the requests that are worked on.

        Raises:
            ApiError: 429, there is none.
        """
        if self._requests >= self.limits.max_concurrent_requests:
            raise self._overloaded("max_concurrent_requests")
        # Nothing is awaited between, so no two requests take one place.
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @asynccontextmanager
    async def timed(self) -> AsyncIterator[None]:
        """Raises `ApiError` 504 where the work takes too long."""
        limits = self.limits
        async with _within(limits.request_timeout_seconds, _late_answer(limits)):
            yield

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request that there is room for.

        Raises:
            ApiError: 408, it does not come in time; 413, it is too large; 415, it is no JSON; 429,
                too much is being worked on; 504, the work takes too long.
        """
        limits = self.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = "send the header Content-Type: application/json."
            raise ApiError(415, "not_json", message, "Content-Type")
        with self.entered():
            body = bytearray()
            try:
                async with _within(limits.body_timeout_seconds, _late_body(limits)):
                    # Counted as they come: what a sender announces may be wrong, or missing.
                    async for chunk in self._chunks(request):
                        if self._bytes + len(chunk) > limits.max_concurrent_bytes:
                            raise self._overloaded("max_concurrent_bytes")
                        self._bytes += len(chunk)
                        body += chunk
                async with self.timed():
                    yield bytes(body)
            finally:
                self._bytes -= len(body)

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        """The body's parts, up to the limit; what is beyond is drained before the refusal."""
        limit = self.limits.max_body_bytes
        header = request.headers.get("content-length", "")
        announced, size = int(header[:19]) if header.isdecimal() else 0, 0
        if announced <= DRAIN * limit:
            whole = sent_along(request.scope)
            async for chunk in request.stream() if whole is None else _one(whole):
                size += len(chunk)
                if size > DRAIN * limit:
                    break
                if max(announced, size) <= limit:
                    yield chunk
        size = max(announced, size)
        if size > limit:
            message = f"the body has {size} bytes or more, but max_body_bytes is {limit}."
            raise ApiError(413, "limit_exceeded", message, "max_body_bytes")

    def _overloaded(self, limit: str) -> ApiError:
        allowed = f"{limit}: {getattr(self.limits, limit)}"
        message = f"the server works on as much as it may ({allowed}); try again."
        return ApiError(429, "overloaded", message, limit, {"Retry-After": "1"})

    def _count(self, more: int) -> None:
        self._requests += more
        self.metrics.open_requests.set(self._requests)


async def _one(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


@asynccontextmanager
async def _within(seconds: float, late: ApiError) -> AsyncIterator[None]:
    """Raises `late` where what is inside takes longer. Awaited things that run into a time limit of
    their own raise `TimeoutError`, as they would without it."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise late from None


def _late_body(limits: Limits) -> ApiError:
    """The rest of the body may come at any time, so the connection is of no more use."""
    message = (
        f"the body did not come within body_timeout_seconds ({limits.body_timeout_seconds:g}); "
        "send less at a time."
    )
    headers = {"Connection": "close"}
    return ApiError(408, "body_timeout", message, "body_timeout_seconds", headers)


def _late_answer(limits: Limits) -> ApiError:
    message = (
        f"no answer within request_timeout_seconds ({limits.request_timeout_seconds:g}); "
        "send fewer texts, or try again later."
    )
    return ApiError(504, "timeout", message, "request_timeout_seconds")
