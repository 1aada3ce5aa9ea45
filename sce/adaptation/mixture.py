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

import numpy as np
from scipy.special import softmax

from sce.model.linear_labels import exact_products, round_weights

POSTERIOR_BITS = 16
SUM_ROWS = 8192
"""Rows that are added up in float64 before int64 takes over: 2^13 products of 18 and 18 bits stay
below 2^53."""


@dataclass(frozen=True)
class MixtureSettings:
    """How bold a fit is; the defaults were chosen on the development sets.

    Attributes:
        rounds: of expectation maximisation.
        start_scale: the first posterior is softmax(start_scale x.g).
        anchor: weight of start_scale x.g in every later round.
        pseudo_rows: rows at the corpus's mean that each label is given.
        shrinkage: of the covariance towards a multiple of the identity.
        presence: strength of the presence prior; 0 for none.
        presence_rows: rows a label at which half of it counts.
        presence_scale: of the sharp posterior from which presence is read.
    """

    rounds: int = 4
    start_scale: float = 20.0
    anchor: float = 1.0
    pseudo_rows: float = 5.0
    shrinkage: float = 0.9
    presence: float = 4.0
    presence_rows: float = 30.0
    presence_scale: float = 60.0


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
    """A posterior summed over a corpus: its mass int64 [K], times 2^16, and its sums of vectors
    int64 [K, D], times 2^34."""

    mass_K: np.ndarray
    vectors_KD: np.ndarray

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.mass_K + other.mass_K, self.vectors_KD + other.vectors_KD)


@dataclass(frozen=True)
class Scores:
    """Linear scores: x.weight + bias. `weight_KD` as `round_weights` makes it."""

    weight_KD: np.ndarray
    bias_K: np.ndarray

    def of(self, x_ND: np.ndarray) -> np.ndarray:
        """Scores float64 [N, K] of what `vector_integers` gave."""
        return exact_products(x_ND, self.weight_KD) + self.bias_K


def moments_of(x_BD: np.ndarray) -> Moments:
    """Of a block of at most `SUM_ROWS` vectors, as `vector_integers` gives them."""
    return Moments(len(x_BD), x_BD.sum(0).astype(np.int64), (x_BD.T @ x_BD).astype(np.int64))


def sums_of(x_BD: np.ndarray, scores: Scores) -> Sums:
    """The posterior softmax(scores) summed over a block, as `moments_of`."""
    p_BK = np.rint(softmax(scores.of(x_BD), axis=1) * 2.0**POSTERIOR_BITS)
    return Sums(p_BK.sum(0).astype(np.int64), (p_BK.T @ x_BD).astype(np.int64))


def start_scores(g_KD: np.ndarray, scale: float) -> Scores:
    """scale x.g, of the labels' own unit vectors."""
    return Scores(round_weights(scale * g_KD), np.zeros(len(g_KD)))
