"""Adapted labels made by hand, over vectors that stand around their labels."""

import numpy as np

from sce.adaptation.artefact import AdaptedLabels
from sce.labels import LabelSet
from sce.model.products import round_weights

WIDTH = 16


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def label_vectors(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors, float32 [K, 16]."""
    return unit(np.random.default_rng(seed).normal(size=(count, WIDTH)))


def rows_around(vectors_KD: np.ndarray, a_label: int, seed: int = 1, spread: float = 0.15):
    """Unit vectors [K * a_label, 16], those of the first label first."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(len(vectors_KD) * a_label, WIDTH)) * spread
    return unit(np.repeat(vectors_KD, a_label, axis=0) + noise)


def label_report(name: str, **changed):
    found = {
        "name": name, "presence": 1.1, "mass_before": 0.2, "mass_after": 0.3, "moved": 0.25,
        "towards": None, "took_from": None, "took": 0.0, "agreement": 0.9, "rows": 0,
        "seems_absent": False, "adapted": True,
    }  # fmt: skip
    return found | changed


def adapted_labels(names, weight_KD, labels=None, **changed) -> AdaptedLabels:
    """Labels with these unit vectors, 20 times as long, as weights, in the order of `names`.

    Args:
        labels: the report's lines of the labels, in canonical order.
        changed: figures of the report that are not those below.
    """
    label_set = LabelSet.parse(names)
    report = {
        "rows": 400, "fitted_rows": 400, "label_count": len(names),
        "rows_a_label": 400 / len(names), "adapted": True, "trust": "default",
        "why": "It was assumed that most texts carry a label.", "agreement": 0.947,
        "changed": 0.125,
        "calibration": {"temperature": 1.5, "from": "halves", "rows": 400, "ece_before": None,
                        "ece_after": None},
        "choice": None,
        "labels": labels or [label_report(name) for name in label_set.canonical().names],
    }  # fmt: skip
    facts = {"model": None, "corpus": {}, "settings": {}, "versions": {}}
    return AdaptedLabels(
        label_set,
        round_weights(20 * weight_KD),
        np.zeros(len(label_set)),
        1.5,
        {"dimension": WIDTH},
        facts | {"report": report | changed},
        {},
    )
