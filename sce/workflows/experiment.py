"""The configuration of one experiment, from raw texts to the evaluated model, and of the
comparison of several.

`prepare_data`, `embed`, `train_sce` and `evaluate` read the same file; each takes the sections
that concern it, and a job runs those before it whose result is missing or out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sce.baselines.settings import LlamaTrainConfig, LoraSettings, PromptedConfig, PromptName
from sce.bulk.output import COMMIT_ROWS
from sce.config import JobConfig, Verbatim, resolve_output
from sce.datasets.settings import DataConfig
from sce.distributed.settings import ResourcesConfig
from sce.embedding.settings import EmbedderConfig
from sce.evaluation.flops import LORA_RANK
from sce.evaluation.settings import EvaluateConfig
from sce.storage import Place
from sce.training.settings import (
    AugmentConfig,
    ModelConfig,
    TrainConfig,
    TuneAugmentConfig,
    TuneTrainConfig,
)
from sce.workflows.bulk_settings import BulkSettings
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


class EmbedJob(BulkSettings, Experiment):  # type: ignore[misc]
    """Settings of `jobs/embed.py`: an experiment, or with `input` any corpus."""

    input: Verbatim = []
    """Files, folders, globs or URIs of Parquet, JSONL, CSV (.gz and others too) or Excel, to embed
    into `store`. Without it, the data of the experiment is embedded."""
    store: str | None = None
    """Folder or URI of the embedding store."""
    id_column: str | None = None
    """Default: ids made from places, `tickets.jsonl:17`."""
    keep_columns: Verbatim = []
    """Columns to carry into the store, beside the text."""
    commit_rows: int = Field(default=COMMIT_ROWS, ge=1)
    """Inputs of more rows are committed in parts of whole files or row groups."""


class Evaluation(Experiment):
    """Settings of an evaluation."""

    embedders: list[str] = Field(default_factory=list)
    """Measure these text embedders side by side and recommend one: `minilm`, `mpnet`, `jina`, or a
    sentence-transformers checkpoint by hub id or folder. SCE is measured where there is a trained
    model: the experiment's own, that of `make quickstart`, or `mpnet=FOLDER`."""


class Ablation(Experiment):
    """Settings of `jobs/ablate.py`: an experiment, and what its variants change of it."""

    seeds: list[int] = Field(default=[0], min_length=1)
    """Each variant is trained with all of them."""
    variants: dict[str, dict[str, Any]] = {}
    """By name, the settings that a variant changes, as YAML; `seeds` may be one of them. Without
    any, the experiment itself is trained with each seed. Data of its own wants a `shared_dir` of
    its own."""


class LlamaExperiment(RunSettings):
    """Settings of `jobs/train_llama.py`."""

    name: str = "llama-lora"
    """Names the method in reports, and the run in MLflow."""
    run_dir: Place = Path("runs/llama-lora")
    """Where everything goes: data, checkpoints, adapters, a merged model. A path that every node
    reaches, or a URI (s3://bucket/folder)."""
    base: str = "meta-llama/Llama-3.2-1B-Instruct"
    """Hub id, folder or URI of the language model."""
    prompt: PromptName = "template"
    """`template` of appendix G.1, or the `sentence` of appendix D."""
    lora: LoraSettings = LoraSettings(rank=LORA_RANK)
    train: LlamaTrainConfig = LlamaTrainConfig()
    validation_rows: int = Field(default=500, ge=1)
    """Rows of the split `validation` that are used, at most: each costs a forward pass of the whole
    model."""
    merge: bool = False
    """Also write an unquantised model with the adapters in its weights, and measure it."""

    @property
    def adapter_dir(self) -> Place:
        return self.home / "adapter"

    @property
    def prompted(self) -> PromptedConfig:
        """The model with its adapters, as one that is asked."""
        return PromptedConfig(
            base=self.base,
            adapter=self.adapter_dir,
            prompt=self.prompt,
            quantisation=self.lora.quantisation,
            max_text_tokens=self.train.max_text_tokens,
        )


class TuneConfig(JobConfig):
    """Settings of `jobs/tune.py`."""

    model: Place | None = None
    """The trained model to begin with: a folder or URI. It is not changed."""
    labelled: Place | None = None
    """Your labelled rows: JSONL, CSV, TSV or Parquet."""
    labels_file: Place | None = None
    """A YAML or JSON file with their label set; by default the labels found there."""
    text_column: str = "text"
    label_column: str = "label"
    output: Place | None = None
    """Folder or URI of the tuned model."""
    folds: int = Field(default=3, ge=2)
    """Your rows are shared out into so many; each is answered by a model trained on the others."""
    kept: float = Field(default=0.5, ge=0, lt=1)
    """Share of the old weights in the tuned ones: what is lost elsewhere is halved, and more than
    half of what is gained stays."""
    seed: int = 0
    embedder: EmbedderConfig | None = None
    """Where to find the text embedder; by default the one that the model's fingerprint names."""
    augment: TuneAugmentConfig = TuneAugmentConfig()
    train: TuneTrainConfig = TuneTrainConfig()
    tracking: TrackingConfig = TrackingConfig()


class CompareConfig(JobConfig):
    """Settings of `jobs/compare.py`."""

    methods: list[str] = []
    """Names of what is compared (`name` of its configuration), in the order of the report; by
    default everything measured. Labels that were adapted by a method's vectors stand behind it."""
    measured_on: str = "test"
    """The rows: "test" for the test sets, or the name of a file of your own rows, without its
    ending (`--evaluate.labelled mine.jsonl` of the jobs that measured them: "mine")."""
    output: Place = Path("runs/compare")
    """Folder or URI of the report: compare.md, compare.html, a CSV for each table, charts. Where an
    earlier comparison lies in it, the next number is added to its name: runs/compare-2."""
    tracking: TrackingConfig = TrackingConfig()
    """Whose runs are compared."""
