"""The gateway as a Ray Serve deployment: how it is made, and changed while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from serve.auth import Guard
from serve.ingress import Ingress, Replicas
from serve.memory import UnusedMemory
from serve.metrics import GatewayMetrics
from serve.routes import make_app
from serve.settings import BatchSettings, Limits, ModelSettings


class Gateway:
    """Every route of the interface; what may change while it runs comes through `reconfigure`.

    Args:
        models: by name, the default first.
        digests: the tokens' hashes (`Guard.digest`).
        origins: of pages elsewhere that may ask.
    """

    def __init__(
        self,
        models: Mapping[str, DeploymentHandle],
        digests: Sequence[bytes],
        origins: Sequence[str] = (),
    ) -> None:
        metrics = GatewayMetrics()
        replicas = {name: Replicas(name, handle, metrics) for name, handle in models.items()}
        self._origins = origins
        self._memory = UnusedMemory()
        self._ingress = Ingress(replicas, Guard(digests), metrics=metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._ingress, self._origins)

    async def check_health(self) -> None:
        await asyncio.to_thread(self._memory.give_back)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """`limits`, `log_texts`, `batches` and the models' settings for them. Requests that were
        accepted go on under the limits of then."""
        self._ingress.limits = Limits.model_validate(user_config["limits"])
        self._ingress.log_texts = bool(user_config["log_texts"])
        batches = self._ingress.batches
        batches.settings = BatchSettings.model_validate(user_config["batches"])
        batches.models = {
            name: ModelSettings.model_validate(settings)
            for name, settings in user_config["models"].items()
        }
