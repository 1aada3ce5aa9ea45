"""What `epoch_cost.py` measures: its settings, the paper's recipes, the paper's three models.

Every setting of a training is that of `configs/paper`; a machine's limits and the size of a trial
are `EpochCost`'s.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    LlamaConfig,
    PreTrainedModel,
)

from jobs.benchmarks.epoch_settings import EpochCost, ModelSizes
from sce.baselines.settings import LlamaTrainConfig, LoraSettings
from sce.evaluation import flops
from sce.evaluation.flops import Architecture
from sce.model.encoder import SCEConfig
from sce.training.settings import AugmentConfig, TrainConfig

PAPER_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "paper"
JINA_RANK = 4
"""Rank of a task adapter of jina-embeddings-v3, as its published configuration has it."""
JINA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
SCHEDULE_EPOCHS = 1_000_000
"""More than will be run, so that the learning rate stays above 0."""


def torch_device(settings: EpochCost) -> torch.device:
    gpu = torch.cuda.current_device() if settings.device == "cuda" else 0
    return torch.device(settings.device, gpu)


def torch_dtype(settings: EpochCost) -> torch.dtype:
    found: torch.dtype = getattr(torch, settings.dtype)
    return found


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
