"""The gateway as a Ray Serve deployment: how it is made, and changed while it runs.

It asks a model's replicas, which are other processes, through Ray; or it holds the model itself,
which spares a request the way between two processes, milliseconds on a CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from serve.auth import Guard
from serve.file_routes import go_on
from serve.ingress import Ingress, Model, Replicas
from serve.memory import UnusedMemory
from serve.metrics import GatewayMetrics
from serve.routes import make_app
from serve.settings import BatchSettings, Limits, ModelSettings

if TYPE_CHECKING:
    from serve.model import ModelReplica


class Gateway:
    """Every route of the interface; what may change while it runs comes through `reconfigure`.

    Args:
        models: by name, the default first.
        digests: the tokens' hashes (`Guard.digest`).
        origins: of pages elsewhere that may ask.
        held: the name of a model without a handle that this process holds itself.
    """

    def __init__(
        self,
        models: Mapping[str, DeploymentHandle],
        digests: Sequence[bytes],
        origins: Sequence[str] = (),
        held: str | None = None,
    ) -> None:
        metrics = GatewayMetrics()
        asked: dict[str, Model] = {
            name: Replicas(name, handle, metrics) for name, handle in models.items()
        }
        self._held: ModelReplica | None = None
        if held is not None:
            from serve.model import ModelReplica  # torch, which a gateway alone does without

            self._held = asked[held] = ModelReplica(held)
        self._origins = origins
        self._memory = UnusedMemory()
        self._ingress = Ingress(asked, Guard(digests), metrics=metrics)
        self._ingress.ready.clear()  # where it listens itself, Ray lets nobody wait for it

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._ingress, self._origins)

    async def check_health(self) -> None:
        if self._held is not None:
            await self._held.check_health()
        else:
            await asyncio.to_thread(self._memory.give_back)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """`limits`, `log_texts`, `batches` and the models' settings for them; `held`, as
        `ModelReplica.reconfigure` takes it. Requests that were accepted go on under the limits of
        then."""
        if self._held is not None:
            await self._held.reconfigure(user_config["held"])
        self._ingress.limits = Limits.model_validate(user_config["limits"])
        self._ingress.log_texts = bool(user_config["log_texts"])
        batches = self._ingress.batches
        batches.settings = BatchSettings.model_validate(user_config["batches"])
        self._ingress.files.settings = batches.settings
        self._ingress.file_batches.max_line_bytes = self._ingress.limits.max_body_bytes
        batches.models = {
            name: ModelSettings.model_validate(settings)
            for name, settings in user_config["models"].items()
        }
        await go_on(self._ingress)
        self._ingress.ready.set()
