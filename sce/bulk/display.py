"""What a dry run found; and how that and a comparison of two outputs are shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from sce.bulk.changes import Comparison, Move
from sce.bulk.membership import SetChanges
from sce.bulk.output import OutputFormat
from sce.errors import ROW_ERRORS
from sce.evaluation.tables import Cell, Table, escape_markdown
from sce.model.rejection import NONE_SHARE

MAX_MATRIX_LABELS = 15
MAX_SHOWN_LABELS = 40
MAX_TERMINAL_ROWS = 10
MAX_TERMINAL_LABELS = 15
MAX_MOVES = 20
"""Shown in Markdown."""
SAMPLE_ROWS = 10
SHOWN_PAIRS = 10
SHARE_IS_ASSUMED = (
    f"none_score assumes that no label fits {100 * NONE_SHARE:g} % of the rows. --none-share says "
    "another share; --none-label NAME --labelled FILE finds it on rows of yours."
)
NO_ANSWER = "(no answer)"
CUT = " […]"
NAME_CHARS, TEXT_CHARS, SAMPLE_CHARS = 60, 160, 80

_LEFT = {"", "from", "to", "id", "text", "label", "second"}


class ConfusedPair(NamedTuple):
    """Two labels that stand first and second in some rows of a sample, and how far apart their
    probabilities are."""

    one: str
    other: str
    rows: int
    mean_gap: float


@dataclass(frozen=True)
class Preview:
    """The answers of a sample, with `top` of two labels and `shown`, a text or an id; and what to
    expect of the whole input, start-up left out."""

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


def print_preview(found: Preview, console: Console) -> None:
    """Print predictions of the sample, the labels confused most, and what the whole takes."""
    sample = found.sample
    step = max(1, sample.num_rows // SAMPLE_ROWS)
    rows: list[list[Cell]] = []
    for row in sample.take(list(range(0, sample.num_rows, step))[:SAMPLE_ROWS]).to_pylist():
        answer: list[Cell] = [Text(row["error"], "red"), "", "", ""]
        if not row["error"]:
            second = [(best["label"], _score(best["score"])) for best in row["top"][1:2]]
            answer = [row["label"] or "-", _score(row["score"]), *(second or [("", "")])[0]]
        rows.append([one_line(row["shown"] or "", SAMPLE_CHARS), *answer])
    columns = ["text", "label", "score", "second", "score"]
    console.print(Table(columns, rows, "Predictions", left=_LEFT))
    if found.pairs:
        rows = [
            [pair.one, pair.other, f"{pair.rows:,}", f"{pair.mean_gap:.2f}"]
            for pair in found.pairs[:SHOWN_PAIRS]
        ]
        columns = ["label", "label", "rows", "mean gap"]
        console.print(Table(columns, rows, "Labels confused most", left=_LEFT))
    console.print(
        f"{found.rows:,} rows: about {timedelta(seconds=round(found.seconds))} hours, "
        f"{decimal(found.output_bytes)} of output (start-up apart)."
    )


def print_summary(
    summary: Mapping[str, Any], output_format: OutputFormat, id_name: str, console: Console
) -> None:
    """Print what a finished job has answered, where it lies, and a line that opens it."""
    rows, errors = summary["rows_out"], sum(summary["errors"].values())
    said = f"{rows:,} rows: {rows - errors - summary['null_labels']:,} with a label"
    if summary["null_labels"]:
        said += f", {summary['null_labels']:,} {_why_null(summary)}"
    said += f", {errors:,} with an error."
    console.print(Text(said, style="bold"))
    with_one = rows - errors - summary["null_labels"]
    if summary.get("mode") == "multi" and with_one:
        each = sum(summary["labels"].values()) / with_one
        console.print(f"{each:.1f} labels on average where there is one.")
    for code, count in summary["errors"].items():
        console.print(Text(f"  {count:,} x {code}: {ROW_ERRORS.get(code, code)}"))
    counts = sorted(summary["labels"].items(), key=lambda one: -one[1])
    if counts:
        table = [[one_line(name), f"{n:,}", _percent(n / rows)] for name, n in counts]
        title = f"Labels ({len(counts)})"
        if len(counts) > MAX_TERMINAL_LABELS:
            title = f"Labels: the {MAX_TERMINAL_LABELS} of {len(counts)} with the most rows"
        columns = ["label", "rows", "share"]
        console.print(Table(columns, table[:MAX_TERMINAL_LABELS], title, left=_LEFT))
    if summary.get("none_of_these") and not {"none_share", "none_threshold"} & set(summary):
        console.print(Text(SHARE_IS_ASSUMED))
    if groups := summary.get("unlabelled"):
        found = f"Texts that no label fits, in {groups['groups']} groups: {groups['report']}"
        console.print(Text(found), soft_wrap=True)
    if over := summary.get("passed_over"):
        console.print(Text(f"{over['files']:,} other files of the input were passed over (above)."))
    for name, words in summary.get("read_as", {}).items():
        console.print(Text(f"{name} was read as {words}. --encoding, --delimiter set another."))
    console.print(Text(f"{summary['output']}  ({_HOW_TO_OPEN[output_format]})"), soft_wrap=True)
    console.print(Text(_opens(summary["output"], output_format, id_name)), soft_wrap=True)


def _why_null(summary: Mapping[str, Any]) -> str:
    """Why rows have no label, as far as what was asked for tells."""
    by_threshold = summary.get("threshold") is not None or summary.get("mode") == "multi"
    if not summary.get("none_of_these"):
        return "below the threshold"
    return "that no label fits" + (" or reaches its threshold" if by_threshold else "")


def _opens(folder: str, output_format: OutputFormat, id_name: str) -> str:
    """A line of Python that reads an output with pandas."""
    index = f".set_index({id_name!r})"
    if output_format == "parquet":
        return f"pandas.read_parquet({folder!r}){index}"
    function = {"jsonl": "read_json", "csv": "read_csv"}[output_format]
    lines = ", lines=True" if output_format == "jsonl" else ""
    pattern = f"{folder}/part-*.{output_format}"
    each = f"pandas.{function}(file{lines}) for file in sorted(glob.glob({pattern!r}))"
    return f"pandas.concat({each}){index}"


_HOW_TO_OPEN: dict[OutputFormat, str] = {
    "parquet": "Parquet: part-*.parquet",
    "jsonl": "JSON lines: part-*.jsonl",
    "csv": "CSV for spreadsheets: part-*.csv",
}


def print_comparison(found: Comparison, console: Console) -> None:
    """Print the figures, the labels that came and went, and the largest moves."""
    console.print(Text(headline(found), style="bold"))
    console.print(_figures(found))
    for line in _label_changes(found):
        console.print(Text(line))
    for table in _tables(found, MAX_TERMINAL_ROWS, MAX_TERMINAL_ROWS):
        console.print(table)


def comparison_markdown(found: Comparison) -> str:
    """The whole report in GitHub Markdown: figures, labels, moves with examples, counts, and a
    from-to matrix of at most 15 labels. Ends in a line break."""
    parts = [
        f"# Compared with {escape_markdown(found.previous.folder)}",
        escape_markdown(headline(found)),
        _figures(found).to_markdown(literal=True),
    ]
    if changes := _label_changes(found):
        parts.append("\n".join(f"- {escape_markdown(line)}" for line in changes))
    if not found.exact_labels:
        parts.append(
            "The label sets of the two runs were not both given: a label without rows cannot "
            "be told from one that is not in the set."
        )
    tables = _tables(found, MAX_MOVES, MAX_SHOWN_LABELS)
    if found.moves:
        tables.insert(1, _examples(found.moves[:MAX_MOVES]))
    if len(found.labels) <= MAX_MATRIX_LABELS:
        tables.append(_matrix(found))
    for table in tables:
        parts += [f"## {table.title}", table.to_markdown(literal=True)]
    return "\n\n".join(parts) + "\n"


def headline(found: Comparison) -> str:
    """In a sentence or three: how many rows moved, and how many of them had to."""
    said = (
        f"{found.rows_moved:,} of {found.rows_compared:,} rows in both outputs moved "
        f"({_percent(found.share_moved)})."
    )
    if found.rows_to_null or found.rows_from_null:
        said += (
            f" {found.rows_relabelled:,} of them went from label to label, {found.rows_to_null:,} "
            f"lost their label, {found.rows_from_null:,} got one."
        )
    if found.rows_to_above or found.rows_from_above:
        said += (
            f" {found.rows_to_above:,} of them stopped at a node above their label, "
            f"{found.rows_from_above:,} got one below their node."
        )
    if found.sets is not None:
        said = f"By each row's best label: {said} {sets_headline(found.sets)}"
    if found.rows_moved and found.gone:
        said += f" {found.rows_moved_from_gone:,} of them had a label that is gone."
    if found.rows_moved and found.new:
        said += f" {found.rows_moved_to_new:,} of them went to a new label."
    return said


def sets_headline(sets: SetChanges) -> str:
    """In a sentence: how many rows have other labels, and how many labels came and went."""
    share = sets.rows_changed / sets.rows if sets.rows else float("nan")
    return (
        f"By all of them, {sets.rows_changed:,} of {sets.rows:,} rows have other labels "
        f"({_percent(share)}): {sum(sets.added.values()):,} labels were added, "
        f"{sum(sets.removed.values()):,} removed."
    )


def one_line(text: str, chars: int = NAME_CHARS) -> str:
    """One printable line; what is left out leaves a mark."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() or c in "\u200c\u200d" else "�" for c in line)
    return line if len(line) <= chars else line[:chars].rstrip() + CUT


def _figures(found: Comparison) -> Table:
    before, after = found.previous, found.current
    rows = [
        ["rows", f"{before.rows:,}", f"{after.rows:,}"],
        ["rows that the other has not", f"{before.rows_only_here:,}", f"{after.rows_only_here:,}"],
        ["rows with an error", f"{before.errors:,}", f"{after.errors:,}"],
        ["share without an answer", _percent(before.null_share), _percent(after.null_share)],
        ["labels", f"{len(before.counts):,}", f"{len(after.counts):,}"],
    ]
    return Table(["", "previous", "current"], rows)


def _label_changes(found: Comparison) -> list[str]:
    """A line for each kind of change that there is, with the names."""
    gone = "Gone" if found.exact_labels else "Gone or empty"
    with_node = {old for one in found.subtrees for old in one.labels}
    lines = [
        f'Renamed: "{one_line(old)}" to "{one_line(new)}"'
        for old, new in found.renamed.items()
        if old not in with_node
    ]
    lines += [
        f'Moved: "{one_line(one.before)}" to "{one_line(one.after)}" ({len(one.labels)} label(s), '
        f"{one.rows_followed:,} of {one.rows:,} rows as before)"
        for one in found.subtrees[:MAX_SHOWN_LABELS]
    ]
    if (left := len(found.subtrees) - MAX_SHOWN_LABELS) > 0:
        lines.append(f"Moved: {left} more subtrees")
    for title, names in (("New", found.new), (gone, found.gone), ("Now empty", found.now_empty)):
        if names:
            quoted = [f'"{one_line(name)}"' for name in names[:MAX_SHOWN_LABELS]]
            left = len(names) - len(quoted)
            rest = f" and {left} more" if left else ""
            lines.append(f"{title} ({len(names)}): {', '.join(quoted)}{rest}")
    return lines


def _tables(found: Comparison, moves: int, labels: int) -> list[Table]:
    """The largest moves and the labels that changed most, where there are any."""
    tables = [_moves(found, found.moves[:moves])] if found.moves else []
    if found.sets is not None:
        return [*tables, _set_changes(found.sets, labels)]
    return [*tables, _labels(found, labels)] if found.labels else tables


def _moves(found: Comparison, moves: Sequence[Move]) -> Table:
    had = found.rows_of_before
    rows = [
        [_answer(m.before), _answer(m.after), f"{m.rows:,}", _percent(m.rows / had[m.before])]
        for m in moves
    ]
    title = f"Largest moves ({len(moves)} of {len(found.moves)})"
    return Table(["from", "to", "rows", "of its rows"], rows, title, left=_LEFT, missing=NO_ANSWER)


def _examples(moves: Sequence[Move]) -> Table:
    rows = [
        [
            _answer(move.before),
            _answer(move.after),
            one_line(example.id),
            _score(example.score_before, 3),
            _score(example.score_after, 3),
            "–" if example.text is None else one_line(example.text, TEXT_CHARS),
        ]
        for move in moves
        for example in move.examples
    ]
    columns = ["from", "to", "id", "score before", "score after", "text"]
    return Table(columns, rows, "Examples", left=_LEFT, missing=NO_ANSWER)


def _labels(found: Comparison, limit: int) -> Table:
    """The labels whose number of rows changed most, at most `limit`."""
    before, after, total = found.previous.counts, found.current.counts, len(found.labels)
    counts = [(name, before.get(name, 0), after.get(name, 0)) for name in found.labels]
    counts = sorted(counts, key=lambda row: -abs(row[2] - row[1]))[:limit]
    rows = [[one_line(name), f"{b:,}", f"{a:,}", f"{a - b:+,}"] for name, b, a in counts]
    title = f"Rows of each label ({total})"
    if len(rows) < total:
        title = f"Rows of a label: the {len(rows)} of {total} that changed most"
    return Table(["label", "before", "after", "change"], rows, title)


def _set_changes(sets: SetChanges, limit: int) -> Table:
    """The labels that most rows got or lost, at most `limit`."""
    names = dict.fromkeys([*sets.before, *sets.after])
    counts = [[one.get(name, 0) for one in (sets.before, sets.added, sets.removed, sets.after)]
              for name in names]  # fmt: skip
    changed = sorted(zip(names, counts), key=lambda row: -(row[1][1] + row[1][2]))[:limit]
    rows = [[one_line(name), *(f"{n:,}" for n in row)] for name, row in changed]
    title = f"Rows that have a label, and those that got and lost it ({len(rows)} of {len(names)})"
    return Table(["label", "before", "added", "removed", "after"], rows, title)


def _matrix(found: Comparison) -> Table:
    answers = [*found.labels, None]
    rows_of = {(move.before, move.after): f"{move.rows:,}" for move in found.from_to}
    rows = [[_answer(old), *(rows_of.get((old, new), "") for new in answers)] for old in answers]
    columns = ["from \\ to", *map(_answer, answers)]
    return Table(columns, rows, "From (rows) to (columns)", missing=NO_ANSWER)


def _answer(label: str | None) -> str | None:
    return None if label is None else one_line(label)


def _score(score: float | None, digits: int = 2) -> str:
    return "–" if score is None else f"{score:.{digits}f}"


def _percent(share: float) -> str:
    if np.isnan(share):
        return "–"
    return "<0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
