"""What routes are given, and how they are described."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from sce.client.wire import ErrorResponse
from serve.ingress import Ingress


async def _ingress(request: Request) -> Ingress:
    found: Ingress = request.app.state.ingress
    return found


async def _owner(request: Request) -> str:
    found: Ingress = request.app.state.ingress
    return found.guard.owner(request.headers)


Served = Annotated[Ingress, Depends(_ingress)]
Owner = Annotated[str, Depends(_owner)]
"""Of files and their batches: `serve.auth.Guard.owner`."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses that a route's description names."""
    return {status: {"model": ErrorResponse} for status in statuses}


def described_body(kinds: list[type[BaseModel]], *more_statuses: int) -> dict[str, Any]:
    """How a route is described that reads a body of one of these kinds itself."""
    refs = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in kinds]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    content = {"required": True, "content": {"application/json": {"schema": schema}}}
    statuses = (400, 404, 408, 413, 415, 422, 429, 503, 504, *more_statuses)
    return {"responses": errors(*statuses), "openapi_extra": {"requestBody": content}}
