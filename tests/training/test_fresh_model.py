"""A fresh model's settings: those of the model itself, each declared once."""

from inspect import signature

import pytest
from pydantic import ValidationError

from sce.model.encoder import LABEL_VECTORS, SCEConfig
from sce.training.fresh_model import ModelConfig

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
