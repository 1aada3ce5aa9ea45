"""What changed between the outputs of two bulk runs: the answers of the rows in both, counted.

Shapes: P rows that stand in both outputs, G those of them without an error, E examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sce.bulk.matching import ERROR, NULL, IntArray, OutputRows, match_rows
from sce.bulk.membership import MatchedSets, SetChanges, read_sets
from sce.bulk.output import read_run
from sce.errors import DataError
from sce.model.options import SEVERAL_COLUMN
from sce.storage import Place, RemotePath

MOVES_WITH_EXAMPLES = 20
EXAMPLES_OF_A_MOVE = 3
RENAME_COSINE = 0.7
"""Of two names that may be one label's: "refund" and "refunds" are at 0.9 and more."""


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
class Subtree:
    """A node of a tree of labels with another path than before, and what is below it.

    Attributes:
        before, after: its paths.
        labels: of the labels at and below it, the name before and now.
        rows: of those labels before, among the rows that are compared.
        rows_followed: those of them that have the same label now.
    """

    before: str
    after: str
    labels: Mapping[str, str]
    rows: int
    rows_followed: int


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
        renamed: labels of the previous run that count as one of the current run.
        subtrees: where those labels stand that were found to have moved with their tree's node.
        sets: how the sets of labels changed, where rows may have several.
        separator: of the labels' paths, where either run's are a tree.
        exact_labels: whether both label sets were given. If not, a label without rows is not
            seen: `gone` may hold labels that are only empty, `new` some that were.
    """

    previous: Side
    current: Side
    rows_compared: int
    rows_with_error: int
    from_to: tuple[Move, ...]
    exact_labels: bool
    renamed: Mapping[str, str] = field(default_factory=dict)
    subtrees: tuple[Subtree, ...] = ()
    sets: SetChanges | None = None
    separator: str | None = None

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

    @cached_property
    def rows_of_before(self) -> Counter[str | None]:
        """The compared rows by their answer before."""
        found: Counter[str | None] = Counter()
        for move in self.from_to:
            found[move.before] += move.rows
        return found

    @property
    def rows_moved(self) -> int:
        return sum(move.rows for move in self.moves)

    @property
    def rows_relabelled(self) -> int:
        """Rows that moved from one label to another."""
        return self.rows_moved - self.rows_to_null - self.rows_from_null

    @property
    def rows_to_null(self) -> int:
        """Rows that had a label and have none now."""
        return sum(move.rows for move in self.moves if move.after is None)

    @property
    def rows_from_null(self) -> int:
        """Rows that had no label and have one now."""
        return sum(move.rows for move in self.moves if move.before is None)

    @property
    def rows_to_above(self) -> int:
        """Rows that stopped at a node above their label: they are undecided below it."""
        return sum(move.rows for move in self.moves if self._is_above(move.after, move.before))

    @property
    def rows_from_above(self) -> int:
        """Rows that have a label below the node that they had."""
        return sum(move.rows for move in self.moves if self._is_above(move.before, move.after))

    def _is_above(self, node: str | None, other: str | None) -> bool:
        if self.separator is None or node is None or other is None:
            return False
        return other.startswith(node + self.separator)

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
            "rows_relabelled": self.rows_relabelled,
            "rows_to_null": self.rows_to_null,
            "rows_from_null": self.rows_from_null,
            "rows_to_above": self.rows_to_above,
            "rows_from_above": self.rows_from_above,
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
            "subtrees_moved": len(self.subtrees),
        }
        if self.sets is not None:
            figures |= self.sets.to_metrics()
        return {f"compare/{k}": float(v) for k, v in figures.items() if not np.isnan(v)}


@dataclass(frozen=True)
class MatchedOutputs:
    """The rows of two outputs, matched by id.

    Attributes:
        labels: every label of either, by the number that stands for it.
        renamed: labels of the previous run that are one of the current run by another name.
        at_before_G, at_after_G: where the rows without an error in either stand in each, [G].
        rows_with_error: rows in both with an error in one.
    """

    before: OutputRows
    after: OutputRows
    labels: dict[str, int]
    renamed: Mapping[str, str]
    at_before_G: IntArray
    at_after_G: IntArray
    rows_with_error: int

    @classmethod
    def read(
        cls, previous: str | Path, current: str | Path, renamed: Mapping[str, str] | None = None
    ) -> MatchedOutputs:
        """Read two outputs, folders. Raises `DataError`: as `OutputRows.read` and `match_rows`."""
        labels: dict[str, int] = {}
        before = OutputRows.read(str(previous), labels, renamed or {})
        after = OutputRows.read(str(current), labels)
        at_before_P, at_after_P = match_rows(before, after)
        good_P = (before.code_N[at_before_P] != ERROR) & (after.code_N[at_after_P] != ERROR)
        at_before_G, at_after_G = at_before_P[good_P], at_after_P[good_P]
        failed = len(good_P) - int(good_P.sum())
        return cls(before, after, labels, renamed or {}, at_before_G, at_after_G, failed)

    def with_renamed(self, more: Mapping[str, str]) -> MatchedOutputs:
        """The same rows with further labels of the previous run by the name that they have now."""
        labels = dict(self.labels)
        for name in more.values():
            labels.setdefault(name, len(labels))
        number_L = np.arange(len(labels), dtype=np.int32)
        for old, new in more.items():
            if old in labels:
                number_L[labels[old]] = labels[new]
        code_N = self.before.code_N
        code_N = np.where(code_N >= 0, number_L[code_N], code_N)  # `NULL` and `ERROR` stay
        before = replace(self.before, code_N=code_N)
        return replace(self, before=before, labels=labels, renamed={**self.renamed, **more})

    def compared(
        self,
        label_sets: tuple[Sequence[str], Sequence[str]] | None = None,
        texts_of: Callable[[list[str]], Mapping[str, str]] | None = None,
    ) -> Comparison:
        """Count how the answers changed.

        A row counts as moved if its label is another one, null included. Rows with an error in
        either output are counted apart.

        Args:
            label_sets: of the two runs, in order, or None where they are not known: what a run's
                labels are is then what its rows say.
            texts_of: the texts of some ids, as far as they are known; called at most once.

        Raises:
            DataError: a label that is not in its run's set, or a renamed one in neither.
        """
        before, after = self.before, self.after
        # A pair of answers as one number; `NULL` is -1, so the first answer is "none".
        answers: list[str | None] = [None, *self.labels]
        base = len(answers)
        old_G = before.code_N[self.at_before_G].astype(np.int64) + 1
        pair_G = old_G * base + after.code_N[self.at_after_G] + 1
        pairs, rows_of_pair = np.unique(pair_G, return_counts=True)
        counted = [
            (answers[pair // base], answers[pair % base], rows, pair)
            for pair, rows in zip(pairs.tolist(), rows_of_pair.tolist())
        ]
        counted.sort(key=lambda one: (-one[2], one[0] or "", one[1] or ""))
        largest = [pair for old, new, _, pair in counted if old != new][:MOVES_WITH_EXAMPLES]
        examples = self._examples(pair_G, largest, texts_of)
        old_labels, new_labels = label_sets or (None, None)
        if old_labels is not None:
            old_labels = [self.renamed.get(name, name) for name in old_labels]
        self._check_renamed(new_labels)
        return Comparison(
            previous=self._side(before, old_labels),
            current=self._side(after, new_labels),
            rows_compared=len(pair_G),
            rows_with_error=self.rows_with_error,
            from_to=tuple(
                Move(old, new, rows, tuple(examples.get(pair, ())))
                for old, new, rows, pair in counted
            ),
            exact_labels=label_sets is not None,
            renamed=self.renamed,
        )

    def sets(self) -> MatchedSets | None:
        """Their label sets, where rows of one may have several; of the other each row's label."""
        columns = [_labels_column(self.before.folder), _labels_column(self.after.folder)]
        if SEVERAL_COLUMN not in columns:
            return None
        names: dict[str, int] = {}
        before = read_sets(self.before, columns[0], names, self.renamed)
        after = read_sets(self.after, columns[1], names, {})
        return MatchedSets(before, after, self.at_before_G, self.at_after_G, list(names))

    def write_moved(self, place: Place) -> int:
        """Write a Parquet file with each row whose label changed, in the order of the current
        output: its id, `label_before`, `label_after` and the scores; how many they are."""
        place.parent.mkdir(parents=True, exist_ok=True)
        order = np.argsort(self.at_after_G, kind="stable")
        at_after_G, at_before_G = self.at_after_G[order], self.at_before_G[order]
        moved_G = self.before.code_N[at_before_G] != self.after.code_N[at_after_G]
        at_after_M, at_before_M = at_after_G[moved_G], at_before_G[moved_G]
        names = pa.array([*self.labels, None], pa.string())  # `NULL`, -1, is the last
        with (
            place.open_output() if isinstance(place, RemotePath) else nullcontext(place) as output,
            pq.ParquetWriter(output, self._moved_schema()) as writer,
        ):
            for first, ids in self.after.ids():
                here = slice(*np.searchsorted(at_after_M, [first, first + len(ids)]))
                after_M, before_M = at_after_M[here], at_before_M[here]
                if not len(after_M):
                    continue
                columns = [
                    ids.take(pa.array(after_M - first)),
                    names.take(pa.array(self.before.code_N[before_M] % len(names))),
                    names.take(pa.array(self.after.code_N[after_M] % len(names))),
                    pa.array(self.before.score_N[before_M], from_pandas=True),
                    pa.array(self.after.score_N[after_M], from_pandas=True),
                ]
                writer.write_table(pa.table(columns, schema=self._moved_schema()))
        return len(at_after_M)

    def _moved_schema(self) -> pa.Schema:
        texts = (self.after.id_column, "label_before", "label_after")
        scores = ("score_before", "score_after")
        return pa.schema([*((n, pa.string()) for n in texts), *((n, pa.float32()) for n in scores)])

    def _examples(
        self,
        pair_G: IntArray,
        largest: Sequence[int],
        texts_of: Callable[[list[str]], Mapping[str, str]] | None,
    ) -> Mapping[int, list[Example]]:
        picked = [np.flatnonzero(pair_G == pair)[:EXAMPLES_OF_A_MOVE] for pair in largest]
        row_E = np.concatenate([*picked, np.empty(0, np.int64)])
        ids = self.after.ids_at(self.at_after_G[row_E])
        texts = texts_of(ids) if texts_of and ids else {}
        examples: dict[int, list[Example]] = defaultdict(list)
        for row, id_ in zip(row_E, ids):
            old = self.before.score(self.at_before_G[row])
            new = self.after.score(self.at_after_G[row])
            examples[int(pair_G[row])].append(Example(id_, old, new, texts.get(id_)))
        return examples

    def _side(self, output: OutputRows, labels: Sequence[str] | None) -> Side:
        return Side(
            output.folder,
            output.rows,
            output.rows - len(self.at_after_G) - self.rows_with_error,
            int((output.code_N == ERROR).sum()),
            int((output.code_N == NULL).sum()),
            output.counts(self.labels, labels),
        )

    def _check_renamed(self, new_labels: Sequence[str] | None) -> None:
        for old, new in self.renamed.items():
            if new not in (self.labels if new_labels is None else new_labels):
                raise DataError(f"renamed: {old!r} to {new!r}, which the current labels have not.")


def _labels_column(folder: str) -> str:
    """In which an output has the labels of a row."""
    run = read_run(folder)
    return SEVERAL_COLUMN if run is not None and run.request.get("mode") == "multi" else "label"


def compare_outputs(
    previous: str | Path,
    current: str | Path,
    label_sets: tuple[Sequence[str], Sequence[str]] | None = None,
    texts_of: Callable[[list[str]], Mapping[str, str]] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Comparison:
    """`MatchedOutputs.compared` of two outputs, folders."""
    return MatchedOutputs.read(previous, current, renamed).compared(label_sets, texts_of)


def likely_renames(
    found: Comparison, similarity: Callable[[Sequence[str], Sequence[str]], np.ndarray]
) -> list[tuple[str, str]]:
    """Labels that are gone and new ones that are most likely the same by another name: their names
    are alike, and most of the rows of the one went to the other.

    Args:
        similarity: of some names to some others, cosines [N, M].
    """
    gone = [name for name in found.gone if found.previous.counts[name]]
    if not gone or not found.new:
        return []
    went = {(m.before, m.after): m.rows / found.rows_of_before[m.before] for m in found.moves}
    cosine_NM = similarity(gone, found.new)
    alike = {
        (old, new): float(cosine_NM[i, j])
        for i, old in enumerate(gone)
        for j, new in enumerate(found.new)
        if cosine_NM[i, j] >= RENAME_COSINE and went.get((old, new), 0.0) > 0.5
    }
    return [
        pair
        for pair in sorted(alike)
        if alike[pair] == max(cosine for (_, new), cosine in alike.items() if new == pair[1])
    ]
