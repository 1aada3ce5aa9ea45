"""What is asked of an answer, beside texts and labels: the same object through every door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypedDict, get_args

import numpy as np
from pydantic import Field

from sce.errors import InputError, quoted
from sce.labels import normalise_name
from sce.model.rejection import NONE_SHARE

LongText = Literal["truncate", "chunk"]
Pooling = Literal["mean", "max", "attention", "vector"]
LONG_TEXT: tuple[str, ...] = get_args(LongText)
POOLINGS: tuple[str, ...] = get_args(Pooling)
POOLING: Pooling = "vector"
"""Where none is named."""
Mode = Literal["single", "multi"]
MODES = ("single", "multi")
Threshold = Annotated[float, Field(ge=0, le=1)] | dict[str, Annotated[float, Field(ge=0, le=1)]]
"""One for all labels, or one a label, as settings and requests give it."""
SEVERAL_COLUMN = "labels"
"""Of an output in which a row may get several labels: all that are answered."""
PATH_COLUMN = "path"
"""Of an output with labels that are a tree: the way down to the best leaf."""
MOST_DEFAULT_THRESHOLD, HALF_AT = 0.5, 26
"""See `default_thresholds`."""
DEFAULT_THRESHOLD = f"K / (K + {HALF_AT}), at most {MOST_DEFAULT_THRESHOLD}"
"""The same in words: an output that was begun with another is not gone on with."""
NONE_SCORE_OF = "the largest probability"
"""What `none_score` is of in mode "multi" (`sce.model.logistic.none_scores`): an output that was
begun with another is not gone on with."""
NONE_THRESHOLD = 0.5
"""In mode "multi" a row has no label where it is more likely than not that none fits."""


def default_thresholds(counts_M: np.ndarray) -> np.ndarray:
    """In mode "multi", of labels without a threshold, by the K among which each stands, float32:
    K / (K + 26), at most 0.5.

    One of 0.5 answers whatever is more likely right than not, which with few labels is next to
    nothing. This was chosen by the mean micro-F1 of the starter corpus's training sets, texts
    joined and in pairs (5 to 13 labels, by hand): 58.4 where 0.5 reads 44.8 and the best constant,
    0.27, 57.4; on domains left out of the choice 57.1, 45.8 and 56.8. On pairs of the inbox (11
    labels) 45.1 where 0.5 reads 32.0, of AG News (4) 68.4 and 23.1; above 26 labels it is 0.5.
    """
    counts_M = np.asarray(counts_M, np.float64)
    return np.minimum(counts_M / (counts_M + HALF_AT), MOST_DEFAULT_THRESHOLD).astype(np.float32)


def _check_top_k(top_k: int) -> None:
    if isinstance(top_k, bool) or top_k != int(top_k) or top_k < 1:
        raise InputError(f"top_k: {top_k}, but a whole number from 1 is needed.")


def _check_threshold(value: Any, where: str) -> None:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:  # NaN is none either
        raise InputError(f"{where}: {value!r}, but a probability from 0 to 1 is needed.")


@dataclass(frozen=True)
class Scoring:
    """What a model has to compute for its rows; equal for rows that may share a batch.

    Attributes:
        top_k: how many best labels.
        return_scores: also every label's probability.
        pooling: how what is found in a text's chunks becomes its answer; None for rows of one
            vector.
        mode: "single": of one right label among those given, so that a row's probabilities add up
            to 1; "multi": of each label for itself.
        contrast: in mode "multi", labels that each label is held against; empty for those of the
            row's own set.
        none_of_these: also the probability that no label fits.
        sets: every label's probability, of which the sets of labels for a coverage are made.
        explain: also what the best label rests on.
    """

    top_k: int = 1
    return_scores: bool = False
    pooling: Pooling | None = None
    mode: Mode = "single"
    contrast: tuple[str, ...] = ()
    none_of_these: bool = False
    sets: bool = False
    explain: bool = False

    def __post_init__(self) -> None:
        _check_top_k(self.top_k)

    @property
    def every_score(self) -> bool:
        """Whether every label's probability is needed, if only to decide which are answered."""
        return self.return_scores or self.sets or self.mode == "multi"

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for those that can be `joined`."""
        return self.mode, self.contrast

    def joined(self, other: Scoring) -> Scoring:
        """What serves both, which are of one `kind`: `Answers.part` takes each one's own from
        it."""
        both = self.return_scores or other.return_scores
        pooling = self.pooling or other.pooling
        return replace(
            self,
            top_k=max(self.top_k, other.top_k),
            return_scores=both,
            pooling=pooling,
            none_of_these=self.none_of_these or other.none_of_these,
            sets=self.sets or other.sets,
            explain=self.explain or other.explain,
        )


BEST_ALONE = Scoring()
"""One label for each row."""


class EvidenceOptions(TypedDict, total=False):
    """The fields of `AnswerOptions` that ask what speaks for an answer, for callers' signatures."""

    none_of_these: bool
    none_share: float | None
    none_threshold: float | None
    coverage_cut: float | None
    explain: bool


@dataclass(frozen=True)
class AnswerOptions:
    """How rows are answered; raises `InputError` where it cannot be done.

    Attributes:
        threshold: below this probability a label is not answered: one for all, or one a label.
            Others have in mode "multi" that of `default_thresholds`, else none.
        top_k: also return this many best labels.
        return_scores: also return every label's probability.
        long_text: a text that is longer than the embedder reads is cut ("truncate"); or every text
            is read whole, in chunks of sentences, of which `where` names one ("chunk").
        pooling: how a text of several chunks is answered: by the mean of their "vector"s, the
            default; by the "mean" of their probabilities; by "max", of each label that of the chunk
            it is likeliest in, over their sum; by "attention", between these two.
        mode: "single": one label is right; "multi": any number of them.
        at_least: in mode "multi", answer this many labels of each row even below their thresholds.
        at_most: in mode "multi", answer no more labels than this, the best ones.
        contrast_labels: in mode "multi", what each label is held against instead of the others of
            the row: with them a label's probability does not depend on which others are given.
        none_of_these: also say how likely it is that no label fits, as `none_score`; a row has no
            label where that is more likely than its best one, with the probability that one fits
            times `score`; in mode "multi", where the score is from the labels' own probabilities,
            above `NONE_THRESHOLD`. Of a text in chunks whose probabilities are pooled, what is
            left of the chunks' pooled probabilities that one fits.
        none_share: of the texts, those that no label fits, as far as is known before they are
            looked at; by default `NONE_SHARE`. A share that is wrong makes every `none_score` so.
        none_threshold: a row has no label where `none_score` is above it instead.
        coverage_cut: also answer all labels of at least this probability, and always the best one,
            as `labels`. `sce.evaluation.conformal` finds the cut at which these sets hold the right
            label as often as wanted.
        explain: also say what the best label rests on, as `why`.
    """

    threshold: float | Mapping[str, float] | None = None
    top_k: int | None = None
    return_scores: bool = False
    long_text: LongText = "truncate"
    pooling: Pooling | None = None
    mode: Mode = "single"
    at_least: int = 0
    at_most: int | None = None
    contrast_labels: Sequence[str] = ()
    none_of_these: bool = False
    none_share: float | None = None
    none_threshold: float | None = None
    coverage_cut: float | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode: {self.mode!r} is not one of 'single', 'multi'.")
        if isinstance(self.threshold, Mapping):
            for name, value in self.threshold.items():
                _check_threshold(value, f"threshold of {quoted(name)}")
        elif self.threshold is not None:
            _check_threshold(self.threshold, "threshold")
        if self.top_k is not None:
            _check_top_k(self.top_k)
        if self.long_text not in LONG_TEXT:
            raise InputError(f"long_text: {quoted(self.long_text)} is not one of {LONG_TEXT}.")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise InputError(f"pooling: {quoted(self.pooling)} is not one of {POOLINGS}.")
        if self.pooling is not None and self.long_text != "chunk":
            raise InputError("pooling: it is of chunks; it goes with long_text 'chunk'.")
        self._check_multi()
        self._check_evidence()

    def refuse_long_text(self, why: str) -> None:
        """Raises `InputError` where texts were to be read in chunks."""
        if self.long_text != "truncate":
            raise InputError(f"long_text: it is of texts, and {why}.")

    def _check_evidence(self) -> None:
        for name in ("none_threshold", "coverage_cut"):
            value = getattr(self, name)
            if value is not None:
                _check_threshold(value, name)
        share = self.none_share
        if share is not None and (isinstance(share, bool) or not 0 < share < 1):
            raise InputError(f"none_share: {share!r}, but a share between 0 and 1 is needed.")
        for name in ("none_share", "none_threshold"):
            if getattr(self, name) is not None and not self.none_of_these:
                raise InputError(f"{name}: it goes with none_of_these.")
        if self.pooling not in (None, POOLING) and self.explain:
            raise InputError(
                "explain: of one vector a text; with long_text 'chunk' it goes with pooling "
                f"{POOLING!r}."
            )
        if self.mode == "multi":
            for name in ("coverage_cut", "explain"):
                if getattr(self, name) not in (None, False):
                    raise InputError(f"{name}: it goes with mode 'single', of one right label.")
            if self.none_of_these and self.at_least:
                raise InputError(
                    "none_of_these: it leaves rows without a label, and at_least forbids that."
                )

    def newer(self) -> dict[str, Any]:
        """Of what decides an output, what speaks for an answer: where it is not the default, so
        that outputs of versions that did not know it can be gone on with."""
        names = EvidenceOptions.__annotations__
        found = {name: value for name, value in self.given().items() if name in names}
        if self.mode == "multi" and (self.threshold is None or isinstance(self.threshold, Mapping)):
            found["default_threshold"] = DEFAULT_THRESHOLD
        if self.none_of_these:
            found["none_share"] = NONE_SHARE if self.none_share is None else self.none_share
            if self.mode == "multi":
                found["none_score_of"] = NONE_SCORE_OF
        return found

    def _check_multi(self) -> None:
        for name, least in (("at_least", 0), ("at_most", 1)):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or value != int(value) or value < least:
                raise InputError(f"{name}: {value}, but a whole number from {least} is needed.")
        if self.at_most is not None and self.at_least > self.at_most:
            raise InputError(f"at_least: {self.at_least}, which is more than at_most.")
        if isinstance(self.contrast_labels, str):
            raise InputError("contrast_labels: a list of names is needed, not a text.")
        for i, name in enumerate(self.contrast_labels):
            if not isinstance(name, str) or not normalise_name(name):
                raise InputError(f"contrast_labels[{i}]: {quoted(name)}, but a name is needed.")
        if self.mode == "multi":
            return
        for name in ("at_least", "at_most", "contrast_labels"):
            if getattr(self, name) not in (None, 0, (), []):
                raise InputError(f"{name}: it goes with mode 'multi', in which several labels fit.")

    def given(self) -> dict[str, Any]:
        """What differs from the default, as JSON: the fields of a request by the same names."""
        defaults = AnswerOptions()
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {name: v for name, v in found.items() if v != getattr(defaults, name)}
        if isinstance(self.threshold, Mapping):
            found["threshold"] = {name: float(v) for name, v in self.threshold.items()}
        if self.contrast_labels:
            found["contrast_labels"] = list(self.contrast_labels)
        return {name: v.item() if hasattr(v, "item") else v for name, v in found.items()}

    def several_given(self) -> dict[str, Any]:
        """Of `given`, what asks for several labels."""
        names = ("mode", "at_least", "at_most", "contrast_labels")
        return {name: value for name, value in self.given().items() if name in names}

    @property
    def several(self) -> bool:
        """Whether a row may get several labels, in a field or column `labels`."""
        return self.mode == "multi" or self.coverage_cut is not None

    @property
    def scoring(self) -> Scoring:
        """What the model has to compute."""
        pooling = (self.pooling or POOLING) if self.long_text == "chunk" else None
        names = sorted({normalise_name(name) for name in self.contrast_labels})
        return Scoring(
            max(self.top_k or 1, 2 if self.explain else 1),
            self.return_scores,
            pooling,
            self.mode,
            tuple(names),
            self.none_of_these,
            self.coverage_cut is not None,
            self.explain,
        )

    def check_labels(self, sets: Iterable[Iterable[str]]) -> None:
        """Raises `InputError`: there is a threshold for a label that is in none of the sets of
        names."""
        if not isinstance(self.threshold, Mapping):
            return
        known = {normalise_name(name) for names in sets for name in names}
        for name in self.threshold:
            if normalise_name(str(name)) not in known:
                raise InputError(
                    f"threshold: {quoted(name)} is not one of the {len(known):,} labels."
                )

    def thresholds_of(
        self, names: Sequence[str], counts_M: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Of labels, float32 [M]; None where no label has one.

        Args:
            counts_M: in mode "multi", of how many labels each stands among; None: of all of these.
        """
        others_M = np.zeros(len(names), np.float32)
        if self.mode == "multi":
            if self.contrast_labels:
                counts_M = np.full(len(names), len(self.scoring.contrast) + 1)
            others_M = default_thresholds(
                np.full(len(names), len(names)) if counts_M is None else counts_M
            )
        if self.threshold is None:
            return others_M if self.mode == "multi" else None
        if not isinstance(self.threshold, Mapping):
            return np.full(len(names), self.threshold, np.float32)
        by_key = {normalise_name(str(name)): value for name, value in self.threshold.items()}
        found = {name: by_key.get(normalise_name(name), np.nan) for name in set(names)}
        given_M = np.array([found[name] for name in names], np.float32)
        return np.where(np.isnan(given_M), others_M, given_M)
