"""The deployment of one model: a replica holds the weights and batches what it is asked.

Torch and transformers are imported where a model is loaded: who starts the server, and the gateway,
need neither.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sce.bulk.request import identify_model
from sce.distributed.resources import TorchThread
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.model.settings import EXACT
from serve.cache import VectorCache
from serve.engine import Engine, LoadedModel
from serve.label_sets import load_label_sets
from serve.memory import UnusedMemory
from serve.metrics import ModelMetrics
from serve.settings import ModelSettings, ReplicaSettings
from serve.work import ModelAnswer, ModelRequest

if TYPE_CHECKING:
    from sce.embedding.embedder import TextEmbedder

STUCK_SECONDS = 300.0
"""A batch takes seconds; one that takes longer than this will never end."""

log = logging.getLogger("ray.serve")


class ModelReplica:
    """Answers for one model; what may change later comes through `reconfigure`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._metrics = ModelMetrics(name)
        self._engine: Engine
        self._torch: TorchThread
        self._settings: ReplicaSettings | None = None
        self._answering: ReplicaSettings
        self._loading: asyncio.Task[None] | None = None
        self._last_error: str | None = None
        self._memory = UnusedMemory()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """The first time, load the model and its label sets. Later, take new budgets at once and
        load others beside those that go on answering: Ray sends a replica nothing until this
        returns.

        Raises:
            InputError: the first time, that there is no such model, or no such label set for its
                embedder. What cannot be loaded later is named in `info`, and what was before stays.
        """
        settings = ReplicaSettings.model_validate(user_config)
        if self._settings is None:
            await self._start(settings)
            return
        self._engine.set_budgets(settings.embed_batch_tokens, settings.classify_batch_tokens)
        same_sets = settings.label_sets == self._settings.label_sets
        if _weights(settings) != _weights(self._settings) or not same_sets or self._last_error:
            if self._loading is not None:
                self._loading.cancel()
            self._loading = asyncio.create_task(self._swap(settings))
        self._settings = settings

    @property
    def _model(self) -> LoadedModel:
        assert self._engine.model is not None
        return self._engine.model

    async def answer(self, request: ModelRequest) -> ModelAnswer:
        found = await self._engine.answer(request)
        self._metrics.answer(found)
        return found

    async def info(self) -> dict[str, Any]:
        """What `/info` shows; `error` says why the last model that was to be loaded was not."""
        loading = self._loading is not None and not self._loading.done()
        return {**self._model.info, "loading": loading, "error": self._last_error}

    async def label_sets(self) -> list[Mapping[str, Any]]:
        """What `/v1/label_sets` shows of those that it has."""
        return self._model.about_label_sets()

    async def label_set(self, name: str) -> dict[str, Any]:
        """The same of one, with the figures of its fit. Raises `NoSuchLabelSet`."""
        return self._model.label_set(name).details()

    async def report_page(self, name: str) -> bytes | None:
        """Its report, HTML, where there is one. Raises `NoSuchLabelSet`."""
        return self._model.label_set(name).page

    async def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        await asyncio.to_thread(self._memory.give_back)
        if self._settings is not None and self._engine.working_seconds > STUCK_SECONDS:
            raise RuntimeError(f"{self._name}: a batch takes more than {STUCK_SECONDS:g} s")

    async def _start(self, settings: ReplicaSettings) -> None:
        self._torch = TorchThread(settings.threads or os.cpu_count() or 1)
        loaded = await self._load(settings, None)
        self._engine = Engine(
            loaded.info["device"],
            self._torch.executor,
            VectorCache(settings.cache_bytes),
            self._metrics.batch,
            settings.embed_batch_tokens,
            settings.classify_batch_tokens,
        )
        self._engine.model, self._settings, self._answering = loaded, settings, settings
        log.info("%s is ready on %s", self._name, loaded.info["device"])

    async def _swap(self, settings: ReplicaSettings) -> None:
        try:
            loaded = await self._load(settings, self._model)
        except Exception as error:  # whatever it is: those who ask go on
            self._last_error = f"{settings.path}: {error}"
            log.exception("%s: the model before stays", self._name)
            return
        self._engine.model, self._answering, self._last_error = loaded, settings, None
        log.info("%s answers with %s", self._name, settings.path)

    async def _load(self, settings: ReplicaSettings, before: LoadedModel | None) -> LoadedModel:
        """Load in a thread that ends, so that OpenMP keeps one team (`TorchThread`)."""
        if before is not None and _weights(settings) == _weights(self._answering):
            loaded = before
        else:
            embedder = None if before is None else before.predictor.embedder
            loaded = await asyncio.to_thread(load_model, self._name, settings, embedder)
            await asyncio.get_running_loop().run_in_executor(self._torch.executor, warm_up, loaded)
        embedder = loaded.predictor.embedder
        sets = await asyncio.to_thread(load_label_sets, settings.label_sets, embedder.fingerprint)
        return loaded.with_label_sets(sets)


def _weights(settings: ModelSettings) -> dict[str, Any]:
    """What a model must be loaded anew for."""
    return settings.model_dump(include={"path", "embedder", "device", "dtype", "exact"})


def load_model(
    name: str, settings: ModelSettings, embedder: TextEmbedder | None = None
) -> LoadedModel:
    """Load a model and the embedder that it was trained with.

    Args:
        name: by which requests choose it.
        embedder: used again where it is the model's, so that it is in memory once.

    Raises:
        InputError: there is no such model, or its embedder is not there or another.
    """
    from sce.embedding.embedder import choose_device, load_embedder
    from sce.model.arithmetic import choose_dtype
    from sce.predictor import Predictor

    config, fingerprint = identify_model(settings.path)
    assert config.embedder is not None
    device = choose_device(settings.device)
    known = EmbedderFingerprint.from_dict(config.embedder)
    wanted = settings.embedder or EmbedderConfig.from_fingerprint(config.embedder)
    if embedder is not None:
        dtype = str(choose_dtype(wanted.dtype, device)).removeprefix("torch.")
        now = embedder.fingerprint
        if (now.id, now.dtype, embedder.device.type) != (known.id, dtype, device):
            embedder = None
    if embedder is None:
        embedder = load_embedder(wanted.model_copy(update={"device": device}))
    predictor = Predictor.from_pretrained(
        settings.path,
        embedder,
        device,
        settings.dtype,
        shortlist_above=EXACT if settings.exact else None,
    )
    found = embedder.fingerprint
    info = {
        "id": name,
        "model_fingerprint": fingerprint,
        "embedder": {"id": found.id} | found.to_dict(),
        "dimension": found.dimension,
        "dtype": str(next(predictor.model.parameters()).dtype).removeprefix("torch."),
        "device": embedder.device.type,
        "max_text_tokens": found.max_tokens,
        "shortlist_above": None if settings.exact else predictor.shortlist_above,
        "shortlist_size": None if settings.exact else predictor.shortlist_size,
    }
    return LoadedModel(predictor, info)


def warm_up(model: LoadedModel) -> None:
    """Do what the first requests would wait for; in the thread that will answer them."""
    model.predictor.embedder.embed([f"A text to warm up with, the {i}th." for i in range(16)])
    model.predictor.warm_up([f"label {k}" for k in range(10)])
