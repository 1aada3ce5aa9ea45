"""The HTTP side: who may ask, what may be asked, and what is said when it may not.

`make_app` is the interface as an ASGI application; it asks a `Desk` for everything, so it runs
without Ray too. `Gateway` is the deployment. It holds no weights and computes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from sce.config import VERSION
from serve.api import (
    ApiError,
    Batch,
    BatchList,
    BatchRequest,
    ClassifyRequest,
    ClassifyResponse,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ErrorResponse,
)
from serve.auth import Guard
from serve.batches import BatchDesk
from serve.convert import (
    Classify,
    batch_labels,
    classify_request,
    classify_response,
    embeddings_request,
    embeddings_response,
    parse,
)
from serve.settings import Limits
from serve.work import ModelAnswer, ModelRequest

SWAGGER = Path(str(files("fastapi_swagger"))) / "resources"
PAGE = Path(__file__).with_name("page.html")
OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json", "/docs-assets")
"""Answered without a token: they tell nothing of texts, labels or models."""
SMALL_BYTES = 64 * 2**10
"""Bodies up to this are read on the event loop: milliseconds."""
DRAIN = 4
"""Of a body that is too large, this many times the limit is read and thrown away, so that the
sender comes to read why; then the connection is closed."""

log = logging.getLogger("ray.serve")


class ModelPort(Protocol):
    """How the gateway reaches a model."""

    async def answer(self, request: ModelRequest) -> ModelAnswer:
        """Raises `ApiError` 503 where no replica answers."""

    async def info(self) -> Mapping[str, Any]:
        """Raises `ApiError` 503 where no replica answers."""


class Recorder(Protocol):
    """Is told of every request that was answered."""

    def request(self, route: str, status: int, model: str, seconds: float) -> None: ...

    def classified(self, model: str, asked: Classify, body: Mapping[str, Any]) -> None: ...

    def open_requests(self, count: int) -> None: ...


class Desk:
    """What requests share: models, limits, tokens, and how much is being worked on.

    Args:
        models: by name, the default first.
        recorder: None to record nothing.
        metrics: the page of `/metrics`.
        batches: None where there are none.
        log_texts: write what is asked into the log.
    """

    def __init__(
        self,
        models: Mapping[str, ModelPort],
        limits: Limits,
        guard: Guard,
        recorder: Recorder | None = None,
        metrics: Callable[[], Awaitable[str]] | None = None,
        batches: BatchDesk | None = None,
        log_texts: bool = False,
    ) -> None:
        self.models = dict(models)
        self.limits = limits
        self.guard = guard
        self.recorder = recorder
        self.metrics = metrics
        self.batches = batches
        self.log_texts = log_texts
        self._requests = 0
        self._bytes = 0
        self._infos: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def choose(self, name: str | None) -> str:
        """The name of the model that is asked.

        Raises:
            ApiError: 404, there is none of the name.
        """
        if name is None:
            return next(iter(self.models))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404, "model_not_found", f"no model {name!r}; there are: {known}.", "model"
            )
        return name

    async def info(self, name: str, seconds: float = 1.0) -> Mapping[str, Any]:
        """What a model says of itself, at most so old."""
        known = self._infos.get(name)
        if known is None or time.monotonic() - known[0] > seconds:
            known = (time.monotonic(), await self.models[name].info())
            self._infos[name] = known
        return known[1]

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
            raise ApiError(
                415, "not_json", "send the header Content-Type: application/json.", "Content-Type"
            )
        if self._requests >= limits.max_concurrent_requests:
            raise self._overloaded("max_concurrent_requests")
        self._count(1)
        held = 0
        try:
            body = bytearray()
            async with asyncio.timeout(limits.request_timeout_seconds) as timeout:
                try:
                    async for chunk in self._chunks(request):
                        if self._bytes + len(chunk) > limits.max_concurrent_bytes:
                            raise self._overloaded("max_concurrent_bytes")
                        held += len(chunk)
                        self._bytes += len(chunk)
                        body += chunk
                except TimeoutError:
                    raise ApiError(408, "body_timeout", "the body did not come in time.") from None
                yield bytes(body)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise ApiError(
                504,
                "timeout",
                f"no answer within request_timeout_seconds ({limits.request_timeout_seconds:g}); "
                "send fewer texts, or try again later.",
                "request_timeout_seconds",
            ) from None
        finally:
            self._bytes -= held
            self._count(-1)

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        limit = self.limits.max_body_bytes
        size = 0
        announced = request.headers.get("content-length", "")
        over = announced.isdigit() and int(announced) > limit
        if over and int(announced) > DRAIN * limit:
            raise self._too_large(int(announced))
        async for chunk in request.stream():
            size += len(chunk)
            over |= size > limit
            if size > DRAIN * limit:
                break
            if not over:
                yield chunk
        if over:
            raise self._too_large(int(announced) if announced.isdigit() else size)

    def _too_large(self, size: int) -> ApiError:
        limit = self.limits.max_body_bytes
        message = f"the body has {size} bytes or more, but max_body_bytes is {limit}."
        return ApiError(413, "limit_exceeded", message, "max_body_bytes")

    def _overloaded(self, limit: str) -> ApiError:
        return ApiError(
            429,
            "overloaded",
            f"the server works on as much as it may ({limit}: {getattr(self.limits, limit)}); "
            "try again.",
            limit,
            retry_after=1,
        )

    def _count(self, more: int) -> None:
        self._requests += more
        if self.recorder is not None:
            self.recorder.open_requests(self._requests)


async def _off_loop(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Large things in a thread: other requests' answers go on meanwhile."""
    if size <= SMALL_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse} for status in statuses}


def make_app(desk: Desk) -> FastAPI:
    """The interface: every route, and one form for every error."""
    app = FastAPI(
        title="Soft Contextualized Encoder",
        description="Classify texts with labels that come with the request.",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
    )
    app.mount("/docs-assets", StaticFiles(directory=SWAGGER), name="docs-assets")

    @app.middleware("http")
    async def watch(request: Request, call_next: Callable[..., Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        request.state.model = ""
        response = await _guarded(desk, request, call_next)
        seconds = time.perf_counter() - started
        if "server-timing" in response.headers:
            response.headers["server-timing"] += f", gateway;dur={1000 * seconds:.1f}"
        route = request.scope.get("route")
        path = getattr(route, "path", "unknown")
        if desk.recorder is not None:
            desk.recorder.request(path, response.status_code, request.state.model, seconds)
        return response

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return _error_response(error)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        return _error_response(_of_http(error, request))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root}/docs-assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs-assets/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs-assets/favicon-32x32.png",
        )

    @app.get("/health", summary="503 until every model answers.", responses=_errors(503))
    async def health() -> dict[str, str]:
        await asyncio.gather(*(desk.info(name) for name in desk.models))
        return {"status": "ok"}

    @app.get("/info", summary="Models, and every limit.", responses=_errors(401, 403, 503))
    async def info() -> dict[str, Any]:
        models = await asyncio.gather(*(desk.info(name, 0.0) for name in desk.models))
        return {
            "models": models,
            "default_model": next(iter(desk.models)),
            "limits": desk.limits.model_dump(),
            "version": VERSION,
            "authentication": "bearer" if desk.guard.has_tokens else "loopback",
            "batches": desk.batches is not None and desk.batches.settings.allowed,
        }

    @app.get("/v1/models", summary="In OpenAI's form.", responses=_errors(401, 403, 503))
    async def models() -> dict[str, Any]:
        data = [{"id": name, "object": "model", "owned_by": "sce"} for name in desk.models]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{model}", responses=_errors(401, 403, 404, 503))
    async def model(model: str) -> dict[str, Any]:
        return {"id": desk.choose(model), "object": "model", "owned_by": "sce"}

    @app.get("/metrics", response_class=PlainTextResponse, responses=_errors(401, 403))
    async def metrics() -> Response:
        text = "" if desk.metrics is None else await desk.metrics()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    statuses = _errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504)

    @app.post(
        "/v1/classify",
        summary="Classify texts or embeddings.",
        response_model=ClassifyResponse,
        responses=statuses,
        openapi_extra=_schema(ClassifyRequest),
    )
    async def classify(request: Request) -> Response:
        async with desk.admitted(request) as body:
            asked: ClassifyRequest = await _off_loop(len(body), parse, ClassifyRequest, body)
            name = request.state.model = desk.choose(asked.model)
            if desk.log_texts:
                log.info("classify: %s", body.decode("utf-8", "replace"))
            dimension = (await desk.info(name, 60.0))["dimension"]
            checked: Classify = await _off_loop(
                len(body), classify_request, asked, desk.limits, dimension
            )
            answer = await desk.models[name].answer(checked.work)
            numbers = sum(map(len, checked.names)) if checked.work.return_scores else 0
            size = (200 * len(checked.names) + 30 * numbers) // 4
            found = await _off_loop(size, classify_response, checked, answer, name)
            if desk.recorder is not None:
                desk.recorder.classified(name, checked, found)
            return await _json_response(size, found, answer.seconds)

    @app.post(
        "/v1/embeddings",
        summary="Vectors of texts, in OpenAI's form.",
        response_model=EmbeddingsResponse,
        responses=statuses,
        openapi_extra=_schema(EmbeddingsRequest),
    )
    async def embeddings(request: Request) -> Response:
        async with desk.admitted(request) as body:
            asked: EmbeddingsRequest = await _off_loop(len(body), parse, EmbeddingsRequest, body)
            name = request.state.model = desk.choose(asked.model)
            if desk.log_texts:
                log.info("embeddings: %s", body.decode("utf-8", "replace"))
            dimension = (await desk.info(name, 60.0))["dimension"]
            work = embeddings_request(asked, desk.limits, dimension)
            answer = await desk.models[name].answer(work)
            size = 4 * dimension * len(work.queries)
            found = await _off_loop(size, embeddings_response, asked, answer, name)
            return await _json_response(size, found, answer.seconds)

    _add_batches(app, desk)
    _add_schemas(app, ClassifyRequest, EmbeddingsRequest, BatchRequest)
    return app


def _add_batches(app: FastAPI, desk: Desk) -> None:
    """Bulk jobs, in the manner of OpenAI's Batch API."""

    def batches() -> BatchDesk:
        if desk.batches is None:
            raise ApiError(403, "batches_disabled", "this server takes no batches.")
        return desk.batches

    @app.post(
        "/v1/batches",
        summary="Classify files: starts a bulk job.",
        response_model=Batch,
        responses=_errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 504),
        openapi_extra=_schema(BatchRequest),
    )
    async def create(request: Request) -> Batch:
        async with desk.admitted(request) as body:
            asked: BatchRequest = await _off_loop(len(body), parse, BatchRequest, body)
            name = request.state.model = desk.choose(asked.model)
            if asked.labels is not None:
                batch_labels(asked, desk.limits)
            return await batches().create(asked, name)

    @app.get("/v1/batches", response_model=BatchList, responses=_errors(401, 403, 503))
    async def every() -> BatchList:
        return BatchList(data=await batches().every())

    @app.get("/v1/batches/{batch_id}", response_model=Batch, responses=_errors(401, 403, 404, 503))
    async def one(batch_id: str) -> Batch:
        return await batches().get(batch_id)

    @app.post(
        "/v1/batches/{batch_id}/cancel",
        response_model=Batch,
        responses=_errors(401, 403, 404, 503),
    )
    async def cancel(batch_id: str) -> Batch:
        return await batches().cancel(batch_id)


PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


async def _guarded(
    desk: Desk, request: Request, call_next: Callable[..., Awaitable[Response]]
) -> Response:
    """Whatever happens, the answer has the form of this interface."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
    try:
        if path not in OPEN_PATHS and not path.startswith("/docs-assets/"):
            peer = request.client.host if request.client else None
            headers = request.headers
            desk.guard.check(headers.get("authorization"), peer, headers.get("host"))
        return await call_next(request)
    except ApiError as error:
        return _error_response(error)
    except Exception:
        log.exception("%s %s failed", request.method, path)
        return _error_response(
            ApiError(500, "internal_error", "the server failed; its log says where.")
        )


def _error_response(error: ApiError) -> Response:
    return Response(
        to_json(error.body()), error.status, error.headers(), media_type="application/json"
    )


async def _json_response(size: int, content: Any, seconds: Mapping[str, float]) -> Response:
    """With the header `Server-Timing`: milliseconds of each step, as browsers show them."""
    timing = ", ".join(f"{step};dur={1000 * spent:.1f}" for step, spent in seconds.items())
    body = await _off_loop(size, to_json, content)
    return Response(body, headers={"Server-Timing": timing}, media_type="application/json")


def _of_http(error: HTTPException, request: Request) -> ApiError:
    if error.status_code == 404:
        return ApiError(404, "route_not_found", f"no route {request.url.path!r}; see /docs.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another")
        message = f"{request.method} is not allowed here, but {allowed} is."
        return ApiError(405, "method_not_allowed", message, allow=allowed)
    return ApiError(error.status_code, "invalid_request", str(error.detail))


def _add_schemas(app: FastAPI, *kinds: type[BaseModel]) -> None:
    """The request bodies, which FastAPI does not see because it does not read them."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = original()
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for kind in kinds:
                own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= own.pop("$defs", {})
                schemas[kind.__name__] = own
            security = {"bearer": {"type": "http", "scheme": "bearer"}}
            found["components"]["securitySchemes"] = security
            for path, methods in found["paths"].items():
                if path not in OPEN_PATHS:
                    for operation in methods.values():
                        operation["security"] = [{"bearer": []}, {}]
            app.openapi_schema = json.loads(json.dumps(found))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
