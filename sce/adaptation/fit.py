"""A label set fitted to a corpus, from its labels to the artefact.

    start        the labels' own unit vectors, examples and labelled rows pooled into them
    first pass   moments of the corpus, presence of each label, the first posterior
    rounds       of the mixture, for every track: trust and half of the corpus
    choice       of a trust: by labelled rows that the fit of the other half answers, else `default`
    last pass    masses, flows between labels, agreement of the halves
    calibration  a temperature by labelled rows, else so that the mean confidence is the accuracy
                 that three signs of the fit lead to expect

Nothing in it knows where the corpus lies: `AddUp` adds a function of its blocks up.

Shapes: N rows of the corpus, M labelled rows, S rows of a sample, K labels in canonical order, D
dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from sce.adaptation.mixture import (
    Labelled,
    Moments,
    Scores,
    Sums,
    fitted_scores,
    presence_prior,
    start_scores,
)
from sce.adaptation.passes import (
    FIRST,
    SECOND,
    SUBSETS,
    WHOLE,
    AddUp,
    FirstPass,
    RoundPass,
    Totals,
    Track,
)
from sce.adaptation.settings import (
    FITS,
    LABELLED_WEIGHT,
    MIN_CHOICE_ROWS,
    MIN_GRAIN,
    RICH_ANCHOR,
    AdaptSettings,
    MixtureSettings,
    Trust,
)
from sce.errors import DataError
from sce.labels import LabelSet
from sce.model.encoder import pool_labels
from sce.model.label_vectors import TextVectors, example_weights, label_vectors
from sce.model.products import VECTOR_BITS, vector_integers

GRAIN_DIRECTIONS = 384
"""Texts vary along as many directions in wide vectors as in narrow ones: those of the inbox along
88 of MiniLM's 384 and 85 of mpnet's 768 (participation ratio)."""
OWN_SCALE = 20.0
"""Of the labels' own cosines, where nothing is adapted."""


@dataclass(frozen=True)
class Start:
    """What a fit starts from.

    Attributes:
        label_set: in canonical order.
        text_KD: unit vectors of what is said of each label, examples left out.
        example_weight_K2: (a, b) of w(n), as `pool_labels` takes it.
        rich: share of the labels that say more than their name.
        labelled_MD, targets_M: vectors of labelled rows and of the labels' examples.
        shares_K: the user's shares of the classes, that add up to 1; NaN where none was given.
        labelled_weight: what one of many labelled rows counts for beside a row of the corpus.
    """

    label_set: LabelSet
    text_KD: np.ndarray
    example_weight_K2: np.ndarray
    rich: float
    labelled_MD: np.ndarray
    targets_M: np.ndarray
    shares_K: np.ndarray
    labelled_weight: float

    @classmethod
    def of(
        cls,
        label_set: LabelSet,
        text_vectors: TextVectors,
        version: int,
        labelled: tuple[np.ndarray, Sequence[str]] | None = None,
        shares: Mapping[str, float] | None = None,
        labelled_weight: float = LABELLED_WEIGHT,
    ) -> Start:
        """From labels in any order.

        Args:
            version: of the labels' vectors (`sce.model.label_vectors`).
            labelled: vectors [M, D] of labelled rows, and their labels by name.
            shares: of the classes, by name; those that are not named share the rest.
        """
        labels = label_set.canonical()
        seen = label_set.seen()
        text_KD = label_vectors(seen, text_vectors, version, with_examples=False)
        examples = [(text, k) for k, label in enumerate(labels.labels) for text in label.examples]
        vectors, targets = [], [k for _, k in examples]
        if examples:
            vectors.append(text_vectors([text for text, _ in examples]))
        if labelled is not None:
            vectors.append(np.asarray(labelled[0], np.float32))
            targets += [labels.index(name) for name in labelled[1]]
        dimension = text_KD.shape[1]
        return cls(
            labels,
            text_KD,
            np.array(example_weights(seen.labels, version)),
            float(np.mean([len(label.info_texts) > 1 for label in labels.labels])),
            np.concatenate(vectors) if vectors else np.zeros((0, dimension), np.float32),
            np.array(targets, np.int64),
            _shares(labels, shares or {}),
            labelled_weight,
        )

    @cached_property
    def labelled_in_first(self) -> np.ndarray:
        """Whether each labelled row is of the first half, bool [M]: every other one of a label, in
        the order of their vectors."""
        order_M = np.lexsort((*self.labelled_MD.T, self.targets_M))
        first_M = np.zeros(len(order_M), bool)
        first_M[order_M[::2]] = True
        return first_M

    @cached_property
    def labelled(self) -> Mapping[str, Labelled]:
        """Sums of the labelled rows of each subset."""
        x_MD, labelled_in_first = vector_integers(self.labelled_MD), self.labelled_in_first
        rows = {
            WHOLE: np.ones(len(x_MD), bool),
            FIRST: labelled_in_first,
            SECOND: ~labelled_in_first,
        }
        count = len(self.label_set)
        return {
            s: Labelled.of(x_MD[own], self.targets_M[own], count, self.labelled_weight)
            for s, own in rows.items()
        }

    def own_vectors(self, subset: str = WHOLE) -> np.ndarray:
        """g_k with the labelled rows of a subset as examples: unit vectors float64 [K, D]."""
        examples = self.labelled[subset]
        counts_K = examples.count_K.astype(np.float64)
        means_KD = examples.vectors_KD * 2.0**-VECTOR_BITS / np.maximum(counts_K, 1)[:, None]
        parts = self.text_KD, means_KD, counts_K, self.example_weight_K2
        return pool_labels(*(torch.from_numpy(part.astype(np.float64)) for part in parts)).numpy()


def _shares(labels: LabelSet, given: Mapping[str, float]) -> np.ndarray:
    """Shares by place, the rest shared evenly by the labels without one; NaN if none is given.

    Raises:
        DataError: one is not between 0 and 1, or together they are not at most 1.
        LabelError: there is no such label.
    """
    shares_K = np.full(len(labels), np.nan)
    for name, share in given.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise DataError(f"shares: {name!r} has {share!r}; a share is above 0 and at most 1.")
        shares_K[labels.index(name)] = share
    if not given:
        return shares_K
    rest, free = 1 - np.nansum(shares_K), np.isnan(shares_K)
    if rest < -1e-6 or (free.any() and rest <= 0) or (not free.any() and abs(rest) > 0.01):
        raise DataError(
            f"shares: they add up to {np.nansum(shares_K):g}; together they are 1, or less where "
            "labels without one share the rest."
        )
    shares_K[free] = rest / max(1, int(free.sum()))
    return shares_K / shares_K.sum()


@dataclass
class Fitter:
    """The rounds of a fit, which can be stopped after each and gone on with.

    Attributes:
        trusts: that are fitted side by side.
        totals: of the first pass; None before it.
        scores: of every track after the rounds that are done.
        rounds_done: of the mixture.
    """

    start: Start
    settings: AdaptSettings
    trusts: tuple[Trust, ...]
    totals: Totals | None = None
    scores: dict[Track, Scores] = field(default_factory=dict)
    rounds_done: int = 0

    @classmethod
    def of(cls, start: Start, settings: AdaptSettings) -> Fitter:
        """Every kind of trust is tried where labelled rows can choose among them."""
        if settings.trust == "none":
            return cls(start, settings, ())
        if settings.trust != "auto":
            return cls(start, settings, (settings.trust,))
        fitter = cls(start, settings, ("default",))
        return replace(fitter, trusts=tuple(FITS)) if fitter.can_choose else fitter

    @property
    def can_choose(self) -> bool:
        """Whether labelled rows can choose a trust."""
        return self.settings.trust == "auto" and len(self.start.targets_M) >= MIN_CHOICE_ROWS

    def mixture(self, trust: Trust) -> MixtureSettings:
        """The settings of a track's mixture, the anchor by how much the labels say."""
        base = FITS[trust]
        anchor = base.anchor * (1 + (RICH_ANCHOR - 1) * self.start.rich)
        return replace(base, anchor=anchor)

    @property
    def rounds(self) -> int:
        return max((FITS[trust].rounds for trust in self.trusts), default=0)

    def run(self, add_up: AddUp) -> None:
        """All that is left to do."""
        while self.step(add_up):
            pass

    def step(self, add_up: AddUp) -> bool:
        """One pass over the corpus; whether there is another. The first decides whether the labels
        are adapted at all."""
        if self.totals is None:
            shared = MixtureSettings()
            own = {subset: self.start.own_vectors(subset) for subset in SUBSETS}
            sharp = {s: start_scores(g_KD, shared.presence_scale) for s, g_KD in own.items()}
            start = {s: start_scores(g_KD, shared.start_scale) for s, g_KD in own.items()}
            self.totals = add_up(FirstPass(sharp, start), "reading the corpus")
            check_corpus(self.moments(WHOLE).rows, self.totals["hashes"].distinct(), self.start)
            if self.reason_not_to_adapt():
                self.trusts = ()
            for trust in self.trusts:
                for subset in SUBSETS:
                    self._fit((trust, subset), self.totals["start", subset])
            self.rounds_done = 1
            return self.rounds_done < self.rounds
        going = {t: s for t, s in self.scores.items() if FITS[t[0]].rounds > self.rounds_done}  # type: ignore[index]
        sums = add_up(RoundPass(going), f"round {self.rounds_done + 1} of {self.rounds}")
        for track in going:
            self._fit(track, sums[track])
        self.rounds_done += 1
        return self.rounds_done < self.rounds

    def moments(self, subset: str) -> Moments:
        assert self.totals is not None
        if subset == WHOLE:
            return self.totals["moments", FIRST] + self.totals["moments", SECOND]
        return self.totals["moments", subset]

    def reason_not_to_adapt(self) -> str:
        """One sentence, or "" where there is none."""
        rows, labels = self.moments(WHOLE).rows, len(self.start.label_set)
        if rows / labels < self.settings.min_rows_a_label:
            return (
                f"{rows:,} texts for {labels} labels are {rows / labels:.1f} a label; below "
                f"{self.settings.min_rows_a_label:g} they teach nothing."
            )
        # What is said of the labels decides: a few labelled rows would always look like groups.
        found = grain(self.moments(WHOLE), self.start.text_KD)
        if self.settings.trust == "auto" and found < MIN_GRAIN and not self.can_choose:
            return (
                "The labels lie across what this corpus groups by: it varies along what tells them "
                f"apart {found:.1f} times as much as in any direction, of {MIN_GRAIN} that are "
                "needed. trust: default adapts all the same."
            )
        return ""

    def _fit(self, track: Track, sums: Sums) -> None:
        trust, subset = track
        assert self.totals is not None
        settings, moments = self.mixture(trust), self.moments(subset)  # type: ignore[arg-type]
        shares_K = self.start.shares_K
        told = not np.isnan(shares_K).any()
        if told:  # what the user knows stands for presence and mass
            prior_K = np.log(shares_K)
        else:
            prior_K = presence_prior(self.totals["sharp", subset], moments, settings)
        self.scores[track] = fitted_scores(
            moments,
            sums,
            self.start.own_vectors(subset),
            prior_K,
            settings,
            self.start.labelled[subset],
            fitted_mass=not told,
        )


def grain(moments: Moments, g_KD: np.ndarray) -> float:
    """How much more a corpus varies along what tells labels apart than along any direction: the
    mean over labels of (g_k - g).C (g_k - g), with g the mean label and C the covariance, over
    that for a C with the same trace and no preferred direction among at most `GRAIN_DIRECTIONS`. 1
    for labels that are noise, in vectors no wider than that."""
    rows = moments.rows
    mean_D = moments.sum_D * 2.0**-VECTOR_BITS / rows
    c_DD = moments.product_DD * 2.0 ** -(2 * VECTOR_BITS) / rows - np.outer(mean_D, mean_D)
    apart_KD = g_KD - g_KD.mean(0)
    along = float(np.einsum("kd,de,ke->", apart_KD, c_DD, apart_KD, optimize=True))
    directions = min(len(c_DD), GRAIN_DIRECTIONS)
    any_way = float((apart_KD**2).sum() * np.trace(c_DD) / directions)
    return along / any_way if any_way > 0 else 0.0


def check_corpus(rows: int, distinct: int, start: Start) -> None:
    """Raises `DataError`: one label, or a corpus from which nothing can be read."""
    labels = len(start.label_set)
    if labels < 2:
        raise DataError("labels: there is one label; two are needed for a corpus to tell apart.")
    if rows < labels:
        raise DataError(
            f"the corpus has {rows:,} texts for {labels} labels. Give at least as many texts as "
            "labels; some ten for each are worth while."
        )
    if distinct < labels:
        raise DataError(
            f"the corpus has {rows:,} texts, but {distinct:,} different ones for {labels} labels: "
            "the same texts stand in it again and again."
        )
