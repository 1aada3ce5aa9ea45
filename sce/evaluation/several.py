"""How good answers of several labels a text are, and which thresholds labelled rows ask for.

Shapes: N rows, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import (
    coverage_error,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
    precision_recall_curve,
    precision_recall_fscore_support,
)

from sce.errors import InputError
from sce.evaluation.settings import ThresholdBy

MIN_POSITIVE = 3
"""A label with fewer rows has the threshold of all labels together."""


def figures(
    right_NK: np.ndarray, p_NK: np.ndarray, thresholds_NK: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """Figures of scikit-learn: of the ranking and probabilities `p_NK` (lrap, coverage_error,
    log_loss), and of the labels that reach their thresholds, [K] or [N, K] (micro_f1, macro_f1,
    exact_match, and by label precision, recall and rows). Rows without a right label count in all
    but the ranking.
    """
    found_NK = p_NK >= thresholds_NK
    ranked = right_NK.any(axis=1)
    precision_K, recall_K, _, rows_K = precision_recall_fscore_support(
        right_NK, found_NK, average=None, zero_division=0
    )
    by_label = {
        name: {"precision": float(p), "recall": float(r), "rows": int(n)}
        for name, p, r, n in zip(names, precision_K, recall_K, rows_K, strict=True)
    }
    scores = {"average": "micro", "zero_division": 0}
    return {
        "rows": len(right_NK),
        "labels_a_row": float(right_NK.sum(1).mean()),
        "answered_a_row": float(found_NK.sum(1).mean()),
        "micro_f1": float(f1_score(right_NK, found_NK, **scores)),
        "macro_f1": float(f1_score(right_NK, found_NK, average="macro", zero_division=0)),
        "exact_match": float((found_NK == right_NK).all(axis=1).mean()),
        "lrap": float(label_ranking_average_precision_score(right_NK[ranked], p_NK[ranked])),
        "coverage_error": float(coverage_error(right_NK[ranked], p_NK[ranked])),
        "log_loss": float(log_loss(right_NK.ravel(), p_NK.ravel().astype(np.float64))),
        "labels": by_label,
    }


def choose_thresholds(
    right_NK: np.ndarray, p_NK: np.ndarray, by: ThresholdBy = "f1", target: float | None = None
) -> np.ndarray:
    """A threshold for each label, float32 [K], to be compared as `p >= threshold`.

    Args:
        by: "f1": the best F1 of the label; "precision": the lowest threshold whose precision
            reaches `target`; "rate": the share of rows `target` gets the label.
        target: of precision or rate.

    Raises:
        InputError: `target` is missing or out of range, or no row has a label.
    """
    if by != "f1" and (target is None or not 0 < target <= 1):
        raise InputError(f"a target above 0 and at most 1 is needed for thresholds by {by}.")
    if not right_NK.any():
        raise InputError("thresholds are chosen on labelled rows: none of these has a label.")
    whole = _threshold(right_NK.ravel(), p_NK.ravel(), by, target)
    few_K = right_NK.sum(axis=0) < MIN_POSITIVE
    found = [
        whole if few and by != "rate" else _threshold(right_N, p_N, by, target)
        for few, right_N, p_N in zip(few_K, right_NK.T, p_NK.T)
    ]
    return np.array(found, np.float32)


def as_options(names: Sequence[str], thresholds_K: np.ndarray) -> dict[str, float]:
    """As the option `threshold` takes them: rounded down, so that the same rows are answered but
    for probabilities within a thousandth."""
    return {name: math.floor(1000 * float(t)) / 1000 for name, t in zip(names, thresholds_K)}


def matrix_of(rows: Sequence[Sequence[str]], names: Mapping[str, int]) -> np.ndarray:
    """Which labels are right, bool [N, K], of the names of each row's labels."""
    right_NK = np.zeros((len(rows), len(names)), bool)
    for row, labels in enumerate(rows):
        right_NK[row, [names[name] for name in labels]] = True
    return right_NK


def _threshold(
    right_N: np.ndarray, p_N: np.ndarray, by: ThresholdBy, target: float | None
) -> float:
    if by == "rate":
        assert target is not None
        return float(np.quantile(p_N, 1 - target, method="higher"))
    precision_T, recall_T, threshold_T = precision_recall_curve(right_N, p_N)
    precision_T, recall_T = precision_T[:-1], recall_T[:-1]
    if by == "f1":
        f1_T = 2 * precision_T * recall_T / np.maximum(precision_T + recall_T, 1e-12)
        return float(threshold_T[f1_T.argmax()])
    assert target is not None
    reached = np.flatnonzero(precision_T >= target)
    return float(threshold_T[reached[0]]) if len(reached) else 1.0
