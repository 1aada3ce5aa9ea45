"""Settings of an adaptation, and what each degree of trust in a fit means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sce.config import Section

MAX_ROWS = 2**23
"""Above this the int64 sums of 2^40 could overflow."""


@dataclass(frozen=True)
class MixtureSettings:
    """How bold a fit is; the defaults were chosen on the development sets.

    Attributes:
        rounds: of expectation maximisation.
        start_scale: the first posterior is softmax(start_scale x.g).
        anchor: weight of start_scale x.g in every later round.
        pseudo_rows: rows at the corpus's mean that each label is given.
        shrinkage: of the covariance towards a multiple of the identity.
        presence: strength of the presence prior; 0 for none.
        presence_rows: rows a label at which half of it counts.
        presence_scale: of the sharp posterior from which presence is read.
    """

    rounds: int = 4
    start_scale: float = 20.0
    anchor: float = 1.0
    pseudo_rows: float = 5.0
    shrinkage: float = 0.9
    presence: float = 4.0
    presence_rows: float = 30.0
    presence_scale: float = 60.0


Trust = Literal["none", "careful", "default", "bold"]
FITS: dict[Trust, MixtureSettings] = {
    "careful": MixtureSettings(rounds=2, anchor=2.0, pseudo_rows=20.0),
    "default": MixtureSettings(),
    "bold": MixtureSettings(rounds=8, presence=0.0),
}
"""By how far the corpus may move the labels; "none" leaves them as they are."""
RICH_ANCHOR = 4.0
"""What the anchor is multiplied by where every label says more than its name: what users say of
their labels holds more than a name does."""
LABELLED_WEIGHT = 8.0
MIN_CHOICE_ROWS = 30
"""Labelled rows from which on they choose among the kinds of trust, and a temperature."""
MIN_GRAIN = 2.5
"""Below this, labels lie across what the corpus groups by (`sce.adaptation.fit.grain`). Topics and
intents of nine development sets, whole and bent, have 2.8 and more; moods, urgency, politeness over
topical texts 2.2 and less."""


class AdaptSettings(Section):
    """How labels are fitted to a corpus."""

    trust: Literal["auto", "none", "careful", "default", "bold"] = "auto"
    """How far the corpus may move the labels. `auto`: what labelled rows show to be best, where
    there are some; else `default`, and no adaptation where the labels are not what the corpus
    groups by."""
    labelled_weight: float = Field(default=LABELLED_WEIGHT, gt=0)
    """What a labelled example of a label that has many counts for beside a text of the corpus; a
    label's first ones count for less (n / (n + 4) of it, where there are n)."""
    min_rows_a_label: float = Field(default=4.0, ge=0)
    """With fewer texts a label nothing is adapted."""
    sample_rows: int = Field(default=100_000, ge=1000, le=MAX_ROWS)
    """Texts of a larger corpus that the fit reads, chosen by a hash of their ids. A million teach
    no more: with 4, 41 and 150 labels accuracy was the same within 0.1 points (`jobs/benchmark.py
    sample`)."""
