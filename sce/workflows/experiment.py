"""The configuration of one experiment, from raw texts to the evaluated model.

`prepare_data`, `embed`, `train_sce` and `evaluate` read the same file; each takes the sections
that concern it, and a job runs those before it whose result is missing or out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sce.baselines.settings import PromptedConfig
from sce.config import JobConfig, resolve_output
from sce.datasets.prepare import DataConfig
from sce.distributed.settings import ResourcesConfig
from sce.embedding.settings import EmbedderConfig
from sce.evaluation.evaluate import EvaluateConfig
from sce.storage import Place
from sce.training.episodes import AugmentConfig
from sce.training.epoch import TrainConfig
from sce.training.fresh_model import ModelConfig
from sce.workflows.tracking import TrackingConfig


class RunSettings(JobConfig):
    """What every experiment has, whatever it trains; its folders."""

    name: str = "sce"
    """Names the method in reports, and the run in MLflow."""
    seed: int = 0
    run_dir: Place = Path("runs/sce")
    """Where everything that the jobs write goes: data, embeddings, checkpoints, model, results.
    A path that every node reaches, or a URI (s3://bucket/folder)."""
    data: DataConfig = DataConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    """How it is measured on the test sets and on the user's own rows."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    shared_dir: Place | None = None
    """Where prepared data and embeddings go when several experiments share them (seeds,
    recipes); by default `run_dir`."""
    resume: bool = False
    """Go on with the unfinished training of `run_dir`."""
    restart: bool = False
    """Throw the unfinished training of `run_dir` away and begin again."""

    @property
    def home(self) -> Place:
        return resolve_output(self.run_dir)

    @property
    def shared_home(self) -> Place:
        return resolve_output(self.shared_dir or self.run_dir)

    @property
    def data_dir(self) -> Place:
        return self.shared_home / "data"

    @property
    def checkpoints_dir(self) -> Place:
        return self.home / "checkpoints"

    @property
    def results_dir(self) -> Place:
        return self.home / "results"


class Experiment(RunSettings):
    """Settings of an experiment. Every field is a YAML key, a flag and a variable."""

    embedder: EmbedderConfig = EmbedderConfig()
    method: Literal["sce", "similarity", "prompted"] = "sce"
    """What `jobs/evaluate.py` measures: the trained model (beside cosine similarity with the same
    embedder), or what needs no training: cosine similarity of the embedder's vectors, or a
    language model that is asked."""
    prompted: PromptedConfig = PromptedConfig()
    """The language model of the method `prompted`."""
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()

    @property
    def embeddings_dir(self) -> Place:
        return self.shared_home / "embeddings"

    @property
    def model_dir(self) -> Place:
        return self.home / "model"

    @property
    def measured_model(self) -> Place:
        """The model that `jobs/evaluate.py` measures."""
        return resolve_output(self.evaluate.model or self.model_dir)

    @property
    def own_results_dir(self) -> Place:
        """Results on the user's own rows, a folder for each file of them."""
        return self.home / "results-own"
