"""What passes between the gateway and a model. Needs no torch, so neither does the gateway.

Shapes: N rows of a request, G of them without an error, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.options import BEST_ALONE, Scoring


class NoSuchLabelSet(Exception):
    """The model has no label set of the name."""


@dataclass(frozen=True)
class ModelRequest:
    """What a model is asked.

    Attributes:
        queries: texts, or unit vectors float32 [N, D].
        labels: one set for all rows or one a row; the name of a label set that the model has;
            None to embed only.
        scoring: what the answers hold.
        truncate: cut a text that is too long; else it gets the error `text_too_long`.
        errors: of rows that have one already, by position; their vectors are not looked at.
        set_labels: how many labels the set has that is named.
        max_label_tokens: that texts in chunks may take; None for any number.
        max_chunks: of a text; what is behind is not read.
    """

    queries: list[str] | np.ndarray
    labels: LabelSet | RaggedLabels | str | None
    scoring: Scoring = BEST_ALONE
    truncate: bool = True
    errors: Mapping[int, str] = field(default_factory=dict)
    set_labels: int = 0
    max_label_tokens: int | None = None
    max_chunks: int = 0

    @property
    def label_counts(self) -> np.ndarray:
        """K of each row, int64 [N]."""
        rows = len(self.queries)
        if self.labels is None or isinstance(self.labels, str):
            return np.full(rows, self.set_labels)
        return self.labels.counts_by_row(rows)


@dataclass(frozen=True)
class ModelAnswer:
    """What it answers.

    Attributes:
        good_N: bool, the rows that have an answer.
        errors: of the other rows, by position.
        truncated_N: bool, the text was longer than the embedder reads.
        tokens: that the embedder reads of the texts.
        embedded, cached: distinct texts (labels' among the first) that were embedded anew, and
            texts of rows whose vectors were known.
        label_tokens: that the encoder read.
        names: of the labels, where their set was asked for by name; of a tree then the inner nodes.
        answers: of the G good rows; None where none was asked for or no row is good.
        vectors_GD: of the good rows, where only these were asked for.
        too_many: label tokens that the texts' chunks would take, where they are more than allowed
            and nothing was answered.
        seconds: by step: tokenise, embed and classify (both with their waiting), model (in all).
    """

    good_N: np.ndarray
    errors: Mapping[int, str]
    truncated_N: np.ndarray
    tokens: int
    embedded: int
    cached: int
    label_tokens: int = 0
    names: list[str] | None = None
    answers: Answers | None = None
    vectors_GD: np.ndarray | None = None
    too_many: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
