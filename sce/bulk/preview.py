"""What a dry run shows: predictions, labels that the model confuses, expected time and size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.text import Text

from sce.evaluation.tables import Cell, Table

SHOWN_ROWS = 10
SHOWN_PAIRS = 10
TEXT_CHARS = 80


@dataclass(frozen=True)
class ConfusedPair:
    """Two labels that stand first and second in some rows.

    Attributes:
        rows: of the sample.
        mean_gap: between their probabilities.
        weight: sum of the second's probability: how many of these rows it might be right in.
    """

    one: str
    other: str
    rows: int
    mean_gap: float
    weight: float


@dataclass(frozen=True)
class Preview:
    """The outcome of a dry run.

    Attributes:
        sample: answers of the sample with `top` of two labels, and `shown`, a text or an id.
        rows: of the whole input.
        seconds: expected for it, start-up left out.
        output_bytes: expected.
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

    def to_terminal(self, console: Console) -> None:
        step = max(1, self.sample.num_rows // SHOWN_ROWS)
        places = list(range(0, self.sample.num_rows, step))[:SHOWN_ROWS]
        rows: list[list[Cell]] = [_cells(row) for row in self.sample.take(places).to_pylist()]
        columns = ["text", "label", "score", "second", "score"]
        console.print(Table(columns, rows, "Predictions", left=("text", "label", "second")))
        if self.pairs:
            pairs = [
                [pair.one, pair.other, f"{pair.rows:,}", f"{pair.mean_gap:.2f}"]
                for pair in self.pairs[:SHOWN_PAIRS]
            ]
            columns = ["label", "label", "rows", "mean gap"]
            console.print(Table(columns, pairs, "Labels confused most", left=("label",)))
        console.print(
            f"{self.rows:,} rows: about {_duration(self.seconds)}, {_size(self.output_bytes)} of "
            "output (start-up apart)."
        )


def _cells(row: dict[str, Any]) -> list[Cell]:
    """A row's text with its best two labels and their scores, or with its error."""
    if row["error"]:
        return [_shorten(row["shown"]), Text(row["error"], "red"), "", "", ""]
    second = row["top"][1] if len(row["top"]) > 1 else {"label": "", "score": None}
    scores = ["" if score is None else f"{score:.2f}" for score in (row["score"], second["score"])]
    label = "-" if row["label"] is None else row["label"]
    return [_shorten(row["shown"]), label, scores[0], second["label"], scores[1]]


def confused_pairs(top: Sequence[Sequence[dict[str, Any]] | None]) -> list[ConfusedPair]:
    """Pairs that stand first and second, the heaviest first.

    Args:
        top: of each row its two best labels with their scores, or None.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in top:
        if row is not None and len(row) > 1:
            first, second = row[0], row[1]
            pair = tuple(sorted((first["label"], second["label"])))
            found[pair].append((first["score"], second["score"]))  # type: ignore[index]
    pairs = [
        ConfusedPair(
            one,
            other,
            len(scores),
            sum(a - b for a, b in scores) / len(scores),
            sum(b for _, b in scores),
        )
        for (one, other), scores in found.items()
    ]
    return sorted(pairs, key=lambda pair: (-pair.weight, pair.one, pair.other))


def _shorten(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= TEXT_CHARS else f"{text[: TEXT_CHARS - 1]}…"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"
