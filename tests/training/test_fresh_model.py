"""A fresh model's settings: those of the model itself, each declared once."""

from inspect import signature

import pytest
import torch
from pydantic import ValidationError
from transformers import MPNetConfig, MPNetModel

from sce.model.encoder import SCEConfig
from sce.model.settings import LABEL_VECTORS
from sce.training.fresh_model import build_model, mpnet_as_bert
from sce.training.settings import ModelConfig

RECIPE = {
    "label_source", "input_norm", "token_type", "positions", "query_scale", "logit_scale",
    "learn_scales", "prior_scale", "label_vectors", "example_weight", "learn_example_weight",
    "adaptor_init", "label_prefix_space",
}  # fmt: skip
"""Keys of `model` in users' YAML files, with `encoder`, `encoder_revision` and `num_layers`."""


def test_the_recipe_has_the_models_options_with_their_defaults():
    settings = ModelConfig()
    assert set(settings.model_dump()) == RECIPE | {"encoder", "encoder_revision", "num_layers"}
    options = signature(SCEConfig.__init__).parameters
    same = RECIPE - {"label_vectors"}
    assert all(getattr(settings, name) == options[name].default for name in same)


def test_a_fresh_model_has_the_newest_label_vectors_and_one_that_says_none_the_oldest():
    assert ModelConfig().label_vectors == LABEL_VECTORS == 1
    assert SCEConfig().label_vectors == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"prior_scale": -1},
        {"label_source": "x"},
        {"num_layers": 0},
        {"embedding_dim": 3},
        {"label_vectors": 2},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ModelConfig(**wrong)


def test_an_mpnet_without_positions_is_a_bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = MPNetConfig(**sizes, num_hidden_layers=2, vocab_size=50, initializer_range=0.3)
    mpnet = MPNetModel(config).eval()
    bert = mpnet_as_bert(mpnet).eval()
    x_BLD = torch.randn(2, 5, 32)
    mine_BLD = bert.encoder(x_BLD).last_hidden_state
    for layer in mpnet.encoder.layer:  # called alone, a layer has no bias by position
        x_BLD = layer(x_BLD, attention_mask=None)[0]
    torch.testing.assert_close(mine_BLD, x_BLD)
    assert bert.config.layer_norm_eps == config.layer_norm_eps
    embeddings = bert.embeddings
    assert not embeddings.token_type_embeddings.weight.any()
    assert torch.equal(embeddings.word_embeddings.weight, mpnet.embeddings.word_embeddings.weight)


def test_a_model_starts_from_an_mpnet_checkpoint(tmp_path):
    config = MPNetConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        num_hidden_layers=3,
        vocab_size=50,
        max_position_embeddings=20,
    )
    MPNetModel(config).save_pretrained(tmp_path)
    embedder = {"dimension": 48}
    fresh = build_model(ModelConfig(encoder=str(tmp_path), num_layers=2), embedder, 0.1, 0)
    assert fresh.model.config.encoder["model_type"] == "bert"
    assert len(fresh.model.encoder.layer) == 2
    query, labels = torch.randn(3, 48), torch.randn(5, 48)
    fresh.model.eval()
    logits_BK = fresh.model(query, labels).logits
    turned_BK = fresh.model(query, labels.flip(0)).logits
    torch.testing.assert_close(logits_BK, turned_BK.flip(1))
