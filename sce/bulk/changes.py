"""What changed between the outputs of two bulk runs: the answers of the rows in both.

An output is a folder with one row an input row in Parquet or JSONL: an id, `label` (null for no
answer), `score` and `error` ("" for none). Rows are matched by a 128-bit hash of their id, so
that fewer than 100 bytes a row are held however long ids are.

Legend of shapes: N rows of an output, P rows that stand in both, G of those without an error.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.json as pj
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sce.errors import DataError
from sce.storage import filesystem_of

MAX_MATRIX_LABELS = 15
MAX_SHOWN_LABELS = 40
MAX_LINE_BYTES = 16 << 20
"""The longest line of a JSONL output that can be read."""
NO_ANSWER = "(no answer)"
CUT = " […]"

_BATCH_ROWS = 16_384
_NULL, _ERROR = -1, -2
_HASH_SEEDS = (20240517, 71502024)
_NAME_CHARS, _TEXT_CHARS = 60, 160

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """A row that moved. A score is None where the output has none; so is a text."""

    id: str
    score_before: float | None
    score_after: float | None
    text: str | None = None


@dataclass(frozen=True)
class Move:
    """Rows with one answer before and one after; None is "no answer".

    Attributes:
        rows: how many.
        examples: the rows whose ids hash lowest: a sample that depends neither on the order of
            the files nor on chance.
    """

    before: str | None
    after: str | None
    rows: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What two outputs have in common and where they part.

    Attributes:
        previous, current: the folders.
        rows_previous, rows_current: rows of each output.
        rows_compared: rows in both, without an error in either.
        rows_with_error: rows in both that have an error in at least one.
        rows_only_previous, rows_only_current: rows whose id the other output has not.
        errors_before, errors_after: rows with an error, of all rows of an output.
        nulls_before, nulls_after: rows without an answer and without an error, likewise.
        counts_before, counts_after: rows of each label, likewise; the labels of the run in
            order, or by count where they were not given.
        from_to: the compared rows by answer before and after, those that stayed included; the
            most rows first.
        new, gone: labels of the current run that the previous one had not, and the reverse.
        now_empty: labels of the current run without a row, that are new or had rows before.
        exact_labels: whether both label sets were given. If not, a label without rows is not
            seen: `gone` may hold labels that are only empty, `new` some that were.
    """

    previous: str
    current: str
    rows_previous: int
    rows_current: int
    rows_compared: int
    rows_with_error: int
    rows_only_previous: int
    rows_only_current: int
    errors_before: int
    errors_after: int
    nulls_before: int
    nulls_after: int
    counts_before: Mapping[str, int]
    counts_after: Mapping[str, int]
    from_to: tuple[Move, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]
    now_empty: tuple[str, ...]
    exact_labels: bool

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
        gone = set(self.gone)
        return sum(move.rows for move in self.moves if move.before in gone)

    @property
    def rows_moved_to_new(self) -> int:
        """Rows that moved to a new label, from one that is gone or not."""
        new = set(self.new)
        return sum(move.rows for move in self.moves if move.after in new)

    @property
    def share_moved(self) -> float:
        """Of the compared rows; NaN if there are none."""
        return _share(self.rows_moved, self.rows_compared)

    @property
    def null_share_before(self) -> float:
        """Rows without an answer among the previous rows without an error; NaN if none is."""
        return _share(self.nulls_before, self.rows_previous - self.errors_before)

    @property
    def null_share_after(self) -> float:
        return _share(self.nulls_after, self.rows_current - self.errors_after)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label of either run: the current ones in order, then those that are gone."""
        return tuple(dict.fromkeys([*self.counts_after, *self.counts_before]))

    def count(self, before: str | None, after: str | None) -> int:
        """Compared rows with these answers; None is "no answer"."""
        found = [m.rows for m in self.from_to if (m.before, m.after) == (before, after)]
        return found[0] if found else 0

    def matrix(self) -> IntArray:
        """`from_to` as counts, [K + 1, K + 1]: before on the first axis, after on the second,
        K as in `labels`, "no answer" last."""
        place: dict[str | None, int] = {name: i for i, name in enumerate((*self.labels, None))}
        counts = np.zeros((len(place), len(place)), np.int64)
        for move in self.from_to:
            counts[place[move.before], place[move.after]] = move.rows
        return counts

    def to_metrics(self) -> dict[str, float]:
        """Figures for a tracker, `compare/...`; shares of nothing are left out."""
        figures = {
            "rows_compared": self.rows_compared,
            "rows_with_error": self.rows_with_error,
            "rows_only_previous": self.rows_only_previous,
            "rows_only_current": self.rows_only_current,
            "rows_moved": self.rows_moved,
            "rows_moved_from_gone": self.rows_moved_from_gone,
            "rows_moved_to_new": self.rows_moved_to_new,
            "share_moved": self.share_moved,
            "null_share_before": self.null_share_before,
            "null_share_after": self.null_share_after,
            "errors_before": self.errors_before,
            "errors_after": self.errors_after,
            "labels_new": len(self.new),
            "labels_gone": len(self.gone),
            "labels_now_empty": len(self.now_empty),
        }
        return {f"compare/{k}": float(v) for k, v in figures.items() if not np.isnan(v)}

    def headline(self) -> str:
        """In a sentence or three: how many rows moved, and how many of them had to."""
        said = (
            f"{self.rows_moved:,} of {self.rows_compared:,} rows in both outputs moved "
            f"({_percent(self.share_moved)})."
        )
        if self.rows_moved and self.gone:
            said += f" {self.rows_moved_from_gone:,} of them had a label that is gone."
        if self.rows_moved and self.new:
            said += f" {self.rows_moved_to_new:,} of them went to a new label."
        return said

    def to_terminal(self, console: Console, max_moves: int = 10) -> None:
        """Print the figures, the labels that came and went, and the largest moves."""
        console.print(Text(self.headline(), style="bold"))
        _print_table(console, _FIGURE_COLUMNS, self._figures())
        for line in self._label_changes():
            console.print(Text(line))
        moves = self.moves[:max_moves]
        if moves:
            title = f"Largest moves ({len(moves)} of {len(self.moves)})"
            _print_table(console, _MOVE_COLUMNS, self._move_cells(moves), title)
        rows = self._label_cells(max_moves)
        if rows:
            _print_table(console, _LABEL_COLUMNS, rows, _title_of(rows, self.labels))

    def to_markdown(self) -> str:
        """The whole report in GitHub Markdown: figures, labels, moves with examples, counts,
        and a from-to matrix of at most 15 labels. Ends in a line break."""
        parts = [
            f"# Compared with {_escaped(self.previous)}",
            _escaped(self.headline()),
            _markdown(_FIGURE_COLUMNS, self._figures()),
        ]
        changes = self._label_changes()
        if changes:
            parts.append("\n".join(f"- {_escaped(line)}" for line in changes))
        if not self.exact_labels:
            parts.append(
                "The label sets of the two runs were not both given: a label without rows cannot "
                "be told from one that is not in the set."
            )
        shown = [move for move in self.moves if move.examples] or list(self.moves[:20])
        if shown:
            parts.append(f"## Largest moves ({len(shown)} of {len(self.moves)})")
            parts.append(_markdown(_MOVE_COLUMNS, self._move_cells(shown)))
        examples = [(move, example) for move in shown for example in move.examples]
        if examples:
            parts.append("## Examples")
            parts.append(_markdown(_EXAMPLE_COLUMNS, [_example_cells(*e) for e in examples]))
        rows = self._label_cells(MAX_SHOWN_LABELS)
        if rows:
            parts.append(f"## {_title_of(rows, self.labels)}")
            parts.append(_markdown(_LABEL_COLUMNS, rows))
        if len(self.labels) <= MAX_MATRIX_LABELS:
            names = [*map(_name, self.labels), None]
            cells = [
                [name, *(f"{n:,}" if n else "" for n in counts)]
                for name, counts in zip(names, self.matrix().tolist())
            ]
            parts.append("## From (rows) to (columns)")
            parts.append(_markdown(["from \\ to", *names], cells))
        return "\n\n".join(parts) + "\n"

    def _figures(self) -> list[list[str | None]]:
        only = (self.rows_only_previous, self.rows_only_current)
        nulls = (self.null_share_before, self.null_share_after)
        return [
            ["rows", f"{self.rows_previous:,}", f"{self.rows_current:,}"],
            ["rows that the other has not", *(f"{n:,}" for n in only)],
            ["rows with an error", f"{self.errors_before:,}", f"{self.errors_after:,}"],
            ["share without an answer", *(_percent(share) for share in nulls)],
            ["labels", f"{len(self.counts_before):,}", f"{len(self.counts_after):,}"],
        ]

    def _label_changes(self) -> list[str]:
        """A line for each kind of change that there is, with the names."""
        gone = "Gone" if self.exact_labels else "Gone or empty"
        found = []
        for title, names in (("New", self.new), (gone, self.gone), ("Now empty", self.now_empty)):
            if names:
                quoted = [f'"{_shown(name)}"' for name in names[:MAX_SHOWN_LABELS]]
                left = len(names) - len(quoted)
                rest = f" and {left} more" if left else ""
                found.append(f"{title} ({len(names)}): {', '.join(quoted)}{rest}")
        return found

    def _move_cells(self, moves: Sequence[Move]) -> list[list[str | None]]:
        had: dict[str | None, int] = {}
        for move in self.from_to:
            had[move.before] = had.get(move.before, 0) + move.rows
        return [
            [_name(m.before), _name(m.after), f"{m.rows:,}", _percent(m.rows / had[m.before])]
            for m in moves
        ]

    def _label_cells(self, limit: int) -> list[list[str | None]]:
        """The labels whose number of rows changed most, at most `limit`."""
        before, after = self.counts_before, self.counts_after
        rows = [(name, before.get(name, 0), after.get(name, 0)) for name in self.labels]
        rows = sorted(rows, key=lambda row: -abs(row[2] - row[1]))[:limit]
        return [[_shown(name), f"{b:,}", f"{a:,}", f"{a - b:+,}"] for name, b, a in rows]


def compare_outputs(
    previous: str | Path,
    current: str | Path,
    *,
    id_column: str = "id",
    previous_labels: Sequence[str] | None = None,
    current_labels: Sequence[str] | None = None,
    max_examples: int = 3,
    max_moves: int = 20,
    texts_of: Callable[[list[str]], Mapping[str, str]] | None = None,
) -> Comparison:
    """Match the rows of two outputs by id and count how their answers changed.

    A row counts as moved if its label is another one, null included. Rows with an error in
    either output are counted apart.

    Args:
        previous, current: folders, as paths or URIs that `pyarrow.fs` knows. Every `.parquet`
            and `.jsonl` file in them is read, to the bottom, but for what begins with "_" or ".".
        id_column: name of the id column of both; text or whole numbers.
        previous_labels, current_labels: the label sets of the runs in order, or None where they
            are not known: what a run's labels are is then what its rows say.
        max_examples, max_moves: examples of a move, for this many of the largest moves.
        texts_of: the texts of some ids, as far as they are known; called at most once.

    Raises:
        DataError: a folder that is not there or has no data file; a file that cannot be read or
            lacks a column; an id that is null or stands twice in an output; a label that is not
            in the set that was given; no id that both outputs have.
    """
    names: dict[str, int] = {}
    before = _Output.read(str(previous), id_column, names)
    after = _Output.read(str(current), id_column, names)
    at_before_P, at_after_P = _matched(before, after)
    if not len(at_before_P):
        raise DataError(
            f"{current} and {previous} have no id in common ({after.rows:,} and {before.rows:,} "
            f"rows, column {id_column!r}): are they outputs for the same input?"
        )
    code_before_P, code_after_P = before.code_N[at_before_P], after.code_N[at_after_P]
    good_P = (code_before_P != _ERROR) & (code_after_P != _ERROR)
    at_before_G, at_after_G = at_before_P[good_P], at_after_P[good_P]
    base = len(names) + 1
    cell_G = (code_before_P[good_P] + 1).astype(np.int64) * base + code_after_P[good_P] + 1

    answers: list[str | None] = [None, *names]
    cells, counts = np.unique(cell_G, return_counts=True)
    found = [
        (Move(answers[cell // base], answers[cell % base], rows), cell)
        for cell, rows in zip(cells.tolist(), counts.tolist())
    ]
    found.sort(key=lambda one: (-one[0].rows, one[0].before or "", one[0].after or ""))
    largest = [one for one in found if one[0].before != one[0].after][:max_moves]
    picked = [np.flatnonzero(cell_G == cell)[:max_examples] for _, cell in largest]
    ids = after.ids_at(at_after_G[np.concatenate([*picked, np.empty(0, np.int64)])])
    texts = texts_of(ids) if texts_of and ids else {}
    examples: dict[int, tuple[Example, ...]] = {}
    unnamed = iter(ids)
    for (_, cell), rows_E in zip(largest, picked):
        examples[cell] = tuple(
            Example(id_, _score(before, b), _score(after, a), texts.get(id_))
            for id_, b, a in zip(
                [next(unnamed) for _ in rows_E], at_before_G[rows_E], at_after_G[rows_E]
            )
        )

    counts_before = before.counts(names, previous_labels)
    counts_after = after.counts(names, current_labels)
    new = {name: None for name in counts_after if name not in counts_before}
    return Comparison(
        previous=str(previous),
        current=str(current),
        rows_previous=before.rows,
        rows_current=after.rows,
        rows_compared=len(cell_G),
        rows_with_error=len(good_P) - len(cell_G),
        rows_only_previous=before.rows - len(good_P),
        rows_only_current=after.rows - len(good_P),
        errors_before=int((before.code_N == _ERROR).sum()),
        errors_after=int((after.code_N == _ERROR).sum()),
        nulls_before=int((before.code_N == _NULL).sum()),
        nulls_after=int((after.code_N == _NULL).sum()),
        counts_before=counts_before,
        counts_after=counts_after,
        from_to=tuple(
            Move(move.before, move.after, move.rows, examples.get(cell, ())) for move, cell in found
        ),
        new=tuple(new),
        gone=tuple(name for name in counts_before if name not in counts_after),
        now_empty=tuple(
            name
            for name, rows in counts_after.items()
            if not rows and (name in new or counts_before[name])
        ),
        exact_labels=previous_labels is not None and current_labels is not None,
    )


@dataclass
class _Output:
    """The rows of an output in the order of its files.

    Attributes:
        hash_2N: two independent 64-bit hashes of each id, uint64 [2, N].
        code_N: number of the label; -1 for none, -2 for an error.
        score_N: float32; NaN for none.
        file_rows: rows of each file.
    """

    folder: str
    id_column: str
    files: list[_File]
    hash_2N: NDArray[np.uint64]
    code_N: NDArray[np.int32]
    score_N: NDArray[np.float32]
    file_rows: list[int]

    @property
    def rows(self) -> int:
        return len(self.code_N)

    @classmethod
    def read(cls, folder: str, id_column: str, names: dict[str, int]) -> _Output:
        """Stream the files; labels that `names` has not get the next numbers in it."""
        files = _data_files(folder, id_column)
        hashes, codes, scores = [np.empty((2, 0), np.uint64)], [], []
        file_rows = []
        for file in files:
            rows = 0
            for batch in file.batches([id_column, "label", "score", "error"]):
                if batch["id"].null_count:
                    raise DataError(f"{file.path}: a row has no id (column {id_column!r} is null).")
                hashes.append(_hashes(batch["id"]))
                codes.append(_codes(batch, names))
                scores.append(pc.fill_null(batch["score"], np.nan).to_numpy())
                rows += batch.num_rows
            file_rows.append(rows)
        return cls(
            folder,
            id_column,
            files,
            np.concatenate(hashes, axis=1),
            np.concatenate([*codes, np.empty(0, np.int32)]),
            np.concatenate([*scores, np.empty(0, np.float32)]),
            file_rows,
        )

    def ids_at(self, rows: IntArray) -> list[str]:
        """The ids of some rows, in the order asked for: they are not kept, but read again."""
        wanted = np.unique(rows)
        found: dict[int, str] = {}
        ends = np.cumsum(self.file_rows)
        for file, end, size in zip(self.files, ends, self.file_rows):
            first = end - size
            if not ((wanted >= first) & (wanted < end)).any():
                continue
            for batch in file.batches([self.id_column]):
                here = wanted[(wanted >= first) & (wanted < first + batch.num_rows)]
                ids = batch["id"].take(pa.array(here - first)).to_pylist()
                found.update(zip(here.tolist(), ids))
                first += batch.num_rows
        return [found[row] for row in rows.tolist()]

    def counts(self, names: Mapping[str, int], labels: Sequence[str] | None) -> dict[str, int]:
        """Rows of each label of the run, in the order of `labels`, else by count."""
        counts = np.bincount(self.code_N[self.code_N >= 0], minlength=len(names)).tolist()
        seen = {name: rows for name, rows in zip(names, counts) if rows}
        if labels is None:
            return dict(sorted(seen.items(), key=lambda one: (-one[1], one[0])))
        strange = sorted(seen.keys() - set(labels))
        if strange:
            raise DataError(
                f"{self.folder}: the label {_shown(strange[0])!r} stands in the rows, but not "
                f"among the {len(labels)} labels that the run is said to have had."
            )
        return {name: seen.get(name, 0) for name in labels}


@dataclass
class _File:
    """A data file of an output; `schema` has the columns that are needed, `id` by its own name."""

    path: str
    fragment: Any
    schema: pa.Schema
    options: Any = field(default=None, repr=False)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns in this order, batch by batch, the first one as a string named `id`."""
        try:
            for batch in self.fragment.to_batches(
                schema=self.schema,
                columns=list(columns),
                batch_size=_BATCH_ROWS,
                batch_readahead=4,
                fragment_scan_options=self.options,
            ):
                arrays = [batch.column(0).cast(pa.string()), *batch.columns[1:]]
                yield pa.record_batch(arrays, ["id", *columns[1:]])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read ({error}).") from None


def _data_files(folder: str, id_column: str) -> list[_File]:
    filesystem, root = filesystem_of(folder)
    if isinstance(filesystem, pafs.LocalFileSystem):
        root = Path(root).expanduser().absolute().as_posix()
    try:
        kind = filesystem.get_file_info(root).type
        if kind == pafs.FileType.File:
            raise DataError(f"{folder}: a file; the folder of a bulk output is needed.")
        if kind == pafs.FileType.NotFound:
            raise DataError(f"{folder}: no such folder.")
        infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder}: cannot be listed ({error}).") from None
    paths = sorted(info.path for info in infos if info.is_file and _is_data(info.path, root))
    if not paths:
        raise DataError(
            f"{folder}: has no data file. Allowed: .parquet and .jsonl, in files and folders whose "
            'name does not begin with "_" or ".".'
        )
    files = [_opened(filesystem, path, id_column) for path in paths]
    return [file for file in files if file is not None]


def _is_data(path: str, root: str) -> bool:
    inside = PurePosixPath(path[len(root) :].lstrip("/"))
    hidden = any(part[0] in "_." for part in inside.parts)
    return not hidden and inside.suffix in (".parquet", ".jsonl")


def _opened(filesystem: pafs.FileSystem, path: str, id_column: str) -> _File | None:
    """The file with its columns checked; None for a JSONL file without a line."""
    id_type, options = pa.string(), None
    try:
        if path.endswith(".parquet"):
            fragment = ds.ParquetFileFormat().make_fragment(path, filesystem)
            names = fragment.physical_schema.names
        else:
            first = _first_line(filesystem, path)
            if first is None:
                return None
            # Arrow takes a type, and a field that is missing for null: look before.
            names = list(first)
            id_type = pa.int64() if isinstance(first.get(id_column), int) else pa.string()
            fragment = ds.JsonFileFormat().make_fragment(path, filesystem)
            options = ds.JsonFragmentScanOptions(
                read_options=pj.ReadOptions(block_size=MAX_LINE_BYTES)
            )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    missing = [name for name in (id_column, "label", "score", "error") if name not in names]
    if missing:
        raise DataError(
            f"{path}: has no column {', '.join(map(repr, missing))}. It has: {', '.join(names)}."
        )
    fields = [(id_column, id_type), ("label", pa.string())]
    fields += [("score", pa.float32()), ("error", pa.string())]
    return _File(path, fragment, pa.schema(fields), options)


def _first_line(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    with io.BufferedReader(filesystem.open_input_stream(path)) as lines:  # type: ignore[type-var]
        for line in lines:
            if line.strip():
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise ValueError("a line is not a JSON object")
                return fields
    return None


def _codes(batch: pa.RecordBatch, names: dict[str, int]) -> NDArray[np.int32]:
    encoded = batch["label"].dictionary_encode()
    numbers = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
    place_N = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    code_N = np.array([*numbers, _NULL], np.int32)[place_N]
    failed_N = pc.fill_null(pc.not_equal(batch["error"], ""), False)
    code_N[failed_N.to_numpy(zero_copy_only=False)] = _ERROR
    return code_N


def _hashes(ids: pa.StringArray) -> NDArray[np.uint64]:
    """Two 64-bit hashes of each string, [2, N]: a sum over its bytes, each plus one times a
    random number for its place, modulo 2^64.

    For any two strings the chance that both agree is at most 2^-112 over the random numbers,
    which are always the same ones here.
    """
    if not len(ids):
        return np.empty((2, 0), np.uint64)
    _, offsets_buffer, bytes_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    byte_M = np.frombuffer(bytes_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    bounds = offsets.astype(np.int64) - offsets[0]
    length_N = np.diff(bounds)
    place_M = np.arange(len(byte_M)) - np.repeat(bounds[:-1], length_N)
    plus_one_M = byte_M.astype(np.uint64) + np.uint64(1)
    hash_2N = np.empty((2, len(ids)), np.uint64)
    for row, seed in zip(hash_2N, _HASH_SEEDS):
        weights = np.random.PCG64(seed).random_raw(int(length_N.max()) + 1)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(plus_one_M * weights[place_M])])
        row[:] = sums[bounds[1:]] - sums[bounds[:-1]]
    return hash_2N


def _matched(before: _Output, after: _Output) -> tuple[IntArray, IntArray]:
    """Rows of both outputs with the same id, [P] each, in the order of the hashes."""
    hash_2N = np.concatenate([before.hash_2N, after.hash_2N], axis=1)
    before.hash_2N = after.hash_2N = hash_2N[:, :0].copy()  # of no more use: make room to sort
    order = np.lexsort((hash_2N[1], hash_2N[0]))  # stable: of two equal ids the previous first
    same = np.ones(max(len(order) - 1, 0), bool)
    for hash_N in hash_2N:
        sorted_N = hash_N[order]
        same &= sorted_N[1:] == sorted_N[:-1]
    is_before = order < before.rows
    twice = same & (is_before[1:] == is_before[:-1])
    if twice.any():
        row = order[1:][twice].min()
        output, row = (before, row) if row < before.rows else (after, row - before.rows)
        (id_,) = output.ids_at(np.array([row]))
        raise DataError(
            f"{output.folder}: the id {_shown(id_)!r} stands twice (column {output.id_column!r}); "
            "ids must be unique within an output."
        )
    return order[:-1][same], order[1:][same] - before.rows


def _score(output: _Output, row: int) -> float | None:
    score = float(output.score_N[row])
    return None if np.isnan(score) else score


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _percent(share: float) -> str:
    if np.isnan(share):
        return "–"
    return "<0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


Cells = Sequence[Sequence[str | None]]
_FIGURE_COLUMNS = ("", "previous", "current")
_MOVE_COLUMNS = ("from", "to", "rows", "of its rows")
_EXAMPLE_COLUMNS = ("from", "to", "id", "score before", "score after", "text")
_LABEL_COLUMNS = ("label", "before", "after", "change")
_LEFT_COLUMNS = {"", "from", "to", "id", "text", "label", "from \\ to"}


def _title_of(rows: Cells, labels: Sequence[str]) -> str:
    if len(rows) == len(labels):
        return f"Rows of each label ({len(labels)})"
    return f"Rows of a label: the {len(rows)} of {len(labels)} that changed most"


def _example_cells(move: Move, example: Example) -> list[str | None]:
    scores = (example.score_before, example.score_after)
    return [
        _name(move.before),
        _name(move.after),
        _shown(example.id),
        *("–" if score is None else f"{score:.3f}" for score in scores),
        "–" if example.text is None else _shown(example.text, _TEXT_CHARS),
    ]


def _print_table(
    console: Console, columns: Sequence[str], rows: Cells, title: str | None = None
) -> None:
    if title:
        console.print(Text(title, style="bold"))
    table = Table(padding=(0, 1, 0, 0))
    for column in columns:
        left = column in _LEFT_COLUMNS
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(NO_ANSWER, "italic") if c is None else Text(c) for c in cells))
    console.print(table)


def _markdown(columns: Sequence[str | None], rows: Cells) -> str:
    """A GitHub table; None is "no answer" in italics, which no escaped name can be."""

    def line(cells: Sequence[str | None]) -> str:
        texts = [f"*{NO_ANSWER}*" if c is None else _escaped(c) for c in cells]
        return "| " + " | ".join(texts) + " |"

    rule = ["---" if column in _LEFT_COLUMNS else "---:" for column in columns]
    return "\n".join([line(columns), "| " + " | ".join(rule) + " |", *map(line, rows)])


def _shown(text: str, chars: int = _NAME_CHARS) -> str:
    """One printable line; what is left out leaves a mark."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() or c in "\u200c\u200d" else "�" for c in line)
    return line if len(line) <= chars else line[:chars].rstrip() + CUT


def _name(label: str | None) -> str | None:
    return None if label is None else _shown(label)


def _escaped(text: str) -> str:
    """Text as GitHub Markdown shows it to the letter, in a table too."""
    line = " ".join(text.split())
    return re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
