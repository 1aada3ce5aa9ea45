"""How well a score tells rows that no label of their set fits from rows that have one.

Shapes: N rows, K labels.
"""

from __future__ import annotations

import zlib

import numpy as np
from sklearn.metrics import roc_auc_score

from sce.labels import LabelSet
from sce.model.calibration import calibration_error
from sce.model.decisions import fitted_share
from sce.model.options import Mode
from sce.model.rejection import NONE_SHARE, at_share, share_for_mean

RECALL = 0.95
"""Of rows that have a label, and are to keep it."""
PATHS = {
    "assumed": f"{100 * NONE_SHARE:g} % assumed",
    "stated": "share stated",
    "corpus": "share stated, corpus seen",
    "labelled": "labelled rows",
}
"""What `none_score` may rest on: nothing but labels; the share of rows that none fits; that and the
rows themselves, without their labels; the labels of the other half of the rows."""


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


def by_paths(fitted_N: np.ndarray, none_N: np.ndarray, mode: Mode) -> dict[str, dict[str, float]]:
    """Of each of `PATHS` the mean of the scores and their calibration error.

    Args:
        fitted_N: scores for the share that they were fitted on.
    """
    fitted, share = fitted_share(mode), float(none_N.mean())
    halves_N, halved_N = np.empty(len(none_N), bool), np.empty_like(fitted_N)
    for kind in (False, True):  # as many of each kind in either half
        halves_N[none_N == kind] = np.arange(int((none_N == kind).sum())) % 2
    for half_N in (halves_N, ~halves_N):
        found = share_for_mean(fitted_N[~half_N], float(none_N[~half_N].mean()), fitted)
        halved_N[half_N] = at_share(fitted_N[half_N], found, fitted)
    scores = {
        "assumed": at_share(fitted_N, NONE_SHARE, fitted),
        "stated": at_share(fitted_N, share, fitted),
        "corpus": at_share(fitted_N, share_for_mean(fitted_N, share, fitted), fitted),
        "labelled": halved_N,
    }
    return {
        name: {"mean_score": float(one_N.mean()), "ece": calibration_error(one_N, none_N)}
        for name, one_N in scores.items()
    }
