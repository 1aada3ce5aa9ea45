"""Label sets of the user's own files: given, named by a column, listed by a row, or found."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sce.datasets.columns import RawRow, not_in_set, raise_bad
from sce.datasets.readers import BadRow, read_records
from sce.datasets.text_form import FOUND_OUT
from sce.errors import DataError, LabelError
from sce.labels import MAX_LABELS, LabelSet
from sce.model.label_tree import parse_set
from sce.storage import Place, fetch, to_place
from sce.storage.documents import (
    RepeatedKey,
    check_document,
    parse_json,
    parse_json_lines,
    parse_yaml,
    read_document,
)

SPREADSHEETS = (".csv", ".tsv", ".xlsx")
_PARSERS = {".json": parse_json, ".jsonl": parse_json_lines, ".ndjson": parse_json_lines}
_OF_A_LABEL = ("description", "synonyms", "examples")
_PARENT = "parent"

log = logging.getLogger(__name__)


def read_label_file(path: Place) -> Any:
    """The content of a file of labels: .txt with a name a line ("# " begins a comment), .jsonl with
    a label a line, a spreadsheet (.csv, .tsv, .xlsx) with a column `name` and others of what is
    known of a label, .json, or else YAML.

    Raises:
        DataError: it cannot be read.
        LabelError: a mapping has a key twice.
    """
    kind = path.suffix.lower()
    try:
        if kind in SPREADSHEETS:
            check_document(path)
            return _spreadsheet(fetch(path), str(path))
        text = _decoded(read_document(path), str(path))
        if kind == ".txt":
            return _names(text, str(path))
        return _PARSERS.get(kind, parse_yaml)(text, str(path))
    except RepeatedKey as error:
        raise LabelError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of labels.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a readable file of labels ({error}).") from None


def _decoded(raw: bytes, where: str) -> str:
    """Text as people save it: UTF-8 or UTF-16, or Windows-1252, which the log says."""
    form = FOUND_OUT.of(".tsv", lambda: io.BytesIO(raw))
    assert form.encoding is not None
    if words := replace(form, delimiter=None, line_end="\n").words:
        log.warning("%s is read as %s", where, words)
    return raw.decode(form.encoding).removeprefix("\ufeff")


def _spreadsheet(path: Path, where: str) -> list[dict[str, Any]]:
    """A label a row; synonyms and examples stand in their field with "|" between them. With a
    column `parent` they are a tree."""
    labels = []
    for record in read_records(path):
        if isinstance(record, BadRow):
            raise_bad(record)
            continue
        fields = {str(k).strip().lower(): str(v).strip() for k, v in record.fields.items()}
        name = next((key for key in ("name", "label") if key in fields), None)
        if name is None or (unknown := sorted(fields.keys() - {name, _PARENT, *_OF_A_LABEL, ""})):
            wrong = f"no column {unknown[0]!r} is known" if name else "no column `name`"
            raise DataError(
                f"{where}: {wrong}. A spreadsheet of labels has a header with name, and may have "
                f"{', '.join(_OF_A_LABEL)}; in a tree {_PARENT}, the name of the label above."
            )
        label: dict[str, Any] = {"name": fields[name]}
        if _PARENT in fields:
            label[_PARENT] = fields[_PARENT] or None
        if fields.get("description"):
            label["description"] = fields["description"]
        for key in ("synonyms", "examples"):
            if items := [one.strip() for one in fields.get(key, "").split("|") if one.strip()]:
                label[key] = items
        labels.append(label)
        if len(labels) > MAX_LABELS:
            raise LabelError(f"{where}: more than {MAX_LABELS:,} rows, each of which is a label.")
    return labels


def _names(text: str, where: str) -> list[str]:
    """A name a line."""
    if text.count("\n") > MAX_LABELS:
        raise LabelError(f"{where}: more than {MAX_LABELS:,} lines, each of which is a label.")
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return [line for line in lines if not (line == "#" or line.startswith("# "))]


def read_label_set(path: Place) -> tuple[LabelSet, dict[str, float]]:
    """The label set or tree of a file, and what it says of how large the classes are.

    The file holds labels in any form that `LabelSet.parse` or `LabelTree.parse` reads, or a mapping
    with `labels` and `shares`, the latter from names to shares of the corpus.

    Raises:
        DataError: it cannot be read, or the shares are no mapping to numbers.
        LabelError: it holds no label set, or a share of a label that is not in it.
    """
    content = read_label_file(path)
    shares: Any = {}
    if isinstance(content, Mapping) and isinstance(content.get("labels"), (list, Mapping)):
        if unknown := sorted(set(map(str, content)) - {"labels", "shares"}):
            raise LabelError(f"{path}: unknown key {unknown[0]!r} beside labels and shares.")
        content, shares = content["labels"], content.get("shares") or {}
    labels = parse_set(content, str(path))
    if not isinstance(shares, Mapping):
        raise DataError(f"{path}: shares is a mapping from the names of labels to numbers.")
    for name, share in shares.items():
        labels.index(str(name))
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise DataError(f"{path}: shares: {name!r} has {share!r}, which is no number.")
    return labels, {str(name): float(share) for name, share in shares.items()}


class CustomLabels:
    """The label sets of one custom source, checked while its rows are read.

    The id of a label set is the source's name, or "<name>/<value>" with a label set column,
    or "<name>/<12 hex digits>" for a set that rows list as their candidates.
    """

    def __init__(self, name: str, labels: Any) -> None:
        """
        Args:
            labels: `SourceConfig.labels`.

        Raises:
            DataError: the file of labels cannot be read.
            LabelError: it holds no label set.
        """
        self._name = name
        self._where = f"labels of source {name!r}"
        if isinstance(labels, str):
            self._where = labels
            labels = read_label_file(to_place(labels).expanduser())
            if labels is None:
                raise LabelError(f"{self._where}: the file is empty. Give at least one label.")
        self._given = labels
        self._sets: dict[str, LabelSet] = {}
        self._found: dict[str, set[str]] = {}
        self._listed: dict[tuple[str, ...], str] = {}

    def accept(self, path: Path, raw: RawRow, on_bad: Callable[[BadRow], None]) -> str | None:
        """The id of a row's label set; None if the row was bad (and `on_bad` let it pass).

        Raises:
            LabelError: the label set given for it is not one.
        """
        if raw.all_labels is not None:
            try:
                label_set = self._listed_set(raw.all_labels)
            except LabelError as error:
                message = f"{path}:{raw.line}: {error}"
                on_bad(BadRow(raw.line, "all_labels is not a label set", message))
                return None
        elif raw.label_set is not None:
            label_set = f"{self._name}/{raw.label_set}"
            if self._given is not None and label_set not in self._sets:
                if not isinstance(self._given, Mapping):
                    raise LabelError(
                        f"{self._where}: the rows name their label set, so a mapping from those "
                        f"names (the first is {raw.label_set!r}) to label sets is needed."
                    )
                if raw.label_set not in self._given:
                    message = (
                        f"{path}:{raw.line}: no labels for the label set {raw.label_set!r} in "
                        f"{self._where}; it holds {', '.join(map(str, self._given))[:300]}."
                    )
                    on_bad(BadRow(raw.line, "unknown label set", message))
                    return None
                where = f"{self._where}: {raw.label_set}"
                self._sets[label_set] = parse_set(self._given[raw.label_set], where)
        else:
            label_set = self._name
            if self._given is not None and label_set not in self._sets:
                self._sets[label_set] = parse_set(self._given, self._where)
        known_set = self._sets.get(label_set)
        if known_set is None:
            self._found.setdefault(label_set, set()).update(raw.right)
        else:
            for name in raw.right:
                try:
                    known_set.index(name)
                except LabelError:
                    on_bad(not_in_set(path, raw.line, name, known_set))
                    return None
        return label_set

    def _listed_set(self, names: tuple[str, ...]) -> str:
        if names not in self._listed:
            # One order for the same candidates, whichever row comes first.
            parsed = LabelSet.parse(list(names), "all_labels").canonical()
            label_set = f"{self._name}/{parsed.fingerprint[:12]}"
            self._sets.setdefault(label_set, parsed)
            self._listed[names] = label_set
        return self._listed[names]

    def finish(self) -> dict[str, LabelSet]:
        """All label sets, by id; those without given labels hold the labels found, by name."""
        found = {key: LabelSet.parse(sorted(names), key) for key, names in self._found.items()}
        return dict(sorted({**self._sets, **found}.items()))
