"""What a file most likely is of which hardly a row can be read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import islice
from typing import BinaryIO

HEAD_BYTES = 1 << 16
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def likely_cause(name: str, kind: str, open_file: Callable[[], BinaryIO]) -> str:
    """What a text file most likely is, in a sentence that says what to do; "" where it looks as it
    should.

    Args:
        name: for the sentence.
        kind: ".csv", ".jsonl" or another, which have no sentence.
        open_file: its bytes, compression undone.
    """
    if kind not in (".csv", ".jsonl"):
        return ""
    try:
        with open_file() as content:
            head = content.read(HEAD_BYTES)
    except OSError:
        return ""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"{name} is UTF-16 text: save it as UTF-8."
    complete = head.rpartition(b"\n")[0] if len(head) == HEAD_BYTES else head
    try:
        text = complete.decode("utf-8-sig")
    except UnicodeDecodeError:
        return (
            f"{name} is not UTF-8, but most likely Windows-1252, as spreadsheets write: save it "
            "as UTF-8."
        )
    if kind == ".jsonl":
        return _cause_of_json(name, text.lstrip())
    return _cause_of_csv(name, text)


def _cause_of_json(name: str, text: str) -> str:
    if text.startswith("["):
        return f"{name} is one JSON array: JSONL has an object a line and no brackets."
    if text.startswith("{") and text[1:].lstrip(" \t")[:1] in ("\r", "\n"):
        return f"{name} has JSON objects over several lines: JSONL has an object a line."
    return ""


def _cause_of_csv(name: str, text: str) -> str:
    lines = text.splitlines()
    header = next(iter(lines), "")
    for separator, called in _SEPARATORS.items():
        if header.count(separator) > header.count(",") or header.strip() == f"sep={separator}":
            return f"The columns of {name} are set apart by {called}: a .csv has commas here."
    if "\r" in text and "\n" not in text:
        return f"The lines of {name} end with CR alone: save it with LF or CRLF."
    rows = list(islice(csv.reader(lines), 20))
    widths = {len(row) for row in rows[1:] if row}
    if rows and widths and len(rows[0]) not in widths:
        shown = " or ".join(map(str, sorted(widths)))
        return f"The header of {name} has {len(rows[0])} fields, its first rows have {shown}."
    return ""
