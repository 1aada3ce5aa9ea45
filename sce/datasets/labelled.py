"""The user's own labelled rows, for the question "how good is it on my data?"."""

from __future__ import annotations

import logging

from sce.datasets.columns import NO_LABEL, Columns, not_in_set, raise_bad, read_rows
from sce.datasets.readers import BadRow
from sce.errors import DataError, LabelError
from sce.labels import LabelSet
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
