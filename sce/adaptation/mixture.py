"""The mixture that lets a corpus teach the labels: Gaussians with one covariance, started at them.

Each round takes the posterior of the round before, sums it over the corpus, and fits anew
(expectation maximisation of linear discriminants):

    n_k = sum_n p_nk       c_k = sum_n p_nk (x_n - m)       mu_k = c_k / (n_k + pseudo_rows)
    S   = (1 - shrinkage) C + shrinkage (tr C / D) I        C: the covariance within the labels
    s_k = (x - m).S^-1 mu_k - mu_k.S^-1 mu_k / 2 + anchor start_scale x.g_k
          + log((n_k + 1) / (N + K)) + presence_k

m is the corpus's mean, g_k the label's own unit vector. A label with little mass has mu_k near 0
and is left with its own vector. Balance is never assumed: the prior is the fitted mass. The
presence prior says which labels have texts in the corpus at all, read before the fit from the
label's mean share of a sharp posterior, and is trusted as far as there are rows for it:

    presence_k = strength r / (r + presence_rows) log(K mean_n softmax_k(presence_scale x_n.g_k))

with r = N / K. All s_k are linear in x.

Sums over rows are exact. Vectors, weights and posteriors are rounded to integers times a power of
two, so that no product or sum of them is rounded again, and the fit is the same bit for bit for
every order of the rows and every way in which they are shared out.

Shapes: N rows of the corpus, B rows of a block, K labels in canonical order, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import softmax
from threadpoolctl import ThreadpoolController

from sce.adaptation.settings import MixtureSettings
from sce.model.products import VECTOR_BITS, exact_products, round_weights

POSTERIOR_BITS = 22
SUM_ROWS = 4096
"""Rows that are added up in float64 before int64 takes over: 2^12 products of 22 and 18 bits stay
below 2^53."""
MIN_SPREAD = 1e-6
"""Of the variance within the labels, by dimension: half of a small corpus may be one row, or none.
Texts have some 1e-3."""
LABELLED_PRIOR = 4.0
"""Labelled rows of a label at which each counts for half of what many count for."""


@dataclass(frozen=True)
class Moments:
    """What no posterior changes, of a corpus: integers, so that parts of it add up exactly.

    Attributes:
        rows: N.
        sum_D: of the vectors, int64, times 2^18.
        product_DD: of their outer products, int64, times 2^36.
    """

    rows: int
    sum_D: np.ndarray
    product_DD: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.rows + other.rows, self.sum_D + other.sum_D, self.product_DD + other.product_DD
        )


@dataclass(frozen=True)
class Sums:
    """A posterior summed over a corpus: its mass int64 [K], times 2^22, and its sums of vectors
    int64 [K, D], times 2^40."""

    mass_K: np.ndarray
    vectors_KD: np.ndarray

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.mass_K + other.mass_K, self.vectors_KD + other.vectors_KD)


@dataclass(frozen=True)
class Scores:
    """Linear scores: x.weight + bias. `weight_KD` is as `round_weights` makes it; `prior_K` is the
    part of the bias that says how large the labels are."""

    weight_KD: np.ndarray
    bias_K: np.ndarray
    prior_K: np.ndarray

    def of(self, x_ND: np.ndarray) -> np.ndarray:
        """Scores float64 [N, K] of what `vector_integers` gave."""
        return exact_products(x_ND, self.weight_KD) + self.bias_K


@dataclass(frozen=True)
class Labelled:
    """Labelled rows summed by label: counts int64 [K], sums of vectors int64 [K, D] times 2^18,
    what a row of each label counts for beside one of the corpus [K], and the sum of their outer
    products with that weight, float64 [D, D]."""

    count_K: np.ndarray
    vectors_KD: np.ndarray
    weight_K: np.ndarray
    product_DD: np.ndarray

    @classmethod
    def of(cls, x_MD: np.ndarray, targets_M: np.ndarray, labels: int, weight: float) -> Labelled:
        """Of M rows, as `vector_integers` gives them. One row says little of where the texts of its
        label lie: of n rows each counts for weight n / (n + `LABELLED_PRIOR`)."""
        one_hot_MK = np.zeros((len(x_MD), labels))
        one_hot_MK[np.arange(len(x_MD)), targets_M] = 1
        count_K = one_hot_MK.sum(0).astype(np.int64)
        weight_K = weight * count_K / (count_K + LABELLED_PRIOR)
        product_DD = np.zeros((x_MD.shape[1], x_MD.shape[1]))
        weight_M = weight_K[targets_M]
        for one in np.unique(weight_M):  # exact sums of the rows of one weight, then one product
            rows_ND = x_MD[weight_M == one]
            product_DD += one * 2.0 ** -(2 * VECTOR_BITS) * (rows_ND.T @ rows_ND)
        return cls(count_K, (one_hot_MK.T @ x_MD).astype(np.int64), weight_K, product_DD)


def moments_of(x_BD: np.ndarray) -> Moments:
    """Of a block of at most `SUM_ROWS` vectors, as `vector_integers` gives them."""
    return Moments(len(x_BD), x_BD.sum(0).astype(np.int64), (x_BD.T @ x_BD).astype(np.int64))


def sums_of(x_BD: np.ndarray, scores: Scores) -> Sums:
    """The posterior softmax(scores) summed over a block, as `moments_of`."""
    p_BK = np.rint(softmax(scores.of(x_BD), axis=1) * 2.0**POSTERIOR_BITS)
    return Sums(p_BK.sum(0).astype(np.int64), (p_BK.T @ x_BD).astype(np.int64))


def start_scores(g_KD: np.ndarray, scale: float) -> Scores:
    """scale x.g, of the labels' own unit vectors."""
    return Scores(round_weights(scale * g_KD), np.zeros(len(g_KD)), np.zeros(len(g_KD)))


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def presence_prior(sharp: Sums, moments: Moments, settings: MixtureSettings) -> np.ndarray:
    """presence_k float64 [K], from the sums of the sharp posterior."""
    labels = len(sharp.mass_K)
    rows = max(1, moments.rows)
    share_K = (sharp.mass_K + 1) / (rows * 2.0**POSTERIOR_BITS)
    rows_a_label = moments.rows / labels
    trusted = rows_a_label / (rows_a_label + settings.presence_rows)
    return settings.presence * trusted * np.log(labels * share_K)


def fitted_scores(
    moments: Moments,
    sums: Sums,
    g_KD: np.ndarray,
    log_prior_K: np.ndarray,
    settings: MixtureSettings,
    labelled: Labelled,
    fitted_mass: bool = True,
) -> Scores:
    """One round: the scores of the discriminants that these sums give.

    Args:
        log_prior_K: added to the log of the fitted mass: the presence prior.
        fitted_mass: False leaves the fitted mass out of the prior, where the user has said how
            large the classes are.
    """
    labels, dimension = g_KD.shape
    n_K = sums.mass_K * 2.0**-POSTERIOR_BITS
    s_KD = sums.vectors_KD * 2.0 ** -(POSTERIOR_BITS + VECTOR_BITS)
    rows, sum_D = float(max(1, moments.rows)), moments.sum_D * 2.0**-VECTOR_BITS
    product_DD = moments.product_DD * 2.0 ** -(2 * VECTOR_BITS)
    mean_D = sum_D / rows
    if labelled.count_K.any():
        labelled_K = labelled.weight_K * labelled.count_K
        n_K = n_K + labelled_K
        s_KD = s_KD + labelled.weight_K[:, None] * labelled.vectors_KD * 2.0**-VECTOR_BITS
        product_DD = product_DD + labelled.product_DD
        rows += float(labelled_K.sum())
        sum_D = s_KD.sum(0)
    c_KD = s_KD - n_K[:, None] * mean_D
    mu_KD = c_KD / (n_K + settings.pseudo_rows)[:, None]
    # Around the corpus's mean, then what the labels' means explain is taken away.
    cross_DD = np.outer(sum_D, mean_D)
    within_DD = product_DD - cross_DD - cross_DD.T + rows * np.outer(mean_D, mean_D)
    explained_DD = c_KD.T @ mu_KD
    within_DD -= explained_DD + explained_DD.T - (mu_KD * n_K[:, None]).T @ mu_KD
    within_DD /= rows
    spread = max(MIN_SPREAD, np.trace(within_DD) / dimension)
    within_DD *= 1 - settings.shrinkage
    within_DD[np.diag_indices(dimension)] += settings.shrinkage * spread
    with _libraries().limit(limits=1):  # one may add up otherwise with more threads
        a_KD = cho_solve(cho_factor(within_DD), mu_KD.T).T
        bias_K = -(a_KD @ mean_D) - 0.5 * np.einsum("kd,kd->k", a_KD, mu_KD)
    prior_K = np.array(log_prior_K, np.float64)
    if fitted_mass:
        prior_K += np.log((n_K + 1) / (rows + labels))
    weight_KD = a_KD + settings.anchor * settings.start_scale * g_KD
    return Scores(round_weights(weight_KD), bias_K + prior_K, prior_K)
