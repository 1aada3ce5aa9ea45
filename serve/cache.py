"""Vectors of texts that were embedded before, within a bound of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from cachetools import LRUCache

ENTRY_BYTES = 400
"""What an entry takes beside its vector: key, token count, Python's own."""


@dataclass(frozen=True)
class CachedText:
    """What the embedder made of a text: its vector, float32 [D], and how many tokens it read."""

    vector: np.ndarray
    tokens: int
    truncated: bool


class VectorCache:
    """The texts used last, by embedder fingerprint and text. Safe to use from several threads.

    A text is known by 128 bits of its BLAKE2 hash, so long texts cost no more than short ones
    and none is kept in clear.

    Args:
        max_bytes: of vectors and entries together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRUCache[bytes, CachedText] = LRUCache(
            max_bytes, lambda entry: entry.vector.nbytes + ENTRY_BYTES
        )
        self._lock = Lock()

    @staticmethod
    def key(fingerprint: str, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), digest_size=16, key=fingerprint.encode()).digest()

    def get(self, keys: Sequence[bytes]) -> list[CachedText | None]:
        with self._lock:
            return [self._entries.get(key) for key in keys]

    def put(self, keys: Sequence[bytes], entries: Sequence[CachedText]) -> None:
        with self._lock:
            for key, entry in zip(keys, entries, strict=True):
                if entry.vector.nbytes + ENTRY_BYTES <= self._entries.maxsize:
                    self._entries[key] = entry
