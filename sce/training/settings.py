"""The settings of the encoder's training; `sce.training.epoch` does what they say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sce.config import Section


class TrainConfig(Section):
    """How the encoder is fitted."""

    epochs: int = Field(3, ge=0)
    batch_size: int = Field(32, ge=1)
    """Rows in one optimiser step, over all workers."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """"adamw" decouples the weight decay from the gradient; "adam" adds it as an L2 term."""
    learning_rate: float = Field(1e-4, gt=0)
    final_learning_rate: float = Field(0.0, ge=0)
    """Where the decay ends, on the last step of the last epoch."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    """Share of all steps in which the rate rises from 0."""
    scale_learning_rate: float = Field(1e-3, gt=0)
    """Rate of the handful of scalars (scales, weights of examples); same schedule."""
    weight_decay: float = Field(1e-4, ge=0)
    """On matrices; biases, norms and scalars have none."""
    max_grad_norm: float = Field(1.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Inside the encoder. Above 0 the masks differ from one number of workers to another, so
    the loss curves then agree in distribution alone."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder's forward and backward pass. "auto": bfloat16 on a GPU, else float32."""
    patience: int = Field(2, ge=1)
    """Epochs without a better validation accuracy before training stops."""
    max_failures: int = Field(3, ge=0)
    """Deaths of a worker after which training goes on from its last checkpoint."""
