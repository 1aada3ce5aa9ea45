"""Training on Ray Train: workers, and what happens when one of them dies.

The models are tiny, the engine is real. Everything here trains on the same data with the same
settings, so every run must end at the same model. `tests/jobs/test_train_job.py` has the whole job.
"""

import os
import pickle
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ray import cloudpickle

from sce.distributed import workers
from sce.distributed.resources import training_workers
from sce.distributed.settings import ResourcesConfig
from sce.distributed.train import fit
from sce.distributed.workers import STATE_FILE, EpochLog, Run
from sce.errors import ConfigError
from sce.labels import LabelSet
from sce.model.encoder import SCEModel
from sce.model.label_vectors import TextLookup, label_texts_to_keep
from sce.training.data import Rows
from sce.training.episodes import EpisodeSampler
from sce.training.fresh_model import FreshModel, build_model
from sce.training.settings import AugmentConfig, ModelConfig, TrainConfig
from sce.training.validation import Validator
from tests.tiny_models import build_roberta
from tests.training.test_episodes import text_vectors
from tests.training.test_saved_state import Planted

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


@dataclass(frozen=True)
class Parts:
    """What every run here trains with."""

    fresh: FreshModel
    sampler: EpisodeSampler
    labels: TextLookup
    validator: Validator


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Parts:
    texts = label_texts_to_keep(label for s in SETS.values() for label in s.labels)
    vectors = TextLookup(dict(zip(texts, text_vectors(texts))))
    train, validation = rows(203, 0), rows(61, 1)
    encoder = build_roberta(tmp_path_factory.mktemp("encoder") / "roberta")
    model = ModelConfig(encoder=str(encoder), num_layers=None, adaptor_init="normal")
    fresh = build_model(model, {"dimension": 64}, dropout=0.0, seed=0)
    version = model.label_vectors
    sampler = EpisodeSampler(train, SETS, vectors, fresh.token_means, AugmentConfig(), 0, version)
    validator = Validator(validation, SETS, vectors, fresh.token_means, version)
    return Parts(fresh, sampler, vectors, validator)


@dataclass(frozen=True)
class Result:
    model: SCEModel
    best: dict[str, float]
    last: dict[str, float]


TRAIN = TrainConfig(epochs=3, batch_size=16, learning_rate=1e-3, patience=3)


class History:
    """Writes each epoch's loss to a file; Ray's controller is another process."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def log_metrics(self, metrics, step=0):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{step} {metrics.get('loss/train', 0.0)}\n")


def run(
    parts: Parts, folder: Path, workers: int = 1, train: TrainConfig = TRAIN
) -> tuple[Result, dict[int, float]]:
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder / "history")
    plan = training_workers(ResourcesConfig(num_workers=workers, use_gpu=False))
    place = Run(plan, folder / "checkpoints", "run", history)
    model, fitted = fit(parts.fresh, parts.sampler, parts.validator, train, place)
    lines = [line.split() for line in Path(history.path).read_text().splitlines()]
    return Result(model, fitted.best, fitted.last), {
        int(epoch): float(loss) for epoch, loss in lines
    }


@pytest.fixture(scope="module")
def undisturbed(ray_session, parts, tmp_path_factory):
    return run(parts, tmp_path_factory.mktemp("undisturbed"))


def assert_same_model(a: Result, b: Result, tolerance: float) -> None:
    theirs = b.model.state_dict()
    for name, value in a.model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.system
def test_training_learns_and_reports_every_epoch(undisturbed):
    result, losses = undisturbed
    assert sorted(losses) == [0, 1, 2, 3]
    assert losses[3] < losses[1]
    assert result.best["score"] > 0.5
    assert {"validation/one/accuracy", "validation/two/accuracy"} <= set(result.best)
    assert result.last["samples_per_second"] > 0


@pytest.mark.system
def test_two_workers_give_the_loss_curve_and_the_model_of_one(undisturbed, parts, tmp_path):
    result, losses = run(parts, tmp_path, workers=2)
    for epoch, loss in undisturbed[1].items():
        assert losses[epoch] == pytest.approx(loss, abs=1e-5)
    # Adam divides by the gradient's size, so where that is next to nothing its sign is rounding.
    assert_same_model(result, undisturbed[0], tolerance=1e-3)


class NoBetter(Validator):
    """Finds every epoch as good as the others, so that patience ends a training."""

    def figures(self, scores_VNK):
        return super().figures(scores_VNK) | {"validation/accuracy": 0.1}


@pytest.mark.system
def test_a_run_goes_on_from_its_last_checkpoint(undisturbed, parts, tmp_path):
    """The rates follow from the epochs planned, so the cut comes from patience, not from them."""
    same = NoBetter(parts.validator.rows, SETS, parts.labels, None, 1)
    cut = replace(parts, validator=same)
    _, losses = run(cut, tmp_path, train=TRAIN.model_copy(update={"patience": 1}))
    assert list(losses) == [0, 1]
    result, losses = run(parts, tmp_path)
    assert losses == undisturbed[1]
    assert_same_model(result, undisturbed[0], tolerance=0)


@pytest.mark.system
def test_code_in_a_checkpoint_does_not_run_and_is_refused_at_once(ray_session, parts, tmp_path):
    run(parts, tmp_path, train=TRAIN.model_copy(update={"epochs": 1}))
    proof = tmp_path / "it-ran"
    found = list((tmp_path / "checkpoints").rglob(STATE_FILE))
    assert found
    for file in found:
        file.write_bytes(pickle.dumps({"epoch": 1, "x": Planted(proof)}, protocol=2))
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"cannot be read as plain data.*--restart"):
        run(parts, tmp_path)
    assert not proof.exists()
    assert time.monotonic() - started < 60, "it was tried again and again"


def test_a_log_that_fails_does_not_end_the_run(capsys, caplog):
    class Broken:
        def log_metrics(self, metrics, step=0):
            raise RuntimeError("the store is down")

    figures = {"epoch": 0, "score": 0.5, "validation/accuracy": 0.5, "validation/one/accuracy": 0.5}
    EpochLog(Broken(), epochs=3).after_report(None, [figures], None)
    assert "epoch 0/3  validation 50.0 (one 50.0)" in capsys.readouterr().out
    assert "the store is down" in caplog.text


def test_more_than_the_cluster_has_is_refused_at_once(ray_session):
    resources = ResourcesConfig(num_workers=64, cpus_per_worker=4, use_gpu=False)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"64 workers with 4 CPUs.*the cluster has"):
        training_workers(resources)
    assert time.monotonic() - started < 10


@pytest.mark.system
def test_a_killed_worker_is_replaced_and_the_model_is_the_same(undisturbed, parts, tmp_path):
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
    result, losses = run(parts, tmp_path)
    killer.join(timeout=10)
    assert killed
    assert losses == undisturbed[1]
    assert_same_model(result, undisturbed[0], tolerance=0)


@pytest.mark.parametrize("dashboard", ["", "127.0.0.1:8265"])
def test_nothing_asks_a_dashboard_that_is_not_there(monkeypatch, dashboard):
    """Ray Train's watcher of placement groups would print a complaint every second."""
    monkeypatch.setattr(workers, "get_dashboard_url", lambda: dashboard)
    found = workers._Trainer(print)._create_default_callbacks()
    cleaners = [one for one in found if isinstance(one, workers.PlacementGroupCleanerCallback)]
    assert len(cleaners) == bool(dashboard)
    assert len(found) > len(cleaners)
