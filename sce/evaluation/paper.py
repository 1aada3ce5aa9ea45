"""The settings that the paper states, so that a model card can tell them from ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAPER_SETTINGS = {
    "model.encoder": "FacebookAI/roberta-base",  # section 3.1, appendix I
    "model.num_layers": None,  # all twelve, appendix I
    "model.label_source": "tokens",  # equation 2
    "model.positions": False,  # section 2.2
    "model.prior_scale": 0.0,  # equation 3 has none
    "model.learn_scales": False,  # appendix Q counts the layers and the adaptor
    "train.optimizer": "adam",  # section 3.1
    "train.learning_rate": 1e-5,  # section 3.1: "1e-5-1e-6"
    "train.final_learning_rate": 1e-6,
    "train.weight_decay": 1e-4,  # section 3.1
    "train.batch_size": 512,  # appendix R
    "augment.synonym_scope": "right",  # section 2.2: the ground-truth label alone
    "augment.subset_probability": 0.0,  # the candidates are the dataset's labels
    "augment.foreign_probability": 0.0,
    "augment.example_probability": 0.0,
    "augment.view_weights": {"synonym": 1.0},
}
"""Setting -> the paper's value. What is not here the paper leaves open."""


def paper_settings(settings: Mapping[str, Any]) -> list[str]:
    """Dotted names of an experiment's settings, dumped in sections, that have the paper's value."""
    names: list[str] = []
    for name, value in PAPER_SETTINGS.items():
        section, key = name.split(".")
        if settings[section][key] == value:
            names += [f"{name}.{part}" for part in value] if isinstance(value, dict) else [name]
    return names
