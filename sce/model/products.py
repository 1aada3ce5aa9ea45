"""Products of vectors without a rounding error: the same bit for bit whichever rows share a batch,
and however a library orders its sums.

Vectors and weights are integers times a power of two, small enough that a float64 product of them
is exact.

Shapes: N rows, K labels, D the embedder's dimension.
"""

from __future__ import annotations

import numpy as np

VECTOR_BITS = 18
"""A vector's numbers are taken as multiples of 2^-18: of 384 numbers with unit norm, to 1e-4."""
COSINE_UNIT = 2.0 ** (-2 * VECTOR_BITS)
"""What a product of two unit vectors' integers is a multiple of."""
WEIGHT_BITS = 24
"""A weight has as many bits, the largest of a set all of them: float32 holds it."""


def vector_integers(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors times 2^18, rounded: integers in float64 [N, D]."""
    given_ND = np.asarray(vectors_ND)
    if given_ND.dtype != np.float32:
        return np.rint(given_ND.astype(np.float64) * 2.0**VECTOR_BITS)
    # A power of two rounds nothing in float32 either, where this takes a quarter of the time.
    scaled_ND = given_ND * np.float32(2.0**VECTOR_BITS)
    return np.rint(scaled_ND, out=scaled_ND).astype(np.float64)


def weight_exponent(weight_KD: np.ndarray) -> int:
    """e, so that the weights times 2^e are integers of at most `WEIGHT_BITS` bits."""
    largest = float(np.abs(weight_KD).max(initial=0.0))
    return WEIGHT_BITS - int(np.ceil(np.log2(largest))) if largest > 0 else WEIGHT_BITS


def round_weights(weight_KD: np.ndarray) -> np.ndarray:
    """Weights rounded to multiples of one power of two, float32 [K, D]; rounding twice changes
    nothing."""
    scale = 2.0 ** weight_exponent(weight_KD)
    return (np.rint(np.asarray(weight_KD, np.float64) * scale) / scale).astype(np.float32)


def exact_products(vectors_ND: np.ndarray, weight_KD: np.ndarray) -> np.ndarray:
    """x.w_k without a rounding error, float64 [N, K].

    Args:
        vectors_ND: what `vector_integers` gave; of norm at most 2^19.
        weight_KD: what `round_weights` gave. By Cauchy and Schwarz no partial sum exceeds
            2^19 2^24 sqrt(D), which is below 2^53 for D up to 2^20.
    """
    exponent = weight_exponent(weight_KD)
    products_NK = vectors_ND @ (weight_KD.astype(np.float64) * 2.0**exponent).T
    return products_NK * 2.0 ** -(VECTOR_BITS + exponent)


def exact_cosines(queries_ND: np.ndarray, labels_KD: np.ndarray) -> np.ndarray:
    """x.g_k of unit vectors, to 1e-4, float64 [N, K]: no number depends on other rows or labels."""
    products_NK = vector_integers(queries_ND) @ vector_integers(labels_KD).T
    return products_NK * COSINE_UNIT
