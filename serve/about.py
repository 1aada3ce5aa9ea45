"""What the server tells of itself: `/health`, `/info` and `/v1/models`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from serve.settings import Limits


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class ServerInfo(BaseModel):
    models: list[dict[str, Any]] = Field(
        description="Each with its embedder, its fingerprint, and the label sets that it has."
    )
    default_model: str = Field(description="Answers where a request names none.")
    limits: Limits
    version: str
    authentication: Literal["bearer", "loopback"] = Field(
        description="Loopback: no tokens, so only the server's own machine is answered."
    )
    batches: bool = Field(description="Whether bulk jobs may be started over files of the server.")
    files: bool = Field(description="Whether files of requests may be uploaded.")


class AboutModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["sce"] = "sce"


class AboutModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[AboutModel]
