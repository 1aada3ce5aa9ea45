"""A small model, served without Ray: the engine behind the interface."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sce.adaptation.artefact import REPORT_PAGE, AdaptedLabels
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.labels import LabelSet
from sce.model.products import round_weights
from sce.predictor import Predictor
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from serve.cache import VectorCache
from serve.engine import Engine, LoadedModel
from serve.label_sets import load_label_sets
from serve.model import load_model
from serve.settings import ModelSettings
from tests.serve.load import LABELS, TEXTS
from tests.tiny_models import build_roberta, build_sentence_transformer

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
CHROMEDRIVER = os.environ.get("CHROMEDRIVER", "/usr/bin/chromedriver")
CHROMIUM_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic "
    "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
)
NAMES = ["zebra", "late delivery", "Billing", "praise", "ärger"]
PAGE = "<!doctype html><title>Tickets</title>"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """`sce` and `other`, models with random weights, and `embedder`, that they read."""
    folder = tmp_path_factory.mktemp("served")
    build_sentence_transformer(folder / "embedder")
    build_roberta(folder / "roberta")
    config = ModelConfig(encoder=str(folder / "roberta"), adaptor_init="normal")
    embedder = EmbedderConfig(
        kind="sentence_transformers", model=str(folder / "embedder"), dtype="float32"
    )
    fingerprint = embedder_fingerprint(embedder).to_dict()
    for seed, name in enumerate(("sce", "other")):
        fresh = build_model(config, fingerprint, 0.0, seed=seed)
        fresh.model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def tickets(loaded, tmp_path_factory) -> str:
    """The folder of adapted labels with a report."""
    fingerprint = loaded.predictor.embedder.fingerprint
    return save_label_set(tmp_path_factory.mktemp("sets") / "tickets", fingerprint, NAMES, 0, PAGE)


@pytest.fixture(scope="session")
def bare(loaded, tmp_path_factory) -> str:
    """The folder of others without."""
    fingerprint = loaded.predictor.embedder.fingerprint
    return save_label_set(tmp_path_factory.mktemp("sets") / "bare", fingerprint, ["only", "two"], 1)


@pytest.fixture(scope="session")
def with_sets(loaded, tickets, bare) -> LoadedModel:
    folders = {"tickets": tickets, "bare": bare}
    return loaded.with_label_sets(load_label_sets(folders, loaded.predictor.embedder.fingerprint))


def settings_of(models: Path, name: str = "sce", **more) -> ModelSettings:
    embedder = {"kind": "sentence_transformers", "model": str(models / "embedder")}
    embedder["dtype"] = "float32"
    return ModelSettings(
        path=str(models / name), embedder=embedder, device="cpu", dtype="float32", **more
    )


@pytest.fixture(scope="session")
def loaded(models):
    return load_model("tiny", settings_of(models))


@pytest.fixture(scope="session")
def predictor(loaded):
    return loaded.predictor


@pytest.fixture(scope="module")
def right(models) -> dict[str, dict[str, tuple[str, float]]]:
    """For each model's weights the best label of each text, and its score."""
    found = {}
    for name in ("sce", "other"):
        settings = settings_of(models, name)
        predictor = Predictor.from_pretrained(settings.path, settings.embedder, "cpu")
        answers = predictor.predict(TEXTS, LABELS)
        found[name] = {t: (a.label or "", a.score) for t, a in zip(TEXTS, answers, strict=True)}
    return found


def save_label_set(
    folder: Path,
    fingerprint: EmbedderFingerprint,
    names: Sequence[str],
    seed: int = 0,
    page: str | None = None,
) -> str:
    """Adapted labels with random weights, as `jobs/adapt.py` writes them; the folder."""
    dice = np.random.default_rng(seed)
    weight_KD = round_weights(3 * dice.normal(size=(len(names), fingerprint.dimension)))
    report = {"rows": 900, "fitted_rows": 800, "trust": "default", "adapted": True, "labels": []}
    facts = {"model": None, "corpus": {"source": "0", "rows": 900, "fitted_rows": 800},
             "settings": {}, "versions": {"sce": "0.1.0"}, "report": report}  # fmt: skip
    bias_K = dice.normal(size=len(names))
    known = fingerprint.to_dict()
    labels = AdaptedLabels(LabelSet.parse(names), weight_KD, bias_K, 0.7, known, facts, {})

    def write_page(new: Path) -> None:
        if page is not None:
            (new / REPORT_PAGE).write_text(page, encoding="utf-8")

    labels.save(folder, write_page)
    return str(folder)


def make_engine(loaded, cache_bytes: int = 2**20, **more) -> Engine:
    engine = Engine("cpu", ThreadPoolExecutor(1), VectorCache(cache_bytes), **more)
    engine.model = loaded
    return engine


def run(work):
    """A coroutine to its end, no longer than a test may take."""
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A browser, for the tests of one file."""
    for path in (CHROMIUM, CHROMEDRIVER):
        if not Path(path).exists():
            pytest.skip(f"{path} is missing: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in CHROMIUM_FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()
