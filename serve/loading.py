"""From settings to a model that is ready to answer."""

from __future__ import annotations

from typing import Any

from sce.bulk.request import identify_model
from sce.embedding.embedder import TextEmbedder, choose_device, load_embedder
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.model.scoring import EXACT
from sce.predictor import Predictor
from serve.engine import LoadedModel
from serve.settings import ModelSettings

WARM_UP_LABELS = [f"label {k}" for k in range(10)]


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
    config, fingerprint = identify_model(settings.path)
    assert config.embedder is not None
    device = choose_device(settings.device)
    wanted = settings.embedder or EmbedderConfig.from_fingerprint(config.embedder)
    known = EmbedderFingerprint.from_dict(config.embedder).id
    if embedder is None or embedder.fingerprint.id != known or embedder.device.type != device:
        embedder = load_embedder(wanted.model_copy(update={"device": device}))
    predictor = Predictor.from_pretrained(
        settings.path,
        embedder,
        device,
        settings.dtype,
        shortlist_above=EXACT if settings.exact else None,
    )
    return LoadedModel(predictor, _describe(name, predictor, fingerprint, settings))


def warm_up(model: LoadedModel) -> None:
    """Do what the first requests would wait for; in the thread that will answer them."""
    model.predictor.embedder.embed([f"A text to warm up with, the {i}th." for i in range(16)])
    model.predictor.warm_up(WARM_UP_LABELS)


def _describe(
    name: str, predictor: Predictor, fingerprint: str, settings: ModelSettings
) -> dict[str, Any]:
    embedder = predictor.embedder.fingerprint
    return {
        "id": name,
        "model_fingerprint": fingerprint,
        "embedder": {"id": embedder.id} | embedder.to_dict(),
        "dimension": embedder.dimension,
        "dtype": str(next(predictor.model.parameters()).dtype).removeprefix("torch."),
        "device": predictor.embedder.device.type,
        "max_text_tokens": embedder.max_tokens,
        "shortlist_above": None if settings.exact else predictor.shortlist_above,
        "shortlist_size": None if settings.exact else predictor.shortlist_size,
    }
