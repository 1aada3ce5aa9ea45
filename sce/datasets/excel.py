"""The first sheet of an Excel workbook as rows of text, read by openpyxl as a stream."""

from __future__ import annotations

import datetime
import io
import logging
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from sce.datasets.limits import check_unpacked
from sce.errors import DataError

SUFFIX = ".xlsx"
log = logging.getLogger(__name__)


def sheet_rows(
    path: PurePath, open_file: Callable[[], BinaryIO]
) -> Iterator[tuple[int, list[str]]]:
    """Each row's number and its cells as text, from the first row that is not blank, which is as
    wide as its last cell with anything in it; shorter rows are filled up. A formula is what it came
    to when the workbook was saved.

    Raises:
        DataError: not a workbook; or it has no sheet.
    """
    import openpyxl  # a third of a second that no other file needs

    with open_file() as file:
        content = io.BytesIO(file.read())  # the archive's end is read first
    try:
        with zipfile.ZipFile(content) as archive:  # whose parts are no larger than it says
            unpacked = sum(part.file_size for part in archive.infolist())
        check_unpacked(str(path), unpacked, len(content.getbuffer()))
        book = openpyxl.load_workbook(content, read_only=True, data_only=True)
        sheets = book.worksheets
        if len(sheets) != 1:
            names = ", ".join(repr(sheet.title) for sheet in sheets)
            if not sheets:
                raise DataError(f"{path}: a workbook without a sheet.")
            log.warning("%s has %d sheets (%s): the first is read", path, len(sheets), names)
        width = 0
        for number, row in enumerate(sheets[0].iter_rows(values_only=True), start=1):
            values = [_as_text(cell) for cell in row]
            while len(values) > width and not values[-1]:
                values.pop()
            if not any(values):
                continue
            width = width or len(values)
            yield number, values + [""] * (width - len(values))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise DataError(f"{path}: not readable as a workbook of Excel.", str(error)) from None


def _as_text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, datetime.datetime):
        midnight = cell.time() == datetime.time()
        return cell.date().isoformat() if midnight else cell.isoformat(" ")
    return str(cell)
