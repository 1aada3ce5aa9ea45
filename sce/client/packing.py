"""Rows as they are sent, cut into requests that the server's limits allow."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from sce.client.served import RequestLimits
from sce.errors import InputError
from sce.labels import Label, RaggedLabels, is_set_a_row
from sce.model.label_tree import LabelTree, parse_set


@dataclass(frozen=True)
class PackedLabels:
    """JSON of one label set, and how much it counts against the limits.

    Attributes:
        ids: its labels, as places in `Rows.label_texts`; none where one set is for all rows,
            which the server judges as a whole.
    """

    content: bytes
    count: int
    ids: Sequence[int] = ()


@dataclass(frozen=True)
class PackedRow:
    """JSON of a text or vector, and of its labels where each row has its own."""

    content: bytes
    labels: PackedLabels | None = None

    @property
    def label_bytes(self) -> int:
        return 0 if self.labels is None else len(self.labels.content) + 1


@dataclass(frozen=True)
class Rows:
    """Rows for any number of requests.

    Attributes:
        field: what they are called in the request.
        labels: one set for all rows; None where each has its own, or none has any.
        label_texts: names, descriptions and so on of each label, by its id.
    """

    path: str
    field: str
    rows: Sequence[PackedRow]
    settings: dict[str, Any]
    labels: PackedLabels | None = None
    label_texts: Sequence[int] = ()

    def with_labels(self, labels: Any) -> Rows:
        """The same rows with one label set for all, or one a row.

        Raises:
            LabelError, InputError: as `Predictor.predict`.
        """
        if not isinstance(labels, RaggedLabels) and not is_set_a_row(labels):
            label_set = parse_set(labels)
            if isinstance(label_set, LabelTree):
                one = to_json(label_set.nested())
            else:
                one = to_json([_wire_label(label) for label in label_set.labels])
            return replace(self, labels=PackedLabels(one, len(label_set)))
        if len(labels) != len(self):
            raise InputError(f"labels: {len(labels)} label sets for {len(self)} texts; one a text.")
        ragged = labels if isinstance(labels, RaggedLabels) else RaggedLabels.from_sets(labels)
        encoded = [to_json(_wire_label(label)) for label in ragged.labels]
        ids_M, bounds = ragged.ids_M.tolist(), pairwise(ragged.offsets.tolist())
        sets = [ids_M[first:end] for first, end in bounds]
        rows = [
            replace(row, labels=PackedLabels(_list(encoded[i] for i in ids), len(ids), ids))
            for row, ids in zip(self.rows, sets, strict=True)
        ]
        texts = [len(label.info_texts) + len(label.examples) for label in ragged.labels]
        return replace(self, rows=rows, label_texts=texts)

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, places: Collection[int]) -> Rows:
        """All rows but those at these places."""
        return replace(self, rows=[row for i, row in enumerate(self.rows) if i not in places])

    def body(self, start: int, end: int) -> bytes:
        """The request for the rows `start` to `end`."""
        part = self.rows[start:end]
        parts = [to_json(self.field) + b":" + _list(row.content for row in part)]
        if self.labels is not None:
            parts.append(b'"labels":' + self.labels.content)
        elif self.label_texts:
            own = _list(row.labels.content for row in part if row.labels is not None)
            parts.append(b'"labels":' + own)
        parts.append(to_json(self.settings)[1:-1])
        return b"{" + b",".join(parts) + b"}"

    def request_end(self, start: int, most_rows: int, limits: RequestLimits) -> int:
        """Where a request that begins at `start` ends: at least one row later."""
        size, tokens, texts = len(self.body(0, 0)), 0, 0
        known: set[int] = set()
        last = min(len(self), start + most_rows, start + limits.max_texts)
        for place in range(start, last):
            row = self.rows[place]
            size += len(row.content) + 1 + row.label_bytes
            labels = row.labels or self.labels
            if labels is not None:
                tokens += 1 + labels.count
                new = set(labels.ids) - known
                texts += sum(self.label_texts[i] for i in new)
                known |= new
            fits = size <= limits.max_body_bytes and tokens <= limits.max_label_tokens
            if place > start and not (fits and texts <= limits.max_label_texts):
                return place
        return last

    def too_long(self, limits: RequestLimits) -> list[int]:
        """Rows that fit into no request, though their labels do."""
        room = limits.max_body_bytes - len(self.body(0, 0))
        return [
            i
            for i, row in enumerate(self.rows)
            if 0 < room - row.label_bytes < len(row.content) + 1
        ]


def to_json(value: Any) -> bytes:
    """Without white space, in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")  # such a text is not sent, or refused there


def _list(items: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _wire_label(label: Label) -> Any:
    known = {name: value for name, value in label.to_dict().items() if value}
    return label.name if set(known) == {"name"} else known
