"""How well a score tells rows that no label of their set fits from rows that have one.

Shapes: N rows, K labels.
"""

from __future__ import annotations

import zlib

import numpy as np
from sklearn.metrics import roc_auc_score

from sce.labels import LabelSet

RECALL = 0.95
"""Of rows that have a label, and are to keep it."""


def take_away(label_set: LabelSet, seed: int = 0) -> LabelSet:
    """Half of the labels, at least two; the same half for every order of the set."""
    random = np.random.default_rng([seed, zlib.crc32(label_set.fingerprint.encode())])
    keys = [label_set.labels[i].key for i in label_set.canonical_order]
    kept = random.permutation(len(keys))[: max(2, (len(keys) + 1) // 2)]
    kept_keys = {keys[i] for i in kept}
    return LabelSet(tuple(label for label in label_set.labels if label.key in kept_keys))


def figures(score_N: np.ndarray, none_N: np.ndarray) -> dict[str, float]:
    """auroc, and false_acceptance: the share of rows without a label that are answered where 95 %
    of the others are.

    Args:
        score_N: the higher, the less a label fits.
        none_N: bool, no label fits; rows of both kinds.
    """
    most = np.quantile(score_N[~none_N], RECALL, method="inverted_cdf")
    return {
        "auroc": float(roc_auc_score(none_N, score_N)),
        "false_acceptance": float((score_N[none_N] <= most).mean()),
    }
