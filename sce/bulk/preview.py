"""What a dry run finds: predictions, labels that the model confuses, expected time and size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

SHOWN_PAIRS = 10


class ConfusedPair(NamedTuple):
    """Two labels that stand first and second in some rows of a sample, and how far apart their
    probabilities are."""

    one: str
    other: str
    rows: int
    mean_gap: float


@dataclass(frozen=True)
class Preview:
    """The outcome of a dry run.

    Attributes:
        sample: answers of some rows with `top` of two labels, and `shown`, a text or an id.
        rows, seconds, output_bytes: expected of the whole input, start-up left out.
    """

    sample: pa.Table
    pairs: list[ConfusedPair]
    rows: int
    seconds: float
    output_bytes: int

    def summary(self) -> dict[str, Any]:
        errors = [code for code in self.sample["error"].to_pylist() if code]
        return {
            "dry_run": True,
            "rows_in": self.rows,
            "sample_rows": self.sample.num_rows,
            "sample_errors": {code: errors.count(code) for code in sorted(set(errors))},
            "expected_seconds": round(self.seconds, 1),
            "expected_output_bytes": self.output_bytes,
            "confused": [[pair.one, pair.other, pair.rows] for pair in self.pairs[:SHOWN_PAIRS]],
        }


def confused_pairs(top: Sequence[Sequence[dict[str, Any]] | None]) -> list[ConfusedPair]:
    """Pairs that stand first and second in `top`, each row's two best labels with their scores or
    None; the heaviest first."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for first, second, *_ in (row for row in top if row is not None and len(row) > 1):
        one, other = sorted((first["label"], second["label"]))
        found[one, other].append((first["score"] - second["score"], second["score"]))
    pairs = []
    for (one, other), rows in found.items():
        gaps, seconds = zip(*rows)
        pair = ConfusedPair(one, other, len(rows), sum(gaps) / len(rows))
        # The sum of the second's probabilities: in how many of these rows it might be right.
        pairs.append((-sum(seconds), pair))
    return [pair for _, pair in sorted(pairs)]
