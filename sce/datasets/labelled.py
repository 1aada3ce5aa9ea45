"""The user's own labelled rows, for the question "how good is it on my data?"."""

from __future__ import annotations

import logging

from sce.datasets.columns import NO_LABEL, Columns, not_in_set, raise_bad, read_rows
from sce.datasets.readers import BadRow, read_records
from sce.errors import DataError, LabelError
from sce.labels import Label, LabelSet, normalise_name
from sce.storage import Place, fetch

logger = logging.getLogger("sce")


def read_labelled(
    path: str | Place,
    text_column: str = "text",
    label_column: str = "label",
    labels: LabelSet | None = None,
) -> tuple[list[str], list[str], LabelSet]:
    """Texts, their label names and the label set of a JSONL, CSV, TSV or Parquet file.

    Rows whose label is empty are still to be filled in: they are left out, and the log says how
    many they are.

    Args:
        labels: the label set to measure with; default: the distinct labels of the file, sorted.

    Returns:
        One text and one label name a row, in the file's order, and the label set. Names are
        written as in the label set.

    Raises:
        DataError: the file cannot be read, a row is bad, no row has a label, or a label is not in
            `labels`; names the file and the line.
    """
    path = fetch(path)
    texts: list[str] = []
    names: list[str] = []
    empty = 0

    def on_bad(bad: BadRow) -> None:
        nonlocal empty
        if bad.reason != NO_LABEL:
            raise_bad(bad)
        empty += 1

    for row in read_rows(path, Columns(text=((text_column,),), label=(label_column,)), on_bad):
        texts.append(row.text)
        names.append(row.label)
        if labels is not None:
            try:
                names[-1] = labels.names[labels.index(row.label)]
            except LabelError:
                raise_bad(not_in_set(path, row.line, row.label, labels))
    if not texts and empty:
        raise DataError(
            f"{path}: {label_column!r} is empty in all {empty:,} rows. Write a label into at least "
            "one of them."
        )
    if not texts:
        raise DataError(f"{path}: no rows. At least one labelled text is needed.")
    found = labels if labels is not None else LabelSet.parse(sorted(set(names)))
    if len(found) == 1:
        logger.warning("%s: there is one label, so every answer is right: it tells nothing.", path)
    if empty:
        logger.info("%s: %d rows have no label yet and are left out.", path, empty)
    return texts, names, found


def read_with_none(
    path: str | Place,
    text_column: str,
    label_column: str,
    labels: LabelSet,
    none_label: str,
) -> tuple[list[str], list[str], list[str]]:
    """Labelled rows of which those with the label `none_label` fit none of `labels`.

    Returns:
        Texts and label names as `read_labelled` gives them, and the texts that no label fits.

    Raises:
        DataError: as `read_labelled`; no row has that label, or it is one of `labels`.
    """
    key = normalise_name(none_label)
    if not key or any(label.key == key for label in labels.labels):
        raise DataError(f"none_label: {none_label!r} is to be none of the labels.")
    every = LabelSet((*labels.labels, Label(none_label)))
    texts, names, _ = read_labelled(path, text_column, label_column, every)
    is_none = [normalise_name(name) == key for name in names]
    none = [text for text, found in zip(texts, is_none, strict=True) if found]
    if not none:
        raise DataError(f"none_label: no row of {path} has {none_label!r}.")
    kept = [i for i, found in enumerate(is_none) if not found]
    return [texts[i] for i in kept], [names[i] for i in kept], none


def read_several(
    path: str | Place,
    text_column: str = "text",
    label_column: str = "labels",
    labels: LabelSet | None = None,
) -> tuple[list[str], list[list[str]], LabelSet]:
    """Texts with any number of right labels each: a list of names, or in CSV names between "; ".

    An empty list is a row to which no label applies; null and a missing column are refused, since
    nobody knows whether it is one of these.

    Returns:
        One text and one list of names a row, in the file's order, and the label set. Names are
        written as in the label set.

    Raises:
        DataError: as `read_labelled`.
    """
    path = fetch(path)
    texts: list[str] = []
    found: list[list[str]] = []
    for record in read_records(path):
        if isinstance(record, BadRow):
            raise DataError(record.message)
        row, where = record.fields, f"{path}:{record.line}"
        text, names = row.get(text_column), row.get(label_column)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {text_column!r} holds no text.")
        if isinstance(names, str):
            names = [name.strip() for name in names.split(";") if name.strip()]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{where}: {label_column!r} holds no list of labels ([] for none).")
        if labels is not None:
            for name in names:
                try:
                    labels.index(name)
                except LabelError:
                    raise_bad(not_in_set(path, record.line, name, labels))
        texts.append(text)
        found.append(names)
    if not any(found):
        raise DataError(f"{path}: no row has a label in {label_column!r}.")
    label_set = labels or LabelSet.parse(sorted({n.strip() for names in found for n in names}))
    written = [[label_set.names[label_set.index(n)] for n in names] for names in found]
    return texts, written, label_set
