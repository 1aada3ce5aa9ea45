"""A fresh SCE model: which pretrained encoder, how many of its layers, which recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sce.embedding.checkpoint import checkpoint_licence, explain_load_error
from sce.embedding.published import PUBLISHED, published_folder
from sce.errors import ConfigError
from sce.model.encoder import ENCODERS, SCEConfig, SCEModel
from sce.model.label_vectors import TokenMeans, token_means_of
from sce.model.logistic import UNTRAINED
from sce.model.weights import load_weights
from sce.storage import fetch_model
from sce.training.settings import ModelConfig, PretrainedConfig

ENCODER_LICENCES = {"roberta-base": "MIT", "FacebookAI/roberta-base": "MIT"}
_BERT_NAMES = {
    "attention.attn.q.": "attention.self.query.",
    "attention.attn.k.": "attention.self.key.",
    "attention.attn.v.": "attention.self.value.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
}
"""Of an MPNet checkpoint's weights."""


@dataclass(frozen=True)
class FreshModel:
    """A model before its first step, with the tokenizer where labels are read as tokens.

    Attributes:
        random_state: of torch's generator on the CPU, once the model was built.
    """

    model: SCEModel
    tokenizer: PreTrainedTokenizerBase | None
    encoder_name: str
    encoder_licence: str
    random_state: torch.Tensor

    @property
    def token_means(self) -> TokenMeans | None:
        """Equation 2 with the model's dictionary; None where labels are not read as tokens."""
        return None if self.tokenizer is None else token_means_of(self.model, self.tokenizer)


def build_model(
    config: ModelConfig,
    embedder: dict[str, Any],
    dropout: float,
    seed: int,
    several: bool = False,
) -> FreshModel:
    """Load the pretrained encoder and put the rest of the model around it.

    Args:
        embedder: fingerprint of the text embedder (`EmbedderFingerprint.to_dict()`).
        dropout: inside the encoder, during training.
        seed: of the weights that are not pretrained.
        several: whether it is to be trained on rows with several right labels.

    Raises:
        EmbedderError: the checkpoint cannot be loaded.
        InputError: its weights are not in safetensors.
        ConfigError: it is none of BERT, RoBERTa and MPNet, or has too few layers.
    """
    recipe = config.model_dump(exclude=set(PretrainedConfig.model_fields))
    published = PUBLISHED.get(config.encoder)
    if published is not None:
        folder = str(published_folder(config.encoder))
    else:
        folder = fetch_model(config.encoder)
    try:
        options = {"revision": config.encoder_revision, "trust_remote_code": False}
        found = AutoConfig.from_pretrained(folder, **options)
        if found.model_type not in (*ENCODERS, "mpnet"):
            raise ConfigError(
                f"model.encoder: {config.encoder!r} is of type {found.model_type!r}; "
                f"SCE needs one of {', '.join(ENCODERS)}, mpnet."
            )
        pretrained = load_weights(
            AutoModel, folder, revision=config.encoder_revision, dtype=torch.float32
        )
        if found.model_type == "mpnet":
            pretrained = mpnet_as_bert(pretrained)
            found = pretrained.config
        tokenizer = None
        if recipe["label_source"] == "tokens":
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise explain_load_error("model.encoder", config.encoder, error) from error

    layers = config.num_layers or found.num_hidden_layers
    if layers > found.num_hidden_layers:
        raise ConfigError(
            f"model.num_layers: {layers} asked for, {config.encoder!r} has "
            f"{found.num_hidden_layers}."
        )
    not_kept = ("_name_or_path", "architectures", "transformers_version", "dtype")
    encoder = {key: value for key, value in found.to_dict().items() if key not in not_kept} | {
        "num_hidden_layers": layers,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    if several:
        recipe["several"] = UNTRAINED
    recipe |= {"embedding_dim": embedder["dimension"], "embedder": embedder}
    torch.manual_seed(seed)
    model = SCEModel(SCEConfig(encoder=encoder, **recipe))
    model.load_pretrained_encoder(pretrained)
    if published is not None:
        name, licence = published.name, published.licence
    else:
        name = config.encoder
        licence = ENCODER_LICENCES.get(name) or checkpoint_licence(folder)
    return FreshModel(model, tokenizer, name, licence, torch.get_rng_state())


def mpnet_as_bert(mpnet: PreTrainedModel) -> BertModel:
    """A BERT with the weights of an MPNet. They differ in names and in that MPNet adds a bias by
    relative position to its attention, which an encoder without positions has no use for."""
    shared = BertConfig().to_dict().keys() & mpnet.config.to_dict().keys() - {"model_type"}
    sizes = {key: value for key, value in mpnet.config.to_dict().items() if key in shared}
    bert = BertModel(BertConfig(**sizes, type_vocab_size=1), add_pooling_layer=False)
    weights = {}
    for name, weight in mpnet.state_dict().items():
        for theirs, mine in _BERT_NAMES.items():
            name = name.replace(theirs, mine)
        weights[name] = weight
    missing = bert.load_state_dict(weights, strict=False).missing_keys
    assert missing == ["embeddings.token_type_embeddings.weight"], missing
    torch.nn.init.zeros_(bert.embeddings.token_type_embeddings.weight)
    return bert
