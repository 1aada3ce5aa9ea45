"""What an operator decides of the endpoint. YAML, environment and command line as for the jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from sce.config import Gpus, JobConfig, Section
from sce.embedding.settings import MAX_CHUNKS, EmbedderConfig


class Limits(Section):
    """How much one request may ask, and how much may be asked at a time. Each is named in the
    refusal of a request that exceeds it, and in `/info`."""

    max_body_bytes: int = Field(default=16 * 2**20, ge=1024)
    """A request's size, 413 above."""
    max_texts: int = Field(default=2048, ge=1)
    """Texts or embeddings of a request, 413 above. As many as OpenAI's clients send at a time."""
    max_labels: int = Field(default=1000, ge=1)
    """Labels of one set, 413 above."""
    max_label_chars: int = Field(default=200, ge=1, le=200)
    """Characters of a label's name, 413 above."""
    max_label_info_chars: int = Field(default=10_000, ge=0, le=10_000)
    """Characters of a description, a synonym or an example, 413 above."""
    max_label_texts: int = Field(default=4000, ge=1)
    """Names, synonyms, descriptions and examples of all labels of a request, 413 above."""
    max_label_tokens: int = Field(default=400_000, ge=2)
    """Tokens that the encoder reads for a request, labels + 1 for each text, 413 above."""
    max_chunks: int = Field(default=1024, ge=1, le=MAX_CHUNKS)
    """Chunks of one text (`long_text: chunk`), each with a row's label tokens: a text that has more
    is cut there, and says so in `truncated`. At 128 tokens a chunk, 80,000 words."""
    max_concurrent_requests: int = Field(default=256, ge=1)
    """Requests that are worked on at a time by a replica of the gateway, 429 above."""
    max_concurrent_bytes: int = Field(default=256 * 2**20, ge=1024)
    """Bytes of their bodies together, 429 above."""
    body_timeout_seconds: float = Field(default=30.0, gt=0)
    """How long a request's body may take to come, 408 after it."""
    request_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long the work may take from then on, 504 after it."""


class Scaling(Section):
    """Replicas of a deployment, and what each takes."""

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Requests a replica above which another is started."""
    num_cpus: float = Field(default=0.5, ge=0)
    """That Ray sets aside; on a CPU the replica computes with `threads` all the same."""
    num_gpus: Gpus | None = None
    """Default: 1 for a model where the cluster has any. A part (0.5) shares a GPU."""
    accelerator_type: str | None = None
    """Only nodes with this accelerator, by Ray's name for it, e.g. `A100` or `RTX-A6000`."""

    @model_validator(mode="after")
    def _ordered(self) -> Scaling:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is less than min_replicas")
        return self


class ModelSettings(Section):
    """One model behind the endpoint."""

    path: str
    """Folder, URI or hub id of a model that jobs/train_sce.py wrote."""
    embedder: EmbedderConfig | None = None
    """Default: the model's. Give it where its checkpoint lies elsewhere on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    exact: bool = False
    """Contextualise every label also of a large set, rather than a shortlist."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of a replica on a CPU. Default: all cores."""
    embed_batch_tokens: int | None = Field(default=None, ge=64)
    """Tokens of texts that are embedded together. Default: 2,048 on a CPU, 65,536 on a GPU."""
    classify_batch_tokens: int | None = Field(default=None, ge=64)
    """Label tokens (labels + 1 for each text) that are classified together. Default: 8,192 on a
    CPU, 262,144 on a GPU."""
    cache_bytes: int = Field(default=256 * 2**20, ge=0)
    """Size of the vectors of texts and labels that a replica keeps."""
    scaling: Scaling = Scaling()


Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]
"""Scheme, host and port, without a path."""
SetName = Annotated[str, Field(pattern=r"^\w[\w.-]{0,63}$")]
"""It stands in URLs: letters, digits, `_`, `-` and `.`."""


class ReplicaSettings(ModelSettings):
    """What a replica is given: a model, and the label sets that read its embedder's vectors."""

    label_sets: dict[SetName, str] = {}


class BatchSettings(Section):
    """Bulk jobs through `/v1/batches`; refused unless both roots are named. MLflow records them
    where MLFLOW_TRACKING_URI says so. Through links below a root nothing is read or written.

    In OpenAI's form, of files that are uploaded to `/v1/files`: refused unless `files_root` is
    named."""

    input_roots: list[str] = []
    """Folders or URIs that inputs must lie under."""
    output_roots: list[str] = []
    """Folders or URIs that outputs must lie under."""
    dashboard: str | None = None
    """Address of Ray's job server (http://host:8265). Default: that of this cluster."""
    max_running: int = Field(default=1, ge=1)
    """Jobs that run at a time, and batches of uploaded files, 429 above."""
    files_root: str | None = None
    """Folder for uploaded files and their answers, which every gateway reaches."""
    max_file_bytes: int = Field(default=100 * 2**20, ge=1024)
    """Size of an uploaded file, 413 above."""
    max_files_bytes: int = Field(default=2 * 2**30, ge=1024)
    """Of all files of a token together, answers included, 413 above."""
    max_file_requests: int = Field(default=50_000, ge=1)
    """Requests of an uploaded file; a batch of more fails."""

    @property
    def allowed(self) -> bool:
        return bool(self.input_roots and self.output_roots)


class ServeConfig(JobConfig):
    """Settings of the endpoint."""

    model: str = "runs/quickstart/model"
    """Folder, URI or hub id of the only model, where `models` names none."""
    models: dict[str, ModelSettings] = {}
    """Models by the name that requests choose them by; the first is the default."""
    label_sets: dict[SetName, str] = {}
    """Adapted labels (folders or URIs that jobs/adapt.py wrote) by the name that requests choose
    them by: `--label-sets tickets=runs/tickets-labels`."""
    limits: Limits = Limits()
    tokens: SecretStr = SecretStr("")
    """Bearer tokens, by commas: best as the environment variable SCE_TOKENS. Without any, only
    this machine is answered, and nothing that came through a proxy."""
    tokens_file: Path | None = None
    """More of them, one a line; the way for a cluster, where an environment is seen by every
    process. Its mode should be 0600."""
    cors_origins: list[Origin] = []
    """Pages elsewhere that may ask (https://intranet.example), or `*` for all, where there are
    tokens. Default: none, but the page of this server."""
    log_texts: bool = False
    """Write texts and labels into the log."""
    batches: BatchSettings = BatchSettings()
    gateway: Scaling = Scaling(num_cpus=0.1, target_ongoing_requests=64)
    one_process: bool | None = None
    """The gateway holds the model itself: a request passes one process fewer, and both end
    together. For one model with one replica. Default: so for `make serve`, not on a cluster."""
    host: str = "127.0.0.1"
    """Address for `make serve`; a cluster's is in the YAML of `serve deploy`."""
    port: int = Field(default=8000, ge=1, le=65535)

    def named_models(self) -> dict[str, ModelSettings]:
        """`models`, or the one of `model` under its own name; folders by their absolute path."""
        models = self.models or {default_name(self.model): ModelSettings(path=self.model)}
        return {
            name: settings.model_copy(update={"path": _absolute(settings.path)})
            for name, settings in models.items()
        }

    @property
    def fits_one_process(self) -> bool:
        """One model, with one replica of it and of the gateway."""
        models = list(self.named_models().values())
        return len(models) == 1 == self.gateway.max_replicas == models[0].scaling.max_replicas

    @model_validator(mode="after")
    def _together(self) -> ServeConfig:
        if self.one_process and not self.fits_one_process:
            raise ValueError("one_process needs one model, with one replica of it and the gateway")
        return self

    def named_label_sets(self) -> dict[str, str]:
        """`label_sets`; folders by their absolute path."""
        return {name: _absolute(folder) for name, folder in self.label_sets.items()}


def _absolute(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def default_name(path: str) -> str:
    """What a model is called that has no name: its folder's, or its run's where that is `model`."""
    parts = [part for part in Path(path).parts if part not in ("/", "..", ".")]
    name = parts[-1] if parts else path
    return parts[-2] if name == "model" and len(parts) > 1 else name
