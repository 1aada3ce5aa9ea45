"""Where the answers of a bulk job come from: a model that its actors load, or an endpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sce.bulk.answering import BlockPredictor, Connect, Endpoint
from sce.bulk.classifier import LocalPredictor
from sce.bulk.request import identify_model
from sce.client import ServedModel
from sce.distributed.embed_corpus import embedder_of
from sce.distributed.resources import ActorPlan, ResourcesConfig, embed_actors
from sce.distributed.stage import ACTOR_CPUS
from sce.embedding.embedder import EmbedderConfig, EmbedderFingerprint
from sce.predictor import EXACT, SHORTLIST_ABOVE, SHORTLIST_SIZE, Predictor

ENDPOINT_CPUS = 0.25
"""That Ray sets aside for an actor that asks an endpoint."""
FIRST_CONTACT_SECONDS = 20
"""How long an endpoint is waited for before anything was answered: the URL may be wrong."""


@dataclass(frozen=True)
class ModelSettings:
    """What an actor needs to load the model."""

    model: str
    embedder: EmbedderConfig
    device: str
    dtype: str
    exact: bool

    def load(self) -> Predictor:
        return Predictor.from_pretrained(
            self.model,
            self.embedder,
            self.device,
            self.dtype,
            shortlist_above=EXACT if self.exact else None,
        )

    def block_predictor(self) -> BlockPredictor:
        return LocalPredictor(self.load())


@dataclass(frozen=True)
class EndpointSettings:
    """What an actor needs to ask the endpoint."""

    connect: Connect
    endpoint: Endpoint

    def block_predictor(self) -> BlockPredictor:
        return self.connect(self.endpoint)


ActorSettings = ModelSettings | EndpointSettings


@dataclass(frozen=True)
class LocalSource:
    """A model that the actors load.

    Attributes:
        embedder: that its vectors are of.
        embedder_config: where to find it.
        identity: all of the model and of how it is used that decides an answer.
        shortlist: sets of more labels than the first are scored by the second many.
    """

    model: str
    embedder: EmbedderFingerprint
    embedder_config: EmbedderConfig
    identity: dict[str, Any]
    dtype: str
    shortlist: tuple[int | None, int | None]

    def plan(self, resources: ResourcesConfig) -> ActorPlan:
        return embed_actors(resources, default_cpus=ACTOR_CPUS)

    def settings(self, plan: ActorPlan) -> ActorSettings:
        return ModelSettings(
            str(Path(self.model).resolve()) if Path(self.model).is_dir() else self.model,
            self.embedder_config.model_copy(update={"device": plan.device}),
            plan.device,
            self.dtype,
            exact=self.shortlist[0] is None,
        )

    def named(self) -> dict[str, Any]:
        return {"model": self.model}


@dataclass(frozen=True)
class EndpointSource:
    """A model that the actors ask at an endpoint."""

    connect: Connect
    endpoint: Endpoint
    served: ServedModel

    @property
    def embedder(self) -> EmbedderFingerprint:
        return self.served.embedder

    @property
    def identity(self) -> dict[str, Any]:
        return self.served.identity()

    @property
    def shortlist(self) -> tuple[int | None, int | None]:
        above = self.served.shortlist_above
        return None if above == EXACT else above, self.served.shortlist_size

    def plan(self, resources: ResourcesConfig) -> ActorPlan:
        asked = {"use_gpu": False, "embed_actors": resources.embed_actors or 1}
        plan = embed_actors(resources.model_copy(update=asked), default_cpus=ENDPOINT_CPUS)
        return replace(plan, threads=1)

    def settings(self, plan: ActorPlan) -> ActorSettings:
        return EndpointSettings(self.connect, replace(self.endpoint, served=self.served))

    def named(self) -> dict[str, Any]:
        return {"model": self.served.name, "endpoint": self.endpoint.url}


Source = LocalSource | EndpointSource


def local_source(
    model: str, embedder: EmbedderConfig | None, dtype: str, exact: bool
) -> LocalSource:
    """A model of this machine or a hub.

    Args:
        embedder: where the model's is; None for where the model says.

    Raises:
        InputError: there is no such model.
    """
    model_config, model_id = identify_model(model)
    trained_with = EmbedderFingerprint.from_dict(model_config.embedder or {})
    return LocalSource(
        model,
        trained_with,
        embedder_of(embedder, trained_with),
        {"model": model_id, "embedder": trained_with.id, "dtype": dtype, "exact": exact},
        dtype,
        (None, None) if exact else (SHORTLIST_ABOVE, SHORTLIST_SIZE),
    )


def endpoint_source(endpoint: Endpoint, connect: Connect) -> EndpointSource:
    """The model of an endpoint, which is asked for it.

    Raises:
        InputError, SCEError: see `Connect`.
    """
    patience = min(FIRST_CONTACT_SECONDS, endpoint.patience_seconds)
    served = connect(replace(endpoint, patience_seconds=patience)).served
    return EndpointSource(connect, replace(endpoint, model=served.name), served)
