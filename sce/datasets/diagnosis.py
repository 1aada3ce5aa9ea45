"""What a file most likely is of which hardly a row can be read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import islice
from typing import BinaryIO

from sce.datasets.text_form import (
    DAMAGED,
    DELIMITERS,
    FOUND_OUT,
    HEAD_BYTES,
    TextForm,
    decoded,
    likely_delimiter,
)


def likely_cause(
    name: str, kind: str, open_file: Callable[[], BinaryIO], form: TextForm = FOUND_OUT
) -> str:
    """What a text file most likely is, in a sentence that says what to do; "" where it looks as it
    should.

    Args:
        name: for the sentence.
        kind: ".csv", ".jsonl" or another, which have no sentence.
        open_file: its bytes, compression undone.
        form: how it is read.
    """
    if kind not in (".csv", ".jsonl"):
        return ""
    try:
        form = form.of(kind, open_file)
        with open_file() as content:
            head = content.read(HEAD_BYTES)
    except (OSError, *DAMAGED):
        return ""
    assert form.encoding is not None
    text = decoded(head, form.encoding)
    if "\ufffd" in text and "\ufffd".encode(form.encoding, "replace") not in head:
        western = " It is most likely Windows-1252: --encoding cp1252." if kind == ".jsonl" else ""
        return f"{name} is not in {form.encoding}: name its encoding with --encoding.{western}"
    if kind == ".jsonl":
        return _cause_of_json(name, text.lstrip())
    return _cause_of_csv(name, text, form)


def _cause_of_json(name: str, text: str) -> str:
    if text.startswith("["):
        return f"{name} is one JSON array: JSONL has an object a line and no brackets."
    if text.startswith("{") and text[1:].lstrip(" \t")[:1] in ("\r", "\n"):
        return f"{name} has JSON objects over several lines: JSONL has an object a line."
    return ""


def _cause_of_csv(name: str, text: str, form: TextForm) -> str:
    delimiter = form.delimiter or ","
    if (likely := likely_delimiter(text)) != delimiter:
        called = DELIMITERS.get(likely, repr(likely))
        return f"The fields of {name} are most likely set apart by {called}: leave out --delimiter."
    lines = [line for line in text.splitlines() if not line.lower().startswith("sep=")]
    rows = list(islice(csv.reader(lines, delimiter=delimiter), 20))
    widths = {len(row) for row in rows[1:] if row}
    if rows and widths and len(rows[0]) not in widths:
        shown = " or ".join(map(str, sorted(widths)))
        return (
            f"The header of {name} has {len(rows[0])} fields, its first rows have {shown} "
            f"(fields are set apart by {delimiter!r}; --delimiter sets another)."
        )
    return ""
