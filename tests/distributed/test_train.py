"""Training on Ray Train: workers, and what happens when one of them dies.

The models are tiny, the engine is real. Everything here trains on the same data with the same
settings, so every run must end at the same model.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ray import cloudpickle

from sce.distributed.resources import ResourcesConfig, training_workers
from sce.distributed.train import FitResult, FitSettings, fit
from sce.errors import ConfigError
from sce.labels import LabelSet
from sce.training.data import Rows, TextLookup, TrainingData
from sce.training.episodes import AugmentConfig
from sce.training.fresh_model import ModelConfig
from sce.training.settings import TrainConfig
from sce.workflows.tracking import Tracker
from tests.tiny_models import build_roberta
from tests.training.test_episodes import text_vectors

# Ray's controller does not find this module by name; it gets `History` itself.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SETS = {
    "one": LabelSet.parse([f"thing {i}" for i in range(5)]),
    "two": LabelSet.parse([{"name": f"sort {i}", "synonyms": [f"kind {i}"]} for i in range(8)]),
}


def rows(count: int, seed: int) -> Rows:
    random = np.random.default_rng(seed)
    sets = [("one", "two")[i % 2] for i in range(count)]
    labels = [str(random.choice(SETS[s].names)) for s in sets]
    vectors = text_vectors([f"about {label}" for label in labels])
    vectors = vectors + 0.1 * random.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Rows([f"{seed}-{i}" for i in range(count)], sets, labels, sets, vectors.astype("f4"))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    texts = sorted({t for s in SETS.values() for label in s.labels for t in label.info_texts})
    return TrainingData(rows(403, 0), rows(61, 1), SETS, TextLookup(texts, text_vectors(texts)))


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> FitSettings:
    encoder = build_roberta(tmp_path_factory.mktemp("encoder") / "roberta")
    return FitSettings(
        ModelConfig(encoder=str(encoder), num_layers=None, adaptor_init="normal"),
        TrainConfig(epochs=3, batch_size=32, learning_rate=1e-3, patience=3),
        AugmentConfig(),
        {"dimension": 64},
        seed=0,
    )


class History(Tracker):
    """Writes each epoch's loss to a file; Ray's controller is another process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def log_metrics(self, metrics, step=0):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{step} {metrics.get('train/loss', 0.0)}\n")


def run(data, settings, folder: Path, workers: int = 1) -> tuple[FitResult, dict[int, float]]:
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder / "history")
    plan = training_workers(ResourcesConfig(num_workers=workers, use_gpu=False))
    result = fit(data, settings, plan, folder / "checkpoints", "run", history)
    lines = [line.split() for line in Path(history.path).read_text().splitlines()]
    return result, {int(epoch): float(loss) for epoch, loss in lines}


@pytest.fixture(scope="module")
def undisturbed(ray_session, data, settings, tmp_path_factory):
    return run(data, settings, tmp_path_factory.mktemp("undisturbed"))


def assert_same_model(a: FitResult, b: FitResult, tolerance: float) -> None:
    theirs = b.model.state_dict()
    for name, value in a.model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=0, msg=name)


def test_training_learns_and_reports_every_epoch(undisturbed):
    result, losses = undisturbed
    assert sorted(losses) == [0, 1, 2, 3]
    assert losses[3] < losses[1]
    assert result.best["score"] > 0.5
    assert {"validation/one/accuracy", "validation/two/accuracy"} <= set(result.best)
    assert result.last["samples_per_second"] > 0


def test_two_workers_give_the_loss_curve_and_the_model_of_one(
    undisturbed, data, settings, tmp_path
):
    result, losses = run(data, settings, tmp_path, workers=2)
    for epoch, loss in undisturbed[1].items():
        assert losses[epoch] == pytest.approx(loss, abs=1e-5)
    # Adam divides by the gradient's size, so where that is next to nothing its sign is rounding.
    assert_same_model(result, undisturbed[0], tolerance=1e-3)


def test_a_run_goes_on_from_its_last_checkpoint(undisturbed, data, settings, tmp_path):
    """The rates follow from the epochs planned, so the cut comes from patience, not from them."""
    cut = FitSettings(
        settings.model,
        settings.train.model_copy(update={"learning_rate": 1e-3, "patience": 1}),
        settings.augment,
        settings.embedder,
        settings.seed,
    )
    run(data, cut, tmp_path)
    result, losses = run(data, settings, tmp_path)
    assert losses == undisturbed[1]
    assert_same_model(result, undisturbed[0], tolerance=0)


def test_more_than_the_cluster_has_is_refused_at_once(ray_session):
    resources = ResourcesConfig(num_workers=64, cpus_per_worker=4, use_gpu=False)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"64 workers with 4 CPUs.*the cluster has"):
        training_workers(resources)
    assert time.monotonic() - started < 10


@pytest.mark.system
def test_a_killed_worker_is_replaced_and_the_model_is_the_same(
    undisturbed, data, settings, tmp_path
):
    killed = []

    def kill_one() -> None:
        history = tmp_path / "history"
        while not (history.exists() and len(history.read_text().splitlines()) >= 2):
            time.sleep(0.05)
        for process in psutil.process_iter(["cmdline"]):
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    result, losses = run(data, settings, tmp_path)
    killer.join(timeout=10)
    assert killed
    assert losses == undisturbed[1]
    assert_same_model(result, undisturbed[0], tolerance=0)
