"""How a text file is written: compression, encoding, line ends, and what sets the fields of a CSV
apart. What is not given is found in the file itself."""

from __future__ import annotations

import bz2
import codecs
import csv
import io
import lzma
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePath
from typing import Annotated, BinaryIO, TypeAlias, cast

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator

from sce.datasets.limits import Unpacked, bounded_lines
from sce.errors import DataError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
DAMAGED = (EOFError, lzma.LZMAError, zipfile.BadZipFile)
"""What a damaged file raises beside `OSError`."""
HEAD_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What sets the fields of a CSV apart: the first of those that fit a file equally well."""
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?\Z', re.IGNORECASE)
_MANY_BYTES = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_NOT_IN_1252 = [0x81, 0x8D, 0x8F, 0x90, 0x9D]
_ASCII_LETTERS = [*range(0x41, 0x5B), *range(0x61, 0x7B)]
_MOST_HIGH = 0.3
"""Share of a text's letters that lie beyond ASCII, above which it is in no western language."""


@dataclass(frozen=True)
class TextForm:
    """How the lines of a text file are read; None is found out by `of`.

    Attributes:
        encoding: as `codecs` knows it.
        delimiter: one character; of a CSV alone.
        line_end: "\\n", which stands for CRLF too, or "\\r" where there is no other.
    """

    encoding: str | None = None
    delimiter: str | None = None
    line_end: str = "\n"

    def of(self, kind: str, open_file: Callable[[], BinaryIO]) -> TextForm:
        """The form of one file, where this one is what the user says of all.

        Args:
            kind: ".csv", ".tsv" or ".jsonl". Only tables may be in Windows-1252 unasked, only a
                CSV has its delimiter found.
            open_file: its bytes, compression undone.

        Raises:
            OSError, or one of `DAMAGED`: it cannot be read.
        """
        is_table = kind in (".csv", ".tsv")
        with open_file() as file:
            head = file.read(HEAD_BYTES)
        encoding = self.encoding or _encoding_of_head(head)
        if encoding is None:
            encoding = _scanned_encoding(open_file) if is_table else "utf-8"
        form = replace(self, encoding=encoding)
        if not is_table:
            return form
        text = decoded(head, encoding)
        if "\r" in text and "\n" not in text:
            form = replace(form, line_end="\r")
        if kind == ".tsv":
            return replace(form, delimiter="\t")
        if form.delimiter is None:
            form = replace(form, delimiter=likely_delimiter(text, len(head) == HEAD_BYTES))
        return form

    def lines(self, file: BinaryIO) -> Iterator[str]:
        """The lines with their ends, `LongLine` for one that is too long. Bytes that are not in the
        encoding become lone surrogates where it has single bytes, so that they are found again in
        their row; of UTF-16 they raise `UnicodeError`."""
        encoding = "utf-8-sig" if self.encoding in (None, "utf-8") else self.encoding
        return bounded_lines(
            io.TextIOWrapper(
                file, encoding=encoding, errors="surrogateescape", newline=self.line_end
            )
        )

    @property
    def words(self) -> str:
        """What is unusual about it, for a message; "" for UTF-8 with commas."""
        encoding = codecs.lookup(self.encoding or "utf-8").name
        found = [] if encoding == "utf-8" else [_NAMES.get(encoding, encoding)]
        if self.delimiter not in (None, ","):
            found.append(DELIMITERS.get(self.delimiter, repr(self.delimiter)))
        return ", ".join([*found, *(["lines that end with CR"] if self.line_end == "\r" else [])])


FOUND_OUT = TextForm()
"""Nothing is known of it yet."""
_NAMES = {"cp1252": "Windows-1252", "utf-16": "UTF-16", "utf-16-le": "UTF-16"}


def separator_line(line: str) -> str | None:
    """The delimiter that a spreadsheet's first line `sep=;` names."""
    found = _SEPARATOR_LINE.match(line)
    return found[1] if found else None


def _check_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(
            f"no encoding {name!r}; such are utf-8, utf-16, cp1252, latin-1, shift_jis, gb18030"
        ) from None
    return name


def _check_delimiter(given: str) -> str:
    given = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if len(given) != 1 or given in '"\r\n':
        raise ValueError(f"{given!r} is no single character; such are ',', ';', '|' and 'tab'")
    return given


Encoding: TypeAlias = Annotated[str, AfterValidator(_check_encoding)]
"""The type of a setting: an encoding of text that Python knows."""
Delimiter: TypeAlias = Annotated[str, AfterValidator(_check_delimiter)]
"""The type of a setting: one character, or `tab`."""


def compression_of(path: PurePath) -> str:
    """The suffix of a compressed file, "" of another."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def decompressed(file: pa.NativeFile, path: PurePath) -> BinaryIO:
    """The bytes of a file that was opened for random access, its compression undone.

    Raises:
        DataError: an archive that holds another number of files than one.
        OSError, or one of `DAMAGED`, here or while it is read.
    """
    kind = compression_of(path)
    raw: object = file
    packed = file.size()
    if kind in (".gz", ".zst"):
        raw = pa.CompressedInputStream(file, {".gz": "gzip", ".zst": "zstd"}[kind])
    elif kind == ".bz2":
        raw = bz2.BZ2File(file)
    elif kind == ".xz":
        raw = lzma.LZMAFile(file)  # noqa: SIM115
    elif kind == ".zip":
        archive = zipfile.ZipFile(file)  # type: ignore[arg-type]
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if len(names) != 1:
            raise DataError(f"{path}: holds {len(names)} files; an archive of one file is read.")
        raw = archive.open(names[0])
    if kind:
        raw = Unpacked(raw, str(path), packed)  # type: ignore[arg-type]
    return cast(BinaryIO, io.BufferedReader(raw, CHUNK_BYTES))  # type: ignore[type-var]


def decoded(head: bytes, encoding: str) -> str:
    """The beginning of a text; what may be a half letter at its end is left out."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    return text.removeprefix("\ufeff")


def _encoding_of_head(head: bytes) -> str | None:
    """What the first bytes show: a mark, or the zeros of UTF-16 without one; else None."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8"
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    even, odd = head[:1024:2], head[1:1024:2]
    if len(odd) > 4 and odd.count(0) > 0.8 * len(odd) and not even.count(0):
        return "utf-16-le"
    return None


def _scanned_encoding(open_file: Callable[[], BinaryIO]) -> str:
    """ "cp1252" where no letter beyond ASCII is UTF-8 and those that there are make it likely."""
    counts = np.zeros(256, np.int64)
    tail = b""
    with open_file() as file:
        while chunk := file.read(CHUNK_BYTES):
            if not chunk.isascii():
                if _MANY_BYTES.search(tail + chunk):
                    return "utf-8"
                counts += np.bincount(np.frombuffer(chunk, np.uint8), minlength=256)
            tail = chunk[-3:]
    high = int(counts[128:].sum())
    letters = high + int(counts[_ASCII_LETTERS].sum())
    if not high or counts[_NOT_IN_1252].any() or high > _MOST_HIGH * letters:
        return "utf-8"
    return "cp1252"


def likely_delimiter(text: str, is_cut: bool = False) -> str:
    """The delimiter by which most of the first rows have as many fields as the header; of one
    column, a comma. The last line of a text that `is_cut` does not count."""
    lines = text.splitlines(keepends=True)[:200]
    if lines and (named := separator_line(lines[0])):
        return named
    if is_cut and len(lines) > 1:
        lines.pop()
    shares = {}
    for delimiter in DELIMITERS:
        rows = islice(csv.reader(lines, delimiter=delimiter), 100)
        try:
            widths = [len(row) for row in rows if row]
        except csv.Error:
            continue
        if widths and widths[0] > 1:
            same = sum(width == widths[0] for width in widths)
            shares[delimiter] = (round(same / len(widths), 1), widths[0])
    return max(shares, key=lambda one: shares[one]) if shares else ","
