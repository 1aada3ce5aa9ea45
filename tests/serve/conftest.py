"""A small model, served without Ray: the engine behind the interface."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sce.embedding.embedder import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.training.fresh_model import ModelConfig, build_model
from serve.cache import VectorCache
from serve.engine import Engine
from serve.model import load_model
from serve.settings import ModelSettings
from tests.tiny_models import build_roberta, build_sentence_transformer


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """`sce` and `other`, models with random weights, and `embedder`, that they read."""
    folder = tmp_path_factory.mktemp("served")
    build_sentence_transformer(folder / "embedder")
    build_roberta(folder / "roberta")
    config = ModelConfig(encoder=str(folder / "roberta"), adaptor_init="normal")
    embedder = EmbedderConfig(kind="sentence_transformers", model=str(folder / "embedder"))
    fingerprint = embedder_fingerprint(embedder).to_dict()
    for seed, name in enumerate(("sce", "other")):
        fresh = build_model(config, fingerprint, 0.0, seed=seed)
        fresh.model.save_pretrained(folder / name)
    return folder


def settings_of(models: Path, name: str = "sce", **more) -> ModelSettings:
    embedder = {"kind": "sentence_transformers", "model": str(models / "embedder")}
    return ModelSettings(
        path=str(models / name), embedder=embedder, device="cpu", dtype="float32", **more
    )


@pytest.fixture(scope="session")
def loaded(models):
    return load_model("tiny", settings_of(models))


@pytest.fixture(scope="session")
def predictor(loaded):
    return loaded.predictor


def make_engine(loaded, cache_bytes: int = 2**20, **more) -> Engine:
    engine = Engine("cpu", ThreadPoolExecutor(1), VectorCache(cache_bytes), **more)
    engine.model = loaded
    return engine


def run(work):
    """A coroutine to its end, no longer than a test may take."""
    return asyncio.run(asyncio.wait_for(work, 60))
