"""Whether any label of a set fits a text at all: a calibrated probability that none does.

A softmax over labels always sums to one, so its height says which label is best, not whether any is
right. What says the latter is how near the text is to the nearest label. The probability is
logistic in the largest cosine and in the logarithm of the number of labels (among more labels one
is near by chance), with coefficients that a training fits on its label sets, the right label taken
away from half of the rows. Of rows of five other sets the cosine told those without a label apart
as well as the model's largest score did, better than the maximal softmax, and as well as the cosine
in standard deviations of a `Background`.

How many texts fit no label, their share, cannot be read off the texts: on the starter corpus's
training sets, 588 draws of 3 to 50 % without a label in folds by domain, what a corpus shows (its
mean cosine, its spread, each label's level) led to the same guess of 12 % whatever the share was.
It is a prior, and `at_share` exchanges it: where the share is given, the calibration error is 0.010
instead of 0.297.

Shapes: N texts, K labels, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sce.errors import InputError
from sce.model.products import exact_cosines

FITTED_SHARE = 0.5
"""Of rows that no label fits, among those that the coefficients are fitted on."""
NONE_SHARE = 0.1
"""The share where nobody has stated one: an assumption. Of the inbox's messages it is 6 %."""
MIN_SIDE = 5
"""Rows of each kind, with a right label and without, that labelled rows need to be fitted on."""

_BOUNDS, _MOST_LOG_ODDS = (1e-7, 1 - 1e-7), 60.0


@dataclass(frozen=True)
class Rejection:
    """none_score = sigmoid(bias - by_nearness cos + by_count log K).

    Attributes:
        by_nearness: of the largest cosine among the labels.
        by_count: of log K.
    """

    bias: float
    by_nearness: float
    by_count: float

    def scores(self, nearest_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
        """Probabilities that no label fits, float32 [N], of each row's largest cosine and its K."""
        x_N = self.bias - self.by_nearness * nearest_N + self.by_count * np.log(counts_N)
        return (0.5 * (1 + np.tanh(x_N / 2))).astype(np.float32)

    def at_level(self, nearest_N: np.ndarray, count: int) -> Rejection:
        """With the bias by which the mean over the texts of a corpus is `NONE_SHARE` where that
        share is stated: they may all be nearer to their labels, or farther from them.

        Args:
            nearest_N: the largest cosines of some of them.
            count: of the labels.
        """
        from scipy.special import logit

        if not len(nearest_N):
            return self
        found_N = self.scores(nearest_N, np.full(len(nearest_N), count))
        more = logit(share_for_mean(found_N, NONE_SHARE)) - logit(NONE_SHARE)
        return replace(self, bias=self.bias + float(more))


def at_share(none_N: np.ndarray, share: float, fitted: float = FITTED_SHARE) -> np.ndarray:
    """Probabilities that no label fits where `share` of the texts are so, float32 [N], of those
    that were fitted to another share: the odds, times the ratio of the shares' odds."""
    if share == fitted:
        return none_N
    from scipy.special import expit, logit  # a third of a second

    x_N = logit(np.clip(none_N.astype(np.float64), *_BOUNDS)) + logit(share) - logit(fitted)
    return expit(x_N).astype(np.float32)


def share_for_mean(none_N: np.ndarray, mean: float, fitted: float = FITTED_SHARE) -> float:
    """The share with which the probabilities of these texts have this mean: texts may be nearer to
    their labels, or farther from them, than those that the coefficients were fitted on.

    Args:
        none_N: as `at_share` takes them; at least one.
        mean: from 0 to 1, exclusive.
    """
    from scipy.optimize import brentq
    from scipy.special import expit, logit

    x_N = logit(np.clip(none_N.astype(np.float64), *_BOUNDS)) - logit(fitted)
    odds = brentq(lambda more: expit(x_N + more).mean() - mean, -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    return float(np.clip(expit(odds), *_BOUNDS))


STAND_IN = Rejection(1.467, 9.63, 0.403)
"""What a training on the starter corpus with its embedder (MiniLM) finds: for a model that was
written before it was fitted. Of another embedder it is a guess."""


def fit_rejection(nearest_N: np.ndarray, counts_N: np.ndarray, none_N: np.ndarray) -> Rejection:
    """By the likelihood of rows of which is known whether a label of their set fits.

    Args:
        nearest_N: the largest cosine.
        counts_N: labels of each row's set.
        none_N: bool, none of them fits.

    Raises:
        InputError: fewer than `MIN_SIDE` rows of either kind.
    """
    from sklearn.linear_model import LogisticRegression

    few = min(int(none_N.sum()), int((~none_N).sum()))
    if few < MIN_SIDE:
        raise InputError(
            f"{few} labelled rows whose label is outside the set, or inside it; {MIN_SIDE} of each "
            "are needed to say which texts fit no label."
        )
    # The scale of a z, so that the penalty of the fit is of no account.
    x_N2 = np.stack([-20 * nearest_N, np.log(counts_N)], axis=1)
    found = LogisticRegression(C=10).fit(x_N2, none_N)
    weight, count = (float(one) for one in found.coef_[0])
    return Rejection(float(found.intercept_[0]), 20 * weight, count)


def with_labels_away(
    cosine_NK: np.ndarray, targets_N: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `fit_rejection` takes, of rows of one label set: of each row some labels are left, as
    many as a draw that is even in log K, and in half of the rows the right one is not among them.

    Args:
        cosine_NK: of texts and labels; K at least 2.
        targets_N: the right labels.
    """
    rng = np.random.default_rng(seed)
    rows, width = cosine_NK.shape
    nearest_N, counts_N = np.empty(rows), np.empty(rows, np.int64)
    none_N: np.ndarray = np.less(rng.random(rows), 0.5)
    for row, (cosine_K, target) in enumerate(zip(cosine_NK, targets_N, strict=True)):
        others = np.delete(np.arange(width), target)
        count = int(np.exp(rng.uniform(0, np.log(width))))
        left = rng.permutation(others)[: max(1, min(count, width - 1))]
        if not none_N[row]:
            left[0] = target
        nearest_N[row], counts_N[row] = cosine_K[left].max(), len(left)
    return nearest_N, counts_N, none_N


def learn_rejection(sets: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Rejection:
    """From rows with labels of several sets; `STAND_IN` where there are too few.

    Args:
        sets: of each label set the texts' vectors [N, D], the labels' [K, D] and the targets [N].
    """
    drawn = [
        with_labels_away(exact_cosines(x_ND, g_KD), targets_N, seed)
        for seed, (x_ND, g_KD, targets_N) in enumerate(sets)
        if len(g_KD) > 1
    ]
    if not drawn:
        return STAND_IN
    nearest, counts, none = (np.concatenate(part) for part in zip(*drawn, strict=True))
    if min(none.sum(), (~none).sum()) < MIN_SIDE:
        return STAND_IN
    return fit_rejection(nearest, counts, none)
