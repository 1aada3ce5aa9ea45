"""What labelled rows say of a fit: which trust is best, which labels to leave alone, temperature.

A labelled row is answered by the fit of the half that did not see it, so that every figure is of
rows that no fit knew.

Shapes: M labelled rows, K labels in canonical order, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax
from scipy.stats import bootstrap

from sce.adaptation.fit import OWN_SCALE, Fitter
from sce.adaptation.mixture import Scores, start_scores
from sce.adaptation.passes import FIRST, SECOND, SUBSETS, WHOLE
from sce.adaptation.settings import MIN_CHOICE_ROWS, Trust
from sce.model.calibration import expected_calibration_error, fit_temperature
from sce.model.products import vector_integers

MIN_LABEL_ROWS = 10
"""Labelled rows of a label from which on it is left alone where that answers more of them."""
SIGNS = (-0.90, 0.75, 0.31, 0.60)
"""The logit of a fit's accuracy from the logits of: the mean confidence of the labels' own vectors
at scale 20, the share of answers that these share with the fit, the agreement of its halves. Fitted
on 101 cases of the nine development sets and the inbox, predicted from the others to 4.6 points."""
TEMPERATURE_UNIT = 10.0
"""Temperatures of a fit lie around this; they are sought within 0.05 and 20 times it."""
TRUST_MARGIN = 1.0
"""Standard errors by which another trust must be better than the default one."""


@dataclass(frozen=True)
class Chosen:
    """The fit that was chosen.

    Attributes:
        scores: by subset.
        kept: places of labels that keep their own vector because labelled rows say so.
        comparison: as the report has it; None without enough labelled rows.
    """

    trust: Trust
    scores: Mapping[str, Scores]
    kept: tuple[int, ...] = ()
    comparison: dict[str, Any] | None = None


def choose(fitter: Fitter) -> Chosen:
    """The trust that answers the labelled rows best, if there are enough of them; else the first
    that was fitted, or none."""
    trusts: list[Trust] = ["none", *fitter.trusts]
    first: Trust = "default" if "default" in trusts else trusts[-1]
    if len(fitter.start.targets_M) < MIN_CHOICE_ROWS:
        return Chosen(first, scores_of(fitter, first))
    right = {trust: right_rows(fitter, scores_of(fitter, trust)) for trust in trusts}
    best = first
    if fitter.settings.trust == "auto":
        for trust in trusts:
            gain_M = right[trust] - right[first].astype(float)
            error = gain_M.std() / np.sqrt(len(gain_M))
            if gain_M.mean() > TRUST_MARGIN * error and right[trust].sum() > right[best].sum():
                best = trust
    scores = scores_of(fitter, best)
    kept: tuple[int, ...] = ()
    if best != "none" and fitter.settings.trust == "auto":
        scores, kept = _leave_alone(fitter, best, scores)
    fits = [_figures(trust, right[trust], right["none"]) for trust in trusts]
    comparison = {"rows": len(fitter.start.targets_M), "chosen": best, "fits": fits}
    return Chosen(best, scores, kept, comparison)


def scores_of(fitter: Fitter, trust: Trust) -> dict[str, Scores]:
    """The scores of a trust for each subset; of "none" those of the labels' own vectors."""
    if trust == "none":
        own = {subset: fitter.start.own_vectors(subset) for subset in SUBSETS}
        return {subset: start_scores(g_KD, OWN_SCALE) for subset, g_KD in own.items()}
    return {subset: fitter.scores[trust, subset] for subset in SUBSETS}


def held_out_scores(fitter: Fitter, scores: Mapping[str, Scores]) -> np.ndarray:
    """Scores [M, K] of the labelled rows by the half that did not see them."""
    x_MD = vector_integers(fitter.start.labelled_MD)
    first_M = fitter.start.labelled_in_first
    return np.where(first_M[:, None], scores[SECOND].of(x_MD), scores[FIRST].of(x_MD))


def right_rows(fitter: Fitter, scores: Mapping[str, Scores]) -> np.ndarray:
    """Whether each labelled row is answered right, bool [M]."""
    return held_out_scores(fitter, scores).argmax(1) == fitter.start.targets_M


def _leave_alone(
    fitter: Fitter, trust: Trust, scores: dict[str, Scores]
) -> tuple[dict[str, Scores], tuple[int, ...]]:
    """Labels with rows enough are given back their own vectors, one after another, where more of
    all labelled rows are then right by more than chance would have it."""
    mixture = fitter.mixture(trust)
    counts_K = np.bincount(fitter.start.targets_M, minlength=len(fitter.start.label_set))
    right_M, kept = right_rows(fitter, scores), []
    for place in np.flatnonzero(counts_K >= MIN_LABEL_ROWS).tolist():
        tried = {}
        for subset, one in scores.items():
            own = start_scores(fitter.start.own_vectors(subset), mixture.start_scale)
            weight_KD, bias_K = one.weight_KD.copy(), one.bias_K.copy()
            weight_KD[place] = mixture.anchor * own.weight_KD[place]
            bias_K[place] = one.prior_K[place]
            tried[subset] = replace(one, weight_KD=weight_KD, bias_K=bias_K)
        tried_M = right_rows(fitter, tried)
        gain_M = tried_M - right_M.astype(float)
        if gain_M.sum() > 2 * np.sqrt((gain_M**2).sum()):
            scores, right_M = tried, tried_M
            kept.append(place)
    return scores, tuple(kept)


def _figures(trust: Trust, right_M: np.ndarray, none_M: np.ndarray) -> dict[str, Any]:
    low, high = _interval(right_M.astype(float))
    gain_M = right_M - none_M.astype(float)
    gain_low, gain_high = _interval(gain_M)
    return {
        "trust": trust,
        "accuracy": float(right_M.mean()),
        "low": low,
        "high": high,
        "gain": float(gain_M.mean()),
        "gain_low": gain_low,
        "gain_high": gain_high,
    }


def _interval(values_M: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    if np.ptp(values_M) == 0:
        return float(values_M[0]), float(values_M[0])
    found = bootstrap((values_M,), np.mean, n_resamples=2000, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def calibrate(
    fitter: Fitter, chosen: Chosen, sample_SD: np.ndarray, agreement: float
) -> dict[str, Any]:
    """A temperature, and the report's word on it.

    Args:
        sample_SD: vectors of some rows of the corpus.
        agreement: of the halves.
    """
    targets_M = fitter.start.targets_M
    if len(targets_M) >= MIN_CHOICE_ROWS:
        logits_MK = held_out_scores(fitter, chosen.scores)
        first_M, after_MK = fitter.start.labelled_in_first, np.empty_like(logits_MK)
        for half_M in (first_M, ~first_M):
            temperature = _fitted(logits_MK[~half_M], targets_M[~half_M])
            after_MK[half_M] = logits_MK[half_M] / temperature
        return {
            "temperature": _fitted(logits_MK, targets_M),
            "from": "labelled rows",
            "rows": len(targets_M),
            "ece_before": expected_calibration_error(softmax(logits_MK, axis=1), targets_M),
            "ece_after": expected_calibration_error(softmax(after_MK, axis=1), targets_M),
        }
    found: dict[str, Any] = {"rows": 0, "ece_before": None, "ece_after": None}
    if chosen.trust == "none":
        return found | {"temperature": 1.0, "from": "assumed"}
    x_SD = vector_integers(sample_SD)
    own_SK = start_scores(fitter.start.own_vectors(), OWN_SCALE).of(x_SD)
    scores_SK = chosen.scores[WHOLE].of(x_SD)
    confidence = softmax(own_SK, axis=1).max(1).mean()
    shared = (own_SK.argmax(1) == scores_SK.argmax(1)).mean()
    signs = logit(np.clip([confidence, shared, agreement], 0.02, 0.98))
    expected = float(expit(SIGNS[0] + np.dot(SIGNS[1:], signs)))
    temperature = _confident(scores_SK, expected)
    return found | {"temperature": temperature, "from": "halves", "rows": len(x_SD)}


def _confident(scores_SK: np.ndarray, mean: float) -> float:
    """The temperature, 0.5 to 200, at which the largest probabilities are `mean` on the mean."""

    def excess(log_temperature: float) -> float:
        p_SK = softmax(scores_SK * np.exp(-log_temperature), axis=1)
        return float(p_SK.max(1).mean()) - mean

    low, high = np.log(0.5), np.log(200.0)
    if excess(low) <= 0:
        return 0.5
    return 200.0 if excess(high) >= 0 else float(np.exp(brentq(excess, low, high, xtol=1e-6)))


def _fitted(logits_MK: np.ndarray, targets_M: np.ndarray) -> float:
    found = fit_temperature(list(logits_MK / TEMPERATURE_UNIT), targets_M)
    if found.kind == "identity":  # every row is right, which sets no lower end
        return TEMPERATURE_UNIT
    return float(found.temperature.at(logits_MK.shape[1])) * TEMPERATURE_UNIT
