"""What a label rests on, and lists of labels with their scores, as they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, with_config
from typing_extensions import TypedDict

from sce.client.label_forms import CLOSED
from sce.model.answers import Example, Why


@with_config(CLOSED)
class TopLabel(TypedDict):
    label: str
    score: float


@with_config(CLOSED)
class NearExample(TypedDict):
    text: str
    label: str
    similarity: Annotated[float, Field(description="Cosine of the two vectors.")]


@with_config(CLOSED)
class Reasons(TypedDict):
    """What a label rests on."""

    nearest: Annotated[list[NearExample], Field(description="Of the label's own examples.")]
    competitor: Annotated[TopLabel | None, Field(description="The next best label.")]


def label_pairs(pairs: Sequence[tuple[str, float]] | None) -> list[TopLabel] | None:
    """Labels with their scores as they are sent."""
    return None if pairs is None else [{"label": name, "score": p} for name, p in pairs]


def from_why(why: Why) -> Reasons:
    """As it is sent."""
    nearest: list[NearExample] = [
        {"text": one.text, "label": one.label, "similarity": one.similarity} for one in why.nearest
    ]
    rival = why.competitor
    competitor: TopLabel | None = None if rival is None else {"label": rival[0], "score": rival[1]}
    return {"nearest": nearest, "competitor": competitor}


def to_why(reasons: Reasons) -> Why:
    """Inverse of `from_why`."""
    other = reasons["competitor"]
    nearest = tuple(Example(**one) for one in reasons["nearest"])
    return Why(nearest, None if other is None else (other["label"], other["score"]))
