"""What changed between the outputs of two bulk runs: the answers of the rows in both, counted.

Shapes: P rows that stand in both outputs, G those of them without an error, E examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sce.bulk.matching import ERROR, NULL, OutputRows, match_rows

MOVES_WITH_EXAMPLES = 20
EXAMPLES_OF_A_MOVE = 3


@dataclass(frozen=True)
class Example:
    """A row that moved. A score is None where the output has none; so is a text."""

    id: str
    score_before: float | None
    score_after: float | None
    text: str | None = None


@dataclass(frozen=True)
class Move:
    """Rows with one answer before and one after; None is "no answer". The largest moves have
    examples, the rows whose ids hash lowest: neither the order of the files nor chance decides."""

    before: str | None
    after: str | None
    rows: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Side:
    """How many rows one of the two outputs has.

    Attributes:
        rows_only_here: rows whose id the other output has not.
        nulls: rows without an answer and without an error.
        counts: rows of each label, as `OutputRows.counts` has them.
    """

    folder: str
    rows: int
    rows_only_here: int
    errors: int
    nulls: int
    counts: Mapping[str, int]

    @property
    def null_share(self) -> float:
        """Rows without an answer among the rows without an error; NaN if none is."""
        rows = self.rows - self.errors
        return self.nulls / rows if rows else float("nan")


@dataclass(frozen=True)
class Comparison:
    """What two outputs have in common and where they part.

    Attributes:
        rows_compared, rows_with_error: rows in both, without an error in either, and with one.
        from_to: the compared rows by answer before and after, those that stayed included; the
            most rows first.
        exact_labels: whether both label sets were given. If not, a label without rows is not
            seen: `gone` may hold labels that are only empty, `new` some that were.
    """

    previous: Side
    current: Side
    rows_compared: int
    rows_with_error: int
    from_to: tuple[Move, ...]
    exact_labels: bool

    @cached_property
    def new(self) -> tuple[str, ...]:
        """Labels of the current run that the previous one had not."""
        return tuple(name for name in self.current.counts if name not in self.previous.counts)

    @cached_property
    def gone(self) -> tuple[str, ...]:
        return tuple(name for name in self.previous.counts if name not in self.current.counts)

    @cached_property
    def now_empty(self) -> tuple[str, ...]:
        """Labels of the current run without a row, that are new or had rows before."""
        before = self.previous.counts
        return tuple(k for k, rows in self.current.counts.items() if not rows and before.get(k, 1))

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label of either run: the current ones in order, then those that are gone."""
        return (*self.current.counts, *self.gone)

    @property
    def moves(self) -> tuple[Move, ...]:
        """The part of `from_to` whose answer changed, the most rows first."""
        return tuple(move for move in self.from_to if move.before != move.after)

    @property
    def rows_moved(self) -> int:
        return sum(move.rows for move in self.moves)

    @property
    def rows_moved_from_gone(self) -> int:
        """Rows that had to move, because their label is gone."""
        return sum(move.rows for move in self.moves if move.before in self.gone)

    @property
    def rows_moved_to_new(self) -> int:
        """Rows that moved to a new label, from one that is gone or not."""
        return sum(move.rows for move in self.moves if move.after in self.new)

    @property
    def share_moved(self) -> float:
        """The part of the compared rows that moved; NaN if there are none."""
        return self.rows_moved / self.rows_compared if self.rows_compared else float("nan")

    def to_metrics(self) -> dict[str, float]:
        """Figures for a tracker; shares of nothing are left out."""
        figures = {
            "rows_compared": self.rows_compared,
            "rows_with_error": self.rows_with_error,
            "rows_only_previous": self.previous.rows_only_here,
            "rows_only_current": self.current.rows_only_here,
            "rows_moved": self.rows_moved,
            "rows_moved_from_gone": self.rows_moved_from_gone,
            "rows_moved_to_new": self.rows_moved_to_new,
            "share_moved": self.share_moved,
            "null_share_before": self.previous.null_share,
            "null_share_after": self.current.null_share,
            "errors_before": self.previous.errors,
            "errors_after": self.current.errors,
            "labels_new": len(self.new),
            "labels_gone": len(self.gone),
            "labels_now_empty": len(self.now_empty),
        }
        return {f"compare/{k}": float(v) for k, v in figures.items() if not np.isnan(v)}


def compare_outputs(
    previous: str | Path,
    current: str | Path,
    label_sets: tuple[Sequence[str], Sequence[str]] | None = None,
    texts_of: Callable[[list[str]], Mapping[str, str]] | None = None,
) -> Comparison:
    """Match the rows of two outputs, folders, by id and count how their answers changed.

    A row counts as moved if its label is another one, null included. Rows with an error in
    either output are counted apart.

    Args:
        label_sets: of the two runs, in order, or None where they are not known: what a run's
            labels are is then what its rows say.
        texts_of: the texts of some ids, as far as they are known; called at most once.

    Raises:
        DataError: as `OutputRows.read` and `match_rows`; a label that is not in its run's set.
    """
    names: dict[str, int] = {}
    before, after = OutputRows.read(str(previous), names), OutputRows.read(str(current), names)
    at_before_P, at_after_P = match_rows(before, after)
    good_P = (before.code_N[at_before_P] != ERROR) & (after.code_N[at_after_P] != ERROR)
    at_before_G, at_after_G = at_before_P[good_P], at_after_P[good_P]

    # A pair of answers as one number; `NULL` is -1, so the first answer is "none".
    answers: list[str | None] = [None, *names]
    base = len(answers)
    pair_G = (before.code_N[at_before_G] + 1).astype(np.int64) * base + after.code_N[at_after_G] + 1
    counted = [
        (answers[pair // base], answers[pair % base], rows, pair)
        for pair, rows in zip(*(found.tolist() for found in np.unique(pair_G, return_counts=True)))
    ]
    counted.sort(key=lambda one: (-one[2], one[0] or "", one[1] or ""))
    largest = [pair for old, new, _, pair in counted if old != new][:MOVES_WITH_EXAMPLES]

    picked = [np.flatnonzero(pair_G == pair)[:EXAMPLES_OF_A_MOVE] for pair in largest]
    row_E = np.concatenate([*picked, np.empty(0, np.int64)])
    ids = after.ids_at(at_after_G[row_E])
    texts = texts_of(ids) if texts_of and ids else {}
    examples: dict[int, list[Example]] = defaultdict(list)
    for row, id_ in zip(row_E, ids):
        scores = before.score(at_before_G[row]), after.score(at_after_G[row])
        examples[int(pair_G[row])].append(Example(id_, *scores, texts.get(id_)))

    sides = [
        Side(
            output.folder,
            output.rows,
            output.rows - len(good_P),
            int((output.code_N == ERROR).sum()),
            int((output.code_N == NULL).sum()),
            output.counts(names, labels),
        )
        for output, labels in zip((before, after), label_sets or (None, None))
    ]
    from_to = [Move(old, new, rows, tuple(examples[pair])) for old, new, rows, pair in counted]
    return Comparison(
        previous=sides[0],
        current=sides[1],
        rows_compared=len(pair_G),
        rows_with_error=len(good_P) - len(pair_G),
        from_to=tuple(from_to),
        exact_labels=label_sets is not None,
    )
