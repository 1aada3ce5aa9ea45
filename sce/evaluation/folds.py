"""Folds of labelled rows, and a few examples of each label from one fold for the other.

No row may be answered by a fit that saw its label: copies of a text lie in one fold. All choices
follow from the seed and the texts, not from the order of the rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sce.datasets.splits import rank, text_key


def share_out(texts: Sequence[str], labels: Sequence[str], seed: int, folds: int = 2) -> np.ndarray:
    """The fold of each row, 0 to `folds` - 1, int64 [N]; the distinct texts of a label are shared
    out evenly, the odd ones by chance."""
    keys = [text_key(text) for text in texts]
    by_label: dict[str, set[bytes]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        by_label[label].add(key)
    fold_of: dict[bytes, int] = {}
    for label in sorted(by_label):
        # A text that has two labels keeps the fold that the first of them gave it.
        free = sorted(by_label[label] - fold_of.keys(), key=lambda key: (rank(seed, key), key))
        first = rank(seed, label.encode())[0] % folds
        fold_of |= {key: (first + place) % folds for place, key in enumerate(free)}
    return np.array([fold_of[key] for key in keys], np.int64)


def draw_examples(
    texts: Sequence[str], labels: Sequence[str], folds_N: np.ndarray, fold: int, n: int, seed: int
) -> tuple[np.ndarray, int]:
    """Rows whose labels a fit may see that answers one fold: places of `n` rows a label of the
    other fold, of distinct texts, ascending; and how many of all labels have fewer there."""
    first: dict[str, dict[bytes, int]] = {label: {} for label in labels}
    for place in np.flatnonzero(folds_N != fold).tolist():
        first[labels[place]].setdefault(text_key(texts[place]), place)
    taken, short = [], 0
    for places in first.values():
        drawn = sorted(places, key=lambda key: (rank(seed, key), key))[:n]
        taken += [places[key] for key in drawn]
        short += len(drawn) < n
    return np.array(sorted(taken), np.int64), short
