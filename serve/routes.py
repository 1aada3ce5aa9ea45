"""Every route of the interface, and one form for whatever happens, as an ASGI application around an
`Ingress`.

FastAPI reads no body here: `Ingress.admitted` does, within the limits, and pydantic parses it once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from sce.client.served import LabelSetDetails, LabelSetList
from sce.client.wire import ClassifyRequest, ClassifyResponse, EmbeddingsRequest, EmbeddingsResponse
from sce.config import VERSION
from sce.errors import clipped, quoted
from serve.about import AboutModel, AboutModels, Health, ServerInfo
from serve.answers import Answered, classified, embedded, off_loop
from serve.batch_routes import batch_router
from serve.convert import parse
from serve.dependencies import Served, described_body, errors
from serve.document import describe, operation_name
from serve.file_routes import file_router
from serve.headers import NoSniff, docs_headers, page_headers, report_headers
from serve.ingress import Ingress
from serve.metrics import gather_metrics
from serve.middleware import Watched
from serve.refusals import ApiError
from serve.work import NoSuchLabelSet

SWAGGER = Path(str(files("fastapi_swagger"))) / "resources"
PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
PAGE_HEADERS = page_headers(PAGE)
REPORT_HEADERS = report_headers()
log = logging.getLogger("ray.serve")


def make_app(ingress: Ingress, origins: Sequence[str] = ()) -> FastAPI:
    """The interface of the models behind `ingress`, which pages of `origins` may ask as well."""
    app = FastAPI(
        title="Soft Contextualized Encoder",
        description="Classify texts with labels that come with the request.",
        version=VERSION,
        generate_unique_id_function=operation_name,
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
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's client in a browser sends a dozen of its own
            expose_headers=["Content-Disposition", "Retry-After", "Server-Timing"],
        )
    app.add_middleware(NoSniff)
    app.exception_handler(ApiError)(_refuse)
    app.exception_handler(HTTPException)(_refuse_http)
    app.exception_handler(NoSuchLabelSet)(_refuse_label_set)
    app.include_router(pages)
    for each in (router, batch_router, file_router):
        app.include_router(each)
    original = app.openapi
    app.openapi = lambda: app.openapi_schema or describe(app, original())  # type: ignore[method-assign]
    return app


pages = APIRouter()
"""Routes that need no token."""
router = APIRouter(responses=errors(401, 403))


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


@pages.get(
    "/health",
    summary="See that every model answers",
    tags=["Server"],
    responses=errors(503),
)
async def health(ingress: Served) -> Health:
    await asyncio.gather(*map(ingress.see_alive, ingress.models))
    return Health()


@router.get("/info", summary="Models and limits", tags=["Server"], responses=errors(503))
async def info(ingress: Served) -> ServerInfo:
    return ServerInfo(
        models=await asyncio.gather(*(ingress.info(name, 0.0) for name in ingress.models)),
        default_model=next(iter(ingress.models)),
        limits=ingress.limits,
        version=VERSION,
        authentication="bearer" if ingress.guard.has_tokens else "loopback",
        batches=ingress.batches.settings.allowed,
        files=ingress.files.settings.files_root is not None,
    )


@router.get("/v1/models", summary="List models", tags=["Server"], responses=errors(503))
async def list_models(ingress: Served) -> AboutModels:
    return AboutModels(data=[AboutModel(id=name) for name in ingress.models])


@router.get("/v1/models/{model}", summary="Tell of a model", tags=["Server"], responses=errors(404))
async def get_model(ingress: Served, model: str) -> AboutModel:
    return AboutModel(id=ingress.choose(model))


@router.get(
    "/v1/label_sets",
    summary="List label sets",
    tags=["Label sets"],
    response_model=LabelSetList,
    responses=errors(503),
)
async def list_label_sets(ingress: Served) -> dict[str, Any]:
    return {"data": await ingress.label_sets()}


@router.get(
    "/v1/label_sets/{name}",
    summary="A label set, with the figures of its fit",
    tags=["Label sets"],
    response_model=LabelSetDetails,
    responses=errors(404, 503),
)
async def get_label_set(ingress: Served, name: str) -> dict[str, Any]:
    models = list(await ingress.choose_label_set(name))
    return {**await ingress.models[models[0]].label_set(name), "models": models}


@router.get(
    "/v1/label_sets/{name}/report",
    summary="Report of a label set, a page",
    tags=["Label sets"],
    response_class=HTMLResponse,
    responses=errors(404, 503),
)
async def get_label_set_report(ingress: Served, name: str) -> Response:
    model = next(iter(await ingress.choose_label_set(name)))
    found = await ingress.models[model].report_page(name)
    if found is None:
        message = f"the folder of the label set {quoted(name)} has no report.html."
        raise ApiError(404, "report_not_found", message, "label_set")
    return HTMLResponse(found, headers=REPORT_HEADERS)


@router.get(
    "/metrics",
    summary="Metrics, for Prometheus",
    tags=["Server"],
    response_class=PlainTextResponse,
)
async def get_metrics() -> Response:
    media_type = "text/plain; version=0.0.4; charset=utf-8"
    return PlainTextResponse(await gather_metrics(), media_type=media_type)


@router.post(
    "/v1/classify",
    summary="Classify texts or embeddings",
    response_model=ClassifyResponse,
    tags=["Classify"],
    **described_body([ClassifyRequest]),
)
async def classify(request: Request, ingress: Served) -> Response:
    async with _asked(request, ingress, ClassifyRequest) as (asked, size):
        return await _json_response(request, await classified(ingress, asked, size))


@router.post(
    "/v1/embeddings",
    summary="Turn texts into vectors, in OpenAI's form",
    response_model=EmbeddingsResponse,
    tags=["Classify"],
    **described_body([EmbeddingsRequest]),
)
async def embed(request: Request, ingress: Served) -> Response:
    async with _asked(request, ingress, EmbeddingsRequest) as (asked, size):
        return await _json_response(request, await embedded(ingress, asked, size))


@asynccontextmanager
async def _asked(
    request: Request, ingress: Ingress, kind: type[BaseModel]
) -> AsyncIterator[tuple[Any, int]]:
    """A request that there is room for: parsed, and its size in bytes."""
    async with ingress.admitted(request) as body:
        asked = await off_loop(len(body), parse, kind, body)
        request.state.model = ingress.choose(asked.model)
        if ingress.log_texts:
            log.info("%s: %s", request.url.path, body.decode("utf-8", "replace"))
        yield asked, len(body)


async def _json_response(request: Request, answer: Answered) -> Response:
    """With the header `Server-Timing`: milliseconds of each step, as browsers show them."""
    request.state.model = answer.model
    timing = ", ".join(f"{step};dur={1000 * spent:.1f}" for step, spent in answer.seconds.items())
    body = await off_loop(answer.size, to_json, answer.content)
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
