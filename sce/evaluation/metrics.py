"""What is measured on predictions, and how sure the numbers are.

Legend of shapes: N rows, K labels of the set that they share. Probabilities are `[N, K]`, targets
positions in the label set. The predicted label is the first of the most probable ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score

from sce.model.calibration import expected_calibration_error

RELIABILITY_BINS = 10
MIN_PROBABILITY = 1e-12
LEVEL = 0.95
_MAX_DRAWS = 4_000_000

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ReliabilityBin(NamedTuple):
    """Mean probability, share that is right, and how many there are."""

    probability: float
    right: float
    rows: int


def predicted(probabilities: ArrayLike) -> IntArray:
    """Position of the most probable label of each row, [N]; the first one of a tie."""
    return np.asarray(probabilities).argmax(axis=1).astype(np.int64)


def correct(probabilities: ArrayLike, targets: ArrayLike) -> FloatArray:
    """1.0 where the predicted label is the target, 0.0 elsewhere: [N]."""
    p_NK, y_N = _checked(probabilities, targets)
    return (predicted(p_NK) == y_N).astype(np.float64)


def macro_f1(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean over the labels of each label's F1 (scikit-learn). A label that is neither a target nor
    a prediction of any row has no F1 and is left out."""
    p_NK, y_N = _checked(probabilities, targets)
    guesses, names = predicted(p_NK), np.arange(p_NK.shape[1])
    return float(f1_score(y_N, guesses, labels=names, average="macro", zero_division=np.nan))


def nll(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean negative log-likelihood of the targets in nats.

    This is scikit-learn's `log_loss`, but p(target) is clipped at 1e-12 and not at 2e-16, where
    one row in which a method is sure and wrong would weigh a third more.
    """
    p_NK, y_N = _checked(probabilities, targets)
    p_N = p_NK[np.arange(len(y_N)), y_N]
    return float((-np.log(np.clip(p_N, MIN_PROBABILITY, 1.0))).mean())


def brier(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean over rows of the squared distance between probabilities and one-hot target, summed over
    the labels, so between 0 and 2. (scikit-learn's `brier_score_loss(..., scale_by_half=False)`
    refuses a label set of one label.)"""
    p_NK, y_N = _checked(probabilities, targets)
    return float(np.square(p_NK - np.eye(p_NK.shape[1])[y_N]).sum(axis=1).mean())


def ece(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Expected calibration error of the predicted label."""
    p_NK, y_N = _checked(probabilities, targets)
    return expected_calibration_error(p_NK, y_N)


def reliability(probability_N: ArrayLike, right_N: ArrayLike) -> list[ReliabilityBin]:
    """What a reliability diagram shows: of `RELIABILITY_BINS` bins of equal width, each of which
    holds its lower edge, those that have any of the N probabilities."""
    p_N, is_right_N = np.asarray(probability_N, np.float64), np.asarray(right_N, bool)
    bin_N = np.minimum((p_N * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    return [
        ReliabilityBin(
            float(p_N[bin_N == b].mean()),
            float(is_right_N[bin_N == b].mean()),
            int((bin_N == b).sum()),
        )
        for b in np.unique(bin_N)
    ]


def joined(parts: Sequence[Sequence[ReliabilityBin]]) -> list[ReliabilityBin]:
    """The bins of several sets as one."""
    found: dict[int, ReliabilityBin] = {}
    for one in chain.from_iterable(parts):
        place = min(int(one.probability * RELIABILITY_BINS), RELIABILITY_BINS - 1)
        other = found.get(place, ReliabilityBin(0.0, 0.0, 0))
        rows = one.rows + other.rows
        found[place] = ReliabilityBin(
            (one.rows * one.probability + other.rows * other.probability) / rows,
            (one.rows * one.right + other.rows * other.right) / rows,
            rows,
        )
    return [found[place] for place in sorted(found)]


def confusion(probabilities: ArrayLike, targets: ArrayLike) -> IntArray:
    """Rows by target (first axis) and predicted label (second): [K, K] counts (scikit-learn)."""
    p_NK, y_N = _checked(probabilities, targets)
    return confusion_matrix(y_N, predicted(p_NK), labels=np.arange(p_NK.shape[1]))


def flip_rate(reference: ArrayLike, shuffled: Sequence[ArrayLike]) -> float:
    """Share of rows whose predicted label changes in at least one shuffle of the label set.

    Args:
        reference: predicted labels of N rows in the first order, by name.
        shuffled: the same rows' predicted labels, one array a shuffle.

    Raises:
        ValueError: no rows, no shuffle, or lengths that differ.
    """
    first_N = np.asarray(reference)
    if not shuffled or not len(first_N):
        raise ValueError("flip_rate needs at least one row and one shuffle.")
    return float((np.stack(shuffled) != first_N).any(axis=0).mean())


def bootstrap_interval(
    per_row_values: ArrayLike, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over rows.

    Give `correct(...)` for an accuracy, or the row-wise difference of two methods on the same
    rows for a paired comparison. Where every row has the same value the interval has no width: it
    says nothing of rows that were never seen. (nan, nan) for no rows.
    """
    values = np.asarray(per_row_values, dtype=np.float64)
    size = len(values)
    if not size:
        return float("nan"), float("nan")
    # Resampling rows with replacement is a multinomial draw over the distinct values, of which
    # right and wrong have two: the time of scipy's `bootstrap`, which draws rows, grows with them.
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    batch = max(1, _MAX_DRAWS // len(distinct))
    sizes = [min(batch, samples - start) for start in range(0, samples, batch)]
    draws = (rng.multinomial(size, counts / size, size=some) for some in sizes)
    means = np.concatenate([drawn @ distinct / size for drawn in draws])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the figures that there are; None for none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Exact two-sided p value that two methods are right equally often on the same rows: binomial
    test on the rows where exactly one of the two is right; 1.0 if there are none."""
    a, b = np.asarray(correct_a).astype(bool), np.asarray(correct_b).astype(bool)
    if a.shape != b.shape:
        raise ValueError(f"mcnemar needs the same rows twice, got {a.shape} and {b.shape}.")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def summarise(probabilities: ArrayLike, targets: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """The figures of one label set: rows, labels, accuracy, accuracy_low, accuracy_high (95 %),
    macro_f1, nll, brier, ece."""
    p_NK, y_N = _checked(probabilities, targets)
    right_N = correct(p_NK, y_N)
    low, high = bootstrap_interval(right_N, seed=seed)
    return {
        "rows": len(y_N),
        "labels": p_NK.shape[1],
        "accuracy": float(right_N.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": macro_f1(p_NK, y_N),
        "nll": nll(p_NK, y_N),
        "brier": brier(p_NK, y_N),
        "ece": ece(p_NK, y_N),
    }


def _checked(probabilities: ArrayLike, targets: ArrayLike) -> tuple[FloatArray, IntArray]:
    p_NK, y_N = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    if p_NK.ndim != 2 or y_N.shape != p_NK.shape[:1] or not p_NK.size:
        raise ValueError(
            f"probabilities [N, K] and targets [N] with N, K >= 1 are needed, got {p_NK.shape} "
            f"and {y_N.shape}."
        )
    if y_N.min() < 0 or y_N.max() >= p_NK.shape[1]:
        raise ValueError(f"a target lies outside 0..{p_NK.shape[1] - 1}.")
    if np.isnan(p_NK).any():
        raise ValueError("a probability is NaN.")
    return p_NK, y_N
