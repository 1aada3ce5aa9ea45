"""Routes of batches: bulk jobs over files that the server reads (`serve.batches`), and, in OpenAI's
form, files of requests that were uploaded (`serve.file_batches`)."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import from_json

from sce.client.wire import Batch, BatchRequest
from serve.convert import answer_options, check_labels, parse
from serve.dependencies import Owner, Served, described_body, errors
from serve.file_batches import PREFIX
from serve.file_forms import AnyBatchList, FileBatch, FileBatchRequest
from serve.file_routes import answer_of
from serve.ingress import Ingress

log = logging.getLogger("ray.serve")
batch_router = APIRouter(tags=["Files and batches"], responses=errors(401, 403))


@batch_router.post(
    "/v1/batches",
    summary="Start a batch",
    description="`input`, `output` and labels: a bulk job classifies files that the server reads. "
    "`input_file_id` and `endpoint`, as OpenAI's clients send them: each line of an uploaded file "
    "is a request.",
    response_model=Batch | FileBatch,
    **described_body([BatchRequest, FileBatchRequest], 409),
)
async def create_batch(request: Request, ingress: Served, owner: Owner) -> Batch | FileBatch:
    async with ingress.admitted(request) as body:
        if ingress.log_texts:
            log.info("%s: %s", request.url.path, body.decode("utf-8", "replace"))
        if _names_file(body):
            asked = parse(FileBatchRequest, body)
            return await ingress.file_batches.create(owner, asked, answer_of(ingress))
        asked = parse(BatchRequest, body)
        answer_options(asked)  # what cannot be had is refused before a job begins
        name = request.state.model = ingress.choose(asked.model)
        if asked.labels is not None:
            check_labels(asked.labels, 0, "labels", ingress.limits)
        return await ingress.batches.create(asked, name)


def _names_file(body: bytes) -> bool:
    try:
        found = from_json(body)
    except ValueError:
        return False  # `parse` says what is wrong
    return isinstance(found, dict) and "input_file_id" in found


@batch_router.get("/v1/batches", summary="List batches", responses=errors(503))
async def list_batches(ingress: Served, owner: Owner) -> AnyBatchList:
    found: list[Any] = []
    with_files = ingress.files.settings.files_root is not None
    if with_files:
        found += await ingress.file_batches.every(owner)
    if ingress.batches.settings.allowed or not with_files:
        found += await ingress.batches.every()
    return AnyBatchList(data=found)


@batch_router.get(
    "/v1/batches/{batch_id}", summary="How far a batch is", responses=errors(404, 503)
)
async def get_batch(ingress: Served, owner: Owner, batch_id: str) -> Batch | FileBatch:
    if _of_file(ingress, batch_id):
        return await ingress.file_batches.get(owner, batch_id, answer_of(ingress))
    return await ingress.batches.get(batch_id)


@batch_router.post(
    "/v1/batches/{batch_id}/cancel", summary="Stop a batch", responses=errors(404, 503)
)
async def cancel_batch(ingress: Served, owner: Owner, batch_id: str) -> Batch | FileBatch:
    if _of_file(ingress, batch_id):
        return await ingress.file_batches.cancel(owner, batch_id, answer_of(ingress))
    return await ingress.batches.cancel(batch_id)


def _of_file(ingress: Ingress, batch_id: str) -> bool:
    return ingress.files.settings.files_root is not None and batch_id.startswith(PREFIX)
