"""What is measured on predictions, and how sure the numbers are.

Legend of shapes: N rows, K labels of a row's own set, Kmax the widest set in the batch.
Probabilities are `[N, Kmax]`; where rows have sets of different sizes, a row's labels stand
first and the rest of its row is 0. Targets are positions in the row's own label set. The
predicted label is the first of the most probable ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score

ECE_BINS = 15
MIN_PROBABILITY = 1e-12
_MAX_DRAWS = 4_000_000

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def predicted(probabilities: ArrayLike) -> IntArray:
    """Position of the most probable label of each row, [N]; the first one of a tie."""
    return np.asarray(probabilities).argmax(axis=1).astype(np.int64)


def correct(probabilities: ArrayLike, targets: ArrayLike) -> FloatArray:
    """1.0 where the predicted label is the target, 0.0 elsewhere: [N]."""
    p_NK, y_N = _checked(probabilities, targets)
    return (predicted(p_NK) == y_N).astype(np.float64)


def accuracy(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Share of rows whose predicted label is the target."""
    return float(correct(probabilities, targets).mean())


def macro_f1(probabilities: ArrayLike, targets: ArrayLike, labels: int | None = None) -> float:
    """Mean over the labels of one set of each label's F1 (scikit-learn).

    A label that is neither a target nor a prediction of any row has no F1 and is left out of
    the mean. Only for rows that share a label set.

    Args:
        labels: size of the set; by default the width of `probabilities`.
    """
    p_NK, y_N = _checked(probabilities, targets)
    names = np.arange(p_NK.shape[1] if labels is None else labels)
    return float(
        f1_score(y_N, predicted(p_NK), labels=names, average="macro", zero_division=np.nan)
    )


def row_nll(probabilities: ArrayLike, targets: ArrayLike) -> FloatArray:
    """-log p(target) of each row in nats, [N]; p is clipped at 1e-12 from below."""
    p_NK, y_N = _checked(probabilities, targets)
    p_N = p_NK[np.arange(len(y_N)), y_N]
    return -np.log(np.clip(p_N, MIN_PROBABILITY, 1.0))


def nll(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean negative log-likelihood of the targets in nats (`row_nll`)."""
    return float(row_nll(probabilities, targets).mean())


def brier(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean over rows of the squared distance between probabilities and one-hot target.

    Summed over the labels, so between 0 and 2 (scikit-learn: `scale_by_half=False`).
    """
    p_NK, y_N = _checked(probabilities, targets)
    distance_NK = p_NK.copy()
    distance_NK[np.arange(len(y_N)), y_N] -= 1.0
    return float(np.square(distance_NK).sum(axis=1).mean())


@dataclass(frozen=True)
class Reliability:
    """Rows sorted by their top probability into equal-width bins; empty bins hold NaN.

    Attributes:
        edges: [bins + 1], from 0 to 1. A bin holds its upper edge, not its lower one.
        counts: rows of each bin, [bins].
        confidence: mean top probability of the bin's rows, [bins].
        accuracy: share of the bin's rows that are right, [bins].
    """

    edges: FloatArray
    counts: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def error(self) -> float:
        """Mean over rows of |accuracy - confidence| of the row's bin."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((self.counts[filled] * gaps).sum() / self.counts.sum())


def reliability(probabilities: ArrayLike, targets: ArrayLike, bins: int = ECE_BINS) -> Reliability:
    """How often the predicted label is right, by how sure the model is of it."""
    p_NK, y_N = _checked(probabilities, targets)
    top_N = p_NK.max(axis=1)
    bin_N = np.clip(np.ceil(top_N * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bin_N, weights=top_N, minlength=bins) / counts
        right = np.bincount(bin_N, weights=correct(p_NK, y_N), minlength=bins) / counts
    return Reliability(np.linspace(0.0, 1.0, bins + 1), counts, confidence, right)


def ece(probabilities: ArrayLike, targets: ArrayLike, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the predicted label (Guo et al. 2017, equation 3).

    Top-label confidence in equal-width bins, |accuracy - confidence| weighted by rows.
    """
    return reliability(probabilities, targets, bins).error


def confusion(probabilities: ArrayLike, targets: ArrayLike, labels: int | None = None) -> IntArray:
    """Rows by target (first axis) and predicted label (second): [K, K] counts (scikit-learn)."""
    p_NK, y_N = _checked(probabilities, targets)
    names = np.arange(p_NK.shape[1] if labels is None else labels)
    return confusion_matrix(y_N, predicted(p_NK), labels=names)


def flip_rate(
    reference: ArrayLike, shuffled: Sequence[ArrayLike], over: Literal["any", "mean"] = "any"
) -> float:
    """Share of rows whose predicted label changes when the label set is shuffled.

    Args:
        reference: predicted labels of N rows in the first order. Labels are compared by
            identity: names, or positions taken back to one common order.
        shuffled: the same rows' predicted labels, one array a shuffle.
        over: "any" counts a row that changed in at least one shuffle; "mean" is the mean
            over shuffles of the share that changed in that one.

    Raises:
        ValueError: no rows, no shuffle, or lengths that differ.
    """
    first = np.asarray(reference)
    if not shuffled or not len(first):
        raise ValueError("flip_rate needs at least one row and one shuffle.")
    others = [np.asarray(labels) for labels in shuffled]
    for labels in others:
        if labels.shape != first.shape:
            raise ValueError(f"a shuffle has shape {labels.shape}, the reference {first.shape}.")
    changed = np.stack([labels != first for labels in others])
    return float(changed.any(axis=0).mean() if over == "any" else changed.mean())


def bootstrap_interval(
    per_row_values: ArrayLike, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over rows.

    Give `correct(...)` for an accuracy, or the row-wise difference of two methods on the same
    rows for a paired comparison. Resampling rows with replacement is a multinomial draw over
    the distinct values, which is how it is done here. Where every row has the same value the
    interval has no width: it says nothing of rows that were never seen.

    Returns:
        (low, high); (nan, nan) for no rows.
    """
    values = np.asarray(per_row_values, dtype=np.float64)
    if not len(values):
        return float("nan"), float("nan")
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    batch = max(1, _MAX_DRAWS // len(distinct))
    means = np.concatenate(
        [
            rng.multinomial(len(values), counts / len(values), size=min(batch, samples - start))
            @ distinct
            / len(values)
            for start in range(0, samples, batch)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Exact two-sided p value that two methods are right equally often on the same rows.

    Binomial test on the rows where exactly one of the two is right; 1.0 if there are none.
    """
    a, b = np.asarray(correct_a).astype(bool), np.asarray(correct_b).astype(bool)
    if a.shape != b.shape:
        raise ValueError(f"mcnemar needs the same rows twice, got {a.shape} and {b.shape}.")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def summarise(
    probabilities: ArrayLike,
    targets: ArrayLike,
    label_counts: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of one label set, or of rows with sets of their own.

    Args:
        label_counts: set size of each row, [N], for padded rows of different sets. Macro-F1
            has no meaning there and is None; `labels` is then the largest size.

    Returns:
        rows, labels, accuracy, accuracy_low, accuracy_high (95 %), macro_f1, nll, brier, ece.
    """
    p_NK, y_N = _checked(probabilities, targets)
    sizes = np.unique(p_NK.shape[1] if label_counts is None else np.asarray(label_counts))
    right = correct(p_NK, y_N)
    low, high = bootstrap_interval(right, seed=seed)
    return {
        "rows": len(y_N),
        "labels": int(sizes.max()),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": macro_f1(p_NK, y_N, int(sizes[0])) if len(sizes) == 1 else None,
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
