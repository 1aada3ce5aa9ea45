"""What one pass over a corpus adds up: block functions, whose results of all blocks are added.

A fit is made of several *tracks*, which run side by side: each kind of trust that is asked for, on
the whole corpus and on each of its halves. A row's half is decided by its vector, so that equal
texts are in one half and no order of the rows matters.

Shapes: B rows of a block, K labels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sce.adaptation.mixture import SUM_ROWS, Scores, moments_of, sums_of
from sce.errors import DataError
from sce.model.products import vector_integers

WHOLE, FIRST, SECOND = "whole", "first", "second"
SUBSETS = (WHOLE, FIRST, SECOND)
Track = tuple[str, str]
"""A trust and a subset."""


@dataclass(frozen=True)
class Block:
    """Rows of a corpus: integers as `vector_integers` gives them, float64 [B, D], at most
    `SUM_ROWS`; a hash of each row, uint64 [B]."""

    x_BD: np.ndarray
    hash_B: np.ndarray

    @classmethod
    def split(cls, vectors_ND: np.ndarray) -> list[Block]:
        """Unit vectors float32 [N, D] as blocks."""
        return [
            cls.of(vectors_ND[start : start + SUM_ROWS])
            for start in range(0, len(vectors_ND), SUM_ROWS)
        ]

    @classmethod
    def of(cls, vectors_BD: np.ndarray) -> Block:
        x_BD = vector_integers(vectors_BD)
        return cls(x_BD, hash_vectors(x_BD))

    def subset(self, name: str) -> np.ndarray:
        """The rows of a subset, [., D]."""
        if name == WHOLE:
            return self.x_BD
        return self.x_BD[self.in_first() == (name == FIRST)]

    def in_first(self) -> np.ndarray:
        """Whether each row is of the first half, bool [B]."""
        return (self.hash_B >> np.uint64(63)) == 0


def hash_vectors(x_BD: np.ndarray) -> np.ndarray:
    """64 bits of each row, the same wherever it stands; [B, D] integers in float64."""
    odd_D = np.random.default_rng(0).integers(0, 2**62, x_BD.shape[1], np.int64) * 2 + 1
    h_B = (x_BD.astype(np.int64) @ odd_D).astype(np.uint64)
    h_B ^= h_B >> np.uint64(31)
    h_B *= np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the upper bits depend on all
    return h_B ^ (h_B >> np.uint64(29))


class AddUp(Protocol):
    """A corpus: `function` of every block, the results added up in any order."""

    def __call__(self, function: Callable[[Block], Totals], what: str) -> Totals: ...


@dataclass(frozen=True)
class Totals:
    """Sums by name, added name by name."""

    sums: Mapping[Any, Any]

    def __add__(self, other: Totals) -> Totals:
        return Totals({name: value + other.sums[name] for name, value in self.sums.items()})

    def __getitem__(self, name: Any) -> Any:
        return self.sums[name]


@dataclass(frozen=True)
class FirstPass:
    """What is read before the fit.

    Attributes:
        sharp, start: scores of each subset, whose own labels may have other examples.
    """

    sharp: Mapping[str, Scores]
    start: Mapping[str, Scores]

    def __call__(self, block: Block) -> Totals:
        found: dict[Any, Any] = {"hashes": Hashes((block.hash_B,))}
        for subset in SUBSETS:
            x_BD = block.subset(subset)
            if subset != WHOLE:
                found["moments", subset] = moments_of(x_BD)
            found["sharp", subset] = sums_of(x_BD, self.sharp[subset])
            found["start", subset] = sums_of(x_BD, self.start[subset])
        return Totals(found)


@dataclass(frozen=True)
class RoundPass:
    """The posterior of every track."""

    scores: Mapping[Track, Scores]

    def __call__(self, block: Block) -> Totals:
        return Totals(
            {track: sums_of(block.subset(track[1]), one) for track, one in self.scores.items()}
        )


@dataclass(frozen=True)
class LastPass:
    """What the fit has done to the corpus.

    Attributes:
        own: scores of the labels' own vectors.
        fitted: scores of the chosen fit for each subset.
    """

    own: Scores
    fitted: Mapping[str, Scores]

    def __call__(self, block: Block) -> Totals:
        own_BK = self.own.of(block.x_BD)
        labels = own_BK.shape[1]
        old_B = own_BK.argmax(1)
        new_B = self.fitted[WHOLE].of(block.x_BD).argmax(1)
        by_first_B = self.fitted[FIRST].of(block.x_BD).argmax(1)
        by_second_B = self.fitted[SECOND].of(block.x_BD).argmax(1)
        sums = sums_of(block.x_BD, self.fitted[WHOLE])
        flows_KK = np.bincount(old_B * labels + new_B, minlength=labels * labels)
        agreed_B = by_first_B == by_second_B
        return Totals(
            {
                "sums": sums,
                "flows": flows_KK.reshape(labels, labels),
                "agreed": np.bincount(new_B[agreed_B], minlength=labels),
            }
        )


@dataclass(frozen=True)
class Hashes:
    """Hashes of rows, of which the distinct ones are counted in the end."""

    parts: tuple[np.ndarray, ...]

    def __add__(self, other: Hashes) -> Hashes:
        return Hashes(self.parts + other.parts)

    def distinct(self) -> int:
        return len(np.unique(np.concatenate(self.parts)))


def add_up_blocks(blocks: Sequence[Block], function: Callable[[Block], Totals]) -> Totals:
    """`function` of each block, added up; of an empty corpus `DataError`."""
    total: Totals | None = None
    for block in blocks:
        part = function(block)
        total = part if total is None else total + part
    if total is None:
        raise DataError("the corpus has no texts.")
    return total


def in_memory(blocks: list[Block]) -> AddUp:
    """A corpus that lies in memory."""

    def add_up(function: Callable[[Block], Totals], what: str) -> Totals:
        return add_up_blocks(blocks, function)

    return add_up
