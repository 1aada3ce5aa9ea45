"""What an endpoint says of itself: its models, its label sets and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sce.embedding.fingerprint import EmbedderFingerprint


class _Open(BaseModel):
    """Fields that another version of the server adds are of no account."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ServedModel(_Open):
    """What an endpoint says of one of its models.

    Attributes:
        embedder: the embedder whose vectors it reads.
        model_fingerprint: identifies its weights.
        shortlist_above: sets of more labels are scored by a shortlist; None: none is.
        label_sets: that it has, by name.
    """

    name: str = Field(validation_alias="id")
    embedder: EmbedderFingerprint
    model_fingerprint: str
    dtype: str
    shortlist_above: int | None
    shortlist_size: int | None
    label_sets: Mapping[str, Any] = {}

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


class ServedLabelSet(_Open):
    """Labels that were fitted to a corpus (jobs/adapt.py), as an endpoint has them."""

    object: Literal["label_set"] = "label_set"
    name: str = Field(alias="id", description="What requests choose it by.")
    labels: list[str] = Field(description="Names, in the order of the file that they stood in.")
    fingerprint: str = Field(description="Equal for equal answers.")
    rows: int = Field(description="Texts of the corpus that it was fitted to.")
    trust: str = Field(description="How far the corpus was believed.")
    temperature: float
    embedder: str = Field(description="Id of the embedder whose vectors it reads.")
    versions: dict[str, Any] = Field(description="Of the software that fitted it.")
    models: list[str] = Field(description="The models that have it.")
    report_page: bool = Field(description="Whether `/v1/label_sets/{name}/report` is there.")


class LabelSetDetails(ServedLabelSet):
    report: dict[str, Any] = Field(description="Figures of the fit, of the set and each label.")


class LabelSetList(_Open):
    object: Literal["list"] = "list"
    data: list[ServedLabelSet]


class RequestLimits(_Open):
    """How much the server takes in one request."""

    max_body_bytes: int = 2**20
    max_texts: int = 128
    max_label_texts: int = 1000
    max_label_tokens: int = 2**16


def _by_name(models: Any) -> dict[str, Any]:
    return {model["id"]: model for model in models}


class EndpointInfo(_Open):
    """What `/info` says, as far as a client goes by it."""

    models: Annotated[Mapping[str, ServedModel], BeforeValidator(_by_name)]
    default_model: str
    limits: RequestLimits
    version: str
