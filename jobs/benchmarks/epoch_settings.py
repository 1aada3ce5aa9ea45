"""Settings of `jobs/epoch_cost.py`. Without torch, but where a GPU is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.benchmarks.records import Benchmark
from sce.errors import ConfigError
from sce.evaluation.flops import JINA_V3, LLAMA_1B, LORA_RANK, ROBERTA_BASE, Architecture
from sce.workflows.tracking import TrackingConfig


@dataclass(frozen=True)
class ModelSizes:
    """The three architectures, and the width of an attention head, which is one for all."""

    encoder: Architecture
    embedder: Architecture
    llama: Architecture
    lora_rank: int
    head_size: int


FULL = ModelSizes(ROBERTA_BASE, JINA_V3, LLAMA_1B, LORA_RANK, head_size=64)
"""Appendices I, J, L and M."""
TINY = ModelSizes(
    Architecture(d=32, d_ff=64, n_f1=1, n_f2=1, blocks=2, kv_size=32, vocabulary=64),
    Architecture(d=48, d_ff=96, n_f1=1, n_f2=1, blocks=2, kv_size=48, vocabulary=64),
    Architecture(d=64, d_ff=96, n_f1=2, n_f2=1, blocks=2, kv_size=32, vocabulary=64),
    lora_rank=4,
    head_size=16,
)
"""For tests."""
TINY_SETTINGS: dict[str, Any] = {
    "steps": 4, "warmup": 1, "samples": 64, "batch_size": 8, "text_tokens": 12,
    "max_batch_tokens": 96, "accumulation_steps": 2, "prompt_tokens": 9, "matrix_size": 128,
    "label_counts": [2, 10], "store_rows": 300, "seconds": 0.001, "rounds": 1,
}  # fmt: skip
"""Defaults of `--size tiny`."""


class EpochCost(Benchmark):
    """Settings of `epoch_cost.py`; `auto` is decided when they are read."""

    tracking: TrackingConfig = TrackingConfig(enabled=False, system_metrics=False)
    """Where the figures are recorded. Not by default: it runs where there is no MLflow."""
    size: Literal["full", "tiny"] = "full"
    """The paper's models, or tiny ones as a trial."""
    models: list[Literal["jina", "sce", "llama", "store"]] = Field(
        ["jina", "sce", "llama", "store"], min_length=1
    )
    """Which of them, with commas, in this order. `store` is the encoder answering vectors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where there is one."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format. `auto` is bfloat16 on a GPU, else float32."""
    quantisation: Literal["auto", "nf4", "none"] = "auto"
    """How the frozen Llama is kept. `auto` is nf4 where it works."""
    steps: int = Field(200, ge=1)
    """Timed for each model, or some more."""
    warmup: int = Field(20, ge=0)
    """Steps before that, or some more."""
    samples: int = Field(16_000, ge=1)
    """Samples of an epoch."""
    batch_size: int = Field(512, ge=1)
    """Rows of a step of SCE."""
    labels: int = Field(10, ge=1)
    """Candidates."""
    text_tokens: int = Field(84, ge=1)
    """Length of a text, for the embedder."""
    max_batch_tokens: int | None = Field(None, ge=1)
    """Most tokens of the embedder's batch; by default its own number."""
    micro_batch_size: int = Field(2, ge=1)
    """Samples of a forward pass of Llama."""
    accumulation_steps: int = Field(32, ge=1)
    """Micro-batches of an optimiser step of Llama."""
    prompt_tokens: int = Field(225, ge=1)
    """Length of Llama's prompt."""
    gradient_checkpointing: bool = True
    """Llama computes activations again in the backward pass."""
    matrix_size: int | None = Field(None, ge=16)
    """Rows and columns of the product that gives the matrix rate."""
    label_counts: list[int] = [2, 10, 100, 1000]
    """Labels that vectors are answered with."""
    store_rows: int = Field(200_000, ge=1)
    """Vectors in files that are answered."""
    seconds: float = Field(2.0, gt=0)
    """To answer vectors for, at a time."""
    rounds: int = Field(3, ge=1)
    """Of answering; in each every side runs twice."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    output: Path | None = None
    """A file for the table (Markdown)."""

    @model_validator(mode="before")
    @classmethod
    def _decided(cls, given: dict[str, Any]) -> dict[str, Any]:
        found = (TINY_SETTINGS if given.get("size") == "tiny" else {}) | given
        if found.get("device", "auto") == "auto":
            import torch

            found["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        if found.get("dtype", "auto") == "auto":
            found["dtype"] = "bfloat16" if found["device"] == "cuda" else "float32"
        return found

    @field_validator("output")
    @classmethod
    def _writable(cls, output: Path | None) -> Path | None:
        if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
            raise ValueError("no file in a folder that exists")
        return output

    @model_validator(mode="after")
    def _possible(self) -> EpochCost:
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ValueError("device: 'cuda', but this machine has no usable GPU")
        if "llama" in self.models and self.quantisation == "nf4":
            choose_quantisation(self)  # now rather than after minutes
        return self

    @property
    def sizes(self) -> ModelSizes:
        return FULL if self.size == "full" else TINY

    def named(self, full: str) -> str:
        """The name of a model in the report."""
        return full if self.size == "full" else "tiny"


def choose_quantisation(settings: EpochCost) -> tuple[str, str | None]:
    """What `LoraSettings.quantisation` can be here, and why it is not nf4.

    Raises:
        ConfigError: nf4 was asked for and does not work here.
    """
    if settings.quantisation == "none":
        return "none", "asked for"
    try:
        import bitsandbytes
        import torch

        ones = torch.ones(64, 64, dtype=torch.bfloat16, device=settings.device)
        bitsandbytes.functional.quantize_4bit(ones, quant_type="nf4")
    except Exception as error:  # a missing or broken native library raises what it likes
        why = (
            "bitsandbytes is not installed"
            if isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"
            else f"bitsandbytes does not work here ({type(error).__name__}: {error!s:.200})"
        )
        if settings.quantisation == "nf4":
            raise ConfigError(f"quantisation: 'nf4', but {why}.") from error
        return "none", why
    return "nf4", None
