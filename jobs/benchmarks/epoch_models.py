"""What `epoch_cost.py` measures: its settings, the paper's recipes, the paper's three models.

Every setting of a training is that of `configs/paper`; a machine's limits and the size of a trial
are `EpochCost`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from peft import LoraConfig
from pydantic import Field, field_validator, model_validator
from transformers import (
    AutoModelForCausalLM,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    LlamaConfig,
    PreTrainedModel,
)

from jobs.benchmarks.records import Benchmark
from sce.baselines.settings import LlamaTrainConfig, LoraSettings
from sce.errors import ConfigError
from sce.evaluation import flops
from sce.evaluation.flops import JINA_V3, LLAMA_1B, LORA_RANK, ROBERTA_BASE, Architecture
from sce.model.encoder import SCEConfig
from sce.training.settings import AugmentConfig, TrainConfig

PAPER_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "paper"
JINA_RANK = 4
"""Rank of a task adapter of jina-embeddings-v3, as its published configuration has it."""
JINA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
SCHEDULE_EPOCHS = 1_000_000
"""More than will be run, so that the learning rate stays above 0."""


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
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: 'cuda', but this machine has no usable GPU")
        if "llama" in self.models and self.quantisation == "nf4":
            choose_quantisation(self)  # now rather than after minutes
        return self

    @property
    def sizes(self) -> ModelSizes:
        return FULL if self.size == "full" else TINY

    @property
    def torch_device(self) -> torch.device:
        gpu = torch.cuda.current_device() if self.device == "cuda" else 0
        return torch.device(self.device, gpu)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def named(self, full: str) -> str:
        """The name of a model in the report."""
        return full if self.size == "full" else "tiny"


@cache
def _recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((PAPER_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def encoder_training(settings: EpochCost) -> TrainConfig:
    """How the paper trains the encoder (configs/paper/sce.yaml)."""
    given = {"batch_size": settings.batch_size, "precision": settings.dtype}
    return TrainConfig(**_recipe("sce")["train"] | given | {"epochs": SCHEDULE_EPOCHS})


def llama_training(settings: EpochCost) -> LlamaTrainConfig:
    """How the paper fine-tunes Llama (configs/paper/llama.yaml)."""
    given = settings.model_dump(include={"micro_batch_size", "accumulation_steps"})
    given["precision"] = settings.dtype
    return LlamaTrainConfig(**_recipe("llama")["train"] | given | {"epochs": SCHEDULE_EPOCHS})


def lora_settings(settings: EpochCost, quantisation: str) -> LoraSettings:
    """The paper's adapters (configs/paper/llama.yaml)."""
    given = settings.model_dump(include={"dtype", "gradient_checkpointing"})
    given |= {"quantisation": quantisation, "rank": settings.sizes.lora_rank}
    return LoraSettings(**_recipe("llama")["lora"] | given)


def augmentation(labels: int) -> AugmentConfig:
    """How the paper draws an episode (configs/paper/sce.yaml), every label being a candidate."""
    recipe = _recipe("sce")["augment"]
    return AugmentConfig(**recipe | {"max_candidates": max(recipe["max_candidates"], labels)})


def sce_config(sizes: ModelSizes, dropout: float) -> SCEConfig:
    """The paper's encoder (configs/paper/sce.yaml), the architecture of its checkpoint written
    out."""
    of_a_checkpoint = ("encoder", "num_layers")
    recipe = {k: v for k, v in _recipe("sce")["model"].items() if k not in of_a_checkpoint}
    encoder = _shape(sizes.encoder, sizes) | {
        "model_type": "roberta",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return SCEConfig(encoder=encoder, embedding_dim=sizes.embedder.d, **recipe)


def jina_model(sizes: ModelSizes, dtype: torch.dtype) -> PreTrainedModel:
    """The text embedder with a task adapter, as `sce.embedding.embedder.load_embedder` has it."""
    config = JinaEmbeddingsV3Config(**_shape(sizes.embedder, sizes))
    config._attn_implementation = "sdpa"
    model: Any = JinaEmbeddingsV3Model(config, add_pooling_layer=False)
    model = model.to(dtype)
    adapter = LoraConfig(
        r=JINA_RANK, lora_alpha=1, target_modules=list(JINA_LINEARS), init_lora_weights=False
    )
    model.add_adapter(adapter, adapter_name="classification")
    model.set_adapter("classification")
    return model.eval().requires_grad_(False)


def llama_config(sizes: ModelSizes) -> LlamaConfig:
    """Llama-3.2-1B (its scaling of the rotary frequencies apart, which costs nothing)."""
    return LlamaConfig(
        **_shape(sizes.llama, sizes),
        num_key_value_heads=sizes.llama.kv_size // sizes.head_size,
        head_dim=sizes.head_size,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )


def _shape(a: Architecture, sizes: ModelSizes) -> dict[str, Any]:
    return {
        "vocab_size": a.vocabulary,
        "hidden_size": a.d,
        "intermediate_size": a.d_ff,
        "num_hidden_layers": a.blocks,
        "num_attention_heads": a.d // sizes.head_size,
    }


def llama_parameters(sizes: ModelSizes) -> int:
    """Parameters of the language model and its adapters, by the architecture: bitsandbytes keeps
    two 4-bit weights in one element."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(llama_config(sizes))
    return base.num_parameters() + flops.lora_parameters(sizes.llama, sizes.lora_rank)


def choose_quantisation(settings: EpochCost) -> tuple[str, str | None]:
    """What `LoraSettings.quantisation` can be here, and why it is not nf4.

    Raises:
        ConfigError: nf4 was asked for and does not work here.
    """
    if settings.quantisation == "none":
        return "none", "asked for"
    try:
        import bitsandbytes

        ones = torch.ones(64, 64, dtype=torch.bfloat16, device=settings.torch_device)
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
