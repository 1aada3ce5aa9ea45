"""Label sets: what the user gives at the moment of asking, validated and put in order.

A `LabelSet` keeps the labels as the user wrote them; `RaggedLabels` is one set a row. The model
sees labels in canonical order (sorted by name in Unicode NFC), so that every order of the same
set runs through exactly the same arithmetic and the answers are equal bit for bit.

The rules for a name stand in `name_error` alone; names are equal if `normalise_name` makes them so.
Shapes: N rows, K labels of a row, L distinct labels of all rows, M labels of all rows.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import numpy as np

from sce.errors import MAX_NAME_CHARS, InputError, LabelError, quoted

MAX_LABELS = 100_000
"""Of one set."""
MAX_TEXTS = 10_000
"""Synonyms of a label, and examples."""
MAX_INFO_CHARS = 10_000
MAX_NAMES_SHOWN = 12
_FIELDS = ("name", "synonyms", "description", "examples")


def normalise_name(name: str) -> str:
    """The form in which a label's name is compared, sorted and embedded: NFC, stripped."""
    return unicodedata.normalize("NFC", name).strip()


def name_error(key: str) -> str:
    """What is wrong with a label's name after `normalise_name`: a word of `ROW_ERRORS`, or ""."""
    if not key:
        return "label_empty"
    return "label_too_long" if len(key) > MAX_NAME_CHARS else ""


@dataclass(frozen=True)
class Label:
    """One label: a name and, where the user has them, further information about it.

    Attributes:
        name: what the answer says, as the user wrote it.
        synonyms: other names of the same thing.
        description: a phrase or sentence that says what belongs here; "" if there is none.
        examples: texts that carry this label.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    description: str = ""
    examples: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return normalise_name(self.name)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"synonyms": list(self.synonyms), "examples": list(self.examples)}

    @property
    def info_texts(self) -> list[str]:
        """Name, synonyms and description: the texts that say what the label means."""
        texts = [self.key, *self.synonyms]
        return [*texts, self.description] if self.description else texts


@dataclass(frozen=True)
class LabelSet:
    """A validated set of distinct labels, in the user's order. `parse` makes one."""

    labels: tuple[Label, ...]

    @classmethod
    def parse(cls, value: Any, where: str = "labels") -> LabelSet:
        """Read a label set from any of the forms that users write.

        Args:
            value: a `LabelSet`, a list of names, a mapping from name to description (or None) or
                to an object `{synonyms, description, examples}`, or a list of objects `{name,
                synonyms, description, examples}` (only the name is required; names and objects
                may be mixed).
            where: named at the head of an error message.

        Raises:
            LabelError: empty set, empty or duplicate name, unknown field, wrong type; more labels
                than `MAX_LABELS`, more of a label than `MAX_TEXTS`.
        """
        if isinstance(value, LabelSet):
            return value
        value = as_list(value, where)
        if isinstance(value, Mapping):
            _check_count(value, where)
            items: list[Any] = [_named(name, known, where) for name, known in value.items()]
        elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            items = list(islice(value, MAX_LABELS + 1))
            _check_count(items, where)
        else:
            raise LabelError(
                f"{where}: a {type(value).__name__} is not a label set. Give a list of names, a "
                "mapping {name: description}, or a list of {name, description, synonyms, examples}."
            )
        if not items:
            raise LabelError(f"{where}: the label set is empty. Give at least one label.")
        labels = tuple(_parse_label(item, f"{where}[{i}]") for i, item in enumerate(items))
        seen: dict[str, int] = {}
        for i, label in enumerate(labels):
            if label.key in seen:
                raise LabelError(
                    f"{where}: the label {quoted(label.key)} stands twice, at positions "
                    f"{seen[label.key]} and {i}. Labels must be distinct."
                )
            seen[label.key] = i
        return cls(labels)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def names(self) -> list[str]:
        return [label.name for label in self.labels]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {label.key: i for i, label in enumerate(self.labels)}

    def index(self, name: str) -> int:
        """Position of a label by name. Raises `LabelError` if the set lacks it."""
        position = self._positions.get(normalise_name(name))
        if position is None:
            shown = ", ".join(map(repr, self.names[:MAX_NAMES_SHOWN]))
            if len(self) > MAX_NAMES_SHOWN:
                shown += f" and {len(self) - MAX_NAMES_SHOWN} more"
            raise LabelError(f"the label {quoted(name)} is not in its label set: {shown}")
        return position

    @cached_property
    def canonical_order(self) -> list[int]:
        """For each canonical position, the position in the user's order."""
        return sorted(range(len(self.labels)), key=lambda i: self.labels[i].key)

    def canonical(self) -> LabelSet:
        """The same set in canonical order."""
        return LabelSet(tuple(self.labels[i] for i in self.canonical_order))

    def seen(self) -> LabelSet:
        """The labels in canonical order as the model sees them."""
        return self.canonical()

    def counts_by_row(self, rows: int) -> np.ndarray:
        """K of each of so many rows that share this set, int64 [N]."""
        return np.full(rows, len(self))

    def names_by_row(self, rows: int) -> list[list[str]]:
        """The names of each of so many rows that share this set, in the user's order."""
        return [self.names] * rows

    def by_row(self, rows: int) -> RaggedLabels:
        """This set for each of so many rows."""
        ids_M = np.tile(np.arange(len(self)), rows)
        return RaggedLabels(self.labels, ids_M, np.arange(rows + 1) * len(self))

    def take(self, rows_G: np.ndarray) -> LabelSet:
        """This set: that of any rows."""
        return self

    def to_list(self) -> list[dict[str, Any]]:
        return [label.to_dict() for label in self.labels]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the set with all its information, the same for every order."""
        content = [self.labels[i].to_dict() for i in self.canonical_order]
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_labels(value: Any, where: str = "labels") -> LabelSet | RaggedLabels:
    """One set for all rows, or one set a row where the value is a list of sets; raises as
    `LabelSet.parse`."""
    if isinstance(value, RaggedLabels):
        return value
    value = as_list(value, where)
    if is_set_a_row(value):
        return RaggedLabels.from_sets(value, where)
    return LabelSet.parse(value, where)


def as_list(value: Any, where: str, error: type[InputError] = LabelError) -> Any:
    """A column of pandas or Arrow, or an array, as a list; anything else as it is. Raises `error`
    for a table, of which nobody can say which column is meant."""
    if hasattr(value, "columns"):
        raise error(
            f"{where}: a {type(value).__name__} is a table; give one column of it, such as "
            "table['name']."
        )
    if hasattr(value, "to_pylist"):
        return value.to_pylist()
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, str) else value


def only_names(label_set: LabelSet) -> LabelSet:
    """The same labels with nothing but their names."""
    return LabelSet(tuple(Label(label.name) for label in label_set.labels))


def _check_count(labels: Sized, where: str) -> None:
    """Before anything is made of them."""
    if len(labels) > MAX_LABELS:
        raise LabelError(f"{where}: more than {MAX_LABELS:,} labels, which a set may have at most.")


def _named(name: Any, known: Any, where: str) -> dict[str, Any]:
    """A label of a mapping: its name, and its description or an object."""
    if not isinstance(known, Mapping):
        return {"name": name, "description": known}
    if known.get("name", name) != name:
        raise LabelError(
            f"{where}: {quoted(name)} has another name inside, {quoted(known['name'])}."
        )
    return {**known, "name": name}


def _parse_label(item: Any, where: str) -> Label:
    if isinstance(item, Label):
        item = vars(item)
    elif isinstance(item, str):
        item = {"name": item}
    elif not isinstance(item, Mapping):
        raise LabelError(
            f"{where}: a label is a name or an object with {', '.join(_FIELDS)}, "
            f"not {type(item).__name__} ({quoted(item)}).{_quoting_hint(item)}"
        )
    for field in item:
        if field not in _FIELDS:
            raise LabelError(
                f"{where}: unknown field {quoted(field)}. A label has {', '.join(_FIELDS)}."
            )
    name = _parse_text(item.get("name"), f"{where}.name")
    key = normalise_name(name)
    error = name_error(key)
    if error == "label_empty":
        raise LabelError(f"{where}: the name is empty. Every label needs a name.")
    if error:
        raise LabelError(
            f"{where}.name: {len(key)} characters, at most {MAX_NAME_CHARS} are allowed."
        )
    description = item.get("description")
    if description is None:
        description = ""
    return Label(
        name=name,
        synonyms=_parse_texts(item.get("synonyms"), f"{where}.synonyms"),
        description=_parse_text(description, f"{where}.description").strip(),
        examples=_parse_texts(item.get("examples"), f"{where}.examples"),
    )


def _parse_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise LabelError(
            f"{where}: a text is needed, not {type(value).__name__} ({quoted(value)})."
            f"{_quoting_hint(value)}"
        )
    if len(value) > MAX_INFO_CHARS:
        raise LabelError(f"{where}: {len(value)} characters, at most {MAX_INFO_CHARS} are allowed.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LabelError(f"{where}: the text has a lone surrogate, which is not Unicode.") from None
    return value


def _quoting_hint(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, date)):
        return (
            ' In YAML put it in quotes: "no", "404", "2024-01-01" are texts, unquoted they are not.'
        )
    return ""


def _parse_texts(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise LabelError(f"{where}: a list of texts is needed, not {type(value).__name__}.")
    if len(value) > MAX_TEXTS:
        raise LabelError(f"{where}: {len(value):,} texts, at most {MAX_TEXTS:,} are allowed.")
    texts = tuple(_parse_text(text, f"{where}[{i}]").strip() for i, text in enumerate(value))
    if "" in texts:
        raise LabelError(f"{where}[{texts.index('')}]: the text is empty. Leave it out instead.")
    return texts


@dataclass(frozen=True)
class RaggedLabels:
    """One label set a row; row i's is `labels[ids_M[offsets[i]:offsets[i + 1]]]`.

    The caller has made sure that every row has a label and that no row has two labels with the
    same key (`Label.key`); `from_sets` does. Different rows may know different things of a key.

    Attributes:
        labels: the distinct labels of all rows, in any order.
        ids_M: int64 [M], places in `labels`, row after row in the user's order.
        offsets: int64 [N + 1].
    """

    labels: tuple[Label, ...]
    ids_M: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_sets(cls, sets: Iterable[Any], where: str = "labels") -> RaggedLabels:
        """Read one label set a row, each in any form that `LabelSet.parse` accepts; it raises as
        that does, with the row's position."""
        places: dict[Label, int] = {}
        known: dict[tuple[str, ...], list[int]] = {}  # lists of names that were parsed before
        rows: list[list[int]] = []
        for row, item in enumerate(sets):
            is_names = isinstance(item, (list, tuple)) and all(isinstance(n, str) for n in item)
            ids = known.get(tuple(item)) if is_names else None
            if ids is None:
                labels = LabelSet.parse(item, f"{where}[{row}]").labels
                ids = [places.setdefault(label, len(places)) for label in labels]
                if is_names:
                    known[tuple(item)] = ids
            rows.append(ids)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        ids_M = np.fromiter((i for ids in rows for i in ids), np.int64, int(offsets[-1]))
        return cls(tuple(places), ids_M, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def label_counts(self) -> np.ndarray:
        """K of each row, int64 [N]."""
        return np.diff(self.offsets)

    def counts_by_row(self, rows: int) -> np.ndarray:
        """`label_counts`; an `InputError` if there are not as many sets as rows."""
        if len(self) != rows:
            raise InputError(f"labels: {len(self)} label sets for {rows} texts; one a text.")
        return self.label_counts

    def names_by_row(self, rows: int) -> list[list[str]]:
        """The names of each row's labels, in the user's order; raises as `counts_by_row`."""
        self.counts_by_row(rows)
        names, bounds = [label.name for label in self.labels], self.offsets.tolist()
        flat = [names[i] for i in self.ids_M.tolist()]
        return [flat[start:end] for start, end in pairwise(bounds)]

    def by_row(self, rows: int) -> RaggedLabels:
        """These sets, for as many rows."""
        return self

    def take(self, rows_G: np.ndarray) -> RaggedLabels:
        """The sets of these rows."""
        # A taken label lies as far behind its row's first label as in the old order.
        counts_G = self.label_counts[rows_G]
        offsets = np.concatenate([[0], np.cumsum(counts_G)])
        flat = np.repeat(self.offsets[rows_G] - offsets[:-1], counts_G) + np.arange(offsets[-1])
        return RaggedLabels(self.labels, self.ids_M[flat], offsets)

    @classmethod
    def join(cls, parts: Sequence[RaggedLabels]) -> RaggedLabels:
        """The rows of several, one after another."""
        places: dict[Label, int] = {}
        ids, counts = [], []
        for part in parts:
            place_L = [places.setdefault(label, len(places)) for label in part.labels]
            ids.append(np.array(place_L, np.int64)[part.ids_M])
            counts.append(part.label_counts)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        return cls(tuple(places), np.concatenate(ids), offsets)

    def canonical(self) -> tuple[list[Label], np.ndarray, np.ndarray]:
        """What the model sees, whatever the order in which the user gave the labels.

        Returns:
            The labels in use, sorted by key and then by what else is known of them; `ids_M` as
            places among those; and the flat places that put each row's labels in canonical
            order, int64 [M].
        """
        used_L, ids_M = np.unique(self.ids_M, return_inverse=True)

        def sort_key(i: int) -> tuple[object, ...]:
            label = self.labels[used_L[i]]
            return label.key, label.description, label.synonyms, label.examples, label.name

        order_L = sorted(range(len(used_L)), key=sort_key)
        rank_L = np.empty(len(used_L), np.int64)
        rank_L[order_L] = np.arange(len(used_L))
        row_M = np.repeat(np.arange(len(self)), self.label_counts)
        places_M = np.lexsort((rank_L[ids_M], row_M))
        return [self.labels[used_L[i]] for i in order_L], rank_L[ids_M], places_M


def is_set_a_row(labels: Any) -> bool:
    """Whether `labels` is a list of label sets rather than one set: whether any item is a list, a
    tuple or a `LabelSet`. Mappings in it are the labels of one set."""
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        return False
    return any(isinstance(item, (list, tuple, LabelSet)) for item in labels)
