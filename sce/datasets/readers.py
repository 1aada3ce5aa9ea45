"""Table files (JSONL, CSV, TSV, Parquet, gzip of the text forms) as a stream of records.

What is wrong with one row is a value, `BadRow`, so that the caller can stop at it or count
it; what is wrong with the file as a whole is a `DataError`.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sce.errors import DataError

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (".parquet", *TEXT_SUFFIXES)
ALLOWED_FILES = "JSONL (.jsonl, .ndjson, .json), .csv, .tsv, each also as .gz, and .parquet"
# A field of CSV may hold a whole document; the csv module's own limit is 128 KiB.
MAX_FIELD_BYTES = 16 * 2**20


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
    """The suffix that decides how a file is read, without ".gz"; None if it is not a table."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in TEXT_SUFFIXES else None
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_records(path: Path, columns: Sequence[str] = ()) -> Iterator[Record | BadRow]:
    """Every row of a table file, in order.

    Args:
        path: the file; its suffix says how it is read. TSV knows no quotation marks.
        columns: names for the columns of a CSV or TSV that may lack a header line. If its
            first line holds one of these names it is taken as the header after all.

    Raises:
        DataError: the file is absent, of an unknown kind, damaged, or not UTF-8.
    """
    kind = file_format(path)
    if path.is_dir():
        raise DataError(f"{path}: a folder. A file is needed: {ALLOWED_FILES}.")
    if kind is None:
        raise DataError(f"{path}: not a table file that can be read. Allowed: {ALLOWED_FILES}.")
    yield from records_of(path, partial(_open, path), columns)


def records_of(
    path: PurePath, open_file: Callable[[], BinaryIO], columns: Sequence[str] = ()
) -> Iterator[Record | BadRow]:
    """`read_records` of a file that may lie anywhere.

    Args:
        path: for its suffix and for messages.
        open_file: its bytes, gzip undone. A Parquet file must be a local one.
    """
    kind = file_format(path)
    try:
        if kind == ".parquet":
            yield from _parquet(Path(path))
        elif kind in (".csv", ".tsv"):
            yield from _csv(path, kind, columns, open_file)
        else:
            yield from _jsonl(path, open_file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}).") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def refuse_repeated_columns(where: str, names: Sequence[str]) -> None:
    """Raises `DataError`: a name stands over two columns, of which one would be lost."""
    repeated = [name for name in dict.fromkeys(names) if name and list(names).count(name) > 1]
    if repeated:
        raise DataError(
            f"{where}: the column {repeated[0]!r} stands there twice. Give each a name of its own."
        )


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _jsonl(path: PurePath, open_file: Callable[[], BinaryIO]) -> Iterator[Record | BadRow]:
    with open_file() as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            reason = "unreadable line"
            try:
                fields = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                reason, message = "not UTF-8", f"not UTF-8 ({error.reason})."
            except (ValueError, RecursionError) as error:
                message = f"not a line of JSON ({error}). One object a line."
            else:
                if isinstance(fields, dict):
                    yield Record(number, fields)
                    continue
                kind = type(fields).__name__
                message = f"a JSON {kind}; an object with named fields is needed, one a line."
            yield BadRow(number, reason, f"{path}:{number}: {message}")


def _csv(
    path: PurePath, kind: str, columns: Sequence[str], open_file: Callable[[], BinaryIO]
) -> Iterator[Record | BadRow]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    with open_file() as file:
        lines = _decoded_lines(file)
        tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        reader = csv.reader(lines, **(tabs if kind == ".tsv" else {"strict": True}))
        try:
            first = next(reader, None)
            if first is None:
                return
            headerless = bool(columns) and not set(first) & set(columns)
            header = list(columns) if headerless else first
            refuse_repeated_columns(str(path), header)
            if headerless:
                yield _csv_row(path, reader.line_num, header, first)
            for values in reader:
                if values:
                    yield _csv_row(path, reader.line_num, header, values)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not readable as CSV ({error}).") from None


def _csv_row(
    path: PurePath, line: int, header: Sequence[str], values: Sequence[str]
) -> Record | BadRow:
    if len(values) != len(header):
        message = f"{path}:{line}: {len(values)} fields, but the columns are {len(header)}."
        return BadRow(line, "unreadable line", message)
    if any(_UNDECODED.search(value) for value in values):
        return BadRow(line, "not UTF-8", f"{path}:{line}: not UTF-8.")
    return Record(line, dict(zip(header, values, strict=True)))


# Bytes that are not UTF-8 become lone surrogates, so that they are found again in their row.
_UNDECODED = re.compile("[\udc80-\udcff]")


def _decoded_lines(file: BinaryIO) -> Iterator[str]:
    for number, raw in enumerate(file, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        yield raw.decode("utf-8", "surrogateescape")


def _parquet(path: Path) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            refuse_repeated_columns(str(path), file.schema_arrow.names)
            batches = file.iter_batches(batch_size=4096)
            rows = (fields for batch in batches for fields in batch.to_pylist())
            yield from starmap(Record, enumerate(rows, start=1))
    except pa.ArrowException as error:
        raise DataError(f"{path}: not readable as Parquet ({error}).") from None
