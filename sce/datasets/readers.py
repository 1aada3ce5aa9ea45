"""Table files (JSONL, CSV, TSV, Excel, Parquet; the text forms compressed too) as records.

What is wrong with one row is a value, `BadRow`, so that the caller can stop at it or count
it; what is wrong with the file as a whole is a `DataError`.
"""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sce.datasets.excel import SUFFIX as EXCEL
from sce.datasets.excel import sheet_rows
from sce.datasets.limits import MAX_LINE, LongLine, check_packed
from sce.datasets.text_form import (
    COMPRESSIONS,
    DAMAGED,
    FOUND_OUT,
    TextForm,
    compression_of,
    decompressed,
    separator_line,
)
from sce.errors import MAX_TEXT_BYTES, DataError
from sce.storage import open_regular

LONG_LINE = "line too long"
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (".parquet", *TEXT_SUFFIXES, EXCEL)
ALLOWED_FILES = (
    f"JSONL (.jsonl, .ndjson, .json), .csv, .tsv, each also with {', '.join(COMPRESSIONS)}, "
    f"{EXCEL} and .parquet"
)
# What a line is that nothing can be read of: white space of ASCII, as of lines of bytes.
BLANK = " \t\r\n\v\f"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file: its line (JSONL, CSV) or row number (Parquet), from 1, and fields."""

    line: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: a short reason to count by, and a message with the place."""

    line: int
    reason: str
    message: str


def file_format(path: PurePath) -> str | None:
    """The suffix that decides how a file is read, compression aside; None if it is not a table."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if compression_of(path):
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in TEXT_SUFFIXES else None
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_records(
    path: Path, columns: Sequence[str] = (), form: TextForm = FOUND_OUT
) -> Iterator[Record | BadRow]:
    """Every row of a table file, in order.

    Args:
        path: the file; its suffix says how it is read. TSV knows no quotation marks.
        columns: names for the columns of a CSV or TSV that may lack a header line. If its
            first line holds one of these names it is taken as the header after all.
        form: what is known of how its text is written.

    Raises:
        DataError: the file is absent, of an unknown kind, or damaged.
    """
    kind = file_format(path)
    if path.is_dir():
        raise DataError(f"{path}: a folder. A file is needed: {ALLOWED_FILES}.")
    if kind is None:
        raise DataError(f"{path}: not a table file that can be read. Allowed: {ALLOWED_FILES}.")
    yield from records_of(path, partial(_open, path), columns, form)


def records_of(
    path: PurePath,
    open_file: Callable[[], BinaryIO],
    columns: Sequence[str] = (),
    form: TextForm = FOUND_OUT,
) -> Iterator[Record | BadRow]:
    """`read_records` of a file that may lie anywhere.

    Args:
        path: for its suffix and for messages.
        open_file: its bytes, compression undone. A Parquet file must be a local one.
    """
    kind = file_format(path)
    try:
        if kind == ".parquet":
            yield from _parquet(Path(path))
        elif kind == EXCEL:
            yield from _excel(path, columns, open_file)
        elif kind in (".csv", ".tsv"):
            yield from _csv(path, kind, columns, open_file, form.of(kind, open_file))
        else:
            yield from _jsonl(path, open_file, form.of(".jsonl", open_file))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, *DAMAGED) as error:
        if compression := compression_of(path):
            raise DataError(f"{path}: damaged {compression[1:]} file ({error}).") from None
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}).") from None
    except UnicodeError as error:
        raise DataError(f"{path}: not readable as {form.encoding or 'UTF-16'} ({error}).") from None


def refuse_repeated_columns(where: str, names: Sequence[str]) -> None:
    """Raises `DataError`: a name stands over two columns, of which one would be lost."""
    repeated = [name for name in dict.fromkeys(names) if name and list(names).count(name) > 1]
    if repeated:
        raise DataError(
            f"{where}: a column's name stands there twice. Give each a name of its own.",
            f"It is {repeated[0]!r}.",
        )


def _open(path: Path) -> BinaryIO:
    return decompressed(open_regular(path), path)


def _jsonl(
    path: PurePath, open_file: Callable[[], BinaryIO], form: TextForm
) -> Iterator[Record | BadRow]:
    with open_file() as file:
        for number, line in enumerate(form.lines(file), start=1):
            if isinstance(line, LongLine):
                message = f"{path}:{number}: more than {MAX_LINE:,} characters."
                yield BadRow(number, LONG_LINE, message)
                continue
            if line.isspace() and not line.strip(BLANK):
                continue
            reason = "unreadable line"
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                message = f"not a line of JSON ({error}). One object a line."
            else:
                if isinstance(fields, dict) and _is_decoded(line):
                    yield Record(number, fields)
                    continue
                kind = type(fields).__name__
                message = f"a JSON {kind}; an object with named fields is needed, one a line."
            if not _is_decoded(line):
                reason, message = "not UTF-8", "not UTF-8."
            yield BadRow(number, reason, f"{path}:{number}: {message}")


class _Lines:
    """Lines of which those of a record that went wrong can be read again."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self._record: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        if isinstance(line, LongLine):
            self._record.append(line)
            self.number += 1
            raise csv.Error(f"a line of more than {MAX_LINE:,} characters")
        self._record.append(line)
        self.number += 1
        return line

    def begin_record(self) -> None:
        self._record.clear()

    @property
    def record_lines(self) -> int:
        return len(self._record)

    def give_back(self) -> int:
        """All but the record's first line, whose number is returned."""
        self._again.extendleft(reversed(self._record[1:]))
        self.number -= len(self._record) - 1
        return self.number


def _csv(
    path: PurePath,
    kind: str,
    columns: Sequence[str],
    open_file: Callable[[], BinaryIO],
    form: TextForm,
) -> Iterator[Record | BadRow]:
    """A record of several lines that cannot be read, or has not the header's fields, costs its
    first line: its quotation mark is most likely one that was never closed."""
    csv.field_size_limit(MAX_TEXT_BYTES)  # the module's own limit is 128 KiB
    quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    with open_file() as file:
        lines = _Lines(form.lines(file))
        reader = csv.reader(lines, delimiter=form.delimiter or ",", **quoting)
        header: list[str] = []
        while True:
            lines.begin_record()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                line, message = lines.give_back(), f"not readable as CSV ({error})."
                if not header:
                    raise DataError(f"{path}:{line}: the header is {message}") from None
                yield BadRow(line, "unreadable line", f"{path}:{line}: {message}")
                continue
            if not values:
                continue
            if not header:
                if lines.number == 1 and separator_line(",".join(values) + "\n"):
                    continue
                headerless = bool(columns) and not set(values) & set(columns)
                header = list(columns) if headerless else values
                refuse_repeated_columns(str(path), header)
                if not headerless:
                    continue
            if len(values) != len(header) and lines.record_lines > 1:
                line = lines.give_back()
                message = f"{path}:{line}: a quotation mark that is not closed."
                yield BadRow(line, "unreadable line", message)
                continue
            yield _csv_row(path, lines.number, header, values)


def _excel(
    path: PurePath, columns: Sequence[str], open_file: Callable[[], BinaryIO]
) -> Iterator[Record | BadRow]:
    header: list[str] = []
    for line, values in sheet_rows(path, open_file):
        if header:
            yield _csv_row(path, line, header, values)
            continue
        headerless = bool(columns) and not set(values) & set(columns)
        header = list(columns) if headerless else values
        refuse_repeated_columns(str(path), header)
        if headerless:
            yield _csv_row(path, line, header, values)


def _csv_row(
    path: PurePath, line: int, header: Sequence[str], values: Sequence[str]
) -> Record | BadRow:
    if len(values) != len(header):
        message = f"{path}:{line}: {len(values)} fields, but the columns are {len(header)}."
        return BadRow(line, "unreadable line", message)
    if not all(map(_is_decoded, values)):
        return BadRow(line, "not UTF-8", f"{path}:{line}: not UTF-8.")
    return Record(line, dict(zip(header, values, strict=True)))


# Bytes that are not UTF-8 become lone surrogates, so that they are found again in their row.
_UNDECODED = re.compile("[\udc80-\udcff]")


def _is_decoded(text: str) -> bool:
    return text.isascii() or not _UNDECODED.search(text)


def class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The columns of Hugging Face `ClassLabel`s, which hold numbers, and the names that the file's
    metadata has for 0, 1, ..."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"]
        found = {
            name: feature["names"]
            for name, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if name in schema.names and pa.types.is_integer(schema.field(name).type)
    }


def _with_label_names(labels: Mapping[str, list[str]], batch: pa.RecordBatch) -> pa.RecordBatch:
    """With the names of labels for their numbers; -1 is no label."""
    for column, names in labels.items():
        place = batch.schema.get_field_index(column)
        number_N = batch.column(place)
        known_N = pc.and_(pc.greater_equal(number_N, 0), pc.less(number_N, len(names)))
        number_N = pc.if_else(known_N, number_N, pa.scalar(None, number_N.type))
        texts = pa.array(names, pa.string()).take(number_N)
        batch = batch.set_column(place, column, texts)
    return batch


def _parquet(path: Path) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_packed(str(path), path.stat().st_size, file.metadata, names)
            refuse_repeated_columns(str(path), names)
            named = partial(_with_label_names, class_labels(file.schema_arrow))
            batches = map(named, file.iter_batches(batch_size=4096))
            rows = (fields for batch in batches for fields in batch.to_pylist())
            yield from starmap(Record, enumerate(rows, start=1))
    except pa.ArrowException as error:
        raise DataError(f"{path}: not readable as Parquet ({error}).") from None
