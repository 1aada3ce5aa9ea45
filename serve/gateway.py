"""The gateway as a Ray Serve deployment: handles to the models, metrics, changes while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.auth import Guard
from serve.ingress import Ingress
from serve.metrics import GatewayMetrics
from serve.refusals import ApiError
from serve.routes import make_app
from serve.settings import BatchSettings, Limits, ModelSettings
from serve.work import ModelAnswer, ModelRequest

ATTEMPTS = 3
"""A request whose replica died is sent again: classifying twice does no harm."""
INFO_SECONDS = 5.0

log = logging.getLogger("ray.serve")


class ReplicasPort:
    """A model's replicas, behind a handle."""

    def __init__(self, name: str, handle: DeploymentHandle, metrics: GatewayMetrics) -> None:
        self._name, self._handle, self._metrics = name, handle, metrics

    async def answer(self, request: ModelRequest) -> ModelAnswer:
        for attempt in range(1, ATTEMPTS + 1):
            response = self._handle.answer.remote(request)
            try:
                return await response
            except asyncio.CancelledError:  # a timeout, or the caller has gone
                response.cancel()
                raise
            except RayActorError:
                self._metrics.retries.inc(1, {"model": self._name})
                log.warning("%s: a replica died (attempt %d)", self._name, attempt)
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise self._unavailable(str(error)) from None
        raise self._unavailable("its replicas died one after another")

    async def info(self) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(INFO_SECONDS):
                return await self._handle.info.remote()
        except (RayActorError, RayTaskError, BackPressureError, DeploymentUnavailableError) as e:
            raise self._unavailable(type(e).__name__) from None
        except TimeoutError:
            raise self._unavailable(f"no answer within {INFO_SECONDS:g} s") from None

    def _unavailable(self, reason: str) -> ApiError:
        message = f"the model {self._name!r} does not answer at the moment ({reason})."
        return ApiError(503, "model_unavailable", message, "model", retry_after=2)


class Gateway:
    """Every route of the interface; what may change while it runs comes through `reconfigure`.

    Args:
        models: by name, the default first.
        digests: the tokens' hashes (`Guard.digest`).
    """

    def __init__(self, models: Mapping[str, DeploymentHandle], digests: Sequence[bytes]) -> None:
        metrics = GatewayMetrics()
        ports = {name: ReplicasPort(name, handle, metrics) for name, handle in models.items()}
        self._ingress = Ingress(ports, Guard(digests), metrics=metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._ingress)

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
