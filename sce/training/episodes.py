"""Training examples as episodes: a text, a candidate label set drawn for it, and the answer.

Four label sets teach a model those labels; many label sets teach it to read labels. So each
time a row is met, its candidates are a random subset of its own label set with labels of
other sets beside them as further negatives, and each label shows a random part of what is
known about it (its name, one synonym, everything; some examples or none). The paper's
augmentation (section 2.2, "Training Objective") replaces the right label by one of its
synonyms; that is one setting of `AugmentConfig`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sce.config import Section
from sce.training.episode_sampler import View


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
    view_weights: dict[View, float] = {
        "name": 1.0,
        "synonym": 1.0,
        "all": 1.0,
    }
    """How often an episode shows its labels by name, by one synonym each (drawn among the
    name and the synonyms), by name and description, or by all that is known."""
    synonym_scope: Literal["all", "right"] = "all"
    """Which labels a synonym replaces: all candidates, or the right label alone (the paper's;
    a model can then tell the right label by its not being a name)."""
    example_probability: float = Field(0.25, ge=0, le=1)
    """Share of episodes whose labels come with 1, 2, 4 or 8 example texts each."""
