"""What an endpoint says of itself at `/info`, as far as a client goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sce.embedding.fingerprint import EmbedderFingerprint


class _Told(BaseModel):
    """Fields that another version of the server adds are of no account."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ServedModel(_Told):
    """What an endpoint says of one of its models.

    Attributes:
        name: by which requests choose it.
        embedder: the embedder whose vectors it reads.
        model_fingerprint: identifies its weights.
        dtype: the encoder's.
        shortlist_above: sets of more labels are scored by a shortlist; None: none is.
        shortlist_size: labels of a shortlist.
    """

    name: str = Field(validation_alias="id")
    embedder: EmbedderFingerprint
    model_fingerprint: str
    dtype: str
    shortlist_above: int | None
    shortlist_size: int | None

    @property
    def dimension(self) -> int:
        """D, the embedder's dimension."""
        return self.embedder.dimension

    def identity(self) -> dict[str, Any]:
        """All that decides an answer: equal for a server that was moved or started again."""
        return {
            "model": self.model_fingerprint,
            "embedder": self.embedder.id,
            "dtype": self.dtype,
            "shortlist_above": self.shortlist_above,
            "shortlist_size": self.shortlist_size,
        }


class RequestLimits(_Told):
    """How much the server takes in one request."""

    max_body_bytes: int = 2**20
    max_texts: int = 128
    max_label_texts: int = 1000
    max_label_tokens: int = 2**16


def _by_name(models: Any) -> dict[str, Any]:
    return {model["id"]: model for model in models}


class EndpointInfo(_Told):
    """What `/info` says.

    Attributes:
        models: by name.
        default_model: the one that answers requests that name none.
    """

    models: Annotated[Mapping[str, ServedModel], BeforeValidator(_by_name)]
    default_model: str
    limits: RequestLimits
    version: str
