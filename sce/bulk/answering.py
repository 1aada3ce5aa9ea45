"""What a block is answered by: a model in the same process, or an endpoint elsewhere.

Shapes: G rows of a block that have no error so far, D the embedder's dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pydantic import SecretStr

from sce.client import ServedModel
from sce.model.answers import Answers
from sce.model.options import Scoring
from sce.model.pooling import ChunkVectors

Vectors = np.ndarray | ChunkVectors
"""One a row, float32 [G, D], or as many as its text has chunks."""


@dataclass(frozen=True)
class BlockAnswers:
    """The answers for G rows, without a meaning for one with an error; whether each text was longer
    than the embedder reads, bool; and a word of `sce.errors.ROW_ERRORS` or "", an object array."""

    answers: Answers
    truncated_G: np.ndarray
    errors_G: np.ndarray


class BlockPredictor(Protocol):
    """Answers the rows of blocks. `labels` is a `LabelSet`, or `RaggedLabels` of G sets."""

    @property
    def dimension(self) -> int:
        """D."""

    def warm_up(self, labels: Any) -> None:
        """Do ahead what the first answer with these labels would wait for."""

    def answer_texts(self, texts_G: pa.Array, labels: Any, scoring: Scoring) -> BlockAnswers:
        """Answer texts that `check_texts` let pass."""

    def answer_vectors(self, vectors_GD: Vectors, labels: Any, scoring: Scoring) -> BlockAnswers:
        """Answer unit vectors of the model's embedder, float32, or those of texts' chunks."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how.

    Attributes:
        model: its name there; None for the server's default.
        token: "" for none.
        concurrency: requests at a time.
        patience_seconds: how long to wait for a server that gives no answer.
        served: the model that is expected there; None for whichever it is.
    """

    url: str
    model: str | None
    token: SecretStr
    concurrency: int
    patience_seconds: float
    served: ServedModel | None = None
