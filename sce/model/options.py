"""What is asked of an answer, beside texts and labels: the same object through every door."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sce.errors import InputError


def _check_top_k(top_k: int) -> None:
    if isinstance(top_k, bool) or top_k != int(top_k) or top_k < 1:
        raise InputError(f"top_k: {top_k}, but a whole number from 1 is needed.")


@dataclass(frozen=True)
class Scoring:
    """What a model has to compute for its rows; equal for rows that may share a batch.

    Attributes:
        top_k: how many best labels.
        return_scores: also every label's probability.
    """

    top_k: int = 1
    return_scores: bool = False

    def __post_init__(self) -> None:
        _check_top_k(self.top_k)

    def joined(self, other: Scoring) -> Scoring:
        """What serves both: `Answers.part` takes each one's own from it."""
        return Scoring(max(self.top_k, other.top_k), self.return_scores or other.return_scores)


BEST_ALONE = Scoring()
"""One label for each row."""


@dataclass(frozen=True)
class AnswerOptions:
    """How rows are answered; raises `InputError` where it cannot be done.

    Attributes:
        threshold: below this probability a row has no label.
        top_k: also return this many best labels.
        return_scores: also return every label's probability.
    """

    threshold: float | None = None
    top_k: int | None = None
    return_scores: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:  # NaN is none either
            raise InputError(
                f"threshold: {self.threshold}, but a probability from 0 to 1 is needed."
            )
        if self.top_k is not None:
            _check_top_k(self.top_k)

    def given(self) -> dict[str, Any]:
        """What differs from the default, as JSON: the fields of a request by the same names."""
        defaults = AnswerOptions()
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {name: v for name, v in found.items() if v != getattr(defaults, name)}
        return {name: v.item() if hasattr(v, "item") else v for name, v in found.items()}

    @property
    def scoring(self) -> Scoring:
        """What the model has to compute."""
        return Scoring(self.top_k or 1, self.return_scores)
