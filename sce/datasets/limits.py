"""How much of a file is read at a time or at all, so that one of a few bytes cannot fill a machine.

What is over a limit is an error of the row, or of the file where no row can be told.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import IO, AnyStr, Protocol

import pyarrow.parquet as pq

from sce.errors import MAX_TEXT_BYTES, DataError

MAX_LINE = 2 * MAX_TEXT_BYTES
"""Characters of a line, of which a text is a part."""
MAX_RATIO = 250
"""Times its size that a file may have when its compression is undone; texts reach 3 to 20."""
RATIO_COUNTS_FROM = 256 * 2**20
"""Bytes below which the ratio is of no account."""
MAX_ROWS_A_BYTE = 64
"""Of a Parquet file; a column of one value has so many."""
ROWS_COUNT_FROM = 1_000_000
MEBIBYTE = 2**20


class LongLine(str):
    """The beginning of a line that has more than `MAX_LINE` characters."""


def bounded_lines(file: IO[AnyStr]) -> Iterator[AnyStr | LongLine]:
    """The lines of a file with their ends; of one that is too long a `LongLine`."""
    while line := file.readline(MAX_LINE):
        if len(line) < MAX_LINE or line[-1:] in ("\n", b"\n", "\r", b"\r"):
            yield line
            continue
        yield LongLine(line[:100] if isinstance(line, str) else "")
        while line and line[-1:] not in ("\n", b"\n", "\r", b"\r"):
            line = file.readline(MAX_LINE)


def check_unpacked(where: str, unpacked: int, packed: int) -> None:
    """Raises `DataError`: so many bytes come from so few."""
    if unpacked > max(RATIO_COUNTS_FROM, MAX_RATIO * packed):
        raise DataError(
            f"{where}: {packed:,} bytes become {unpacked / MEBIBYTE:,.0f} MiB or more when they "
            f"are decompressed. Above {RATIO_COUNTS_FROM // MEBIBYTE} MiB, {MAX_RATIO} times the "
            "size is allowed."
        )


def check_packed(where: str, size: int, metadata: pq.FileMetaData, columns: Sequence[str]) -> None:
    """See that a Parquet file of `size` bytes holds what so many can, by its footer.

    Raises:
        DataError: as `check_unpacked` of what is read of a row group at a time; more rows than so
            many bytes hold; texts that are too large in the mean.
    """
    rows = metadata.num_rows
    if rows > max(ROWS_COUNT_FROM, MAX_ROWS_A_BYTE * size):
        raise DataError(
            f"{where}: {rows:,} rows in {size:,} bytes. Above {ROWS_COUNT_FROM:,} rows, "
            f"{MAX_ROWS_A_BYTE} a byte are allowed."
        )
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name = chunk.path_in_schema.split(".")[0]
            if name not in columns:
                continue
            unpacked = chunk.total_uncompressed_size
            check_unpacked(
                f"{where}, column {name!r}", unpacked, min(size, chunk.total_compressed_size)
            )
            if unpacked > MAX_TEXT_BYTES * max(1, group.num_rows):
                raise DataError(
                    f"{where}, column {name!r}: values of {unpacked // group.num_rows:,} bytes in "
                    f"the mean. {MAX_TEXT_BYTES:,} are allowed."
                )


class _Source(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...
    def close(self) -> None: ...


class Unpacked(io.RawIOBase):
    """The bytes of a file whose compression is undone, counted.

    Args:
        where: for the error.
        packed: bytes of the file.

    Raises:
        DataError: while it is read, as `check_unpacked`.
    """

    def __init__(self, source: _Source, where: str, packed: int) -> None:
        self._source, self._where, self._packed, self._read = source, where, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._source.readinto(buffer) or 0
        self._read += count
        check_unpacked(self._where, self._read, self._packed)
        return count

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
