"""What is asked of an answer, beside texts and labels: the same object through every door."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sce.errors import InputError, quoted

LongText = Literal["truncate", "chunk"]
Pooling = Literal["mean", "max", "attention", "vector"]
LONG_TEXT: tuple[str, ...] = get_args(LongText)
POOLINGS: tuple[str, ...] = get_args(Pooling)
POOLING: Pooling = "vector"
"""Where none is named."""


def _check_top_k(top_k: int) -> None:
    if isinstance(top_k, bool) or top_k != int(top_k) or top_k < 1:
        raise InputError(f"top_k: {top_k}, but a whole number from 1 is needed.")


@dataclass(frozen=True)
class Scoring:
    """What a model has to compute for its rows; equal for rows that may share a batch.

    Attributes:
        top_k: how many best labels.
        return_scores: also every label's probability.
        pooling: how what is found in a text's chunks becomes its answer; None for rows of one
            vector.
    """

    top_k: int = 1
    return_scores: bool = False
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        _check_top_k(self.top_k)

    def joined(self, other: Scoring) -> Scoring:
        """What serves both: `Answers.part` takes each one's own from it."""
        return Scoring(
            max(self.top_k, other.top_k),
            self.return_scores or other.return_scores,
            self.pooling or other.pooling,
        )


BEST_ALONE = Scoring()
"""One label for each row."""


@dataclass(frozen=True)
class AnswerOptions:
    """How rows are answered; raises `InputError` where it cannot be done.

    Attributes:
        threshold: below this probability a row has no label.
        top_k: also return this many best labels.
        return_scores: also return every label's probability.
        long_text: a text that is longer than the embedder reads is cut ("truncate"); or every text
            is read whole, in chunks of sentences, of which `where` names one ("chunk").
        pooling: how a text of several chunks is answered: by the mean of their "vector"s, the
            default; by the "mean" of their probabilities; by "max", of each label that of the chunk
            it is likeliest in, over their sum; by "attention", between these two.
    """

    threshold: float | None = None
    top_k: int | None = None
    return_scores: bool = False
    long_text: LongText = "truncate"
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:  # NaN is none either
            raise InputError(
                f"threshold: {self.threshold}, but a probability from 0 to 1 is needed."
            )
        if self.top_k is not None:
            _check_top_k(self.top_k)
        if self.long_text not in LONG_TEXT:
            raise InputError(f"long_text: {quoted(self.long_text)} is not one of {LONG_TEXT}.")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise InputError(f"pooling: {quoted(self.pooling)} is not one of {POOLINGS}.")
        if self.pooling is not None and self.long_text != "chunk":
            raise InputError("pooling: it is of chunks; it goes with long_text 'chunk'.")

    def refuse_long_text(self, why: str) -> None:
        """Raises `InputError` where texts were to be read in chunks."""
        if self.long_text != "truncate":
            raise InputError(f"long_text: it is of texts, and {why}.")

    def given(self) -> dict[str, Any]:
        """What differs from the default, as JSON: the fields of a request by the same names."""
        defaults = AnswerOptions()
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {name: v for name, v in found.items() if v != getattr(defaults, name)}
        return {name: v.item() if hasattr(v, "item") else v for name, v in found.items()}

    @property
    def scoring(self) -> Scoring:
        """What the model has to compute."""
        pooling = (self.pooling or POOLING) if self.long_text == "chunk" else None
        return Scoring(self.top_k or 1, self.return_scores, pooling)
