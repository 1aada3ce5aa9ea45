"""From the columns of a file to text, label, split and label set: one reader for every source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sce.datasets.readers import BadRow, Record, read_records
from sce.datasets.schema import SPLITS
from sce.datasets.text_form import FOUND_OUT, TextForm
from sce.errors import MAX_NAME_CHARS, DataError
from sce.labels import LabelSet, name_error, normalise_name

SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "testing": "test",
}


@dataclass(frozen=True)
class Columns:
    """Where a file keeps what is needed.

    Attributes:
        text: alternatives, the first whose columns all exist; its parts are joined by a space.
        label: alternatives, the first that exists.
        split, label_set, all_labels: optional columns, used where they exist.
        required: those of the optional columns that must exist.
        header: names for a CSV or TSV without a header line.
        several: the label's column holds any number of right labels a row.
    """

    text: tuple[tuple[str, ...], ...] = (("text",),)
    label: tuple[str, ...] = ("label", "labels")
    split: str = "split"
    label_set: str = "label_set"
    all_labels: str = "all_labels"
    required: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    several: bool = False


@dataclass(frozen=True, slots=True)
class RawRow:
    """One readable row, its label still as the file writes it; or all of its right `labels`, sorted
    and none twice, with what holds them together as its `label`."""

    line: int
    text: str
    label: str
    split: str | None
    label_set: str | None
    all_labels: tuple[str, ...] | None
    labels: tuple[str, ...] | None = None

    @property
    def right(self) -> tuple[str, ...]:
        """The right labels, however many there may be."""
        return (self.label,) if self.labels is None else self.labels


_TOGETHER = "\x1e"
"""Between right labels, where they are one text."""
NO_LABEL = "no label"
"""Why a row cannot be used whose label is empty, whatever else is wrong with it."""


class _RowError(Exception):
    """Carries the reason and the message of a bad row out of the field parsers."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_rows(
    path: Path,
    columns: Columns,
    on_bad: Callable[[BadRow], None],
    form: TextForm = FOUND_OUT,
) -> Iterator[RawRow]:
    """The usable rows of a file, in order.

    Args:
        on_bad: called with each row that cannot be used; it raises or counts.

    Raises:
        DataError: the file cannot be read, or lacks a column (the message lists those it has).
    """
    found: Columns | None = None
    for item in read_records(path, columns.header, form):
        if isinstance(item, BadRow):
            on_bad(item)
            continue
        found = found or _find(path, columns, item.fields)
        try:
            row = _parse(item, found)
        except _RowError as problem:
            on_bad(BadRow(item.line, problem.reason, f"{path}:{item.line}: {problem}"))
        else:
            yield row


def raise_bad(bad: BadRow) -> None:
    """The strict answer to a bad row. Raises `DataError`, always."""
    raise DataError(bad.message)


def not_in_set(path: Path, line: int, label: str, label_set: LabelSet) -> BadRow:
    """The bad row of a label that its label set lacks."""
    shown = ", ".join(repr(name) for name in label_set.names[:12])
    more = f" and {len(label_set) - 12} more" if len(label_set) > 12 else ""
    message = f"{path}:{line}: the label {label!r} is not in the label set: {shown}{more}."
    return BadRow(line, "label not in its label set", message)


def _find(path: Path, columns: Columns, fields: Mapping[str, Any]) -> Columns:
    """The one alternative of each column that a file has; "" for an optional one that it lacks."""
    text = next((alt for alt in columns.text if all(c in fields for c in alt)), None)
    label = next((name for name in columns.label if name in fields), None)
    missing = [name for name in columns.required if name not in fields]
    if text is None:
        missing.insert(0, " or ".join("+".join(alt) for alt in columns.text))
    if label is None:
        missing.append(" or ".join(columns.label))
    if missing or text is None or label is None:
        has = ", ".join(map(str, fields))
        raise DataError(f"{path}: no column {', '.join(missing)}. Its columns: {has}.")

    optional = {name: getattr(columns, name) for name in ("split", "label_set", "all_labels")}
    present: dict[str, Any] = {
        name: column if column in fields else "" for name, column in optional.items()
    }
    return replace(columns, text=(text,), label=(label,), **present)


def _parse(record: Record, columns: Columns) -> RawRow:
    fields, (text,), (label,) = record.fields, columns.text, columns.label
    split, label_set, all_labels = columns.split, columns.label_set, columns.all_labels
    labels = _labels(fields, label) if columns.several else None
    name = _label(_field(fields, label), label) if labels is None else _TOGETHER.join(labels)
    return RawRow(
        line=record.line,
        text=_text(fields, text),
        label=name,
        split=_split(fields.get(split)) if split else None,
        label_set=_label(fields.get(label_set), label_set) if label_set else None,
        all_labels=_all_labels(fields.get(all_labels)) if all_labels else None,
        labels=labels,
    )


def _field(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise _RowError("missing column", f"no {name!r}; this row has {', '.join(fields)}.")
    return fields[name]


def _text(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        value = _field(fields, name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise _RowError("text is not a text", f"{name!r} is a {type(value).__name__}.")
        if value.strip():
            parts.append(value.strip())
    if not parts:
        raise _RowError("empty text", f"{' and '.join(names)} is empty. A text is needed.")
    return _unicode(" ".join(parts), names[0])


def _label(value: Any, name: str) -> str:
    if isinstance(value, list):
        if len(value) != 1:
            count = f"{name!r} holds {len(value)} labels; exactly one is needed, unless the source "
            count += "says `several_labels: true`."
            raise _RowError("not exactly one label", count)
        value = value[0]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        value = ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise _RowError("label is not a text", f"{name!r} is {kind}; a label's name is needed.")
    key = normalise_name(_unicode(value, name))
    error = name_error(key)
    if error == "label_empty":
        raise _RowError(NO_LABEL, f"{name!r} is empty; a label's name is needed.")
    if error:
        length = f"{name!r} has {len(key)} characters, at most {MAX_NAME_CHARS}."
        raise _RowError("label too long", length)
    return key


def _labels(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The right labels of a row, sorted: a list of names, or names with ";" between them; none of
    either is a row that no label fits."""
    value = _field(fields, name)
    if name != "label" and fields.get("label") not in (None, "", []):
        both = f"it has both 'label' and {name!r}; with `several_labels` {name!r} says it all."
        raise _RowError("both label and labels", both)
    if isinstance(value, str):
        value = [one for one in map(str.strip, value.split(";")) if one]
    if not isinstance(value, list):
        what = "is null" if value is None else f"is a {type(value).__name__}"
        message = f"{name!r} {what}; a list of names is needed, [] where no label fits."
        raise _RowError("no list of labels", message)
    for one in value:
        if isinstance(one, list):
            raise _RowError("label is not a text", f"{name!r} holds a list within its list.")
    found = [_label(one, name) for one in value]
    for one in found:
        if found.count(one) > 1:
            raise _RowError("a label twice", f"{name!r} names {one!r} twice.")
    return tuple(sorted(found))


def _split(value: Any) -> str | None:
    if value is None or value == "":
        return None
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise _RowError("unknown split", f"split {value!r}. Allowed: {', '.join(SPLIT_NAMES)}.")
    return split


def _all_labels(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise _RowError("all_labels is not a list", "all_labels must be a list of label names.")
    return tuple(_label(name, "all_labels") for name in value)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _unicode(value: str, name: str) -> str:
    if _SURROGATE.search(value):
        raise _RowError("not Unicode", f"{name!r} holds a lone surrogate, which is not Unicode.")
    return value
