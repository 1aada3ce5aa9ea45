"""Every route of the interface, and one form for whatever happens, as an ASGI application around an
`Ingress`.

FastAPI reads no body here: `Ingress.admitted` does, within the limits, and pydantic parses it once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from sce.client.wire import (
    Batch,
    BatchList,
    BatchRequest,
    ClassifyRequest,
    ClassifyResponse,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ErrorResponse,
    LabelSetDetails,
    LabelSetList,
)
from sce.config import VERSION
from sce.errors import clipped, quoted
from serve.convert import (
    check_labels,
    classify_request,
    classify_response,
    embeddings_request,
    embeddings_response,
    parse,
)
from serve.headers import NoSniff, docs_headers, page_headers, report_headers
from serve.ingress import Ingress
from serve.metrics import gather_metrics
from serve.middleware import OPEN_PATHS, Watched
from serve.refusals import ApiError
from serve.work import NoSuchLabelSet

SWAGGER = Path(str(files("fastapi_swagger"))) / "resources"
PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
PAGE_HEADERS = page_headers(PAGE)
REPORT_HEADERS = report_headers()
SMALL_BYTES = 64 * 2**10
"""Bodies up to this are read on the event loop: milliseconds."""
_LARGE = ThreadPoolExecutor(2, "large")
"""What is not read on the event loop. Python runs one thread at a time: of many, the loop would get
a small share."""
BODIES = (ClassifyRequest, EmbeddingsRequest, BatchRequest)

log = logging.getLogger("ray.serve")


def make_app(ingress: Ingress, origins: Sequence[str] = ()) -> FastAPI:
    """The interface of the models behind `ingress`, which pages of `origins` may ask as well."""
    app = FastAPI(
        title="Soft Contextualized Encoder",
        description="Classify texts with labels that come with the request.",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
    )
    app.state.ingress = ingress
    app.mount("/docs-assets", StaticFiles(directory=SWAGGER), name="docs-assets")
    app.add_middleware(Watched, ingress=ingress)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "Server-Timing"],
        )
    app.add_middleware(NoSniff)
    app.exception_handler(ApiError)(_refuse)
    app.exception_handler(HTTPException)(_refuse_http)
    app.exception_handler(NoSuchLabelSet)(_refuse_label_set)
    app.include_router(pages)
    app.include_router(router)
    original = app.openapi
    app.openapi = lambda: app.openapi_schema or _document(app, original())  # type: ignore[method-assign]
    return app


async def _ingress(request: Request) -> Ingress:
    found: Ingress = request.app.state.ingress
    return found


Served = Annotated[Ingress, Depends(_ingress)]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse} for status in statuses}


def _body(kind: type[BaseModel], *more_statuses: int) -> dict[str, Any]:
    """How a route with a body is described."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"required": True, "content": {"application/json": {"schema": schema}}}
    statuses = (400, 404, 408, 413, 415, 422, 429, 503, 504, *more_statuses)
    return {"responses": _errors(*statuses), "openapi_extra": {"requestBody": content}}


pages = APIRouter()
"""Routes that need no token."""
router = APIRouter(responses=_errors(401, 403))


@pages.get("/", include_in_schema=False)
async def page() -> Response:
    return HTMLResponse(PAGE, headers=PAGE_HEADERS)


@pages.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    root = request.scope.get("root_path", "").rstrip("/")
    found = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{root}/docs-assets/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs-assets/swagger-ui.css",
        swagger_favicon_url=f"{root}/docs-assets/favicon-32x32.png",
    )
    found.headers.update(docs_headers(bytes(found.body).decode()))
    return found


@pages.get("/health", summary="503 until every model answers.", responses=_errors(503))
async def health(ingress: Served) -> dict[str, str]:
    await asyncio.gather(*map(ingress.see_alive, ingress.models))
    return {"status": "ok"}


@router.get("/info", summary="Models, and every limit.", responses=_errors(503))
async def info(ingress: Served) -> dict[str, Any]:
    return {
        "models": await asyncio.gather(*(ingress.info(name, 0.0) for name in ingress.models)),
        "default_model": next(iter(ingress.models)),
        "limits": ingress.limits.model_dump(),
        "version": VERSION,
        "authentication": "bearer" if ingress.guard.has_tokens else "loopback",
        "batches": ingress.batches.settings.allowed,
    }


@router.get("/v1/models", summary="In OpenAI's form.", responses=_errors(503))
async def models(ingress: Served) -> dict[str, Any]:
    return {"object": "list", "data": [_openai_model(name) for name in ingress.models]}


@router.get("/v1/models/{model}", responses=_errors(404, 503))
async def model(ingress: Served, model: str) -> dict[str, Any]:
    return _openai_model(ingress.choose(model))


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "sce"}


@router.get(
    "/v1/label_sets",
    summary="Labels that were fitted to a corpus.",
    response_model=LabelSetList,
    responses=_errors(503),
)
async def label_sets(ingress: Served) -> dict[str, Any]:
    return {"data": await ingress.label_sets()}


@router.get(
    "/v1/label_sets/{name}",
    summary="One of them, with the figures of its fit.",
    response_model=LabelSetDetails,
    responses=_errors(404, 503),
)
async def label_set(ingress: Served, name: str) -> dict[str, Any]:
    models = list(await ingress.choose_label_set(name))
    return {**await ingress.models[models[0]].label_set(name), "models": models}


@router.get(
    "/v1/label_sets/{name}/report",
    summary="Its report, a page.",
    response_class=HTMLResponse,
    responses=_errors(404, 503),
)
async def report(ingress: Served, name: str) -> Response:
    model = next(iter(await ingress.choose_label_set(name)))
    found = await ingress.models[model].report_page(name)
    if found is None:
        message = f"the folder of the label set {quoted(name)} has no report.html."
        raise ApiError(404, "report_not_found", message, "label_set")
    return HTMLResponse(found, headers=REPORT_HEADERS)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> Response:
    media_type = "text/plain; version=0.0.4; charset=utf-8"
    return PlainTextResponse(await gather_metrics(), media_type=media_type)


@router.post(
    "/v1/classify",
    summary="Classify texts or embeddings.",
    response_model=ClassifyResponse,
    **_body(ClassifyRequest),
)
async def classify(request: Request, ingress: Served) -> Response:
    async with _asked(request, ingress, ClassifyRequest) as (asked, name, size):
        chosen, set_labels = asked.label_set, 0
        if chosen is not None:
            models = await ingress.choose_label_set(chosen, asked.model)
            name, set_labels = next(iter(models.items()))
            request.state.model = name
        dimension = (await ingress.info(name, 60.0))["dimension"]
        limits = ingress.limits
        work = await _off_loop(size, classify_request, asked, limits, dimension, set_labels)
        answer = await ingress.models[name].answer(work)
        counts_N = work.label_counts
        numbers = int(counts_N.sum()) if work.return_scores else 0
        # Bytes of the answer, a quarter: writing takes less time than parsing as many.
        size = (200 * len(counts_N) + 30 * numbers) // 4
        found = await _off_loop(size, classify_response, asked, work, answer, name)
        widest = int(counts_N.max(initial=0))
        ingress.metrics.classified(name, chosen or "", widest, found["data"])
        return await _json_response(size, found, answer.seconds)


@router.post(
    "/v1/embeddings",
    summary="Vectors of texts, in OpenAI's form.",
    response_model=EmbeddingsResponse,
    **_body(EmbeddingsRequest),
)
async def embeddings(request: Request, ingress: Served) -> Response:
    async with _asked(request, ingress, EmbeddingsRequest) as (asked, name, _):
        dimension = (await ingress.info(name, 60.0))["dimension"]
        work = embeddings_request(asked, ingress.limits, dimension)
        answer = await ingress.models[name].answer(work)
        size = 4 * dimension * len(work.queries)
        found = await _off_loop(size, embeddings_response, asked, answer, name)
        return await _json_response(size, found, answer.seconds)


@router.post(
    "/v1/batches",
    summary="Classify files: starts a bulk job.",
    response_model=Batch,
    **_body(BatchRequest, 409),
)
async def create(request: Request, ingress: Served) -> Batch:
    async with _asked(request, ingress, BatchRequest) as (asked, name, _):
        if asked.labels is not None:
            check_labels(asked.labels, 0, "labels", ingress.limits)
        return await ingress.batches.create(asked, name)


@router.get("/v1/batches", response_model=BatchList, responses=_errors(503))
async def every(ingress: Served) -> BatchList:
    return BatchList(data=await ingress.batches.every())


@router.get("/v1/batches/{batch_id}", response_model=Batch, responses=_errors(404, 503))
async def one(ingress: Served, batch_id: str) -> Batch:
    return await ingress.batches.get(batch_id)


@router.post("/v1/batches/{batch_id}/cancel", response_model=Batch, responses=_errors(404, 503))
async def cancel(ingress: Served, batch_id: str) -> Batch:
    return await ingress.batches.cancel(batch_id)


@asynccontextmanager
async def _asked(
    request: Request, ingress: Ingress, kind: type[BaseModel]
) -> AsyncIterator[tuple[Any, str, int]]:
    """A request that there is room for: parsed, the name of its model, and its size in bytes."""
    async with ingress.admitted(request) as body:
        asked = await _off_loop(len(body), parse, kind, body)
        name = request.state.model = ingress.choose(asked.model)
        if ingress.log_texts:
            log.info("%s: %s", request.url.path, body.decode("utf-8", "replace"))
        yield asked, name, len(body)


async def _off_loop(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Large things in a thread: other requests' answers go on meanwhile."""
    if size <= SMALL_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_LARGE, work, *arguments)


async def _json_response(size: int, content: Any, seconds: Mapping[str, float]) -> Response:
    """With the header `Server-Timing`: milliseconds of each step, as browsers show them."""
    timing = ", ".join(f"{step};dur={1000 * spent:.1f}" for step, spent in seconds.items())
    body = await _off_loop(size, to_json, content)
    return Response(body, headers={"Server-Timing": timing}, media_type="application/json")


async def _refuse(_: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _refuse_label_set(request: Request, error: NoSuchLabelSet) -> Response:
    """One that was taken away since the gateway last asked for the models' sets."""
    message = "the label set is not there any more; see /v1/label_sets."
    return await _refuse(request, ApiError(404, "label_set_not_found", message, "label_set"))


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    """What FastAPI itself refuses."""
    refusal = ApiError(error.status_code, "invalid_request", str(error.detail))
    if error.status_code == 404:
        message = f"no route {quoted(request.url.path)}; see /docs."
        refusal = ApiError(404, "route_not_found", message)
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another")
        message = f"{clipped(request.method)} is not allowed here, but {allowed} is."
        refusal = ApiError(405, "method_not_allowed", message, headers={"Allow": allowed})
    return await _refuse(request, refusal)


def _document(app: FastAPI, found: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI with tokens and the requests' bodies, which FastAPI does not know of."""
    schemas = found["components"]["schemas"]
    for kind in BODIES:
        own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= own.pop("$defs", {}) | {kind.__name__: own}
    found["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, methods in found["paths"].items():
        if path not in OPEN_PATHS:
            for operation in methods.values():
                operation["security"] = [{"bearer": []}, {}]
    app.openapi_schema = json.loads(json.dumps(found))
    return app.openapi_schema
