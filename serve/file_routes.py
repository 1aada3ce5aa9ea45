"""Routes for files of requests, as OpenAI's clients ask them: `files.create`, `files.content`."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from serve.answers import answered
from serve.dependencies import Owner, Served, errors
from serve.file_batches import Answer
from serve.file_forms import DeletedFile, UploadedFile, UploadedFileList
from serve.files import new_name, open_new, take_form
from serve.ingress import Ingress
from serve.refusals import ApiError

UPLOAD_SECONDS = 600.0
"""An upload takes no longer."""
FORM_BYTES = 64 * 2**10
"""Of a form beside its file."""
CHUNK_BYTES = 2**20

log = logging.getLogger("ray.serve")
file_router = APIRouter(tags=["Files and batches"], responses=errors(401, 403))
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "title": "A file of requests",
                "required": ["purpose", "file"],
                "properties": {
                    "purpose": {"type": "string", "enum": ["batch"]},
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": 'JSONL; a line is {"custom_id": "1", "method": "POST", '
                        '"url": "/v1/classify", "body": {"texts": ..., "labels": ...}}.',
                    },
                },
            }
        }
    },
}


def answer_of(ingress: Ingress) -> Answer:
    """How the models behind `ingress` answer a line."""
    return partial(answered, ingress)


async def go_on(ingress: Ingress) -> None:
    """With batches of files whose process ended."""
    if ingress.files.settings.files_root:
        try:
            await ingress.file_batches.go_on(answer_of(ingress))
        except OSError:  # the models answer all the same
            log.exception("batches.files_root")


@file_router.post(
    "/v1/files",
    summary="Upload a file of requests for a batch",
    response_model=UploadedFile,
    responses=errors(408, 413, 415, 422, 429),
    openapi_extra={"requestBody": _FORM},
)
async def upload_file(request: Request, ingress: Served, owner: Owner) -> UploadedFile:
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        message = "send a form (multipart/form-data) with the fields purpose and file."
        raise ApiError(415, "not_a_form", message, "Content-Type")
    store, name = ingress.files, new_name("file-")
    folder = await asyncio.to_thread(store.folder, owner)
    raw, most = folder / f"{name}.part", store.settings.max_file_bytes
    announced = request.headers.get("content-length", "")
    size = int(announced[:19]) if announced.isdecimal() else 0
    content, file = store.content_path(owner, name), None
    with ingress.entered():
        await asyncio.to_thread(store.sweep, owner)
        await asyncio.to_thread(store.check_room, owner, size)
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await _receive(request, raw, most + FORM_BYTES)
            await asyncio.to_thread(store.check_room, owner)  # the size need not be announced
            filename = await asyncio.to_thread(take_form, raw, content, kind, most)
            file = await asyncio.to_thread(store.add, owner, "batch", filename, name)
        except TimeoutError:
            message = f"the file did not come within {UPLOAD_SECONDS:g} s."
            raise ApiError(408, "body_timeout", message, "file") from None
        finally:
            raw.unlink(missing_ok=True)
            if file is None:
                content.unlink(missing_ok=True)
    return file


async def _receive(request: Request, path: Path, most: int) -> None:
    """The body, into a file. Raises `ApiError` 413 where it is larger than `most`."""
    size, waiting = 0, bytearray()
    with await asyncio.to_thread(open_new, path) as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                message = f"the form has more than {most} bytes (max_file_bytes, and its frame)."
                headers = {"Connection": "close"}
                raise ApiError(413, "limit_exceeded", message, "max_file_bytes", headers)
            waiting += chunk
            if len(waiting) >= CHUNK_BYTES:
                await asyncio.to_thread(file.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(file.write, bytes(waiting))


@file_router.get("/v1/files", summary="List your files")
async def list_files(ingress: Served, owner: Owner) -> UploadedFileList:
    return UploadedFileList(data=await asyncio.to_thread(ingress.files.every, owner))


@file_router.get("/v1/files/{file_id}", summary="Tell of a file", responses=errors(404))
async def get_file(ingress: Served, owner: Owner, file_id: str) -> UploadedFile:
    return await asyncio.to_thread(ingress.files.get, owner, file_id)


@file_router.get(
    "/v1/files/{file_id}/content",
    summary="Download a file",
    response_class=FileResponse,
    responses={200: {"content": {"application/jsonl": {}}}, **errors(404)},
)
async def download_file(ingress: Served, owner: Owner, file_id: str) -> Response:
    file = await asyncio.to_thread(ingress.files.get, owner, file_id)
    path = ingress.files.content_path(owner, file.id)
    return FileResponse(path, media_type="application/jsonl", filename=file.filename)


@file_router.delete("/v1/files/{file_id}", summary="Remove a file", responses=errors(404, 409))
async def delete_file(ingress: Served, owner: Owner, file_id: str) -> DeletedFile:
    await asyncio.to_thread(ingress.file_batches.check_unused, owner, file_id)
    await asyncio.to_thread(ingress.files.delete, owner, file_id)
    return DeletedFile(id=file_id)
