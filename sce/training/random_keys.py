"""Random numbers that follow from what they are for, not from when they are drawn.

Every choice of training (order of rows, label subset, synonym) is a function of the seed, the
epoch and the row's id. It does not depend on the number of workers, on the order in which
rows arrive, or on whether the run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_keys(row_ids: Sequence[str]) -> np.ndarray:
    """A 64-bit key for each row id, uint64 [N]."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in row_ids)
    return np.frombuffer(digests, dtype=np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection on 64 bits in which every bit stirs every other."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, epoch: int, stream: str, keys_B: np.ndarray, count: int = 1) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [B, count].

    Args:
        stream: what the numbers are for; different streams are independent.
        keys_B: the rows' keys, uint64 [B].
    """
    name = f"{seed}/{epoch}/{stream}".encode()
    base = np.frombuffer(hashlib.blake2b(name, digest_size=8).digest(), dtype=np.uint64)
    with np.errstate(over="ignore"):
        state_B = _mix(keys_B ^ base)
        steps_C = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits_BC = _mix(state_B[:, None] + steps_C[None, :])
    return (bits_BC >> np.uint64(11)).astype(np.float64) * 2.0**-53


def some_places(row_ids: Sequence[str], limit: int | None, seed: int = 0) -> np.ndarray:
    """Places of at most `limit` rows, ascending, drawn by their ids: the same rows whatever their
    order. None is all of them."""
    if limit is None or len(row_ids) <= limit:
        return np.arange(len(row_ids))
    return np.sort(permutation(seed, 0, row_keys(row_ids))[:limit])


def permutation(seed: int, epoch: int, keys_N: np.ndarray) -> np.ndarray:
    """Order of the rows in one epoch, int64 [N]. Follows from the rows' keys, so the order in
    which the rows were read does not matter."""
    return np.lexsort((keys_N, uniforms(seed, epoch, "order", keys_N)[:, 0]))
