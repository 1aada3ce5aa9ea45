"""Which labels each row has, where it may have several, and how these changed between the outputs
of two bulk runs.

Shapes: N rows of an output, M labels of all of them one after another, G rows that are compared, L
distinct labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sce.bulk.matching import IntArray, OutputRows, read_columns
from sce.bulk.output import list_of_names
from sce.model.options import SEVERAL_COLUMN
from sce.storage import Place, RemotePath

BLOCK_ROWS = 1_000_000
"""That are compared at once."""


@dataclass(frozen=True)
class LabelSets:
    """The labels of each row: those of row n are `code_M[offsets[n]:offsets[n + 1]]`, numbers."""

    offsets: IntArray
    code_M: np.ndarray

    def keys(self, rows_B: IntArray, width: int) -> IntArray:
        """b * width + number of each label of the rows, ascending."""
        first_B, count_B = self.offsets[rows_B], np.diff(self.offsets)[rows_B]
        step_M = np.arange(count_B.sum()) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        code_M = self.code_M[np.repeat(first_B, count_B) + step_M].astype(np.int64)
        return np.unique(np.repeat(np.arange(len(rows_B)), count_B) * width + code_M)


@dataclass(frozen=True)
class SetChanges:
    """How the sets of labels changed, of the rows without an error in both outputs.

    Attributes:
        rows_changed: rows that got or lost a label.
        added, removed: rows that got a label, and that lost it, by label; the most rows first.
        before, after: rows that have a label, by label.
    """

    rows: int
    rows_changed: int
    added: Mapping[str, int]
    removed: Mapping[str, int]
    before: Mapping[str, int]
    after: Mapping[str, int]

    def to_metrics(self) -> dict[str, float]:
        """Figures for a tracker."""
        return {
            "rows_with_other_labels": float(self.rows_changed),
            "labels_added": float(sum(self.added.values())),
            "labels_removed": float(sum(self.removed.values())),
        }


def read_sets(
    output: OutputRows, column: str, names: dict[str, int], renamed: Mapping[str, str]
) -> LabelSets:
    """The labels of an output's rows: of `label` or `labels`. Names that `names` has not get the
    next numbers in it, those that are `renamed` by their other name."""
    counts, codes = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for file in output.files:
        for batch in read_columns(file, [column]):
            lists = list_of_names(batch[column], column == SEVERAL_COLUMN)
            encoded = lists.flatten().dictionary_encode()
            found = [renamed.get(one, one) for one in encoded.dictionary.to_pylist()]
            number = np.array([names.setdefault(one, len(names)) for one in found], np.int32)
            codes.append(number[encoded.indices.to_numpy(zero_copy_only=False)])
            counts.append(pc.list_value_length(lists).to_numpy())
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return LabelSets(offsets, np.concatenate(codes))


@dataclass(frozen=True)
class MatchedSets:
    """The label sets of the rows of two outputs that are compared: their places in each [G]."""

    before: LabelSets
    after: LabelSets
    at_before_G: IntArray
    at_after_G: IntArray
    names: list[str]

    def compared(self) -> SetChanges:
        """Count what changed."""
        rows = 0
        totals = np.zeros((4, len(self.names)), np.int64)
        for _, old, new, width in self._blocks():
            added, removed = _missing(new, old), _missing(old, new)
            rows += len(np.unique(np.concatenate([added, removed]) // width))
            for total, keys in zip(totals, (added, removed, old, new), strict=True):
                total += np.bincount(keys % width, minlength=width)[: len(total)]
        counted = (
            {name: int(n) for name, n in Counter(dict(zip(self.names, total))).most_common() if n}
            for total in totals.tolist()
        )
        return SetChanges(len(self.at_before_G), rows, *counted)

    def write_changed(self, place: Place, output: OutputRows) -> None:
        """Write a Parquet file with each row whose labels changed, in the order of the current
        output: its id, `labels_added` and `labels_removed`."""
        place.parent.mkdir(parents=True, exist_ok=True)
        lists = pa.list_(pa.string())
        schema = pa.schema(
            [(output.id_column, pa.string()), ("labels_added", lists), ("labels_removed", lists)]
        )
        with (
            place.open_output() if isinstance(place, RemotePath) else nullcontext(place) as file,
            pq.ParquetWriter(file, schema) as writer,
        ):
            for rows_B, old, new, width in self._blocks():
                added, removed = _missing(new, old), _missing(old, new)
                moved = np.unique(np.concatenate([added, removed]) // width)
                if len(moved):
                    columns = [pa.array(output.ids_at(rows_B[moved]), pa.string())]
                    columns += [self._lists(keys, moved, width) for keys in (added, removed)]
                    writer.write_table(pa.table(columns, schema=schema))

    def _blocks(self) -> Iterator[tuple[IntArray, IntArray, IntArray, int]]:
        """Rows of the current output, in its order, with the keys of their labels before and after
        and what these are to be divided by."""
        order_G, width = np.argsort(self.at_after_G, kind="stable"), max(len(self.names), 1)
        for first in range(0, len(order_G), BLOCK_ROWS):
            here = order_G[first : first + BLOCK_ROWS]
            after_B = self.at_after_G[here]
            old = self.before.keys(self.at_before_G[here], width)
            yield after_B, old, self.after.keys(after_B, width), width

    def _lists(self, keys: IntArray, moved: IntArray, width: int) -> pa.ListArray:
        counts = np.bincount(np.searchsorted(moved, keys // width), minlength=len(moved))
        names = pa.array(self.names, pa.string()).take(pa.array(keys % width))
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, names)


def _missing(keys: IntArray, others: IntArray) -> IntArray:
    return np.setdiff1d(keys, others, assume_unique=True)
